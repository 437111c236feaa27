// What a process sees of cold kernels: prepareMatmul of one weight after the other, each of a format that it has not
// used, and their first products. Run by cold.ts in processes of its own; prints one line of JSON.
import { format, type Format } from "../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm } from "../src/index.ts";

const [N, K] = [256, 1024];
const NAMES = [
  "int4_b32",
  "int4_b64",
  "int8_b32",
  "nvfp4",
  "nf4_b64",
  "int3_b64",
  "mxfp4",
  "int2_b64",
  "int6_b32",
  "uint4_b32_zp",
  "int5_b128",
  "int4_b128",
];

const median = (values: readonly number[]): number => values.slice().sort((a, b) => a - b)[values.length >> 1];
const data = Float32Array.from({ length: N * K }, (_, i) => Math.sin(i * 12.9898) * ((i % 7) - 3));
const x = Float32Array.from({ length: K }, (_, i) => Math.cos(i));
const begin = performance.now();
const backend = await wasm();
const start = performance.now() - begin;
const weights = NAMES.map((name) => quantize(tensor(data, [N, K]), format(name) as Format));

const measure = (w: (typeof weights)[number]): { prepare: number; first: number; steady: number } => {
  const t0 = performance.now();
  const layer = prepareMatmul(w, { backend, activations: "int8" });
  const t1 = performance.now();
  layer.run(x, 1);
  const t2 = performance.now();
  const times: number[] = [];
  while (performance.now() < t2 + 20) {
    const now = performance.now();
    layer.run(x, 1);
    times.push(performance.now() - now);
  }
  layer.dispose();
  return { prepare: t1 - t0, first: t2 - t1, steady: median(times) };
};
const [first, ...later] = weights.map(measure);
const again = weights.map(measure);
console.log(
  JSON.stringify({
    "wasm(), ms": start,
    "prepareMatmul, first of the process, ms": first.prepare,
    "prepareMatmul, new formats, median, ms": median(later.map((t) => t.prepare)),
    "first product over a later one, new formats, median": median(later.map((t) => t.first / t.steady)),
    "prepareMatmul, formats used before, median, ms": median(again.map((t) => t.prepare)),
  }),
);
process.exit(0);

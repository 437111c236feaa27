// npm run bench -- low-bit: products of few bits on one thread beside int4 with int8 activations (W4A8): W4A4, W6A6,
// W6A8, an eighth of the channels in 8 bits beside 4 (COMET's FMPQ, in an order of their own), powers of two
// (float4_e3m0), ternary; and what a Hadamard transform of the activations on the way costs.
import { defineBlock } from "../formats/define/index.ts";
import { format } from "../formats/index.ts";
import { float32 } from "../formats/float32.ts";
import { float4_e3m0 } from "../formats/float4_e3m0.ts";
import { prepareMatmul, quantize, tensor, wasm, type Activations, type PrepareOptions } from "../src/index.ts";
import { absmeanTernary, gaussian, outlierSplit, seededRandom } from "../src/quantize/index.ts";
import { measure, type Candidate, type Row } from "./measure.ts";

const POWERS = defineBlock({ element: float4_e3m0, scales: [{ format: float32, span: 32 }] });
const ROWS = 64;

export async function lowBit(options: { readonly seconds: number; readonly quick: boolean }): Promise<{
  rows: Row[];
  ratios: Record<string, number>;
  missing: string[];
}> {
  const random = gaussian(seededRandom(1));
  const backend = await wasm();
  const ratios: Record<string, number> = {};
  const rows: Row[] = [];
  const size = options.quick ? 1024 : 4096;
  const w = tensor(Float32Array.from({ length: size * size }, random), [size, size]);
  const x = Float32Array.from({ length: ROWS * size }, random);
  const out = new Float32Array(ROWS * size);
  const int4 = quantize(w, format("int4_b32"), { backend });
  const int6 = quantize(w, format("int6_b32"), { backend });
  const magnitudes = Float64Array.from({ length: size }, (_, i) => (i % 8 === 5 ? 50 : 1));
  const mixed = outlierSplit(magnitudes, { block: 32 });
  const cases: readonly (readonly [string, typeof int4, Activations, PrepareOptions?])[] = [
    ["W4A8", int4, "int8"],
    ["W4A4", int4, "int4"],
    ["W4A4, an eighth A8", int4, "int4", { mixed: { wide: mixed.wide } }],
    ["W4A4, an eighth A8, reordered", int4, "int4", { mixed }],
    ["W6A8", int6, "int8"],
    ["W6A6", int6, "int6"],
    ["powers of two, A8", quantize(w, POWERS, { backend }), "int8"],
    ["ternary, A8", absmeanTernary(w), "int8"],
    ["W4A4 behind Hadamard 32", int4, "int4", { hadamard: 32 }],
    ["W4A4 behind Hadamard 128", int4, "int4", { hadamard: 128 }],
  ];
  const candidates: Candidate[] = cases.map(([name, packed, activations, more]) => {
    const layer = prepareMatmul(packed, { backend, activations, ...more });
    return { name, ops: 2 * ROWS * size * size, run: () => layer.run(x, ROWS, out) };
  });
  // the same products, which part by less than a few rounds of all scatter: these two also take turns alone
  const [a8, a4] = await measure(candidates.slice(0, 2), options.seconds);
  ratios["W4A4 by turns with W4A8 alone: speed, best rounds"] = a8.bestMs / a4.bestMs;
  ratios["W4A4 by turns with W4A8 alone: speed, median rounds"] = a8.medianMs / a4.medianMs;
  const times = await measure(candidates, options.seconds);
  rows.push(...times);
  const best = (name: string): number => times[cases.findIndex(([of]) => of === name)].bestMs;
  for (const [name] of cases.slice(1, 8)) ratios[`${name}: speed of W4A8`] = best("W4A8") / best(name);
  for (const n of [32, 128])
    ratios[`Hadamard ${n} on the way: share of the product`] = best(`W4A4 behind Hadamard ${n}`) / best("W4A4") - 1;
  backend.dispose();
  return { rows, ratios, missing: [] };
}

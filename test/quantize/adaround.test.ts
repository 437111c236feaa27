// AdaRound against the paper's steps written apart: the same codes, errors and count of roundings, after any number of
// steps, with zero points, dead inputs and weights beyond the codes.
import { expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor, unpack } from "../../src/index.ts";
import type { BlockFormat, PackedTensor } from "../../src/index.ts";
import { adaround, layerStatistics, rtn, type AdaRoundOptions } from "../../src/quantize/index.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";
import { random } from "../helpers/random.ts";
import { adaroundRow } from "../oracle/adaround.ts";

const [rows, k] = [6, 24];
const w = gaussianWeights(rows, k, 3);
w[5] = 1e-9;
const t = tensor(w, [rows, k]);
function hessianOf(x: Float64Array): Float64Array {
  const made = layerStatistics(k);
  made.add(x);
  return made.finish().hessian!;
}
const hessian = hessianOf(inputs("ar", 200, k, 4, 0.97));
const floats = (bytes: Uint8Array) => new Float32Array(bytes.slice().buffer);

/** Scales and zero points of every weight, from a packed tensor of float32 scales and whole zero points. */
function gridOf(packed: PackedTensor, block: number): { steps: number[]; zeros: number[] } {
  const scales = floats(packed.scales!);
  const cells = Math.ceil(k / block);
  const at = (i: number) => Math.floor(i / k) * cells + Math.floor((i % k) / block);
  const zeros = packed.offsets === null ? null : unpack({ ...packed, codes: packed.offsets, format: format("uint4"), k: cells, rowBytes: packed.offsets.length / rows }); // prettier-ignore
  const all = Array.from({ length: rows * k }, (_, i) => at(i));
  return { steps: all.map((c) => scales[c]), zeros: all.map((c) => zeros?.[c] ?? 0) };
}

const cases: { name: string; block: number; low: number; high: number; h?: Float64Array; options?: Partial<AdaRoundOptions> }[] = [
  ...[0, 1, 2, 7, 40].map((iterations) => ({ name: "int4_row", block: k, low: -7, high: 7, options: { iterations } })),
  { name: "int3_b8", block: 8, low: -3, high: 3, options: { iterations: 30, learningRate: 0.4 } },
  { name: "int3_b8", block: 8, low: -3, high: 3, options: { iterations: 30, learningRate: 0.4, lambda: 5 } },
  { name: "int3_b8", block: 8, low: -3, high: 3, options: { iterations: 60, learningRate: 3, lambda: 0 } },
  { name: "int2_b8", block: 8, low: -1, high: 1, options: { iterations: 10 } },
  { name: "uint4_b12_zp", block: 12, low: 0, high: 15, options: { iterations: 25, lambda: 1 } },
  { name: "int4_b8", block: 8, low: -8, high: 7, options: { iterations: 25, search: null, rangeRule: "full" } },
  { name: "int4_b8", block: 8, low: -7, high: 7, options: { iterations: 25, search: { method: "mse", norm: 1, grid: 10 } } },
];

test.each(cases)("codes, error and count of $name, $options", ({ name, block, low, high, options = {} }) => {
  const f = format(name) as BlockFormat;
  const packed = quantize(t, f, adaround({ hessian, ...options }));
  const { steps, zeros } = gridOf(packed, block);
  const matrix = Array.from({ length: k }, (_, i) => Array.from(hessian.subarray(i * k, (i + 1) * k)));
  const o = { iterations: 1000, rate: options.learningRate ?? 0.05, lambda: 0.1, ...options };
  const done = Array.from({ length: rows }, (_, r) => {
    const own = <T>(list: readonly T[]) => list.slice(r * k, (r + 1) * k);
    const scaled = own(Array.from(w, (v, i) => v / steps[i] + zeros[i]));
    return { scaled, ways: adaroundRow({ ...o, scaled, steps: own(steps), low, high, hessian: matrix }) };
  });
  const sums = [0, 1].map((way) => done.reduce((sum, { ways }) => sum + ways[way].error, 0));
  const best = sums[0] <= sums[1] ? 0 : 1;
  const want = done.flatMap(({ ways }) => ways[best].codes);
  expect(Array.from(dequantize(packed, { dtype: "float64" }), (v, i) => Math.round(v / steps[i] + zeros[i]))).toEqual(want);
  expect((packed.recipe.error as number) / sums[best]).toBeCloseTo(1, 9);
  const nearest = done.flatMap(({ scaled }) => scaled.map((q) => Math.min(high, Math.max(low, Math.round(q)))));
  expect(packed.recipe.roundingsChanged).toBe(want.filter((q, i) => q !== nearest[i]).length / (rows * k));
  // the scales are those of rounding to nearest by the same rules and search
  const { search = { method: "mse" }, rangeRule } = options;
  const rules = { ...(rangeRule ? { rangeRule } : {}), ...(search ? { search } : {}) };
  expect(packed.scales).toEqual(quantize(t, f, rtn(rules)).scales);
});

test("inputs that are always zero keep their nearest rounding, and the others do not mind", () => {
  const x = inputs("ar", 200, k, 4, 0.97);
  for (let i = 3; i < x.length; i += k) x[i] = 0;
  const packed = quantize(t, format("int4_row"), adaround({ hessian: hessianOf(x), iterations: 20 }));
  const nearest = unpack(quantize(t, format("int4_row"), rtn({ search: { method: "mse" } })));
  const codes = unpack(packed);
  for (let i = 3; i < codes.length; i += k) expect(codes[i]).toBe(nearest[i]);
  expect(codes).not.toEqual(nearest);
});

test("single rows of few inputs, which learning and nearest rounding start from different sides", () => {
  const rng = random(5);
  let learned = 0;
  for (let n = 0; n < 60; n++) {
    const few = 3 + rng.integer(3);
    const own = Float32Array.from({ length: few }, () => rng.normal());
    const x = Float64Array.from({ length: 9 * few }, (_, i) => rng.normal() + 3 * Math.sin(Math.floor(i / few)));
    const stats = layerStatistics(few);
    stats.add(x);
    const h = stats.finish().hessian;
    const packed = quantize(
      tensor(own, [1, few]),
      format("int3_row"),
      adaround({ hessian: h, iterations: 40, learningRate: 0.2, search: null }),
    );
    const step = floats(packed.scales!)[0];
    const matrix = Array.from({ length: few }, (_, i) => Array.from(h.subarray(i * few, (i + 1) * few)));
    const scaled = Array.from(own, (v) => v / step);
    const ways = adaroundRow({
      iterations: 40,
      rate: 0.2,
      lambda: 0.1,
      scaled,
      steps: scaled.map(() => step),
      low: -3,
      high: 3,
      hessian: matrix,
    });
    const best = ways[0].error <= ways[1].error ? ways[0] : ways[1];
    expect(Array.from(dequantize(packed), (v) => Math.round(v / step))).toEqual(best.codes);
    if (ways[0].error < ways[1].error * (1 - 1e-9)) learned++;
  }
  expect(learned).toBeGreaterThan(0);
});

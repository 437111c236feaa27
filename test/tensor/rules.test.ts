// Scale rules that search, against all candidates tried one by one; products at the ends of their ranges.
import { describe, expect, test } from "vitest";
import { float8_e4m3fn, float32, int4, int6, float4_e2m1fn } from "../../formats/all.ts";
import { defineBlock } from "../../formats/define/index.ts";
import type { NumberFormat, ScaleRule } from "../../formats/core/types.ts";
import { format } from "../../formats/index.ts";
import { dequantize, dotInt16, prepareConv2d, quantize, tensor } from "../../src/index.ts";
import { keepFinite } from "../../src/tensor/quantize/finite.ts";
import { matrixView } from "../../src/tensor/tensor.ts";
import { random } from "../helpers/random.ts";

const rng = random(9);
const K = 16;

/** The values of a format, by its table. */
const valuesOf = (f: NumberFormat): number[] =>
  Array.from({ length: 2 ** f.bits }, (_, c) => f.decode(c)).filter(Number.isFinite).sort((a, b) => a - b); // prettier-ignore
const errorOf = (x: readonly number[], grid: readonly number[], s: number): number =>
  x.reduce((sum, v) => sum + Math.min(...grid.map((g) => (g * s - v) ** 2)), 0);

describe.each(["mse", "mseSweep"] as const)("%s", (scaleRule: ScaleRule) => {
  const reach = scaleRule === "mse" ? 1.2 : 2;
  test.each([
    ["int4, narrow", int4, "narrow"],
    ["int4, full", int4, "full"],
    ["float4_e2m1fn", float4_e2m1fn, undefined],
  ] as const)("%s under float8_e4m3fn scales: the first of the best of all numbers in reach", (_, element, rangeRule) => {
    const f = defineBlock({ name: "t_e4m3", element, scales: [{ format: float8_e4m3fn, span: K }], scaleRule, ...(rangeRule ? { rangeRule } : {}) }); // prettier-ignore
    const grid = valuesOf(element).filter((v) => rangeRule !== "narrow" || v >= -element.limits.max);
    const most = Math.max(grid[grid.length - 1], -grid[0]);
    const known = valuesOf(float8_e4m3fn).filter((v) => v > 0);
    const blocks = Array.from({ length: 40 }, (_, b) => Array.from({ length: K }, () => Math.fround(rng.laplace() * 2 ** ((b % 9) - 4))));
    const packed = quantize(tensor(Float32Array.from(blocks.flat()), [40, K]), f);
    let moved = 0;
    blocks.forEach((x, b) => {
      const wanted = Math.max(...x.map(Math.abs)) / most;
      const first = known.findIndex((v) => v >= wanted);
      const near = known.filter((v, i) => v >= wanted / 2 && (i <= first || v <= wanted * reach));
      const errors = near.map((s) => errorOf(x, grid, s));
      const got = float8_e4m3fn.decode(packed.scales![b]);
      const best = Math.min(...errors);
      // sums of the two orders differ in their last bits
      expect(errors[near.indexOf(got)], `block ${b}: ${got}`).toBeLessThanOrEqual(best * (1 + 1e-12));
      if (got !== known[first]) moved++;
    });
    expect(moved).toBeGreaterThan(5);
  });

  test("int6 under float32 scales: the best of the factors", () => {
    const f = defineBlock({ name: "t_f32", element: int6, scales: [{ format: float32, span: K }], scaleRule });
    const grid = valuesOf(int6).filter((v) => v > -32 || f.rangeRule !== "narrow");
    const most = Math.max(grid[grid.length - 1], -grid[0]);
    const [count, top] = scaleRule === "mse" ? [100, 1] : [163, 1.5];
    const x = Array.from({ length: K }, (_, i) => Math.fround(i === 3 ? 9 : rng.normal()));
    const got = new Float32Array(quantize(tensor(Float32Array.from(x), [1, K]), f).scales!.slice().buffer)[0];
    const amax = Math.max(...x.map(Math.abs));
    const factors = Array.from({ length: count }, (_, i) => Math.fround((amax / most) * (top - (i * 0.8) / 100)));
    const errors = factors.map((s) => errorOf(x, grid, s));
    expect(factors).toContain(got);
    expect(errors[factors.indexOf(got)]).toBeLessThanOrEqual(Math.min(...errors) * (1 + 1e-12));
  });
});

test("a run of blocks in columns and rows is searched whole: tiles of [2, 8] as rows of 16", () => {
  const make = (span: number | [number, number]) =>
    defineBlock({ name: "t_tile", element: int4, scales: [{ format: float8_e4m3fn, span }], scaleRule: "mse" });
  const x = Float32Array.from({ length: 16 }, () => rng.laplace());
  const tile = quantize(tensor(x, [2, 8]), make([2, 8]));
  expect([...tile.scales!]).toEqual([...quantize(tensor(x, [1, 16]), make(16)).scales!]);
});

test("dotInt16: products that fill an int32, at once and in runs", () => {
  const full = (n: number) => new Int16Array(n).fill(-32768);
  for (const n of [0, 1, 2, 3, 7]) expect(dotInt16(full(n), full(n))).toBe(n * 2 ** 30);
  for (const size of [1, 2, 255, 4095, 23170, 32767]) {
    const [a, b] = [new Int16Array(9000), new Int16Array(9000)].map((v) => v.map(() => (rng.next() < 0.5 ? -size : size)));
    const want = a.reduce((sum, v, i) => sum + BigInt(v) * BigInt(b[i]), 0n);
    expect(BigInt(dotInt16(a, b))).toBe(want);
    expect(dotInt16(a, a)).toBe(9000 * size * size);
  }
  expect(dotInt16(new Int16Array(5), Int16Array.of(1, 2, 3, 4, 5))).toBe(0);
});

test("codes whose value would round to an infinite float32 move to the next that does not, and only those", () => {
  // 31 * 1082401 = 2^25 - 1: times 2^103 just the number that rounds to infinity
  const f = defineBlock({ name: "t_finite", element: int6, scales: [{ format: float32, span: 4 }] });
  const view = matrixView(tensor(new Float32Array(4), [1, 4]));
  const mend = (scale: number, zero: number, ...codes: number[]): number[] => {
    const bits = BigInt(codes.reduceRight((all, c) => all * 64 + (c & 63), 0));
    const bytes = Uint8Array.of(Number(bits & 255n), Number((bits >> 8n) & 255n), Number((bits >> 16n) & 255n));
    keepFinite(view, f, { grid: { rows: 1, k: 4, gridRows: 1, gridK: 1 }, scale: Float64Array.of(scale), zeroPoint: Float64Array.of(zero) } as never, bytes); // prettier-ignore
    const all = bytes[0] + bytes[1] * 256 + bytes[2] * 65536;
    return codes.map((_, i) => Math.floor(all / 64 ** i) % 64).map((c) => (c > 31 ? c - 64 : c));
  };
  const scale = 1082401 * 2 ** 103;
  expect(mend(scale, 0, 31, 30, -31, -32)).toEqual([30, 30, -30, -30]);
  expect(mend(-scale, 0, 31, 30, -31, -30)).toEqual([30, 30, -30, -30]);
  expect(mend(scale, 1, 31, 30, -31, -29)).toEqual([31, 30, -29, -29]);
  expect(mend(scale / 2, 0, 31, 30, -31, -32)).toEqual([31, 30, -31, -32]);
});

test("a filter whose integers do not fit, or are none, is refused: not computed wrongly", () => {
  const code = (text: RegExp) => expect.objectContaining({ code: "E_UNSUPPORTED", message: expect.stringMatching(text) as string });
  const filter = (name: string, f: (i: number) => number) =>
    quantize(tensor(Float32Array.from({ length: 8 }, (_, i) => f(i)), [2, 4, 1, 1]), format(name)); // prettier-ignore
  expect(() => prepareConv2d(filter("int9_row", (i) => i - 4))).not.toThrow();
  // 10-bit codes reach 511
  for (const sign of [1, -1]) expect(() => prepareConv2d(filter("int10_row", (i) => (i % 4 === 0 ? sign : 0.01)))).toThrow(code(/-255 to 255.* with -?511/)); // prettier-ignore
  const half = defineBlock({ name: "t_half_zero", element: format("uint4") as NumberFormat, scales: [{ format: float32, span: "row" }], offset: { role: "zeroPoint", levels: [{ format: float32, span: "row" }] } }); // prettier-ignore
  const packed = quantize(
    tensor(
      Float32Array.from({ length: 8 }, (_, i) => i),
      [2, 4, 1, 1],
    ),
    half,
  );
  const zero = { ...packed, offsets: new Uint8Array(Float32Array.of(0.5, 0.5).buffer) };
  expect(() => prepareConv2d(zero)).toThrow(code(/less their zero points/));
  const whole = { ...packed, offsets: new Uint8Array(Float32Array.of(2, 3).buffer) };
  expect(() => prepareConv2d(whole)).not.toThrow();
  expect(dequantize(whole).every(Number.isFinite)).toBe(true);
});

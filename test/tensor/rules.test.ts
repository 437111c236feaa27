// Scale rules that search, against all candidates tried one by one; products at the ends of their ranges.
import { describe, expect, test } from "vitest";
import { float8_e4m3fn, float32, int4, int6, float4_e2m1fn } from "../../formats/all.ts";
import { defineBlock, defineCodebook } from "../../formats/define/index.ts";
import type { NumberFormat, ScaleRule } from "../../formats/core/types.ts";
import { format } from "../../formats/index.ts";
import { dequantize, dotInt16, prepareConv2d, quantize, tensor } from "../../src/index.ts";
import { fitLogScales } from "../../src/tensor/quantize/log-scales.ts";
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
    let clipped = 0;
    // draws of its own: whether an end is cut does not depend on the tests before
    const own = random(5);
    for (const outlier of [3, 5, 7, 9, 12, 3.3, 4]) {
      const x = Array.from({ length: K }, (_, i) => Math.fround(i === 3 ? outlier : own.normal()));
      const got = new Float32Array(quantize(tensor(Float32Array.from(x), [1, K]), f).scales!.slice().buffer)[0];
      const amax = Math.max(...x.map(Math.abs));
      const factors = Array.from({ length: count }, (_, i) => Math.fround((amax / most) * (top - (i * 0.8) / 100)));
      const errors = factors.map((s) => errorOf(x, grid, s));
      expect(factors).toContain(got);
      expect(errors[factors.indexOf(got)]).toBeLessThanOrEqual(Math.min(...errors) * (1 + 1e-12));
      if (got < Math.fround(amax / most)) clipped++;
    }
    expect(clipped).toBeGreaterThan(0);
    // a block that is on the grid already; the sweep's factors pass by one
    const exact = Float32Array.from({ length: K }, (_, i) => (i === 0 ? 31 : i - 8));
    if (scaleRule === "mse") expect(dequantize(quantize(tensor(exact, [1, K]), f))).toEqual(exact);
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

describe("powers of two of a block's largest magnitude, by the rules' definitions", () => {
  const log = Math.log2;
  // float4_e2m1fn: largest 6, whose exponent is 2; two bits behind the one mantissa bit decide `even`
  const rules: [ScaleRule, (amax: number) => number][] = [
    ["floor", (a) => Math.floor(log(a)) - 2],
    ["ceil", (a) => Math.ceil(log(a)) - 2],
    ["rceil", (a) => Math.ceil(log(a / 6))],
    ["nearest", (a) => Math.round(log(a / 6))],
    ["even", (a) => Math.floor(log(a)) - 2 + (a / 2 ** Math.floor(log(a)) >= 1.75 ? 1 : 0)],
  ];
  const amaxes = [1, 1.2, 1.4, 1.45, 1.5, 1.6, 1.74, 1.75, 1.9, 1.999].flatMap((m) => [-20, -3, 0, 1, 2, 3, 30].map((e) => m * 2 ** e));
  test.each(rules)("%s", (scaleRule, exponent) => {
    const packed = quantize(tensor(Float32Array.from(amaxes.flatMap((a) => [-a, a / 3])), [amaxes.length, 2]), mx, { scaleRule });
    expect([...packed.scales!].map((code) => code - 127)).toEqual(amaxes.map((a) => exponent(Math.fround(a)) + 0));
  });
  test("quest: from the standard deviation of the block", () => {
    const blocks = Array.from({ length: 24 }, (_, b) => Array.from({ length: K }, () => Math.fround((rng.normal() + (b % 3)) * 3 ** ((b % 7) - 3)))); // prettier-ignore
    const packed = quantize(tensor(Float32Array.from(blocks.flat()), [24, K]), wide, { scaleRule: "quest" });
    const want = blocks.map((x) => {
      const mean = x.reduce((s, v) => s + v, 0) / K;
      return Math.floor(log((2.92247856 / 6) * Math.sqrt(x.reduce((s, v) => s + (v - mean) ** 2, 0) / K) + 1e-8));
    });
    expect([...packed.scales!].map((code) => code - 127)).toEqual(want);
  });
  test("a scale of one, and a block of zeros, where the scale format has no zero", () => {
    for (const scaleRule of ["floor", "max"] as const) {
      const x = Float32Array.of(6, -4, 1.5, 0.5, ...new Float32Array(4));
      const packed = quantize(tensor(x, [2, 4]), defineBlock({ element: float4_e2m1fn, scales: [{ format: e8m0, span: 4 }] }), { scaleRule }); // prettier-ignore
      expect(dequantize(packed)).toEqual(x);
    }
  });
});

const e8m0 = format("float8_e8m0fnu") as NumberFormat;
const mx = defineBlock({ name: "t_mx", element: float4_e2m1fn, scales: [{ format: e8m0, span: 2 }] });
const wide = defineBlock({ name: "t_mx16", element: float4_e2m1fn, scales: [{ format: e8m0, span: K }] });

test("mse under scales of a quarter's steps: the next one above counts though it is out of reach", () => {
  const coarse = format("float8_e5m2") as NumberFormat;
  const f = defineBlock({ name: "t_e5m2", element: int6, scales: [{ format: coarse, span: K }], scaleRule: "mse" });
  const [grid, known] = [valuesOf(int6).filter((v) => v > -32), valuesOf(coarse).filter((v) => v > 0)];
  const blocks = Array.from({ length: 60 }, () => Array.from({ length: K }, () => Math.fround(rng.next() < 0.5 ? 1.3 : -1.3) * (0.7 + rng.next()))); // prettier-ignore
  const packed = quantize(tensor(Float32Array.from(blocks.flat()), [60, K]), f);
  let above = 0;
  blocks.forEach((x, b) => {
    const row = x.map(Math.fround);
    const wanted = Math.max(...row.map(Math.abs)) / 31;
    const first = known.findIndex((v) => v >= wanted);
    const near = known.filter((v, i) => v >= wanted / 2 && (i <= first || v <= wanted * 1.2));
    const errors = near.map((s) => errorOf(row, grid, s));
    const got = coarse.decode(packed.scales![b]);
    expect(errors[near.indexOf(got)]).toBeLessThanOrEqual(Math.min(...errors) * (1 + 1e-12));
    if (got > wanted * 1.2) above++;
  });
  expect(above).toBeGreaterThan(0);
});

test("four over six: the lesser error of the scale for 6 and the scale for 4", () => {
  const e4m3 = float8_e4m3fn;
  const f = defineBlock({ name: "t_46", element: float4_e2m1fn, scales: [{ format: e4m3, span: K }, { format: float32, span: "tensor" }], scaleRule: "fourOverSix" }); // prettier-ignore
  const blocks = Array.from({ length: 60 }, () => Array.from({ length: K }, () => Math.fround(rng.normal())));
  const packed = quantize(tensor(Float32Array.from(blocks.flat()), [60, K]), f);
  const amax = Math.max(...blocks.flat().map(Math.abs));
  const outer = Math.fround(amax / 6 / 256); // 448 / 1.5 falls below 256 + 32: the largest power of two leaves room for 6 / 4
  expect(new Float32Array(packed.superScales!.slice().buffer)[0]).toBe(outer);
  const [grid, seen] = [valuesOf(float4_e2m1fn), new Set<number>()];
  blocks.forEach((x, b) => {
    const wanted = Math.max(...x.map(Math.abs)) / 6 / outer;
    const two = [wanted, 1.5 * wanted].map((v) => e4m3.decode(e4m3.encode(v)));
    const [six, four] = two.map((s) => errorOf(x, grid, s * outer));
    const chosen = four < six ? 1 : 0;
    seen.add(chosen);
    if (Math.abs(four - six) > 1e-9 * six) expect(e4m3.decode(packed.scales![b])).toBe(two[chosen]);
  });
  expect(seen.size).toBe(2);
});

test("two levels: in every reach of the outer scale the largest inner one is the largest of its format; zeros stay", () => {
  const f = (span: number | "row" | readonly [number, number]) =>
    defineBlock({ element: float4_e2m1fn, scales: [{ format: float8_e4m3fn, span: 4 }, { format: float32, span }] }); // prettier-ignore
  const [rows, k] = [4, 32];
  const x = Float32Array.from({ length: rows * k }, (_, i) => (i % 16 < 4 ? 0 : rng.normal() * 4 ** (Math.floor(i / 16) % 5)));
  for (const [span, r, c] of [
    [16, 1, 16],
    ["row", 1, 32],
    [[2, 8], 2, 8],
  ] as const) {
    // prettier-ignore
    const packed = quantize(tensor(x, [rows, k]), f(span));
    const inner = [...packed.scales!].map((code) => float8_e4m3fn.decode(code));
    const tops = new Map<string, number>();
    inner.forEach((v, i) => {
      const [row, column] = [Math.floor(i / (k / 4)), (i % (k / 4)) * 4];
      const reach = `${Math.floor(row / r)} ${Math.floor(column / c)}`;
      tops.set(reach, Math.max(tops.get(reach) ?? 0, v));
    });
    expect(new Set(tops.values()), String(span)).toEqual(new Set([448]));
    // blocks of zeros have no part in it
    expect(inner.filter((_, i) => i % 4 === 0)).toEqual(new Array(inner.length / 4).fill(0));
  }
});

test("unsigned codes with zero points under symmetric ranges: the middle code is zero", () => {
  const f = defineBlock({ name: "t_u4", element: format("uint4") as NumberFormat, scales: [{ format: float32, span: 4 }], offset: { role: "zeroPoint", levels: [{ format: format("uint4") as NumberFormat, span: 4 }] } }); // prettier-ignore
  const x = tensor(Float32Array.of(-4, 2, 1, 3, 4, 2, -1, 0), [2, 4]);
  const cases = [
    ["full", {}, [0.5, 0.5], 8],
    ["ort", {}, [0.5, -0.5], 8],
    ["full", { arithmetic: "ort" }, [0.5, 0.5], 8],
    ["ort", { arithmetic: "ort" }, [0.5, -0.5], 8],
  ] as const;
  for (const [rangeRule, options, scales, zero] of cases) {
    const packed = quantize(x, f, { rangeRule, ...options });
    expect([...new Float32Array(packed.scales!.slice().buffer)], `${rangeRule} ${JSON.stringify(options)}`).toEqual(scales);
    // a row's one zero point in a byte of its own
    expect([...packed.offsets!]).toEqual([zero, zero]);
  }
});

test("every rounding by its name, and stochastic rounding by the caller's numbers", () => {
  const int8 = format("int8") as NumberFormat;
  const x = Float32Array.of(2.5, -2.5, 3.5, -3.5, 2.25, -2.25, 2.75, -2.75);
  const away = (v: number) => Math.sign(v) * Math.ceil(Math.abs(v));
  const near = (tie: (v: number) => number) => (v: number) => (Math.abs(v % 1) === 0.5 ? tie(v) : Math.round(v));
  const want: Record<string, (v: number) => number> = {
    halfEven: near((v) => 2 * Math.round(v / 2)),
    halfExpand: near(away),
    halfTrunc: near(Math.trunc),
    halfCeil: near(Math.ceil),
    halfFloor: near(Math.floor),
    trunc: Math.trunc,
    expand: away,
    ceil: Math.ceil,
    floor: Math.floor,
  };
  const run = (options: object) => [...dequantize(quantize(tensor(x, [8]), int8, options))].map((v) => v + 0);
  for (const [rounding, f] of Object.entries(want)) expect(run({ rounding }), rounding).toEqual([...x].map((v) => f(v) + 0));
  expect(run({ arithmetic: "exact" })).toEqual(run({}));
  // toward zero with one end of [0, 1), away from it with the other
  const ends = [0, 1 - 2 ** -32].map((r) => run({ rounding: "stochastic", random: () => r }));
  expect(ends.map((values) => values.join()).sort()).toEqual([[...x].map(Math.trunc).join(), [...x].map(away).join()].sort());
  expect(() => run({ rounding: "stochastic", random: 0.5 })).toThrow(TypeError);
});

test("steps of Transformer Engine's and MR-GPTQ's rules, by their formulas", () => {
  const f = (scaleRule: ScaleRule) =>
    defineBlock({ name: "t_nv", element: float4_e2m1fn, scales: [{ format: float8_e4m3fn, span: K }, { format: float32, span: "tensor" }], scaleRule }); // prettier-ignore
  const blocks = Array.from({ length: 12 }, (_, b) => Array.from({ length: K }, () => Math.fround(rng.normal() * 2 ** (b % 5)))); // prettier-ignore
  const x = tensor(Float32Array.from(blocks.flat()), [12, K]);
  const [amaxes, r] = [blocks.map((v) => Math.max(...v.map(Math.abs))), Math.fround];
  const outer = (packed: { superScales: Uint8Array | null }) => new Float32Array(packed.superScales!.slice().buffer)[0];
  const inner = (packed: { scales: Uint8Array | null }) => [...packed.scales!].map((code) => float8_e4m3fn.decode(code));
  const store = (v: number) => float8_e4m3fn.decode(float8_e4m3fn.encode(v, { overflow: "saturate" }));
  const te = quantize(x, f("te"));
  const encode = r((448 * 6) / Math.max(...amaxes));
  expect(outer(te)).toBe(r(1 / encode));
  expect(inner(te)).toEqual(amaxes.map((a) => store(Math.min(r(r(a / 6) * encode), 448))));
  const thirds = quantize(x, f("fourThirds"));
  expect(outer(thirds)).toBe(r(2 / 6));
  expect(inner(thirds)).toEqual(amaxes.map((a) => 2 ** Math.floor(Math.log2(a))));
});

test("onnxruntime's steps at a scale of one, and over a range that float32 cannot hold", () => {
  const exact = Float32Array.from({ length: 32 }, (_, i) => (i === 0 ? -128 : 4 * i - 60));
  const one = quantize(tensor(exact, [1, 32]), format("int8_b32"), { arithmetic: "ort" });
  expect(new Float32Array(one.scales!.slice().buffer)[0]).toBe(1);
  expect(dequantize(one)).toEqual(exact);
  const wideRange = quantize(tensor(Float32Array.of(-3e38, 3e38, 0, 1e38), [1, 4]), format("uint8_b4_zp"), { arithmetic: "ort", rangeRule: "minmax" }); // prettier-ignore
  expect(new Float32Array(wideRange.scales!.slice().buffer)[0] / (6e38 / 255)).toBeCloseTo(1, 6);
});

test("an element that reaches further below zero than above is scaled by that end", () => {
  const element = defineCodebook({ name: "t_low", bits: 2, values: [-2, -1, 0, 1] });
  const f = defineBlock({ element, scales: [{ format: float32, span: 4 }] });
  expect([...dequantize(quantize(tensor(Float32Array.of(-6, -3, 0, 3), [1, 4]), f))]).toEqual([-6, -3, 0, 3]);
});

test("fitted scales end at the smallest and the largest block, whatever their size", () => {
  for (const size of [1e-3, 1, 1e3]) {
    const x = tensor(Float32Array.from({ length: 64 }, (_, i) => size * (i < 32 ? 6 : 0.06)), [2, 32]); // prettier-ignore
    const f = fitLogScales(x, { element: float4_e2m1fn });
    const values = valuesOf(f.scales[0].format);
    expect(values[0] / (size * 0.01)).toBeCloseTo(1, 5);
    expect(values.at(-1)! / size).toBeCloseTo(1, 5);
  }
});

test("recipes say what made the codes", () => {
  const x = tensor(Float32Array.from({ length: 256 }, () => rng.normal()), [1, 256]); // prettier-ignore
  expect(quantize(x, format("ggml_q4_0")).recipe).toEqual({ version: 1, algorithm: "rtn" });
  expect(quantize(x, format("int8")).recipe).toEqual({ version: 1, algorithm: "rtn", rounding: "halfEven", overflow: "saturate" });
  expect(quantize(x, format("int8"), { rounding: "floor", overflow: "wrap" }).recipe).toMatchObject({
    rounding: "floor",
    overflow: "wrap",
  });
});

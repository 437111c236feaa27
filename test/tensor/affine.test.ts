// quantize by the formulas of docs/numerics.md, whole tensors at a time: range rules, reduced ranges, scale formats that
// round coarsely, means of scales, two levels. The oracle knows lists of numbers and nothing of the library.
import { describe, expect, test } from "vitest";
import { defineBlock, format, type BlockFormat, type NumberFormat, type RangeRule, type Span } from "../../formats/index.ts";
import { levelValues } from "../../formats/core/packed.ts";
import { dequantize, quantize, tensor, unpack, wasm } from "../../src/index.ts";
import { halfEven } from "../oracle/affine.ts";
import { E4M3, nearest, nvfp4 } from "../oracle/blocks.ts";
import { half } from "../oracle/ort.ts";
import { awkwardBlock, random } from "../helpers/random.ts";

const scalar = (name: string): NumberFormat => format(name) as NumberFormat;
const f32 = Math.fround;
const backend = await wasm();

/** How a scale is stored: rounded once, and never to zero. */
const STORES: Record<string, (v: number) => number> = {
  float32: f32,
  float16: (v) => half(v) || Math.sign(v) * 2 ** -24,
  float8_e4m3fn: (v) => E4M3[nearest(E4M3, v)]! || Math.sign(v) * 2 ** -9,
};

/** Least and largest code of a range, and what an extreme is divided by. */
function range(bits: number, signed: boolean, rule: RangeRule, reduced: boolean): { lo: number; hi: number } {
  const top = 2 ** (bits - 1);
  if (reduced) return signed ? { lo: -top / 2, hi: top / 2 - (bits < 8 ? 1 : 0) } : { lo: 0, hi: top - 1 };
  if (rule === "narrow") return signed ? { lo: 1 - top, hi: top - 1 } : { lo: 0, hi: 2 * top - 2 };
  return signed ? { lo: -top, hi: top - 1 } : { lo: 0, hi: 2 * top - 1 };
}

interface Case {
  readonly bits: number;
  readonly signed: boolean;
  readonly zeroPoint: boolean;
  readonly rule: RangeRule;
  readonly reduced: boolean;
}

/** One block: its scale before it is stored, and its zero point. */
function wanted(x: readonly number[], { bits, signed, zeroPoint, rule, reduced }: Case): { scale: number; zero: number } {
  const { lo, hi } = range(bits, signed, rule, reduced);
  const top = 2 ** (bits - 1);
  if (rule === "minmax") {
    const [least, most] = [Math.min(0, ...x), Math.max(0, ...x)];
    const scale = (most - least) / (hi - lo);
    const clamp = (z: number) => Math.max(signed ? -top : 0, Math.min(signed ? top - 1 : 2 * top - 1, z));
    return scale === 0 ? { scale: 1, zero: clamp(0) } : { scale, zero: clamp(halfEven(lo - least / scale)) };
  }
  const amax = Math.max(...x.map(Math.abs));
  const middle = !zeroPoint ? 0 : !reduced && rule !== "gptq" && rule !== "narrow" ? (signed ? 0 : top) : halfEven((lo + hi) / 2);
  const signedExtreme = x.reduce((best, v) => (Math.abs(v) > Math.abs(best) || (v === -best && v < 0) ? v : best), 0);
  let scale: number;
  if (rule === "ort" && !reduced) scale = signedExtreme / -top;
  else if (rule === "full" && !reduced) scale = amax / top;
  else if (rule === "narrow" && !reduced && !zeroPoint) scale = amax / (top - 1);
  else scale = (2 * amax) / (hi - lo);
  return { scale: scale === 0 ? 1 : scale, zero: middle };
}

const cases: Case[] = [];
for (const bits of [2, 3, 4, 5, 8])
  for (const signed of [true, false])
    for (const zeroPoint of [true, false])
      for (const rule of ["narrow", "full", "gptq", "ort", "minmax"] as const)
        for (const reduced of [false, true])
          // unsigned codes without a zero point hold no negative numbers, and minmax is about zero points
          if (zeroPoint ? !signed || rule === "minmax" : signed && rule !== "minmax")
            cases.push({ bits, signed, zeroPoint, rule, reduced });

const SPAN = 16;
const [rows, k] = [12, 40];

test.each(Object.keys(STORES))("every range of integers under %s scales, codes, scales and zero points", (stored) => {
  const rng = random(3);
  const x = new Float32Array(rows * k);
  // no scale is beyond its format
  const most = { float32: Infinity, float16: 6e4, float8_e4m3fn: 200 }[stored]!;
  for (let at = 0, kind = 0; at < x.length; at += 8, kind++)
    x.set(awkwardBlock(rng, 8, kind % 10).map((v) => Math.max(-most, Math.min(most, v))), at); // prettier-ignore
  for (const c of cases) {
    const element = scalar(`${c.signed ? "int" : "uint"}${c.bits}`);
    const level = (f: NumberFormat) => [{ format: f, span: SPAN }];
    const f = defineBlock({ element, scales: level(scalar(stored)), ...(c.zeroPoint ? { offset: { role: "zeroPoint" as const, levels: level(element) } } : {}) }); // prettier-ignore
    const options = { rangeRule: c.rule, reduceRange: c.reduced };
    const packed = quantize(tensor(x, [rows, k]), f, options);
    const [codes, scales] = [unpack(packed), levelValues(f.scales[0], packed.scales!, rows, k)];
    const zeros = c.zeroPoint ? levelValues(f.offset!.levels[0], packed.offsets!, rows, k) : null;
    const [least, top] = c.signed ? [-(2 ** (c.bits - 1)), 2 ** (c.bits - 1) - 1] : [0, 2 ** c.bits - 1];
    const low = c.rule === "narrow" && c.signed ? -top : least;
    for (let r = 0, at = 0; r < rows; r++)
      for (let j = 0; j < k; j += SPAN, at++) {
        const block = Array.from(x.subarray(r * k + j, r * k + Math.min(k, j + SPAN)));
        const { scale, zero } = wanted(block, c);
        const own = STORES[stored](scale);
        const what = `${JSON.stringify(c)} row ${r} block ${j}`;
        if (scales[at] !== own || (zeros !== null && zeros[at] !== zero)) expect([scales[at], zeros?.[at]], what).toEqual([own, zero]);
        // an extreme on a tie is decided before its scale is rounded to float32
        const by = c.rule === "gptq" && !c.reduced && !c.zeroPoint && stored === "float32" ? scale : own;
        block.forEach((v, i) => {
          const want = Math.max(low, Math.min(top, halfEven(v / by) + zero)) & (2 ** c.bits - 1);
          if (codes[r * k + j + i] !== want) expect(codes[r * k + j + i], `${what} value ${v}`).toBe(want);
        });
      }
    expect(quantize(tensor(x, [rows, k]), f, { ...options, backend })).toEqual(packed);
  }
});

test.each([
  ["of the tensor", "tensor"],
  ["of each row", "row"],
  ["of a tile", [3, 16]],
  ["of 16 columns", 16],
] as [string, Span][])("a mean %s is taken out of the scales before they are stored", (_, span) => {
  const f = defineBlock({ element: scalar("int4"), scales: [{ format: scalar("float8_e4m3fn"), span: 8 }], offset: { role: "mean", levels: [{ format: scalar("float32"), span }] } }); // prettier-ignore
  const rng = random(6);
  const x = Float32Array.from({ length: rows * k }, (_, i) => (i >= 8 && i < 16 ? 0 : rng.normal() * (1 + (i % 3))));
  const packed = quantize(tensor(x, [rows, k]), f);
  const blocks = k / 8;
  const want = Array.from({ length: rows * blocks }, (_, b) => Math.max(...x.subarray(8 * b, 8 * b + 8).map(Math.abs)) / 7);
  const [high, wide] = span === "tensor" ? [rows, blocks] : span === "row" ? [1, blocks] : typeof span === "number" ? [1, span / 8] : [span[0], span[1] / 8]; // prettier-ignore
  const reach = (b: number): number => Math.floor(Math.floor(b / blocks) / high) * 100 + Math.floor((b % blocks) / wide);
  const scale = want.map((v, b) => {
    const members = want.filter((_, c) => reach(c) === reach(b));
    const mean = f32(members.reduce((s, m) => s + m, 0) / members.length);
    return f32(E4M3[nearest(E4M3, v - mean)]! + mean);
  });
  const means = levelValues(f.offset!.levels[0], packed.offsets!, rows, k);
  expect(means.length).toBe(new Set(want.map((_, b) => reach(b))).size);
  const values = dequantize(packed, { dtype: "float64" });
  const codes = Array.from(unpack(packed), (c) => (c > 7 ? c - 16 : c));
  x.forEach((v, i) => {
    const s = scale[i >> 3];
    const code = s === 0 ? 0 : Math.max(-7, Math.min(7, halfEven(v / s)));
    expect(codes[i], `value ${i}`).toBe(code + 0);
    expect(Math.abs(values[i] - code * s)).toBeLessThanOrEqual(Math.abs(code * s) * 2 ** -23);
  });
  expect(quantize(tensor(x, [rows, k]), f, { backend })).toEqual(packed);
});

test("double quantization: mean, outer and inner scales of NF4, step by step", () => {
  const f = format("nf4_b64_dq") as BlockFormat;
  const rng = random(8);
  const [n, wide] = [3, 256];
  const x = Float32Array.from({ length: n * wide }, () => rng.normal());
  const packed = quantize(tensor(x, [n, wide]), f);
  const amax = Array.from({ length: (n * wide) / 64 }, (_, b) => Math.max(...x.subarray(64 * b, 64 * b + 64).map(Math.abs)));
  const mean = f32(amax.reduce((a, b) => a + b, 0) / amax.length);
  const map = Array.from({ length: 256 }, (_, c) => f.scales[0].format.decode(c));
  expect(levelValues(f.offset!.levels[0], packed.offsets!, n, wide)).toEqual(Float64Array.of(mean));
  const outer = levelValues(f.scales[1], packed.superScales!, n, wide);
  const inner = levelValues(f.scales[0], packed.scales!, n, wide);
  for (let r = 0; r < n; r++) {
    const own = amax.slice(4 * r, 4 * r + 4).map((a) => a - mean);
    expect(outer[r]).toBe(f32(Math.max(...own.map(Math.abs)) / Math.max(...map)));
    own.forEach((v, b) => {
      const t = v / outer[r];
      const least = Math.min(...map.map((m) => Math.abs(m - t)));
      expect(Math.abs(inner[4 * r + b] - t)).toBe(least);
    });
  }
});

describe("two levels of float32 steps, whole tensors", () => {
  const f = format("nvfp4") as BlockFormat;
  test.each(["torchao", "te", "modelopt"] as const)("%s", (scaleRule) => {
    for (let seed = 1; seed < 12; seed++) {
      const rng = random(seed);
      const x = new Float32Array(128);
      for (let b = 0; b < 8; b++) x.set(awkwardBlock(rng, 16, rng.integer(12)), 16 * b);
      if (seed === 1) x.fill(0);
      const want = nvfp4(x, scaleRule);
      for (const given of [{}, { backend }]) {
        const packed = quantize(tensor(x, [4, 32]), f, { scaleRule, ...given });
        expect(new Float32Array(packed.superScales!.slice().buffer)[0]).toBe(want.tensor);
        expect([...packed.scales!]).toEqual(want.scales);
        expect([...unpack(packed)]).toEqual(want.codes);
      }
    }
  });
});

test("a scale beyond its format is named, the first of those that are, and what holds the largest is stored", () => {
  const f = defineBlock({ element: scalar("int4"), scales: [{ format: scalar("float16"), span: 2 }] });
  const stored = (...amax: number[]) => quantize(tensor(Float32Array.from(amax.flatMap((a) => [7 * a, 0])), [1, 2 * amax.length]), f);
  expect([...new Uint16Array(stored(65504, 1).scales!.slice().buffer)]).toEqual([0x7bff, 0x3c00]);
  expect(() => stored(1, 65504, 2 ** 17, 2 ** 18)).toThrow("quantize scale: expected at most 65504, the largest float16, got 131072. Take a format with float32 scales, or scale the tensor."); // prettier-ignore
  // one rounding beyond it is the largest
  expect([...new Uint16Array(stored(65504 * (1 + 2 ** -22)).scales!.slice().buffer)]).toEqual([0x7bff]);
});

test("where scales have few bits below their normal numbers, elements of wide range take the least normal one", () => {
  const f = defineBlock({ element: scalar("bfloat16"), scales: [{ format: scalar("float16"), span: 4 }] });
  const scales = (size: number) => levelValues(f.scales[0], quantize(tensor(Float32Array.of(size, 0, 0, size / 2), [1, 4]), f).scales!, 1, 4)[0]; // prettier-ignore
  expect(scales(1)).toBe(2 ** -14);
  // an element of narrow range needs the scale it has: seven codes of a float6 against none
  const narrow = defineBlock({ element: scalar("float6_e2m3fn"), scales: [{ format: scalar("float16"), span: 4 }] });
  const x = tensor(Float32Array.of(7.5 * 2 ** -20, -(2 ** -20), 0, 2 ** -20), [1, 4]);
  expect(levelValues(narrow.scales[0], quantize(x, narrow).scales!, 1, 4)[0]).toBe(2 ** -20);
  expect([...dequantize(quantize(x, narrow))]).toEqual([...x.data]);
  // integers never do
  const integers = defineBlock({ element: scalar("int8"), scales: [{ format: scalar("float16"), span: 4 }] });
  expect(levelValues(integers.scales[0], quantize(tensor(Float32Array.of(127 * 2 ** -20, 0, 0, 0), [1, 4]), integers).scales!, 1, 4)[0]).toBe(2 ** -20); // prettier-ignore
});

test("onnxruntime's least scale: below the smallest normal float32 it is one, at it it is itself", () => {
  const f = format("int8_row") as BlockFormat;
  const scale = (size: number, arithmetic: "onnx" | "ort") =>
    new Float32Array(quantize(tensor(Float32Array.of(127 * size, 0), [1, 2]), f, { arithmetic }).scales!.slice().buffer)[0];
  for (const arithmetic of ["onnx", "ort"] as const) {
    expect(scale(2 ** -126, arithmetic)).toBe(2 ** -126);
    expect(scale(2 ** -127, arithmetic)).toBe(1);
  }
});

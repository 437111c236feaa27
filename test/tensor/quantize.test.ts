// quantize and dequantize against an oracle written apart: spans of every kind, tails, strided sources, scale formats,
// zero points, ends.
import ndarray from "ndarray";
import { describe, expect, test } from "vitest";
import {
  defineBlock,
  float16,
  float32,
  format,
  int4,
  int8,
  uint4,
  uint8,
  type BlockFormat,
  type NumberFormat,
  type Span,
} from "../../formats/index.ts";
import { levelValues } from "../../formats/core/packed.ts";
import { dequantize, quantize, tensor, transpose, unpack } from "../../src/index.ts";
import { rtn } from "../../src/quantize/index.ts";
import { asymmetricBlock, symmetricBlock } from "../oracle/affine.ts";
import { normalArray } from "../helpers/random.ts";

const block = (name: string) => format(name) as BlockFormat;
const signed = (f: NumberFormat, codes: ArrayLike<number>) => Array.from(codes, (c) => f.decode(c));
const f16 = (x: number) => float16.decode(float16.encode(x));

/** Rows of the oracle's cells: which block every element belongs to. */
function cells(span: Span, rows: number, k: number): number[][] {
  const [r, c] = span === "tensor" ? [rows, k] : span === "row" ? [1, k] : typeof span === "number" ? [1, span] : span;
  const out: number[][] = [];
  for (let i = 0; i < rows; i += r)
    for (let j = 0; j < k; j += c) {
      const cell: number[] = [];
      for (let a = i; a < Math.min(rows, i + r); a++) for (let b = j; b < Math.min(k, j + c); b++) cell.push(a * k + b);
      out.push(cell);
    }
  return out;
}

const spans: Span[] = [1, 2, 7, 16, 32, 100, "row", "tensor", [3, 8], [64, 64]];
const sizes = [
  [1, 1],
  [1, 33],
  [5, 32],
  [17, 50],
  [33, 97],
] as const;

describe.each([
  ["int8", int8, float32, false],
  ["int4", int4, float16, false],
  ["uint4", uint4, float32, true],
  ["uint8", uint8, float16, true],
  ["int4 with zero point", int4, float32, true],
  ["int3", format("int3") as NumberFormat, float32, false],
] as const)("%s", (_, element, scaleFormat, zeroPoint) => {
  test.each(spans.map((s) => [JSON.stringify(s), s] as const))("span %s equals the oracle", (__, span) => {
    const f = defineBlock({
      element,
      scales: [{ format: scaleFormat, span }],
      ...(zeroPoint ? { offset: { role: "zeroPoint" as const, levels: [{ format: element, span }] } } : {}),
    });
    for (const [rows, k] of sizes) {
      const x = normalArray(rows * k, rows * 1000 + k);
      x.fill(0, 0, Math.min(3, x.length)); // some exact zeros, and with small spans whole blocks of them
      const w = quantize(tensor(x, [rows, k]), f);
      const q = signed(element, unpack(w));
      const scales = levelValues(f.scales[0], w.scales!, rows, k);
      const zeros = zeroPoint ? levelValues(f.offset!.levels[0], w.offsets!, rows, k) : null;
      const values = dequantize(w, { dtype: "float64" });
      const store = scaleFormat === float16 ? f16 : Math.fround;
      cells(span, rows, k).forEach((cell, c) => {
        const data = cell.map((i) => x[i]);
        const want = zeroPoint ? asymmetricBlock(data, element.limits, store) : { ...symmetricBlock(data, element.limits, store), zero: 0 };
        expect(scales[c]).toBe(want.scale);
        if (zeros) expect(zeros[c]).toBe(want.zero);
        cell.forEach((i, j) => {
          expect(q[i]).toBe(want.q[j]);
          expect(values[i]).toBe((want.q[j] - want.zero) * want.scale);
        });
      });
    }
  });
});

test("a strided source gives the same bytes as its copy: transposed, offset, reversed, four dimensions", () => {
  const [rows, k] = [21, 45];
  const x = normalArray(rows * k, 5);
  const xt = new Float32Array(k * rows);
  for (let i = 0; i < rows; i++) for (let j = 0; j < k; j++) xt[j * rows + i] = x[i * k + j];
  for (const name of ["int4_b16", "uint4_b32_zp", "int8_row", "float4_e2m1fn_b8", "int5_tensor"]) {
    const want = quantize(tensor(x, [rows, k]), block(name));
    expect(quantize(transpose(tensor(xt, [k, rows])), block(name))).toEqual(want);
    expect(quantize(ndarray(xt, [k, rows]).transpose(1, 0), block(name))).toEqual(want);
    const padded = new Float32Array(x.length + 7);
    padded.set(x, 7);
    expect(quantize({ data: padded, shape: [rows, k], stride: [k, 1], offset: 7 }, block(name))).toEqual(want);
    const reversed = x.slice().reverse();
    expect(quantize({ data: reversed, shape: [rows, k], stride: [-k, -1], offset: x.length - 1 }, block(name))).toEqual(want);
  }
  // [O, I, h, w] stored as [O, h, w, I]: the inner dimensions do not collapse into one stride.
  const nhwc = normalArray(4 * 3 * 5 * 2, 6);
  const view = transpose(tensor(nhwc, [4, 3, 5, 2]), [0, 3, 1, 2]);
  const copy = new Float32Array(nhwc.length);
  let at = 0;
  for (let o = 0; o < 4; o++)
    for (let i = 0; i < 2; i++) for (let h = 0; h < 3; h++) for (let w = 0; w < 5; w++) copy[at++] = nhwc[((o * 3 + h) * 5 + w) * 2 + i];
  expect(quantize(view, block("int8_row"))).toEqual(quantize(tensor(copy, [4, 2, 3, 5]), block("int8_row")));
});

test("range rules", () => {
  const x = Float32Array.of(-6, 3, 1.5, 0.4, 6, -0.1, 2, 5.9);
  const q = (rangeRule: "narrow" | "full" | "gptq" | "ort", data = x) => {
    const w = quantize(tensor(data, [1, 8]), block("int4_b8"), { rangeRule });
    return { scale: levelValues(block("int4_b8").scales[0], w.scales!, 1, 8)[0], q: signed(int4, unpack(w)) };
  };
  expect(q("narrow").scale).toBe(Math.fround(6 / 7));
  expect(q("full").scale).toBe(6 / 8);
  expect(q("gptq").scale).toBe(Math.fround(12 / 15));
  expect(q("full").q).toEqual([-8, 4, 2, 1, 7, 0, 3, 7]);
  // The signed extreme maps to -8: of equal extremes the negative one, so the scale is positive here and negative for a
  // positive extreme.
  expect(q("ort").scale).toBe(6 / 8);
  expect(
    q(
      "ort",
      x.map((v) => (v === -6 ? 0 : v)),
    ).scale,
  ).toBe(-6 / 8);
});

test("range rule gptq: an extreme is a tie, decided before its scale is rounded to float32", () => {
  const w = tensor(Float32Array.of(-1, 0.5, 0.1, 0), [1, 4]);
  const packed = quantize(w, block("int4_b4"), { rangeRule: "gptq" });
  expect(signed(int4, unpack(packed))).toEqual([-8, 4, 1, 0]);
  const random = tensor(normalArray(64 * 96, 9), [64, 96]);
  for (const name of ["int4_b4", "int4_b32", "int3_row", "int8_b32"])
    expect(unpack(rtn({ rangeRule: "gptq" }).quantizeWeight(random, block(name)))).toEqual(
      unpack(quantize(random, block(name), { rangeRule: "gptq" })),
    );
});

test("two levels of scales: the largest block scale uses the top of its format", () => {
  const f = defineBlock({
    element: format("float4_e2m1fn") as NumberFormat,
    scales: [
      { format: format("float8_e4m3fn") as NumberFormat, span: 16 },
      { format: float32, span: "tensor" },
    ],
  });
  const x = normalArray(8 * 64, 3);
  const w = quantize(tensor(x, [8, 64]), f);
  const block = levelValues(f.scales[0], w.scales!, 8, 64);
  expect(Math.max(...block)).toBe(448);
  const top = levelValues(f.scales[1], w.superScales!, 8, 64)[0];
  const amax = Math.max(...x.map(Math.abs));
  expect(top).toBeCloseTo(amax / 6 / 448, 10);
  const error = dequantize(w).reduce((e, v, i) => e + (v - x[i]) ** 2, 0) / x.reduce((e, v) => e + v * v, 0);
  expect(error).toBeLessThan(0.012);
});

test("a scalar format is a cast without scale that saturates", () => {
  const w = quantize(tensor(Float32Array.of(1000, -1000, 0.3, -0), [4]), format("float8_e4m3fn"));
  expect(Array.from(dequantize(w))).toEqual([448, -448, 0.3125, -0]);
  expect(w.scales).toBeNull();
});

test("bad input", () => {
  const t = (values: number[]) => tensor(Float32Array.from(values), [1, values.length]);
  expect(() => quantize(t([1, NaN, 2]), block("int4_b2"))).toThrow(
    expect.objectContaining({ code: "E_VALUE", message: expect.stringContaining("[0, 1]") }),
  );
  expect(() => quantize(t([1, 2, -Infinity]), block("int4_b2"))).toThrow(expect.objectContaining({ code: "E_VALUE" }));
  expect(() => quantize(t([1e9]), block("int4_b2_float16"))).toThrow(expect.objectContaining({ code: "E_VALUE" }));
  expect(() => quantize(t([1]), "int4" as never)).toThrow(TypeError);
  expect(() => tensor(new Float32Array(6), [2, 4])).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
  expect(() => tensor(new Float32Array(0), [0])).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
  expect(() => tensor([1, 2] as never, [2])).toThrow(TypeError);
  expect(() => transpose(tensor(new Float32Array(6), [2, 3]), [0, 0])).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
  expect(() => quantize({ data: new Float32Array(6), shape: [2, 4], stride: [4, 1], offset: 0 }, block("int4_b2"))).toThrow(
    expect.objectContaining({ code: "E_SHAPE" }),
  );
  expect(() => quantize(t([1]), block("float4_e2m1fn_b8"), { arithmetic: "ort" })).toThrow(
    expect.objectContaining({ code: "E_UNSUPPORTED" }),
  );
  expect(() => quantize(t([1]), block("int4_b8"), { rangeRule: "minmax" })).toThrow(expect.objectContaining({ code: "E_FORMAT" }));
  const strict = defineBlock({ element: int4, scales: [{ format: float32, span: 4 }], tail: "error" });
  expect(() => quantize(t([1, 2, 3]), strict)).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
});

test("tiny blocks keep a scale: float16 scales do not underflow to zero", () => {
  const w = quantize(tensor(Float32Array.of(1e-9, -1e-9), [1, 2]), block("int4_b2_float16"));
  expect(levelValues(block("int4_b2_float16").scales[0], w.scales!, 1, 2)[0]).toBe(float16.limits.minPositive);
});

// arithmetic "ort": the bytes of onnxruntime's own tools, against their rules written apart, on 300 random weights of
// every kind of tool.
import { describe, expect, it } from "vitest";
import { defineBlock, float16, float32, format, type BlockFormat, type NumberFormat, type Span } from "../../formats/index.ts";
import { levelCodes, levelValues } from "../../formats/core/packed.ts";
import { quantize, tensor, transpose, unpack, wasm, type QuantizeOptions } from "../../src/index.ts";
import { seededRandom } from "../../src/quantize/index.ts";
import { bnb4Block, half, nbitsBlock, qdqBlock, quantUtils } from "../oracle/ort.ts";

const backend = await wasm();
const element = (name: string) => format(name) as NumberFormat;

/** Random weights [rows, k]: scales from 1e-6 to 1e6 by row, some rows of one sign, zero, coarse (ties) or equal. */
function weights(rows: number, k: number, seed: number): Float32Array {
  const random = seededRandom(seed);
  const out = new Float32Array(rows * k);
  for (let r = 0; r < rows; r++) {
    const kind = Math.floor(random() * 8);
    const size = 10 ** (random() * 12 - 6);
    for (let j = 0; j < k; j++) {
      const v = (random() + random() + random() - 1.5) * size;
      out[r * k + j] =
        kind === 0
          ? Math.abs(v)
          : kind === 1
            ? -Math.abs(v)
            : kind === 2 && r % 2
              ? 0
              : kind === 3
                ? Math.round(random() * 30 - 15) / 2
                : v;
    }
  }
  return out;
}

/** Three views of one weight (its rows, its transpose, float64) and a backend must give one result. */
function quantized(w: Float32Array, rows: number, k: number, f: BlockFormat, options: QuantizeOptions) {
  const packed = quantize(tensor(w, [rows, k]), f, options);
  const turned = Float32Array.from(w, (_, i) => w[(i % rows) * k + Math.floor(i / rows)]);
  expect(quantize(transpose(tensor(turned, [k, rows])), f, { ...options, backend })).toEqual(packed);
  expect(quantize(tensor(Float64Array.from(w), [rows, k]), f, options)).toEqual(packed);
  return packed;
}

/** Compares every cell of a grid of spans with its oracle. */
function compare(
  w: Float32Array,
  [rows, k]: readonly [number, number],
  f: BlockFormat,
  options: QuantizeOptions,
  oracle: (values: number[]) => { codes: number[]; scale: number; zeroPoint: number },
): void {
  const packed = quantized(w, rows, k, f, options);
  const codes = unpack(packed);
  const scales = levelValues(f.scales[0], packed.scales!, rows, k);
  const zeros = f.offset ? levelCodes(f.offset.levels[0], packed.offsets!, rows, k) : null;
  const span = f.scales[0].span as Span;
  const [high, wide] = span === "tensor" ? [rows, k] : span === "row" ? [1, k] : [1, span as number];
  const mask = 2 ** f.element.bits - 1;
  let at = 0;
  for (let r = 0; r < rows; r += high)
    for (let j = 0; j < k; j += wide, at++) {
      const where: number[] = [];
      for (let i = r; i < r + high; i++) for (let b = j; b < Math.min(k, j + wide); b++) where.push(i * k + b);
      const want = oracle(where.map((i) => w[i]));
      expect(scales[at]).toBe(want.scale);
      expect(zeros === null ? 0 : zeros[at]).toBe(zeros === null ? 0 : want.zeroPoint & mask);
      expect(where.map((i) => codes[i])).toEqual(want.codes.map((c) => c & mask));
    }
}

const zeroPointed = (e: NumberFormat, scale: NumberFormat, span: Span) =>
  defineBlock({ element: e, scales: [{ format: scale, span }], offset: { role: "zeroPoint", levels: [{ format: e, span }] } });
const plain = (e: NumberFormat, scale: NumberFormat, span: Span) => defineBlock({ element: e, scales: [{ format: scale, span }] });
const ort = { arithmetic: "ort" } as const;
/** 12 shapes; with 25 groups of tests below, 300 weights. */
const shapes = Array.from({ length: 12 }, (_, i) => [1 + ((i * 5) % 7), 16 * (1 + (i % 4)) + (i % 3 === 2 ? 5 : 0)] as const);

describe("MatMulNBits", () => {
  for (const bits of [2, 4, 8])
    for (const [kind, scale] of [["float32", float32], ["float16", float16]] as const)
      for (const symmetric of [true, false])
        it(`${bits} bits, ${kind} scales, ${symmetric ? "symmetric" : "asymmetric"}`, () => {
          const name = `${symmetric ? "int" : "uint"}${bits}`;
          const f = symmetric ? plain(element(name), scale, 16) : zeroPointed(element(name), scale, 16);
          shapes.forEach((shape, i) => {
            const w = weights(shape[0], shape[1], bits * 100 + i);
            // float16 scales come with float16 weights: of a size that they hold, and not so small that all is lost
            if (kind === "float16") for (let j = 0; j < w.length; j++) w[j] = half(Math.max(-6e4, Math.min(6e4, w[j])));
            const stored = kind === "float16" ? half : Math.fround;
            compare(w, shape, f, ort, (values) => {
              const block = nbitsBlock(values, bits, symmetric, stored);
              return symmetric ? { ...block, codes: block.codes.map((c) => c - 2 ** (bits - 1)) } : block;
            });
          });
        });
}); // prettier-ignore

describe("quant_utils.py, per channel and per tensor", () => {
  for (const type of ["int8", "uint8", "int16", "uint16", "int4", "uint4"])
    for (const span of ["row", "tensor"] as const)
      it(`${type} per ${span}`, () => {
        shapes.forEach((shape, i) => {
          const w = weights(shape[0], shape[1], 1000 + i);
          const zp = zeroPointed(element(type), float32, span);
          for (const reduceRange of [false, true]) {
            const given = { ...ort, reduceRange };
            const symmetric = type.endsWith("4") ? "gptq" : "narrow";
            compare(w, shape, zp, given, (v) => quantUtils(v, { type, symmetric: false, reduceRange }));
            compare(w, shape, zp, { ...given, rangeRule: symmetric }, (v) => quantUtils(v, { type, symmetric: true, reduceRange }));
            if (type.startsWith("int"))
              compare(w, shape, plain(element(type), float32, span), given, (v) => quantUtils(v, { type, symmetric: true, reduceRange }));
          }
        });
      });
});

describe("QuantizeLinear weights of 4 bits in blocks", () => {
  for (const symmetric of [true, false])
    it(symmetric ? "symmetric" : "asymmetric", () => {
      const f = symmetric ? plain(element("int4"), float32, 16) : zeroPointed(element("uint4"), float32, 16);
      shapes.forEach((shape, i) =>
        compare(weights(shape[0], shape[1], 2000 + i), shape, f, { arithmetic: "ortQdq" }, (v) => qdqBlock(v, symmetric)),
      );
    });
});

describe("MatMulBnb4", () => {
  for (const [name, type] of [["nf4", "nf4"], ["bnb_fp4", "fp4"]] as const)
    it(name, () => {
      const f = plain(element(name), float32, 16);
      shapes.forEach((shape, i) =>
        compare(weights(shape[0], shape[1], 3000 + i), shape, f, ort, (values) => {
          const { codes, absmax } = bnb4Block(values, type);
          return { codes, scale: absmax, zeroPoint: 0 };
        }),
      );
    });
}); // prettier-ignore

describe("one zero point for all rows", () => {
  it("is the middle of a symmetric range, all-zero rows included", () => {
    const level = { format: element("uint8"), span: "tensor" } as const;
    const f = defineBlock({
      element: element("uint8"),
      scales: [{ format: float32, span: "row" }],
      offset: { role: "zeroPoint", levels: [level] },
    });
    const w = tensor(Float32Array.of(1, -1, 0, 0), [2, 2]);
    const packed = quantize(w, f, { ...ort, rangeRule: "narrow" });
    expect(Array.from(packed.offsets!)).toEqual([127]);
    expect(Array.from(unpack(packed))).toEqual([254, 0, 127, 127]);
    expect(() => quantize(w, f, ort)).toThrow(expect.objectContaining({ code: "E_UNSUPPORTED" }));
  });
});

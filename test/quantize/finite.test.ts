// Finite weights give finite values: near the largest float32 the nearest code may stand for a value beyond it. Every
// quantizer on every kind of element, scale and zero point.
import { describe, expect, test } from "vitest";
import { allFormats, bfloat16, defineBlock, float16, float32, float8_e4m3fn, float8_e8m0fnu, format, int4, uint2, uint4, uint8 } from "../../formats/index.ts"; // prettier-ignore
import { dequantize, quantize, tensor } from "../../src/index.ts";
import type { BlockFormat, NumberFormat } from "../../src/index.ts";
import { adaround, awq, gptq, hqq, layerStatistics, mrgptq, quest, rtn } from "../../src/quantize/index.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";

const [rows, k] = [4, 64];
const FLT_MAX = 3.4028234663852886e38;
const w = gaussianWeights(rows, k, 3);
const made = layerStatistics(k);
made.add(inputs("ar", 200, k, 4, 0.95));
const statistics = made.finish();
const hessian = Float64Array.from({ length: k * k }, (_, i) => 0.9 ** Math.abs(Math.floor(i / k) - (i % k)));

const zeroPoints = (element: NumberFormat, scale: NumberFormat, zero: NumberFormat): BlockFormat =>
  defineBlock({ element, scales: [{ format: scale, span: 16 }], offset: { role: "zeroPoint", levels: [{ format: zero, span: 16 }] } });
const [uint16, int32] = [format("uint16") as NumberFormat, format("int32") as NumberFormat];
const formats = [
  ...allFormats.filter((f): f is BlockFormat => f.kind === "block"),
  ...[float32, bfloat16, float8_e8m0fnu].flatMap((scale) => [uint2, uint4, int4, uint8, uint16, int32].flatMap((element) => [element, float32, float16].map((zero) => zeroPoints(element, scale, zero)))), // prettier-ignore
];
const quantizers = [
  {},
  { arithmetic: "ort" } as const,
  { rangeRule: "narrow" } as const,
  rtn({ search: { method: "mse" } }),
  gptq({ hessian }),
  gptq({ hessian, actOrder: true, polish: 3 }),
  gptq({ hessian, actOrder: true, staticGroups: true, search: { method: "mse" } }),
  gptq({ hessian, groupScales: "blockStart" }),
  adaround({ hessian, iterations: 10 }),
  awq({ statistics, grid: 2 }),
  hqq(),
  quest(),
  mrgptq({ hessian }),
];

describe("weights near the largest float32", () => {
  test.each<[string, (v: number, i: number) => number]>([
    ["of both signs", (v, i) => Math.sign(v) * (i % 3 === 0 ? 3.4e38 : 2e38 + 1e38 * Math.sin(i))],
    ["the largest itself", (v) => Math.sign(v) * FLT_MAX],
    ["one in a block, below", (v, i) => (i % 16 === 5 ? -FLT_MAX : Math.abs(v) * 1e38)],
  ])("%s: nothing infinite comes of them, or an error that says so", (_, of) => {
    const huge = tensor(Float32Array.from(w, (v, i) => Math.max(-FLT_MAX, Math.min(FLT_MAX, of(v, i)))), [rows, k]); // prettier-ignore
    let finite = 0;
    for (const f of formats)
      for (const quantizer of quantizers) {
        const what = `${f.name} ${f.offset?.levels[0].format.name} ${JSON.stringify(quantizer)}`;
        try {
          expect(dequantize(quantize(huge, f, quantizer)).every(Number.isFinite), what).toBe(true);
          finite++;
        } catch (error) {
          // scales of few bits of exponent, quantizers that need zero points or take none
          expect(error, what).toMatchObject({ code: expect.stringMatching(/^E_(VALUE|UNSUPPORTED)$/) as string });
        }
      }
    expect(finite).toBeGreaterThan(500);
  });

  test("all other values are what they would be", () => {
    const of = (size: number, f: BlockFormat) => dequantize(quantize(tensor(Float32Array.from(w, (v, i) => size * Math.sign(v) * (1 + ((i * 7) % 16) / 16)), [rows, k]), f)); // prettier-ignore
    let cut = 0;
    for (const f of formats.filter(
      ({ element, offset, scales }) => offset?.role === "zeroPoint" && element.bits <= 8 && scales[0].format === float32,
    )) {
      const [large, small] = [of(2 ** 127, f), of(2 ** 100, f)];
      for (const [i, v] of large.entries()) {
        if (Number.isFinite(Math.fround(small[i] * 2 ** 27))) expect(v).toBe(small[i] * 2 ** 27);
        else {
          cut++;
          expect(v * Math.sign(small[i])).toBeGreaterThan(f.element === uint2 ? 2 ** 126 : 2 ** 127);
        }
      }
    }
    expect(cut).toBeGreaterThan(10);
  });
});

test("zero points that their format rounds: codes are chosen with what is stored", () => {
  const f = zeroPoints(uint8, float32, float8_e4m3fn);
  const x = Float32Array.from({ length: 64 }, (_, i) => Math.sin(i) + Math.floor(i / 16) / 3);
  const packed = quantize(tensor(x, [1, 64]), f);
  const values = dequantize(packed);
  // the largest code of some blocks lies a little below their largest value: zero points of 3 bits are off by 8 at most
  const step = (2 + 1) / 255;
  const off = x.map((v, i) => Math.abs(v - values[i]) / step);
  expect(off.filter((v) => v > 0.5).length).toBeLessThan(10);
  expect(Math.max(...off)).toBeLessThan(9);
});

test("hqq of scales around a mean, which are no zero points: refused", () => {
  const mean = allFormats.find((f): f is BlockFormat => f.kind === "block" && f.offset?.role === "mean")!;
  expect(() => quantize(tensor(gaussianWeights(4, 64, 1), [4, 64]), mean, hqq())).toThrow(/hqq: expected a format with zero points/);
});

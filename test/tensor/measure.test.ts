// quantizeMeasured: the packed tensor of quantize, and sums that agree with its decoded values, for every format, view
// and quantizer.
import { describe, expect, it } from "vitest";
import { allFormats, format } from "../../formats/index.ts";
import { dequantize } from "../../src/tensor/dequantize.ts";
import { quantize } from "../../src/tensor/quantize/index.ts";
import { quantizeMeasured } from "../../src/tensor/quantize/measure.ts";
import { tensor, transpose, type Tensor } from "../../src/tensor/tensor.ts";
import { hqq } from "../../src/quantize/index.ts";
import { weights } from "../onnx/build.ts";

const K = 512;
const ROWS = 5;
const data = weights(K * ROWS, 3);
const stored = transpose(tensor(data, [K, ROWS])) as Tensor<Float32Array>;
const at = (r: number, j: number): number => data[j * ROWS + r];

function sums(back: Float32Array): { signal: number; noise: number } {
  let [signal, noise] = [0, 0];
  for (let r = 0; r < ROWS; r++)
    for (let j = 0; j < K; j++) {
      signal += at(r, j) ** 2;
      noise += (at(r, j) - back[r * K + j]) ** 2;
    }
  return { signal, noise };
}

describe.each(allFormats.map((f) => [f.name, f] as const))("%s", (_, f) => {
  it("sums are those of the decoded values", () => {
    const measured = quantizeMeasured(stored, f);
    expect(measured.packed).toEqual(quantize(stored, f));
    const want = sums(dequantize(measured.packed));
    expect(measured.signal / want.signal).toBeCloseTo(1, 12);
    expect(Math.abs(measured.noise - want.noise)).toBeLessThanOrEqual(1e-12 * want.signal);
  });
  it.each([NaN, Infinity, -Infinity])("names %s by its place", (bad) => {
    const copy = data.slice();
    copy[100 * ROWS + 3] = bad;
    expect(() => quantizeMeasured(transpose(tensor(copy, [K, ROWS])), f)).toThrow(
      expect.objectContaining({ code: "E_VALUE", message: expect.stringMatching(/\[3, 100\]|values\[/) as string }),
    );
  });
});

it("the fast loops of arithmetic ort, with and without zero points", () => {
  for (const name of ["int4_b32", "uint4_b32_zp", "int4_b32_float16", "int8_b32"]) {
    const measured = quantizeMeasured(stored, format(name), { arithmetic: "ort" });
    const want = sums(dequantize(measured.packed));
    expect(measured.signal / want.signal).toBeCloseTo(1, 12);
    expect(measured.noise / want.noise).toBeCloseTo(1, 5);
  }
});

it("a quantizer that makes the packed tensor itself", () => {
  const measured = quantizeMeasured(stored, format("uint4_b32_zp"), hqq());
  expect(measured.packed.recipe.algorithm).toBe("hqq");
  expect(measured.noise / sums(dequantize(measured.packed)).noise).toBeCloseTo(1, 9);
});

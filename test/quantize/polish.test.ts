// Polish: never worse on the objective that it lowers, computed apart; no single code can be changed for the better
// afterwards; what is packed is what was judged.
import { describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import { gptq, layerStatistics, outputError } from "../../src/quantize/index.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";

const [rows, k] = [6, 64];
const w = gaussianWeights(rows, k, 3);
const statistics = layerStatistics(k);
statistics.add(inputs("ar", 400, k, 4));
const hessian = statistics.finish().hessian!;
const damp = 0.02;
let mean = 0;
for (let j = 0; j < k; j++) mean += hessian[j * k + j] / k;
const damped = hessian.slice();
for (let j = 0; j < k; j++) damped[j * k + j] += damp * mean;

const quantized = (name: string, polish: boolean | number, options = {}) =>
  quantize(tensor(w, [rows, k]), format(name), gptq({ hessian, damp, polish, ...options }));
const error = (values: ArrayLike<number>) => outputError(w, values, rows, damped);

const names = ["uint4_b32_zp", "int4_b16", "uint2_b32_float16_zp", "mxfp4", "nvfp4", "int3_row", "nf4_b64", "float8_e4m3fn", "int4_b24"];

describe.each(names)("%s", (name) => {
  test.each([false, true])("is never worse, act-order %s, and says by how much", (actOrder) => {
    const [plain, polished] = [quantized(name, false, { actOrder }), quantized(name, true, { actOrder })];
    const [before, after] = [error(dequantize(plain)), error(dequantize(polished))];
    expect(after).toBeLessThanOrEqual(before * (1 + 1e-9));
    const { errorKept } = polished.recipe.polish as { errorKept: number };
    expect(Math.abs(after / before - errorKept)).toBeLessThan(1e-5);
  });
});

test("it helps where there is something to gain", () => {
  for (const name of ["uint2_b32_float16_zp", "mxfp4", "nvfp4"])
    expect(error(dequantize(quantized(name, true))), name).toBeLessThan(0.995 * error(dequantize(quantized(name, false))));
});

test("no other code of one weight is better", () => {
  const polished = quantized("int3_b16", 50);
  const values = dequantize(polished);
  const least = error(values);
  // one step of each weight's scale: the least distance between values of its block
  for (let i = 0; i < values.length; i++) {
    const start = i - (i % 16);
    const block = [...new Set(values.slice(start, start + 16))].sort((a, b) => a - b);
    const step = Math.min(...block.slice(1).map((v, n) => v - block[n]));
    for (const t of [-step, step]) {
      const other = values.slice();
      other[i] += t;
      if (Math.abs(other[i]) > 3.0001 * step) continue; // beyond the codes -3..3
      expect(error(other)).toBeGreaterThanOrEqual(least * (1 - 1e-6));
    }
  }
});

test("options", () => {
  expect(() => gptq({ hessian, polish: -1 })).toThrow(/gptq polish: expected true, or passes 0..100, got -1/);
  expect(quantized("ggml_q4_0", true).recipe.polish).toBeUndefined();
});

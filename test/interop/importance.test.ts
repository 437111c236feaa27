// Blocks of ggml by the importance of their columns: the weighted error falls, layouts do not matter, what does not fit
// is refused.
import { expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import { byImportance } from "../../src/interop/index.ts";
import { random } from "../helpers/random.ts";

const [ROWS, K] = [3, 512];
const numbers = random(11);
const values = Float32Array.from({ length: ROWS * K }, () => numbers.normal());
// a few columns matter a thousand times as much
const importance = Float32Array.from({ length: K }, (_, j) => (j % 16 === 3 ? 1000 : 1));
const weight = tensor(values, [ROWS, K]);

const error = (got: Float32Array): number => got.reduce((sum, v, i) => sum + importance[i % K] * (v - values[i]) ** 2, 0);
const decoded = (name: string, weights?: Float32Array): Float32Array => {
  const packed = quantize(weight, format(name), ...(weights === undefined ? [] : [byImportance(weights)]));
  return dequantize(packed);
};

test.each(["ggml_q4_k", "ggml_q6_k", "ggml_q3_k"])("%s: columns that matter are kept better", (name) => {
  const [plain, weighted] = [error(decoded(name)), error(decoded(name, importance))];
  expect(weighted).toBeLessThan(0.9 * plain);
  expect(weighted).toBeGreaterThan(0);
  const packed = quantize(weight, format(name), byImportance(importance));
  expect(packed.recipe).toMatchObject({ algorithm: "importance" });
  expect([packed.rows, packed.k, packed.shape]).toEqual([ROWS, K, [ROWS, K]]);
});

test("a transposed matrix, a part of one, and a vector give the codes of their values", () => {
  const codes = (of: Parameters<typeof quantize>[0]): Uint8Array => quantize(of, format("ggml_q4_k"), byImportance(importance)).codes;
  const wanted = codes(weight);
  const turned = new Float32Array(values.length);
  for (let r = 0; r < ROWS; r++) for (let j = 0; j < K; j++) turned[j * ROWS + r] = values[r * K + j];
  expect(codes({ ...tensor(turned, [K, ROWS]), shape: [ROWS, K], stride: [1, ROWS], offset: 0 })).toEqual(wanted);
  const shifted = Float32Array.of(7, ...values);
  expect(codes({ ...tensor(shifted, [shifted.length]), shape: [ROWS, K], stride: [K, 1], offset: 1 })).toEqual(wanted);
  const row = codes(tensor(values.slice(K, 2 * K), [K]));
  expect(row).toEqual(wanted.subarray(wanted.length / ROWS, (2 * wanted.length) / ROWS));
});

test("other formats, lengths and shapes are refused", () => {
  const refuse = (code: string, text: RegExp) => expect.objectContaining({ code, message: expect.stringMatching(text) as string });
  const made = (run: () => unknown): unknown => {
    try {
      return run();
    } catch (thrown) {
      return thrown;
    }
  };
  expect(made(() => quantize(weight, format("int4_b32"), byImportance(importance)))).toEqual(
    refuse("E_UNSUPPORTED", /byImportance: expected a format of ggml, got int4_b32/),
  );
  expect(made(() => quantize(weight, format("ggml_q4_k"), byImportance(importance.subarray(1))))).toEqual(
    refuse("E_SHAPE", /expected 512 weights, one for each column, got 511/),
  );
  const cube = tensor(values, [ROWS, 1, K]);
  expect(made(() => quantize(cube, format("ggml_q4_k"), byImportance(importance)))).toEqual(
    refuse("E_SHAPE", /expected a matrix, got \[3, 1, 512\]/),
  );
});

// matmul and prepareMatmul on the reference backend against plain sums.
import { expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, matmul, prepareMatmul, quantize, tensor, transpose } from "../../src/index.ts";
import { normalArray } from "../helpers/random.ts";

test.each(["int4_b32", "uint4_b16_zp", "float8_e4m3fn_tensor", "bfloat16"])("%s: y = x w^T", async (name) => {
  const [m, n, k] = [3, 19, 37];
  const x = normalArray(m * k, 1);
  const w = quantize(tensor(normalArray(n * k, 2), [n, k]), format(name));
  const values = dequantize(w, { dtype: "float64" });
  const y = await matmul(tensor(x, [m, k]), w, { backend: "reference" });
  expect(y.shape).toEqual([m, n]);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let p = 0; p < k; p++) sum += x[i * k + p] * values[j * k + p];
      expect(y.data[i * n + j]).toBe(Math.fround(sum));
    }
  const xt = new Float32Array(k * m);
  for (let i = 0; i < m; i++) for (let p = 0; p < k; p++) xt[p * m + i] = x[i * k + p];
  expect((await matmul(transpose(tensor(xt, [k, m])), w, { backend: "reference" })).data).toEqual(y.data);
});

test("layers: explain, out, dispose, bad input", async () => {
  const w = quantize(tensor(normalArray(8 * 16, 3), [8, 16]), format("int8_row"));
  const layer = prepareMatmul(w, { backend: "reference" });
  expect(layer.explain()).toMatchObject({ backend: "reference", activations: "float32" });
  const x = normalArray(2 * 16, 4);
  const out = new Float32Array(16);
  expect(layer.run(x, 2, out)).toBe(out);
  expect(await layer.runAsync(x, 2)).toEqual(out);
  const shape = expect.objectContaining({ code: "E_SHAPE" });
  expect(() => layer.run(x, 3)).toThrow(shape);
  expect(() => layer.run(x, 2, new Float32Array(15))).toThrow(shape);
  expect(() => layer.run(x, 0)).toThrow(shape);
  expect(() => layer.run([1] as never, 1)).toThrow(TypeError);
  layer.dispose();
  layer.dispose();
  expect(() => layer.run(x, 2)).toThrow(expect.objectContaining({ code: "E_DISPOSED" }));
  await expect(matmul(tensor(x, [4, 8]), w)).rejects.toMatchObject({ code: "E_SHAPE" });
  expect(() => prepareMatmul(w, { backend: "gpu" as never })).toThrow(TypeError);
});

// Products on the WebGPU backend against the oracle: every format, kinds of activations, odd shapes, weights and
// activations split at a lowered binding limit, epilogues. Bounds are computed from the data. What layers are (buffers,
// special values, disposal, lost devices): layers.test.ts.
import { expect, it } from "vitest";
import type { PackedTensor } from "../../formats/index.ts";
import { format } from "../../formats/index.ts";
import type { GpuPrepareOptions } from "../../src/backends/webgpu/backend.ts";
import { dequantize, prepareMatmul, quantize, tensor } from "../../src/index.ts";
import { blockOf, expectedProduct, productFormats, wholeBlocks } from "../helpers/products.ts";
import { describeBackend, spread, takesAll } from "./adapter.ts";
import { backendWith, checkProduct, data, random, weight } from "./product.ts";

describeBackend("products", (on) => {
  const check = (w: PackedTensor, m: number, options: GpuPrepareOptions = {}, backend = on.backend, x?: Float32Array): Promise<number> =>
    checkProduct(backend, w, m, options, x);

  it("every format, float32 and int8 activations, one row and a tile", async () => {
    let compared = 0;
    for (const f of spread("formats", productFormats(), 24)) {
      const b = blockOf(f);
      const w = quantize(tensor(data(9 * 2 * b, 0.5), [9, 2 * b]), f);
      const odd = quantize(tensor(data(5 * (wholeBlocks(f) ? b : b + 7), 0.5), [5, wholeBlocks(f) ? b : b + 7]), f);
      for (const activations of ["float32", "int8"] as const) {
        compared += await check(w, 1, { activations });
        compared += await check(odd, 6, { activations });
      }
    }
    expect(compared).toBeGreaterThan(takesAll("formats") ? 10000 : 300);
  }, 600_000);

  it("int16 and float16 activations, few rows, tiles of 64", async () => {
    const names = ["int4_b32", "int3_b16", "uint4_b32_zp", "ggml_q4_1", "nf4_b64", "float4_e2m1fn_b32", "bipolar8_row", "bfloat16"];
    for (const name of spread("pipelines", names, 8)) {
      const w = weight(name, 21, 128);
      for (const activations of ["int16", "float16", "int8", "int6", "int4", "float32"] as const)
        for (const m of [2, 3, 20]) await check(w, m, { activations });
    }
  }, 300_000);

  it("shapes around chunks, groups and tiles", async () => {
    for (const name of spread("pipelines", ["int4_b32", "int8_row", "uint4_b32_zp", "float32"], 4))
      for (const [n, k] of [[1, 1], [1, 31], [3, 33], [64, 64], [65, 259], [7, 2100]] as const)
        for (const m of [1, 4, 5, 17, 65]) for (const activations of ["float32", "int8"] as const) await check(weight(name, n, k), m, { activations }); // prettier-ignore
  }, 300_000);

  it("integer products are exact: power-of-two scales give the integer bit for bit", async () => {
    for (const name of spread("pipelines", ["int2_b32", "int4_b32", "int6_b64", "int8_b32", "uint4_b32_zp", "uint8_b16_zp"], 3)) {
      const [n, k, m] = [19, 96, 6];
      const w0 = weight(name, n, k);
      const w = { ...w0, scales: new Uint8Array(new Float32Array(w0.scales!.length / 4).fill(0.25).buffer) };
      const values = dequantize(w, { dtype: "float64" });
      for (const activations of ["int8", "int16"] as const) {
        const max = activations === "int8" ? 127 : 32639;
        const limit = activations === "int8" ? max : 200;
        const x = Float32Array.from({ length: m * k }, (_, i) => (i % 16 === 0 ? max : Math.round((random() * 2 - 1) * limit)));
        const expected = new Float64Array(m * n);
        for (let r = 0; r < m; r++)
          for (let c = 0; c < n; c++) for (let i = 0; i < k; i++) expected[r * n + c] += x[r * k + i] * values[c * k + i];
        using layer = prepareMatmul(w, { ...on, activations });
        using wasm = prepareMatmul(w, { backend: "wasm", activations });
        for (const rows of [1, m]) {
          const y = await layer.runAsync(x.subarray(0, rows * k), rows);
          expect(Array.from(y), layer.explain().kernel).toEqual(Array.from(expected.subarray(0, rows * n), Math.fround));
          expect(y).toEqual(wasm.run(x.subarray(0, rows * k), rows));
        }
      }
      for (const [activations, most] of [["int6", 31], ["int4", 7]] as const) {
        // a code of `most` in every group: its scale is 1
        const x = Float32Array.from({ length: m * k }, (_, i) => (i % 16 === 0 ? most : Math.round((random() * 2 - 1) * most)));
        using layer = prepareMatmul(w, { ...on, activations });
        using wasm = prepareMatmul(w, { backend: "wasm", activations });
        const y = await layer.runAsync(x, m);
        expect(layer.explain()).toMatchObject({ activations, kernel: expect.stringMatching(`^a${most === 7 ? 4 : 6}_`) as string });
        expect(y).toEqual(wasm.run(x, m));
        for (let at = 0; at < y.length; at++) {
          let sum = 0;
          for (let i = 0; i < k; i++) sum += x[Math.floor(at / n) * k + i] * values[(at % n) * k + i];
          expect(y[at]).toBe(Math.fround(sum));
        }
      } // prettier-ignore
    }
  }, 300_000);

  it("largest sums: every weight and activation at its extreme", async () => {
    for (const name of spread("pipelines", ["uint1_row", "int4_b256", "int8_b256", "uint8_b64_zp", "bipolar8_row"], 5))
      for (const sign of [1, -1]) {
        const [n, k] = [3, 512];
        const w = quantize(tensor(new Float32Array(n * k).fill(sign), [n, k]), format(name));
        for (const activations of ["int8", "int16"] as const)
          for (const fill of [activations === "int8" ? 127 : 32639, activations === "int8" ? -127 : -32639])
            await check(w, 1, { activations }, on.backend, new Float32Array(k).fill(fill));
      }
  }, 300_000);

  it("without subgroups the same", async () => {
    const plain = await backendWith({ features: { subgroups: false, f16: false } });
    for (const name of spread("pipelines", ["int4_b32", "nf4_b64"], 2))
      for (const m of [1, 2, 4])
        for (const activations of ["float32", "int8"] as const) await check(weight(name, 13, 2112), m, { activations }, plain);
    expect(prepareMatmul(weight("int4_b32", 2, 32), { backend: plain }).explain().kernel).toContain("__wgsl_");
    plain.dispose();
  }, 300_000);

  it("weights and activations above the binding limit are split", async () => {
    const small = await backendWith({ limits: { binding: 32768 } });
    const w = weight("int4_b32", 150, 1024);
    const layer = prepareMatmul(w, { backend: small });
    expect(layer.explain().reasons.join()).toMatch(/3 parts of rows/);
    await check(w, 1, {}, small);
    await check(w, 3, { activations: "int8" }, small);
    // 200 rows of x and y: slabs of 128
    const narrow = weight("uint4_b32_zp", 40, 60);
    for (const activations of ["float32", "int8", "float16"] as const) await check(narrow, 200, { activations }, small);
    const wide = weight("float32", 2, 10000);
    expect(() => prepareMatmul(wide, { backend: small })).toThrowError(/Split the weight along k/);
    await expect(prepareMatmul(weight("int8_row", 5000, 32), { backend: small }).runAsync(data(32 * 9), 9)).rejects.toThrowError(
      /fewer rows at once/,
    );
    const wrapped = await backendWith({ limits: { workgroups: 3 } });
    await check(weight("int4_b32", 150, 64), 2, {}, wrapped);
    await check(weight("int4_b32", 150, 64), 70, {}, wrapped);
    small.dispose();
    wrapped.dispose();
  }, 300_000);

  it("bias and epilogue follow the product", async () => {
    const erf = (z: number): number => {
      // power series; |z| < 4 here
      let [term, sum] = [z, z];
      for (let i = 1; i < 120; i++) sum += (term *= -(z * z) / i) / (2 * i + 1);
      return (2 / Math.sqrt(Math.PI)) * sum;
    };
    const exact = {
      relu: (v: number) => Math.max(0, v),
      silu: (v: number) => v / (1 + Math.exp(-v)),
      geluTanh: (v: number) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))),
      gelu: (v: number) => 0.5 * v * (1 + erf(v / Math.SQRT2)),
    };
    const w = weight("int4_b32", 10, 64);
    const bias = data(10);
    // a kernel of one row and one of tiles, each with every epilogue: ten, of which a software driver gets every other
    const epilogues = [undefined, "relu", "silu", "gelu", "geluTanh"] as const;
    const chosen = spread("pipelines", [1, 6].flatMap((m) => epilogues.map((epilogue) => ({ m, epilogue }))), 2); // prettier-ignore
    for (const m of [1, 6]) {
      const x = data(m * 64, 0.2);
      const { y, bound } = expectedProduct(w, x, m, null);
      for (const { epilogue } of chosen.filter((one) => one.m === m)) {
        const got = await prepareMatmul(w, { ...on, bias, ...(epilogue === undefined ? {} : { epilogue }) }).runAsync(x, m);
        got.forEach((v, i) => {
          const sum = y[i] + bias[i % 10];
          const expected = epilogue === undefined ? sum : exact[epilogue](sum);
          // slopes are at most 1.13; WGSL's exp and tanh: 3 + 2 |x| units in the last place (|x| < 16), and 1.5e-7 of
          // the erf used
          const own = epilogue === undefined || epilogue === "relu" ? 2 ** -23 : 64 * 2 ** -23 + 1.5e-7;
          expect(Math.abs(v - expected)).toBeLessThanOrEqual(
            1.13 * (bound[i] + Math.abs(sum) * 2 ** -23) + own * (Math.abs(sum) + Math.abs(expected)),
          );
        });
      }
    }
    expect(() => prepareMatmul(w, { ...on, bias: data(9) })).toThrowError(/expected a Float32Array of n = 10/);
    expect(() => prepareMatmul(w, { ...on, epilogue: "softmax" as never })).toThrowError(TypeError);
    expect(() => prepareMatmul(w, { ...on, activations: "int5" as never })).toThrowError(TypeError);
  }, 300_000);
});

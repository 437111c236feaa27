// Products on the WebGPU backend against the oracle: every format, kinds of activations, odd shapes, weights and
// activations split at a lowered binding limit, special values, epilogues, buffers that stay on the device, and what a
// layer refuses. Bounds are computed from the data.
import { afterAll, beforeAll, expect, it } from "vitest";
import type { PackedTensor } from "../../formats/index.ts";
import { format } from "../../formats/index.ts";
import type { GpuRoot } from "../../kernels/wgsl/api.ts";
import type { RuntimeOptions } from "../../kernels/wgsl/runtime.ts";
import { connect } from "../../src/backends/webgpu/device.ts";
import { createWebGpu, webgpu, type GpuPrepareOptions, type WebGpuBackend } from "../../src/backends/webgpu/backend.ts";
import { dequantize, matmul, prepareMatmul, quantize, tensor } from "../../src/index.ts";
import { blockOf, expectedProduct, productFormats, wholeBlocks } from "../helpers/products.ts";
import { adapterName, describeGpu, entryPoint, spread, takesAll } from "./adapter.ts";

let seed = 1;
const random = (): number => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) / 2 ** 32;
const normal = (): number => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
const data = (n: number, scale = 1): Float32Array => Float32Array.from({ length: n }, () => normal() * scale);
const weight = (name: string, n: number, k: number): PackedTensor => quantize(tensor(data(n * k), [n, k]), format(name));

async function backendWith(options: Omit<RuntimeOptions, "own">): Promise<WebGpuBackend> {
  return createWebGpu((await connect({ gpu: (await entryPoint()) as unknown as GpuRoot })).device, { own: true, ...options });
}

describeGpu(`products on ${adapterName}`, () => {
  let backend: WebGpuBackend;
  beforeAll(async () => {
    backend = await webgpu({ gpu: (await entryPoint()) as unknown as GpuRoot });
  });
  afterAll(() => backend.dispose());

  async function check(w: PackedTensor, m: number, options: GpuPrepareOptions = {}, on = backend, x = data(m * w.k)): Promise<number> {
    using layer = prepareMatmul(w, { ...options, backend: on });
    const y = await layer.runAsync(x, m);
    const { activations, kernel } = layer.explain();
    const bits = /^int/.test(activations) ? Number(activations.slice(3)) : null;
    // storing as float16 may round to either neighbour
    const expected = expectedProduct(w, x, m, bits, activations === "float16" ? 2 ** -10 : 0);
    for (let i = 0; i < y.length; i++)
      if (!(Math.abs(y[i] - expected.y[i]) <= expected.bound[i]))
        expect.fail(`${kernel} m = ${m}, [${w.rows}, ${w.k}] ${w.format.name}: y[${i}] = ${y[i]}, expected ${expected.y[i]} within ${expected.bound[i]}`); // prettier-ignore
    return y.length;
  }

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
        using layer = prepareMatmul(w, { backend, activations });
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
        using layer = prepareMatmul(w, { backend, activations });
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
            await check(w, 1, { activations }, backend, new Float32Array(k).fill(fill));
      }
  }, 300_000);

  it("without subgroups the same", async () => {
    const plain = await backendWith({ features: { subgroups: false, f16: false } });
    for (const name of ["int4_b32", "nf4_b64"])
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
    for (const m of [1, 6]) {
      const x = data(m * 64, 0.2);
      const { y, bound } = expectedProduct(w, x, m, null);
      for (const epilogue of [undefined, "relu", "silu", "gelu", "geluTanh"] as const) {
        const got = await prepareMatmul(w, { backend, bias, ...(epilogue === undefined ? {} : { epilogue }) }).runAsync(x, m);
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
    expect(() => prepareMatmul(w, { backend, bias: data(9) })).toThrowError(/expected a Float32Array of n = 10/);
    expect(() => prepareMatmul(w, { backend, epilogue: "softmax" as never })).toThrowError(TypeError);
    expect(() => prepareMatmul(w, { backend, activations: "int5" as never })).toThrowError(TypeError);
  }, 300_000);

  it("inputs and results stay on the device, and chain", async () => {
    const [a, b] = [weight("int4_b32", 96, 40), weight("nf4_b64", 7, 96)];
    const x = data(3 * 40);
    const [first, second] = [prepareMatmul(a, { backend, epilogue: "relu" }), prepareMatmul(b, { backend })];
    const middle: GPUBuffer = await first.runBuffer(x, 3);
    const end = await second.runBuffer(middle, 3);
    const h = await first.runAsync(x, 3);
    expect(await backend.read(middle, 3 * 96)).toEqual(h);
    expect(await backend.read(end, 3 * 7)).toEqual(await second.runAsync(h, 3));
    const own: GPUBuffer = backend.upload(new Float32Array(3 * 7));
    expect(await second.runBuffer(middle, 3, own)).toBe(own);
    expect(await backend.read(own, 21)).toEqual(await backend.read(end, 21));
    // float16 on the device: odd k, values that float16 holds
    const w = weight("int8_row", 5, 33);
    const halves = Uint16Array.from({ length: 66 }, (_, i) => 0x3c00 + 64 * (i % 7) + ((i & 1) << 15));
    const floats = Float32Array.from(halves, (v) => (v & 0x8000 ? -1 : 1) * (1 + (v & 0x3ff) / 1024));
    const layer = prepareMatmul(w, { backend, activations: "float16" });
    const given = backend.upload(halves);
    expect(await layer.runAsync(given, 2)).toEqual(await layer.runAsync(floats, 2));
    await expect(first.runBuffer(given, 3)).rejects.toThrowError(/expected a GPUBuffer of 3 x 40 float32/);
    await expect(first.runBuffer(x, 3, given)).rejects.toThrowError(/run out/);
    await expect(first.runAsync([1, 2] as never, 1)).rejects.toThrowError(TypeError);
    for (const buffer of [middle, end, own, given]) buffer.destroy();
  }, 300_000);

  it("NaN and infinities in activations reach their row and no other", async () => {
    const w = weight("int4_b32", 20, 64);
    for (const activations of ["float32", "int16", "int8"] as const)
      for (const bad of [NaN, Infinity, -Infinity])
        for (const m of [3, 7]) {
          const x = data(m * 64);
          x[64 + 5] = bad;
          const y = await prepareMatmul(w, { backend, activations }).runAsync(x, m);
          expect(y.every((v, i) => Number.isFinite(v) || (i >= 20 && i < 40))).toBe(true);
          expect(y.subarray(20, 40).some((v) => !Number.isFinite(v))).toBe(true);
        }
  }, 300_000);

  it("runs at once keep their own numbers; x may be a view into a larger array", async () => {
    const w = weight("int4_b32", 30, 50);
    const layer = prepareMatmul(w, { backend });
    const all = data(10 * 50);
    const one = await Promise.all(Array.from({ length: 10 }, (_, r) => layer.runAsync(all.subarray(r * 50, r * 50 + 50), 1)));
    for (let r = 0; r < 10; r++) expect(one[r]).toEqual(await layer.runAsync(all.slice(r * 50, r * 50 + 50), 1));
    const out = new Float32Array(30);
    expect(await layer.runAsync(all.subarray(0, 50), 1, out)).toBe(out);
    expect(out).toEqual(one[0]);
    const view = await matmul(tensor(all, [10, 50]), w, { backend });
    expect(view.data.length).toBe(300);
    // a transposed weight: quantized through a strided view
    const turned = quantize({ data: all, shape: [50, 10], stride: [1, 50], offset: 0 } as never, format("int8_row"));
    await check(turned, 2);
  }, 300_000);

  it("1,000 layers leave no buffer behind; wrong shapes and disposed layers are refused", async () => {
    const w = weight("int4_b32", 16, 32);
    const x = data(32);
    const before = await backendWith({});
    await prepareMatmul(w, { backend: before }).runAsync(x, 1);
    const [buffers, bytes] = [before.buffers, before.bytes];
    for (let i = 0; i < 1000; i++) {
      const layer = prepareMatmul(w, { backend: before });
      if (i % 50 === 0) await layer.runAsync(x, 1);
      layer.dispose();
    }
    expect([before.buffers, before.bytes]).toEqual([buffers, bytes]);
    const layer = prepareMatmul(w, { backend: before });
    await expect(layer.runAsync(new Float32Array(31), 1)).rejects.toMatchObject({ code: "E_SHAPE" });
    await expect(layer.runAsync(x, 0)).rejects.toMatchObject({ code: "E_SHAPE" });
    await expect(layer.runAsync(x, 1, new Float32Array(15))).rejects.toMatchObject({ code: "E_SHAPE" });
    layer.dispose();
    layer.dispose();
    await expect(layer.runAsync(x, 1)).rejects.toMatchObject({ code: "E_DISPOSED" });
    before.dispose();
    expect([before.buffers, before.bytes]).toEqual([0, 0]);
    expect(() => prepareMatmul(w, { backend: before })).toThrowError(/disposed/);
  }, 300_000);

  it("a lost device rejects what runs, and a new backend works", async () => {
    const w = weight("int4_b32", 64, 64);
    const x = data(64);
    const lost = await backendWith({});
    const layer = prepareMatmul(w, { backend: lost });
    await layer.runAsync(x, 1);
    const running = layer.runAsync(x, 1);
    lost.device.destroy();
    await expect(running).rejects.toMatchObject({ code: "E_DEVICE" });
    await expect(layer.runAsync(x, 1)).rejects.toThrowError(/Make another backend/);
    lost.dispose();
    await check(w, 1, {}, await backendWith({}));
  });
});

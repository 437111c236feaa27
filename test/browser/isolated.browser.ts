// The WebAssembly backend in a cross-origin isolated page: threads from inline workers and from a worker file, the
// numbers of the reference.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { format, type BlockFormat } from "../../formats/index.ts";
import { matmul, prepareMatmul, quantize, tensor, wasm, type WasmBackend } from "../../src/index.ts";
import { normalArray } from "../helpers/random.ts";

const [n, k] = [67, 160];
const weights = ["int4_b32", "mxfp4", "nf4_b64", "uint4_b32_zp", "float8_e4m3fn_tensor", "int8_row"].map(
  (name) => format(name) as BlockFormat,
);
const data = normalArray(n * k, 1);

describe("the page", () => {
  it("is cross-origin isolated", () => {
    expect((globalThis as { crossOriginIsolated?: boolean }).crossOriginIsolated).toBe(true);
  });
});

describe.each([
  ["one thread", {}],
  ["two threads, inline worker", { threads: 2 }],
  ["two threads, worker file", { threads: 2, workerUrl: "worker.js" }],
] as const)("WebAssembly: %s", (_, options) => {
  let backend: WasmBackend;
  beforeAll(async () => {
    backend = await wasm(options);
  });
  afterAll(() => backend.dispose());

  it.each(weights.map((w) => [w.name, w] as const))("%s: products are the reference's", async (_name, weight) => {
    const w = quantize(tensor(data, [n, k]), weight);
    for (const m of [1, 5]) {
      const x = normalArray(m * k, 2 + m);
      const expected = (await matmul(tensor(x, [m, k]), w)).data;
      // the largest sum of |x| |w| bounds what float32 sums of k terms can lose
      const scale = Math.max(...expected.map(Math.abs)) * Math.sqrt(k);
      const layer = prepareMatmul(w, { backend });
      const error = (y: Float32Array) => Math.max(...y.map((v, i) => Math.abs(v - expected[i])));
      expect(error(layer.run(x, m))).toBeLessThan(k * 2 ** -23 * scale);
      expect(error(await layer.runAsync(x, m))).toBeLessThan(k * 2 ** -23 * scale);
      layer.dispose();
    }
  });

  it("int8 activations: the numbers of one thread, bit for bit", async () => {
    const one = await wasm();
    for (const weight of weights) {
      const w = quantize(tensor(data, [n, k]), weight);
      const x = normalArray(9 * k, 7);
      const mine = prepareMatmul(w, { backend, activations: "int8" }).run(x, 9);
      expect(Array.from(mine)).toEqual(Array.from(prepareMatmul(w, { backend: one, activations: "int8" }).run(x, 9)));
    }
    one.dispose();
  });

  it("integer products are exact", () => {
    const w = Int8Array.from({ length: n * k }, (_, i) => ((i * 37) % 256) - 128);
    const a = Int8Array.from({ length: 3 * k }, (_, i) => ((i * 91) % 256) - 128);
    const y = backend.prepareInteger(w, n, k).run(a, 3);
    for (let r = 0; r < 3; r++)
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let i = 0; i < k; i++) sum += a[r * k + i] * w[j * k + i];
        expect(y[r * n + j]).toBe(sum);
      }
  });

  it("keeps answering after its workers have parked", async () => {
    const w = quantize(tensor(data, [n, k]), weights[0]);
    const layer = prepareMatmul(w, { backend });
    const x = normalArray(k, 3);
    const first = Array.from(layer.run(x, 1));
    for (let i = 0; i < 3; i++) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      expect(Array.from(layer.run(x, 1))).toEqual(first);
    }
  });
});

it("workers answer the first job of a backend that has just been made, again and again", async () => {
  const w = quantize(tensor(data, [n, k]), weights[0]);
  const x = normalArray(k, 3);
  const expected = Array.from(prepareMatmul(w, { backend: await wasm() }).run(x, 1));
  for (let i = 0; i < 30; i++) {
    const backend = await wasm({ threads: 2, timeoutMs: 5000 });
    expect(Array.from(prepareMatmul(w, { backend }).run(x, 1))).toEqual(expected);
    backend.dispose();
  }
});

it("a worker file that is missing is an error, not a hang", async () => {
  await expect(wasm({ threads: 2, workerUrl: "missing.js" })).rejects.toMatchObject({ code: "E_DEVICE" });
});

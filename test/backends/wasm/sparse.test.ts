// Sparse products: int8 equals plain loops bit for bit, float32 lies within the bound of its sums; any pattern, odd
// sizes, empty rows, one thread and two.
import { describe, expect, it } from "vitest";
import { format } from "../../../formats/index.ts";
import { dequantize, prepareMatmul, quantize, tensor, wasm } from "../../../src/index.ts";
import { prune, seededRandom, type SparsityPattern } from "../../../src/quantize/index.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import { weightSource } from "../../../src/backends/source.ts";
import { sparseStream } from "../../../kernels/wasm/sparse/stream.ts";

const sizes = [[1, 1, 1], [3, 5, 2], [4, 8, 8], [17, 33, 49], [64, 40, 13], [20, 7, 100]] as const; // prettier-ignore
const patterns: readonly [SparsityPattern, number][] = [
  ["unstructured", 0.7], ["4x1", 0.8], ["1x4", 0.5], ["16x1", 0.9], ["2:4", 0.5], ["unstructured", 0], ["4x1", 1],
]; // prettier-ignore

describe("sparse products", () => {
  it("of int8 are exact", async () => {
    for (const threads of [1, 2]) {
      const backend = await wasm({ threads });
      const random = seededRandom(threads);
      for (const [n, k, m] of sizes)
        for (const [pattern, sparsity] of patterns) {
          const dense = Float32Array.from({ length: n * k }, () => Math.floor(256 * random()) - 128);
          const w = Int8Array.from(dequantize(prune(tensor(dense, [n, k]), pattern, { sparsity })));
          const a = Int8Array.from({ length: m * k }, () => Math.floor(256 * random()) - 128);
          const layer = backend.prepareSparseInteger(w, n, k);
          const y = layer.run(a, m);
          for (let r = 0; r < m; r++)
            for (let j = 0; j < n; j++) {
              let sum = 0;
              for (let i = 0; i < k; i++) sum += a[r * k + i] * w[j * k + i];
              if (y[r * n + j] !== sum) expect(y[r * n + j], `${n} x ${k}, ${m} rows, ${pattern}`).toBe(sum);
            }
          layer.dispose();
        }
      backend.dispose();
    }
  });

  it("of float32 keep to the bound of their sums, for weights of any format", async () => {
    for (const threads of [1, 2]) {
      const backend = await wasm({ threads });
      const random = seededRandom(7);
      for (const [n, k, m] of sizes)
        for (const [pattern, sparsity] of patterns)
          for (const f of ["float32", "int8_row"]) {
            const dense = tensor(Float32Array.from({ length: n * k }, () => random() - 0.5), [n, k]); // prettier-ignore
            const w = prune(dense, pattern, { sparsity, format: format(f) });
            const values = dequantize(w);
            const x = Float32Array.from({ length: m * k }, () => random() - 0.5);
            const layer = backend.prepareSparse(w);
            const y = layer.run(x, m);
            for (let r = 0; r < m; r++)
              for (let j = 0; j < n; j++) {
                let [sum, size] = [0, 0];
                for (let i = 0; i < k; i++) {
                  sum += x[r * k + i] * values[j * k + i];
                  size += Math.abs(x[r * k + i] * values[j * k + i]);
                }
                const bound = size * (k + 2) * 2 ** -23;
                if (!(Math.abs(y[r * n + j] - sum) <= bound)) expect(y[r * n + j], `${n} x ${k}, ${pattern} ${f}`).toBeCloseTo(sum, 7);
              }
            layer.dispose();
          }
      backend.dispose();
    }
  });

  it("take blocks of four rows where these share columns, and say so", async () => {
    const backend = await wasm();
    const w = tensor(Float32Array.from({ length: 32 * 32 }, (_, i) => Math.sin(i)), [32, 32]); // prettier-ignore
    const block = backend.prepareSparse(prune(w, "8x1", { sparsity: 0.75 })).explain();
    expect(block.kernel).toMatch(/^f32_sparse4x1_gemm_12__wasm/);
    expect(block.reasons[0]).toMatch(/^25\.0 % of the weights are not zero, in blocks of 4 rows/);
    expect(backend.prepareSparse(prune(w, "unstructured", { sparsity: 0.9 })).explain().kernel).toMatch(/sparse1x1/);
    expect(sparseStream({ values: new Float32Array(16), n: 4, k: 4 }, "float32")).toMatchObject({ kept: 0, multiplied: 0 });
    // of int8 runs of four columns, the last one of what is left
    const runs = Int8Array.from({ length: 6 * 23 }, (_, i) => (((i % 23) >> 2) % 2 === 1 ? 1 + (i % 7) : 0));
    const odd = runs.map((v, i) => (Math.floor(i / 23) % 2 === 0 ? 0 : v));
    for (const type of ["words", "bytes-u", "bytes-s"] as const)
      expect(sparseStream({ values: odd, n: 6, k: 23 }, type)).toMatchObject({ block: "1x4", kept: 33, multiplied: 36 });
    expect(sparseStream({ values: Float32Array.from(odd), n: 6, k: 23 }, "float32").block).toBe("1x1");
    backend.dispose();
  });

  it("refuse other activations and shapes", async () => {
    const backend = await wasm();
    const layer = backend.prepareSparseInteger(new Int8Array(8), 2, 4);
    expect(() => layer.run(new Uint8Array(4), 1)).toThrow(/Int8Array/);
    expect(() => layer.run(new Int8Array(5), 1)).toThrow(/E_SHAPE|expected/);
    expect(() => backend.prepareSparseInteger(new Int8Array(7), 2, 4)).toThrow(/expected/);
    layer.dispose();
    expect(() => layer.run(new Int8Array(4), 1)).toThrow(/dispose/);
    const dense = quantize(tensor(new Float32Array(8).fill(1), [2, 4]), format("float32"));
    expect(backend.prepareSparse(dense).run(new Float32Array(4).fill(1), 1)).toEqual(
      prepareMatmul(dense).run(new Float32Array(4).fill(1), 1),
    );
    backend.dispose();
  });

  /** What the kernel computes, in its order: codes of activations, exact sums of blocks, float32 sums of blocks. */
  function twoFourOracle(w: PackedTensor, span: number, x: Float32Array, m: number): Float32Array {
    const { rows: n, k } = w;
    const source = weightSource(w);
    const groups = Math.ceil(k / span);
    const [codes, scales] = [new Uint8Array(k), new Float64Array(groups)];
    const y = new Float32Array(m * n);
    for (let j = 0; j < n; j++) {
      source.codes(j, codes);
      source.scales(j, scales);
      for (let r = 0; r < m; r++)
        for (let g = 0; g < groups; g++) {
          const part = x.subarray(r * k + g * span, r * k + Math.min(k, (g + 1) * span));
          const scale = Math.fround(part.reduce((most, v) => Math.max(most, Math.abs(v)), 0) / 127);
          let sum = 0;
          part.forEach((v, i) => {
            const q = scale === 0 ? 0 : Math.fround(v / scale);
            const near = Math.floor(q + 0.5);
            const code = near - q === 0.5 && near % 2 !== 0 ? near - 1 : near;
            sum += code * source.values![codes[g * span + i]];
          });
          y[r * n + j] += Math.fround(sum * Math.fround(Math.fround(scales[g]) * scale));
        }
    }
    return y;
  }

  it("of 2:4 weights of 4 bits and int8 activations: the oracle's bits, near the dense product", async () => {
    for (const threads of [1, 2]) {
      const backend = await wasm({ threads });
      const random = seededRandom(3);
      for (const [n, k, name, span] of [
        [16, 32, "int4_b32", 32],
        [5, 96, "int4_b32", 32],
        [33, 256, "int4_b128", 128],
        [20, 72, "int4_b64", 64],
      ] as const) {
        const dense = tensor(Float32Array.from({ length: n * k }, () => random() - 0.5), [n, k]); // prettier-ignore
        const w = prune(dense, "2:4", { format: format(name) });
        const layer = backend.prepareSparse(w, { activations: "int8" });
        const whole = prepareMatmul(w, { backend, activations: "int8" });
        for (const m of [1, 2, 3, 4, 5, 9]) {
          const x = Float32Array.from({ length: m * k }, (_, i) => (i < 32 ? 0 : (random() - 0.5) * 2 ** Math.floor(8 * random())));
          const y = layer.run(x, m);
          expect(y).toEqual(twoFourOracle(w, span, x, m));
          const near = whole.run(x, m);
          const most = near.reduce((a, v) => Math.max(a, Math.abs(v)), 0);
          y.forEach((v, i) => expect(Math.abs(v - near[i])).toBeLessThanOrEqual(1e-5 * most));
        }
        expect(layer.explain()).toMatchObject({ activations: "int8", kernel: expect.stringMatching(/^a8_int4_b\d+_2of4_gemv_1x4__wasm/) });
        layer.dispose();
        whole.dispose();
      }
      backend.dispose();
    }
  });

  it("of 2:4 refuse what is none, and say what to do", async () => {
    const backend = await wasm();
    const dense = tensor(Float32Array.from({ length: 128 }, (_, i) => Math.cos(i)), [2, 64]); // prettier-ignore
    const of = (name: string) => () => backend.prepareSparse(quantize(dense, format(name)), { activations: "int8" });
    expect(of("int4_b32")).toThrow(/more than two weights of four in rows 0 to 3\. Prune first/);
    expect(of("int8_row")).toThrow(/got other values/);
    expect(of("int4_b16")).toThrow(/got blocks of 16/);
    expect(of("uint4_b32_zp")).toThrow(/got (other values|zero points)/);
    expect(() => backend.prepareSparse(prune(dense, "2:4"), { activations: "int4" as "int8" })).toThrow(
      /expected "float32" or "int8", got int4/,
    );
    backend.dispose();
  });
});

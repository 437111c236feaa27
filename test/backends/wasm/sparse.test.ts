// Sparse products: int8 equals plain loops bit for bit, float32 lies within the bound of its sums; any pattern, odd
// sizes, empty rows, one thread and two.
import { describe, expect, it } from "vitest";
import { format } from "../../../formats/index.ts";
import { dequantize, prepareMatmul, quantize, tensor, wasm } from "../../../src/index.ts";
import { prune, seededRandom, type SparsityPattern } from "../../../src/quantize/index.ts";
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
    expect(sparseStream(new Float32Array(16), 4, 4)).toMatchObject({ kept: 0, multiplied: 0 });
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
});

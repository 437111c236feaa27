// Pruning: patterns hold, magnitude keeps the largest, and SparseGPT is optimal brain surgery column by column: an
// oracle that inverts every trailing submatrix anew gives the same weights.
import { describe, expect, it } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import { gaussian, gptq, layerStatistics, outputError, prune, seededRandom, SPARSITY_PATTERNS } from "../../src/quantize/index.ts";

const draw = gaussian(seededRandom(11));
const normal = (n: number): Float32Array => Float32Array.from({ length: n }, draw);

/** Inputs whose channels depend on one another. */
function inputs(rows: number, k: number): Float32Array {
  const x = normal(rows * k);
  for (let r = 0; r < rows; r++) for (let j = 1; j < k; j++) x[r * k + j] = 0.7 * x[r * k + j - 1] + x[r * k + j];
  return x;
}
function statistics(k: number, rows = 8 * k) {
  const s = layerStatistics(k);
  s.add(inputs(rows, k));
  return s.finish();
}

/** Gauss-Jordan. */
function inverse(h: number[][]): number[][] {
  const n = h.length;
  const a = h.map((row, i) => [...row, ...row.map((_, j) => (i === j ? 1 : 0))]);
  for (let i = 0; i < n; i++) {
    const p = a[i][i];
    a[i] = a[i].map((v) => v / p);
    for (let r = 0; r < n; r++) if (r !== i) a[r] = subtract(a[r], a[i], a[r][i]);
  }
  return a.map((row) => row.slice(n));
}
const subtract = (row: number[], from: number[], f: number): number[] => row.map((v, c) => v - f * from[c]);

/** 2:4 of one row, with nothing rounded. */
function surgeon(w: number[], h: number[][]): number[] {
  const k = w.length;
  const out = [...w];
  const inverses = w.map((_, j) => inverse(h.slice(j).map((row) => row.slice(j))));
  let gone: number[] = [];
  for (let j = 0; j < k; j++) {
    if (j % 4 === 0) {
      const group = [j, j + 1, j + 2, j + 3];
      gone = group.sort((a, b) => out[a] ** 2 / inverses[a][0][0] - out[b] ** 2 / inverses[b][0][0]).slice(0, 2);
    }
    if (!gone.includes(j)) continue;
    const e = out[j] / inverses[j][0][0];
    for (let c = j; c < k; c++) out[c] -= e * inverses[j][0][c - j];
    out[j] = 0;
  }
  return out;
}

describe("prune", () => {
  it("holds its pattern and its share, by either way, in float32 and int4", () => {
    const [n, k] = [32, 64];
    const w = tensor(normal(n * k), [n, k]);
    const hessian = statistics(k);
    for (const [pattern, block] of SPARSITY_PATTERNS)
      for (const sparsity of pattern === "2:4" ? [0.5] : [0, 0.5, 0.75, 1])
        for (const f of ["float32", "int4_b32"])
          for (const by of [{}, { hessian }]) {
            const packed = prune(w, pattern, { sparsity, format: format(f), ...by });
            const v = dequantize(packed);
            const zeros = v.filter((x) => x === 0).length / v.length;
            if (f === "float32") expect(Math.abs(zeros - sparsity)).toBeLessThan(0.02);
            else expect(zeros).toBeGreaterThanOrEqual(sparsity - 0.02);
            expect(packed.recipe.prune).toMatchObject({ pattern, sparsity });
            if (f === "int4_b32") continue;
            for (let r = 0; r < n; r += block.rows)
              for (let j = 0; j < k; j += block.columns) {
                const own: number[] = [];
                for (let a = 0; a < block.rows; a++) for (let b = 0; b < block.columns; b++) own.push(v[(r + a) * k + j + b]);
                expect(own.every((x) => x === 0) || own.every((x) => x !== 0)).toBe(true);
              }
            if (pattern === "2:4") for (let i = 0; i < v.length; i += 4) expect(v.subarray(i, i + 4).filter((x) => x === 0).length).toBe(2);
          }
  });

  it("keeps the largest by magnitude", () => {
    const w = tensor(Float32Array.of(1, -4, 3, 2, -5, 0.5, 0.25, 6), [1, 8]);
    expect([...dequantize(prune(w, "2:4"))]).toEqual([0, -4, 3, 0, -5, 0, 0, 6]);
    expect([...dequantize(prune(w, "unstructured", { sparsity: 0.75 }))]).toEqual([0, 0, 0, 0, -5, 0, 0, 6]);
    expect([...dequantize(prune(w, "1x4", { sparsity: 0.5 }))]).toEqual([0, 0, 0, 0, -5, 0.5, 0.25, 6]);
  });

  it("with a Hessian is what optimal brain surgery does, inverse by inverse", () => {
    const [n, k] = [6, 24];
    const w = normal(n * k);
    const hessian = statistics(k);
    const damp = 0.01;
    const mean = Array.from({ length: k }, (_, j) => hessian.hessian![j * k + j]).reduce((a, b) => a + b) / k;
    const h = Array.from({ length: k }, (_, i) =>
      Array.from({ length: k }, (_, j) => hessian.hessian![i * k + j] + (i === j ? damp * mean : 0)),
    );
    const got = dequantize(prune(tensor(w, [n, k]), "2:4", { hessian, damp }));
    for (let r = 0; r < n; r++)
      surgeon([...w.subarray(r * k, (r + 1) * k)], h).forEach((v, j) => expect(Math.abs(got[r * k + j] - v)).toBeLessThan(1e-4));
  });

  it("loses less of the output than magnitude, 2:4 with int4", () => {
    const [n, k] = [48, 128];
    const w = tensor(normal(n * k), [n, k]);
    const hessian = statistics(k);
    const f = format("int4_b32");
    const loss = (packed: ReturnType<typeof prune>): number => outputError(w.data, dequantize(packed), n, hessian.hessian!);
    const [sparse, magnitude] = [loss(prune(w, "2:4", { hessian, format: f })), loss(prune(w, "2:4", { format: f }))];
    expect(sparse).toBeLessThan(0.7 * magnitude);
    const plain = quantize(w, f, gptq({ hessian, prune: { pattern: "2:4" } }));
    expect(plain.codes).toEqual(prune(w, "2:4", { hessian, format: f }).codes);
  });

  it("refuses what it cannot do", () => {
    const w = tensor(normal(64), [2, 32]);
    const hessian = statistics(32);
    expect(() => prune(w, "3:4" as never)).toThrow(/one of unstructured, 1x4/);
    expect(() => prune(w, "2:4", { sparsity: 0.8 })).toThrow(/0\.5 for the pattern 2:4/);
    expect(() => prune(w, "4x1", { sparsity: 2 })).toThrow(RangeError);
    expect(() => prune(w, "2:4", { format: format("bipolar2_row") })).toThrow(/code for zero/);
    expect(() => gptq({ hessian, prune: { pattern: "2:4" }, actOrder: true })).toThrow(/natural order/);
    expect(() => gptq({ hessian, prune: { pattern: "2:4" }, polish: true })).toThrow(/polish/);
  });
});

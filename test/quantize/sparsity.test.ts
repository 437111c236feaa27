// Masks by sorting blocks written apart, for every pattern on shapes that blocks do not divide; SparseGPT with inputs of
// very different power against the same search with inverses formed anew; and no format without a zero.
import { expect, test } from "vitest";
import { float32, format } from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import { gptq, layerStatistics, prune, SPARSITY_PATTERNS, type SparsityPattern } from "../../src/quantize/index.ts";
import { inverse } from "../oracle/gptq.ts";
import { inputs } from "../helpers/layers.ts";
import { random } from "../helpers/random.ts";

const rng = random(6);
const sizes: Record<SparsityPattern, [number, number]> = { unstructured: [1, 1], "1x4": [1, 4], "4x1": [4, 1], "8x1": [8, 1], "16x1": [16, 1], "2:4": [1, 4] }; // prettier-ignore

/** Which of [rows, k] scores go: blocks in order of their sums, columns of blocks first where sums are equal. */
function pruned(pattern: SparsityPattern, share: number, rows: number, k: number, score: (r: number, j: number) => number): boolean[] {
  const [down, across] = sizes[pattern];
  const gone = new Array<boolean>(rows * k).fill(false);
  const take = (entries: [number, number][]) => entries.forEach(([r, j]) => (gone[r * k + j] = true));
  if (pattern === "2:4") {
    for (let r = 0; r < rows; r++)
      for (let j = 0; j < k; j += 4) {
        const group = Array.from({ length: Math.min(4, k - j) }, (_, i) => [r, j + i] as [number, number]);
        take(group.sort((a, b) => score(...a) - score(...b) || a[1] - b[1]).slice(0, group.length >> 1));
      }
    return gone;
  }
  const blocks: [number, number][][] = [];
  for (let j = 0; j < k; j += across)
    for (let r = 0; r < rows; r += down) {
      const block: [number, number][] = [];
      for (let a = r; a < Math.min(rows, r + down); a++) for (let b = j; b < Math.min(k, j + across); b++) block.push([a, b]);
      blocks.push(block);
    }
  const sums = blocks.map((block) => block.reduce((sum, [r, j]) => sum + score(r, j), 0));
  const order = blocks.map((_, i) => i).sort((a, b) => sums[a] - sums[b] || a - b);
  for (const i of order.slice(0, Math.round(share * blocks.length))) take(blocks[i]);
  return gone;
}

test.each(Object.keys(sizes) as SparsityPattern[])("%s by magnitude", (pattern) => {
  for (const [rows, k] of [
    [1, 4],
    [7, 10],
    [16, 12],
    [35, 6],
  ])
    // prettier-ignore
    for (const sparsity of pattern === "2:4" ? [0.5] : [0, 0.1, 0.5, 0.77, 1]) {
      // whole numbers: many sums are equal
      const w = Float32Array.from({ length: rows * k }, () => (rng.integer(2) === 0 ? 1 : -1) * (1 + rng.integer(3)));
      const packed = prune(tensor(w, [rows, k]), pattern, { sparsity });
      const gone = pruned(pattern, sparsity, rows, k, (r, j) => w[r * k + j] ** 2);
      expect([...dequantize(packed)]).toEqual(gone.map((g, i) => (g ? 0 : w[i])));
      expect(packed.recipe.prune).toEqual({ pattern, sparsity, by: "magnitude" });
    }
  expect(prune(tensor(Float32Array.of(1, 2, 3, 4), [1, 4]), pattern).recipe.prune).toMatchObject({ sparsity: 0.5 });
});

test.each(Object.keys(sizes) as SparsityPattern[])(
  "%s by SparseGPT: scores over the inverse of what is left, errors carried on",
  (pattern) => {
    const [rows, k] = [5, 24];
    const x = inputs("ar", 200, k, 3);
    // channels of very different power: scores by weights alone would choose others
    for (let i = 0; i < x.length; i++) x[i] *= [1, 8, 0.3, 3, 0.05][(i % k) % 5];
    const made = layerStatistics(k);
    made.add(x);
    const { hessian } = made.finish();
    const damp = 0.02;
    const mean = Array.from({ length: k }, (_, j) => hessian[j * k + j] / k).reduce((a, b) => a + b);
    const h = Array.from({ length: k }, (_, i) => Array.from({ length: k }, (_v, j) => hessian[i * k + j] + (i === j ? damp * mean : 0)));
    const inverses = h.map((_, j) => inverse(h.slice(j).map((row) => row.slice(j))));
    const w = Float32Array.from({ length: rows * k }, () => rng.normal());
    const current = Array.from({ length: rows }, (_, r) => Array.from(w.subarray(r * k, (r + 1) * k)));
    const width = pattern === "2:4" ? 4 : 16; // of one block
    let gone: boolean[] = [];
    const share = pattern === "2:4" ? 0.5 : 0.4;
    for (let j = 0; j < k; j++) {
      const start = j - (j % width);
      const own = Math.min(width, k - start);
      if (j === start) gone = pruned(pattern, share, rows, own, (r, c) => current[r][start + c] ** 2 / inverses[start + c][0][0]);
      for (let r = 0; r < rows; r++) {
        if (!gone[r * own + j - start]) continue;
        const e = current[r][j] / inverses[j][0][0];
        for (let c = j; c < k; c++) current[r][c] -= e * inverses[j][0][c - j];
        current[r][j] = 0;
      }
    }
    const options = { hessian, damp, blockSize: 16, ...(pattern === "2:4" ? {} : { sparsity: share }) };
    const got = dequantize(prune(tensor(w, [rows, k]), pattern, options));
    current.flat().forEach((v, i) => {
      expect(got[i] === 0, `${i}`).toBe(v === 0);
      expect(Math.abs(got[i] - v)).toBeLessThan(1e-4 * (1 + Math.abs(v)));
    });
    // the same in a quantizer, with rounding in one sweep
    const packed = quantize(tensor(w, [rows, k]), float32, gptq({ hessian, damp, blockSize: 16, prune: { pattern, sparsity: share } }));
    expect(dequantize(packed)).toEqual(got);
  },
);

test("patterns and formats", () => {
  for (const [pattern, { rows, columns }] of SPARSITY_PATTERNS)
    expect([rows, columns]).toEqual(pattern === "2:4" ? [1, 1] : sizes[pattern]);
  const w = tensor(Float32Array.of(1, 2, 3, 4), [1, 4]);
  for (const name of ["uint4_b4_zp", "bipolar4_b4", "ggml_q4_0"])
    expect(() => prune(w, "2:4", { format: format(name) }), name).toThrow(/format with a code for zero and no zero points/);
  for (const name of ["int8", "int4_b4", "nf4_b4", "float8_e4m3fn"]) {
    const v = dequantize(prune(w, "2:4", { format: format(name) }));
    expect([v[0], v[1]], name).toEqual([0, 0]);
    expect(v[3]).toBeGreaterThan(0);
  }
  for (const bad of [-0.1, 1.1, NaN]) expect(() => prune(w, "unstructured", { sparsity: bad })).toThrow(RangeError);
});

// The algebra of the quantizers against its definitions.
import { expect, test } from "vitest";
import { choleskyInPlace, gptqFactorInPlace, tnProductPlain, transposed } from "../../src/quantize/linalg.ts";
import { fastProduct, openAlgebra } from "../../src/quantize/simd.ts";
import { inverse } from "../oracle/gptq.ts";
import { random } from "../helpers/random.ts";

function spd(n: number, seed: number): Float64Array {
  const rng = random(seed);
  const x = Float64Array.from({ length: (n + 3) * n }, () => rng.normal());
  const h = new Float64Array(n * n);
  for (let t = 0; t < n + 3; t++) for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) h[i * n + j] += x[t * n + i] * x[t * n + j];
  for (let i = 0; i < n; i++) h[i * n + i] += 0.01 * n;
  return h;
}

test("products, all remainders of the tiles", () => {
  const rng = random(1);
  for (const product of [tnProductPlain, fastProduct])
    for (const [m, n, depth] of [
      [1, 1, 1],
      [2, 3, 4],
      [3, 7, 5],
      [5, 130, 9],
      [64, 33, 17],
      [67, 200, 130],
    ]) {
      const [lda, ldb, ldc] = [m + 2, n + 1, n + 3];
      const a = Float64Array.from({ length: depth * lda + 5 }, () => rng.normal());
      const b = Float64Array.from({ length: depth * ldb + 5 }, () => rng.normal());
      const c = Float64Array.from({ length: m * ldc + 5 }, () => rng.normal());
      const want = c.slice();
      for (let i = 0; i < m; i++)
        for (let j = 0; j < n; j++) for (let p = 0; p < depth; p++) want[4 + i * ldc + j] += -0.5 * a[3 + p * lda + i] * b[2 + p * ldb + j];
      product(c, 4, ldc, m, n, a, 3, lda, b, 2, ldb, depth, -0.5);
      for (let i = 0; i < c.length; i++) expect(Math.abs(c[i] - want[i])).toBeLessThan(1e-12 * depth);
    }
});

test("in a memory of its own too, at any place, and only the lower triangle where that is asked for", () => {
  const rng = random(2);
  const [m, n, depth] = [37, 41, 13];
  const [lda, ldb, ldc] = [n + 2, n + 1, n + 3];
  const sizes = [depth * lda + 5, depth * ldb + 5, n * ldc + 5];
  // large enough for a kernel's memory, and in arrays of the caller's
  const kernel = openAlgebra(2 ** 22, 3, {}, "test");
  const made = [(size: number) => kernel.array(size), (size: number) => new Float64Array(size)];
  // each of the three in either
  for (let where = 0; where < 8; where++) {
    const [a, b, c] = sizes.map((size, i) => made[(where >> i) & 1](size));
    for (const x of [a, b, c]) for (let i = 0; i < x.length; i++) x[i] = rng.normal();
    const wanted = (rows: number, lower: boolean): Float64Array => {
      const want = c.slice();
      for (let i = 0; i < rows; i++)
        for (let j = 0; j < (lower ? i + 1 : n); j++)
          for (let p = 0; p < depth; p++) want[4 + i * ldc + j] += 2 * a[3 + p * lda + i] * b[2 + p * ldb + j];
      return want;
    };
    const want = wanted(m, false);
    kernel.product(c, 4, ldc, m, n, a, 3, lda, b, 2, ldb, depth, 2);
    for (let i = 0; i < c.length; i++) expect(Math.abs(c[i] - want[i])).toBeLessThan(1e-10);
    const lower = wanted(n, true);
    kernel.lower(c, 4, ldc, n, a, 3, lda, b, 2, ldb, depth, 2);
    for (let i = 0; i < n; i++)
      for (let j = 0; j <= i; j++) expect(Math.abs(c[4 + i * ldc + j] - lower[4 + i * ldc + j])).toBeLessThan(1e-10);
  }
  kernel.close();
});

test("Cholesky: L L^T is the matrix; the first bad pivot is named", () => {
  for (const n of [1, 2, 63, 64, 65, 150]) {
    const h = spd(n, n);
    const l = h.slice();
    expect(choleskyInPlace(l, n)).toBe(-1);
    let worst = 0;
    for (let i = 0; i < n; i++)
      for (let j = 0; j <= i; j++) {
        let s = 0;
        for (let p = 0; p <= j; p++) s += l[i * n + p] * l[j * n + p];
        worst = Math.max(worst, Math.abs(s - h[i * n + j]) / h[i * n + i]);
      }
    expect(worst).toBeLessThan(1e-13);
  }
  const broken = spd(90, 3);
  broken[70 * 90 + 70] = -1;
  expect(choleskyInPlace(broken.slice(), 90)).toBe(70);
  expect(gptqFactorInPlace(broken.slice(), 90)).toBe(70);
  broken[70 * 90 + 70] = NaN;
  expect(choleskyInPlace(broken.slice(), 90)).toBe(70);
});

test("the reversal trick gives the Cholesky factor of the inverse", () => {
  for (const n of [1, 5, 64, 97, 140]) {
    const h = spd(n, n + 7);
    const u = h.slice();
    expect(gptqFactorInPlace(u, n)).toBe(-1);
    const inv = inverse(Array.from({ length: n }, (_, i) => Array.from(h.subarray(i * n, (i + 1) * n))));
    let worst = 0;
    for (let i = 0; i < n; i++)
      for (let j = 0; j < n; j++) {
        if (j < i) expect(u[i * n + j]).toBe(0);
        let s = 0;
        for (let p = 0; p <= Math.min(i, j); p++) s += u[p * n + i] * u[p * n + j];
        worst = Math.max(worst, Math.abs(s - inv[i][j]) / Math.sqrt(inv[i][i] * inv[j][j]));
      }
    expect(worst).toBeLessThan(1e-9);
  }
});

test("transpose", () => {
  const t = transposed(
    Float64Array.from({ length: 35 * 50 }, (_, i) => i),
    35,
    50,
  );
  expect(t[49 * 35 + 34]).toBe(34 * 50 + 49);
});

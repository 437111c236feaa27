// Dense float64 algebra of the quantizers, row-major: one product form (C += alpha A^T B, which every step here reduces to), blocked Cholesky,
// blocked triangular inverse, and the factor of GPTQ by the reversal trick. Source: Golub and Van Loan, Matrix Computations, 4.2.
// Everything is plain typed arrays; `tnProduct` is the only hot loop and may be replaced by a SIMD kernel (see simd.ts).

/** C[i0 + i, j0 + j] += alpha * sum over p of A[p, a0 + i] * B[p, b0 + j], for i < m, j < n, p < depth. Strides are row lengths. */
export interface TnProduct {
  (
    c: Float64Array,
    cAt: number,
    ldc: number,
    m: number,
    n: number,
    a: Float64Array,
    aAt: number,
    lda: number,
    b: Float64Array,
    bAt: number,
    ldb: number,
    depth: number,
    alpha: number,
  ): void;
}

/** The product in plain JavaScript: two rows of C by four of the depth, j innermost and contiguous. */
export const tnProductPlain: TnProduct = (c, cAt, ldc, m, n, a, aAt, lda, b, bAt, ldb, depth, alpha) => {
  let i = 0;
  for (; i + 1 < m; i += 2) {
    const c0 = cAt + i * ldc;
    const c1 = c0 + ldc;
    let p = 0;
    for (; p + 3 < depth; p += 4) {
      const at = aAt + p * lda + i;
      const a00 = alpha * a[at];
      const a01 = alpha * a[at + lda];
      const a02 = alpha * a[at + 2 * lda];
      const a03 = alpha * a[at + 3 * lda];
      const a10 = alpha * a[at + 1];
      const a11 = alpha * a[at + lda + 1];
      const a12 = alpha * a[at + 2 * lda + 1];
      const a13 = alpha * a[at + 3 * lda + 1];
      const b0 = bAt + p * ldb;
      const b1 = b0 + ldb;
      const b2 = b1 + ldb;
      const b3 = b2 + ldb;
      for (let j = 0; j < n; j++) {
        const v0 = b[b0 + j];
        const v1 = b[b1 + j];
        const v2 = b[b2 + j];
        const v3 = b[b3 + j];
        c[c0 + j] += a00 * v0 + a01 * v1 + a02 * v2 + a03 * v3;
        c[c1 + j] += a10 * v0 + a11 * v1 + a12 * v2 + a13 * v3;
      }
    }
    for (; p < depth; p++) {
      const at = aAt + p * lda + i;
      const [a0, a1] = [alpha * a[at], alpha * a[at + 1]];
      const b0 = bAt + p * ldb;
      for (let j = 0; j < n; j++) {
        c[c0 + j] += a0 * b[b0 + j];
        c[c1 + j] += a1 * b[b0 + j];
      }
    }
  }
  for (; i < m; i++) {
    const c0 = cAt + i * ldc;
    for (let p = 0; p < depth; p++) {
      const a0 = alpha * a[aAt + p * lda + i];
      if (a0 === 0) continue;
      const b0 = bAt + p * ldb;
      for (let j = 0; j < n; j++) c[c0 + j] += a0 * b[b0 + j];
    }
  }
};

const NB = 64;

/** The lower triangle of a symmetric matrix becomes its Cholesky factor L (A = L L^T), in place; the upper one is left as it was.
 * @returns -1, or the index of the first pivot that is not positive */
export function choleskyInPlace(a: Float64Array, n: number, product: TnProduct = tnProductPlain): number {
  const panel = new Float64Array(NB * n);
  for (let k0 = 0; k0 < n; k0 += NB) {
    const nb = Math.min(NB, n - k0);
    for (let i = k0; i < n; i++) {
      const ri = i * n;
      const stop = Math.min(i, k0 + nb - 1);
      for (let j = k0; j <= stop; j++) {
        const rj = j * n;
        let s = a[ri + j];
        for (let p = k0; p < j; p++) s -= a[ri + p] * a[rj + p];
        if (i === j) {
          if (!(s > 0 && s < Infinity)) return i;
          a[ri + i] = Math.sqrt(s);
        } else a[ri + j] = s / a[rj + j];
      }
    }
    const rest = n - k0 - nb;
    if (rest === 0) break;
    const first = k0 + nb;
    for (let i = 0; i < rest; i++) for (let p = 0; p < nb; p++) panel[p * rest + i] = a[(first + i) * n + k0 + p];
    for (let i = 0; i < rest; i += NB) {
      const m = Math.min(NB, rest - i);
      product(a, (first + i) * n + first, n, m, i + m, panel, i, rest, panel, 0, rest, nb, -1);
    }
  }
  return -1;
}

/** The lower triangle L becomes its inverse in place; the upper triangle is set to zero. */
export function invertLowerInPlace(l: Float64Array, n: number, product: TnProduct = tnProductPlain): void {
  const packed = new Float64Array(NB * n);
  const rows = new Float64Array(NB * n);
  const diagonal = new Float64Array(NB * NB);
  for (let i0 = 0; i0 < n; i0 += NB) {
    const nb = Math.min(NB, n - i0);
    for (let i = 0; i < nb; i++) {
      for (let p = 0; p < i0; p++) packed[p * nb + i] = l[(i0 + i) * n + p];
      for (let p = 0; p < nb; p++) diagonal[i * NB + p] = p <= i ? l[(i0 + i) * n + i0 + p] : 0;
    }
    const width = i0 + nb;
    rows.fill(0, 0, nb * width);
    for (let i = 0; i < nb; i++) rows[i * width + i0 + i] = 1;
    // Rows of the inverse above are lower triangular, so a block of them reaches only to its own diagonal.
    for (let p0 = 0; p0 < i0; p0 += NB) product(rows, 0, width, nb, p0 + NB, packed, p0 * nb, nb, l, p0 * n, n, NB, -1);
    for (let i = 0; i < nb; i++) {
      const ri = i * width;
      for (let q = 0; q < i; q++) {
        const f = diagonal[i * NB + q];
        if (f !== 0) for (let j = 0; j < width; j++) rows[ri + j] -= f * rows[q * width + j];
      }
      const d = 1 / diagonal[i * NB + i];
      for (let j = 0; j < width; j++) rows[ri + j] *= d;
    }
    for (let i = 0; i < nb; i++) {
      l.set(rows.subarray(i * width, i * width + i0 + i + 1), (i0 + i) * n);
      l.fill(0, (i0 + i) * n + i0 + i + 1, (i0 + i + 1) * n);
    }
  }
}

/**
 * The upper triangular U with H^-1 = U^T U, in place of H, without forming H^-1: U = J inv(chol(J H J)) J with J the reversal of the order
 * (GPTQ, arXiv 2210.17323, takes the Cholesky factor of the inverse; this is the same matrix).
 * @returns -1, or the index (in the order of H) of the pivot that is not positive; then H is destroyed
 */
export function gptqFactorInPlace(h: Float64Array, n: number, product: TnProduct = tnProductPlain): number {
  h.reverse();
  const bad = choleskyInPlace(h, n, product);
  if (bad >= 0) return n - 1 - bad;
  invertLowerInPlace(h, n, product);
  h.reverse();
  return -1;
}

/** Solves A x = b for a symmetric positive definite A (destroyed), b [n, columns] in place. @returns false if A is not positive definite */
export function solveSpdInPlace(a: Float64Array, n: number, b: Float64Array, columns: number): boolean {
  if (choleskyInPlace(a, n) >= 0) return false;
  for (let i = 0; i < n; i++) {
    for (let p = 0; p < i; p++) {
      const f = a[i * n + p];
      for (let c = 0; c < columns; c++) b[i * columns + c] -= f * b[p * columns + c];
    }
    for (let c = 0; c < columns; c++) b[i * columns + c] /= a[i * n + i];
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let p = i + 1; p < n; p++) {
      const f = a[p * n + i];
      for (let c = 0; c < columns; c++) b[i * columns + c] -= f * b[p * columns + c];
    }
    for (let c = 0; c < columns; c++) b[i * columns + c] /= a[i * n + i];
  }
  return true;
}

/** rows x cols -> cols x rows, by tiles. */
export function transposed(a: Float64Array, rows: number, cols: number): Float64Array<ArrayBuffer> {
  const out = new Float64Array(rows * cols);
  const T = 32;
  for (let i0 = 0; i0 < rows; i0 += T)
    for (let j0 = 0; j0 < cols; j0 += T) {
      const i1 = Math.min(rows, i0 + T);
      const j1 = Math.min(cols, j0 + T);
      for (let i = i0; i < i1; i++) for (let j = j0; j < j1; j++) out[j * rows + i] = a[i * cols + j];
    }
  return out;
}

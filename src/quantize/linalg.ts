// Dense float64 algebra of the quantizers, row-major: one product form (C += alpha A^T B, which every step here reduces
// to), blocked Cholesky, blocked triangular inverse, and the factor of GPTQ by the reversal trick. Source: Golub and
// Van Loan, Matrix Computations, 4.2. Everything is plain typed arrays; products are the only hot loops and may be
// replaced by SIMD kernels and threads (see simd.ts).

/**
 * C[i0 + i, j0 + j] += alpha * sum over p of A[p, a0 + i] * B[p, b0 + j], for i < m, j < n, p < depth. Strides are row
 * lengths.
 */
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

/** The products that everything here is made of. */
export interface Algebra {
  readonly product: TnProduct;
  /** A product with m = n of which only entries on and below the diagonal count; those above may be changed. */
  lower(
    c: Float64Array,
    cAt: number,
    ldc: number,
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

const BAND = 64;

/** Lower triangles by bands of rows, each a product that ends at its own diagonal. */
export const algebraOf = (product: TnProduct): Algebra => ({
  product,
  lower(c, cAt, ldc, n, a, aAt, lda, b, bAt, ldb, depth, alpha) {
    for (let i = 0; i < n; i += BAND) {
      const m = Math.min(BAND, n - i);
      product(c, cAt + i * ldc, ldc, m, i + m, a, aAt + i, lda, b, bAt, ldb, depth, alpha);
    }
  },
});

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

/** Columns of a panel, and of the parts in which a panel is solved. */
const NB = 64;
const PART = 16;

const plainAlgebra = algebraOf(tnProductPlain);

/** Numbers of scratch that `choleskyInPlace` and `gptqFactorInPlace` take. */
export const factorScratch = (n: number): number => 2 * NB * n + NB * NB;

/**
 * X with L X = B for a lower triangular L [nb, nb], in place of B [nb, width]. `upper` is L^T, row p holding column p
 * of L. Parts are solved row by row, what they change below by products.
 */
function solveLower(upper: Float64Array, at: number, nb: number, x: Float64Array, xAt: number, width: number, product: TnProduct): void {
  for (let q0 = 0; q0 < nb; q0 += PART) {
    const q1 = Math.min(nb, q0 + PART);
    for (let q = q0; q < q1; q++) {
      const row = xAt + q * width;
      const d = upper[at + q * NB + q];
      for (let j = 0; j < width; j++) x[row + j] /= d;
      for (let r = q + 1; r < q1; r++) {
        const f = upper[at + q * NB + r];
        const to = xAt + r * width;
        for (let j = 0; j < width; j++) x[to + j] -= f * x[row + j];
      }
    }
    if (q1 < nb) product(x, xAt + q1 * width, width, nb - q1, width, upper, at + q0 * NB + q1, NB, x, xAt + q0 * width, width, q1 - q0, -1);
  }
}

/**
 * The lower triangle of a symmetric matrix becomes its Cholesky factor L (A = L L^T), in place; what is above it is
 * lost.
 * @param scratch `factorScratch(n)` numbers, from the same memory as `a` where products work in place
 * @returns -1, or the index of the first pivot that is not positive
 */
export function choleskyInPlace(
  a: Float64Array,
  n: number,
  algebra: Algebra = plainAlgebra,
  scratch: Float64Array = new Float64Array(factorScratch(n)),
): number {
  return toEnd(choleskySteps(a, n, algebra, scratch));
}

/** Pauses between panels; yields the columns done. */
function* choleskySteps(a: Float64Array, n: number, algebra: Algebra, scratch: Float64Array): Generator<number, number, void> {
  const upper = 2 * NB * n;
  for (let k0 = 0; k0 < n; k0 += NB) {
    const nb = Math.min(NB, n - k0);
    for (let i = k0; i < k0 + nb; i++) {
      const ri = i * n;
      for (let j = k0; j <= i; j++) {
        const rj = j * n;
        let s = a[ri + j];
        for (let p = k0; p < j; p++) s -= a[ri + p] * a[rj + p];
        if (i === j) {
          if (!(s > 0 && s < Infinity)) return i;
          a[ri + i] = Math.sqrt(s);
        } else a[ri + j] = s / a[rj + j];
        scratch[upper + (j - k0) * NB + (i - k0)] = a[ri + j];
      }
    }
    const first = k0 + nb;
    const rest = n - first;
    if (rest === 0) break;
    // The panel below, transposed: L_kk X = A^T.
    for (let i = 0; i < rest; i++) for (let p = 0; p < nb; p++) scratch[p * rest + i] = a[(first + i) * n + k0 + p];
    solveLower(scratch, upper, nb, scratch, 0, rest, algebra.product);
    for (let i = 0; i < rest; i++) for (let p = 0; p < nb; p++) a[(first + i) * n + k0 + p] = scratch[p * rest + i];
    algebra.lower(a, first * n + first, n, rest, scratch, 0, rest, scratch, 0, rest, nb, -1);
    yield first;
  }
  return -1;
}

/**
 * The lower triangle L becomes its inverse in place; the upper triangle is set to zero. Scratch as for
 * `choleskyInPlace`.
 */
function* invertLowerSteps(l: Float64Array, n: number, algebra: Algebra, scratch: Float64Array): Generator<number, void, void> {
  const { product } = algebra;
  const packed = NB * n;
  const upper = 2 * NB * n;
  for (let i0 = 0; i0 < n; i0 += NB) {
    const nb = Math.min(NB, n - i0);
    for (let i = 0; i < nb; i++) {
      for (let p = 0; p < i0; p++) scratch[packed + p * nb + i] = l[(i0 + i) * n + p];
      for (let p = 0; p <= i; p++) scratch[upper + p * NB + i] = l[(i0 + i) * n + i0 + p];
    }
    const width = i0 + nb;
    scratch.fill(0, 0, nb * width);
    for (let i = 0; i < nb; i++) scratch[i * width + i0 + i] = 1;
    // Rows of the inverse above are lower triangular, so a block of them reaches only to its own diagonal.
    for (let p0 = 0; p0 < i0; p0 += 4 * NB) {
      const p1 = Math.min(i0, p0 + 4 * NB);
      product(scratch, 0, width, nb, p1, scratch, packed + p0 * nb, nb, l, p0 * n, n, p1 - p0, -1);
    }
    solveLower(scratch, upper, nb, scratch, 0, width, product);
    for (let i = 0; i < nb; i++) {
      l.set(scratch.subarray(i * width, i * width + i0 + i + 1), (i0 + i) * n);
      l.fill(0, (i0 + i) * n + i0 + i + 1, (i0 + i + 1) * n);
    }
    yield width;
  }
}

function toEnd<T>(steps: Generator<unknown, T, void>): T {
  for (;;) {
    const next = steps.next();
    if (next.done) return next.value;
  }
}

/**
 * The upper triangular U with H^-1 = U^T U, in place of H, without forming H^-1: U = J inv(chol(J H J)) J with J the
 * reversal of the order (GPTQ, arXiv 2210.17323, takes the Cholesky factor of the inverse; this is the same matrix).
 * @returns -1, or the index (in the order of H) of the pivot that is not positive; then H is destroyed
 */
export function gptqFactorInPlace(
  h: Float64Array,
  n: number,
  algebra: Algebra = plainAlgebra,
  scratch: Float64Array = new Float64Array(factorScratch(n)),
): number {
  return toEnd(gptqFactorSteps(h, n, algebra, scratch));
}

/** The same with pauses; yields how many of 2 n columns are done. */
export function* gptqFactorSteps(h: Float64Array, n: number, algebra: Algebra, scratch: Float64Array): Generator<number, number, void> {
  h.reverse();
  const bad = yield* choleskySteps(h, n, algebra, scratch);
  if (bad >= 0) return n - 1 - bad;
  for (const done of invertLowerSteps(h, n, algebra, scratch)) yield n + done;
  h.reverse();
  return -1;
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

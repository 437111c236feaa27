// The reference product y[m, n] = x[m, k] * w[n, k]^T: plain loops in binary64, one rounding at the end. Slow on
// purpose, and what every other kernel is compared with.

/**
 * Adds rows of w to the product: y[i * n + column + r] for the `count` rows in `w`.
 * @param x [m, k] row-major  @param w [count, k] row-major  @param y [m, n]
 */
export function matmulReference(
  x: Float32Array | Float64Array,
  w: Float64Array,
  y: Float32Array,
  m: number,
  n: number,
  k: number,
  column: number,
  count: number,
): void {
  for (let i = 0; i < m; i++) {
    for (let r = 0; r < count; r++) {
      let sum = 0;
      for (let j = 0; j < k; j++) sum += x[i * k + j] * w[r * k + j];
      y[i * n + column + r] = sum;
    }
  }
}

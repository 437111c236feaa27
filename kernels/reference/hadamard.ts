// Fast Walsh-Hadamard transform, reference: the textbook butterflies in binary64. Sylvester order.

/** y = scale * H x for each row of n = 2^p values, in place. */
export function fwhtReference(x: Float64Array, n: number, scale: number): void {
  for (let row = 0; row < x.length; row += n) {
    for (let h = 1; h < n; h *= 2)
      for (let i = 0; i < n; i += 2 * h)
        for (let j = row + i; j < row + i + h; j++) {
          const [a, b] = [x[j], x[j + h]];
          x[j] = a + b;
          x[j + h] = a - b;
        }
    for (let i = row; i < row + n; i++) x[i] *= scale;
  }
}

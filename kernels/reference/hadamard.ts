// Fast Walsh-Hadamard transform, plain: the textbook butterflies, in the precision of the array. Sylvester order.

/** x = H x for each row of n = 2^p values, in place, not normalised: n log2 n additions per row. */
export function butterflies(x: Float32Array | Float64Array, n: number): void {
  for (let row = 0; row < x.length; row += n)
    for (let h = 1; h < n; h *= 2)
      for (let i = row; i < row + n; i += 2 * h)
        for (let j = i; j < i + h; j++) {
          const a = x[j];
          const b = x[j + h];
          x[j] = a + b;
          x[j + h] = a - b;
        }
}

/** x = scale * H x in binary64: the reference. */
export function fwhtReference(x: Float64Array, n: number, scale: number): void {
  butterflies(x, n);
  for (let i = 0; i < x.length; i++) x[i] *= scale;
}

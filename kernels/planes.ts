// Small integer words as bit planes: which formats are affine in their codes, and the layout of planes that products of
// every backend read.

/** A word's value is slope * (code ^ flip) + base. */
export interface AffineWords {
  readonly bits: number;
  readonly flip: number;
  readonly slope: number;
  readonly base: number;
}

/**
 * How a format's values follow from its codes read as unsigned words (flip 0: unsigned, bipolar; flip 2^(bits-1): two's
 * complement), or null.
 */
export function affineWords(values: Float64Array, bits: number): AffineWords | null {
  for (const flip of [0, 1 << (bits - 1)]) {
    const base = values[flip];
    const slope = values[1 ^ flip] - base;
    const fits =
      Number.isInteger(base) && Number.isInteger(slope) && slope !== 0 && values.every((v, code) => v === slope * (code ^ flip) + base);
    if (fits) return { bits, flip, slope, base };
  }
  return null;
}

/**
 * Writes words [rows, k] as planes: [row][vector][plane] of 16 bytes, element k in bit k % 8 of byte (k % 128) / 8.
 * Returns the sum of the words of each row.
 */
export function packPlanes(codes: ArrayLike<number>, rows: number, k: number, words: AffineWords, target: Uint8Array): Int32Array {
  const vectors = Math.ceil(k / 128);
  const sums = new Int32Array(rows);
  target.fill(0);
  for (let r = 0; r < rows; r++)
    for (let i = 0; i < k; i++) {
      const u = codes[r * k + i] ^ words.flip;
      sums[r] += u;
      const at = (r * vectors + (i >> 7)) * words.bits * 16 + ((i & 127) >> 3);
      for (let plane = 0; plane < words.bits; plane++) target[at + 16 * plane] |= ((u >> plane) & 1) << (i & 7);
    }
  return sums;
}

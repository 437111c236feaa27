// How rows of activations and of results are laid out for the tiles of all products.

/** Values between rows of a result of `rows` x `n`: whole blocks, and no power of two, for rows that far apart would share the few lines of one cache set. */
export function resultStride(n: number, rows: number): number {
  const stride = Math.ceil(n / 16) * 16;
  return rows > 1 && stride % 256 === 0 ? stride + 16 : stride;
}

/** Rows of a tile for m rows of activations, at most `most`: the fewest tiles, evenly filled. */
export const tileRows = (m: number, most: number): number => Math.ceil(m / Math.ceil(m / most));

// Huffman codes over bytes: lengths from counts, canonical codes from lengths. What lossless containers and tensors
// share.

/** Longest code: one read of 32 bits at any bit offset holds it. */
export const LONGEST = 24;
export interface Code {
  /** Symbols in canonical order: by length, then by value. */
  readonly symbols: readonly number[];
  readonly lengths: Uint8Array;
  readonly codes: Uint32Array;
}

/** Code lengths of a Huffman code: two queues over the counts in ascending order. A single symbol takes no bits. */
export function huffmanLengths(counts: Float64Array): Uint8Array {
  const lengths = new Uint8Array(256);
  let weights = counts.slice();
  for (;;) {
    const leaves = [...weights.keys()].filter((s) => weights[s] > 0).sort((a, b) => weights[a] - weights[b] || a - b);
    if (leaves.length < 2) return lengths;
    const weight = leaves.map((s) => weights[s]);
    const parent: number[] = [];
    let leaf = 0;
    let inner = leaves.length;
    const take = () => (leaf < leaves.length && (inner >= weight.length || weight[leaf] <= weight[inner]) ? leaf++ : inner++);
    while (weight.length < 2 * leaves.length - 1) {
      const [a, b] = [take(), take()];
      parent[a] = parent[b] = weight.length;
      weight.push(weight[a] + weight[b]);
    }
    const depth = new Uint8Array(weight.length);
    for (let i = weight.length - 2; i >= 0; i--) depth[i] = depth[parent[i]] + 1;
    for (const [i, s] of leaves.entries()) lengths[s] = depth[i];
    if (Math.max(...lengths) <= LONGEST) return lengths;
    // Flatter counts give shorter codes; equal counts give at most 8 bits, so this ends.
    weights = weights.map((w) => Math.ceil(w / 2));
  }
}

export function canonical(lengths: Uint8Array, symbols: readonly number[]): Code {
  const order = [...symbols].sort((a, b) => lengths[a] - lengths[b] || a - b);
  const codes = new Uint32Array(256);
  let code = 0;
  let length = 0;
  for (const s of order) {
    code *= 2 ** (lengths[s] - length);
    length = lengths[s];
    codes[s] = code++;
  }
  return { symbols: order, lengths, codes };
}

/**
 * A bfloat16 matrix [rows, k] whose exponents are Huffman codes; made by `losslessTensor`, read-only by convention.
 */
export interface LosslessTensor {
  readonly kind: "lossless";
  readonly shape: readonly number[];
  readonly rows: number;
  readonly k: number;
  /** Length of the canonical code of each exponent, 0 where it does not occur; at most 24 bits. */
  readonly lengths: Uint8Array;
  /**
   * Bit streams of all rows, least significant bit first, each row from a byte of its own on; 16 bytes of zeros end
   * it.
   */
  readonly exponents: Uint8Array;
  /** First byte of each row's stream. */
  readonly starts: Uint32Array;
  /** Of [rows, k]: sign << 7 | mantissa. */
  readonly signMantissa: Uint8Array;
  /** Bytes of all that: to be compared with 2 * rows * k. */
  readonly byteLength: number;
}

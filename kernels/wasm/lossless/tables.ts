// The tables of the decoder of lossless weights (decode.ts): several symbols by one look-up of 11 bits, longer codes
// bit by bit.
import { canonical } from "../../../formats/core/huffman.ts";

/** Bits of a look-up. */
export const LOOKUP_BITS = 11;
/** Most symbols of an entry: bytes 0 to 5. Byte 6 is the bits that they take, byte 7 how many they are. */
const SYMBOLS = 6;
/** Where the counts of codes by length lie (25 words, rounded up), and the symbols in canonical order (256 bytes). */
export const COUNTS_AT = 8 * 2 ** LOOKUP_BITS;
export const SYMBOLS_AT = COUNTS_AT + 128;
export const TABLE_BYTES = SYMBOLS_AT + 256;

/** `code` of `length` bits, turned around: streams are read from their least significant bit on. */
export function reversed(code: number, length: number): number {
  let out = 0;
  for (let i = 0; i < length; i++) out |= ((code >>> i) & 1) << (length - 1 - i);
  return out >>> 0;
}

/** The tables of a canonical code, as the decoder reads them. An entry of no symbols stands for a longer code. */
export function decodeTables(lengths: Uint8Array): Uint8Array<ArrayBuffer> {
  const { symbols, codes } = canonical(
    lengths,
    [...lengths.keys()].filter((s) => lengths[s] > 0),
  );
  const out = new Uint8Array(TABLE_BYTES);
  const counts = new Uint32Array(out.buffer, COUNTS_AT, 32);
  const size = 2 ** LOOKUP_BITS;
  const first = new Int16Array(size).fill(-1);
  for (const [i, s] of symbols.entries()) {
    counts[lengths[s]]++;
    out[SYMBOLS_AT + i] = s;
    if (lengths[s] > LOOKUP_BITS) continue;
    for (let i = reversed(codes[s], lengths[s]); i < size; i += 2 ** lengths[s]) first[i] = s;
  }
  for (let i = 0; i < size; i++) {
    let bits = 0;
    let n = 0;
    for (; n < SYMBOLS; n++) {
      const s = first[i >> bits];
      if (s < 0 || bits + lengths[s] > LOOKUP_BITS) break;
      out[8 * i + n] = s;
      bits += lengths[s];
    }
    out[8 * i + 6] = bits;
    out[8 * i + 7] = n;
  }
  return out;
}

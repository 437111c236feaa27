// Lossless compression of bfloat16 in the manner of DFloat11 (arXiv 2504.11651): the exponents of trained weights carry
// about 2.6 bits, so they are stored as canonical Huffman codes; sign and mantissa stay as bytes. Every bit pattern
// comes back, NaN payloads and -0 included, where the reference refuses exponents of 240 and more. An own container,
// read and written by these two functions:
//   "LBF1"  count: u32  symbols: u16  (symbol: u8, code length: u8) * symbols  sign and mantissa: u8 * count
//   codes, most significant bit first
import { LowbitError } from "../../formats/core/errors.ts";
import { canonical, huffmanLengths, LONGEST } from "../../formats/core/huffman.ts";

const MAGIC = [0x4c, 0x42, 0x46, 0x31];
const HEADER = 10;
/** Codes up to here are decoded by one table look-up. */
const FAST = 12;

/**
 * Compresses bfloat16 bit patterns losslessly; about 66 % of the size for weights of any normal-like distribution.
 * @param values bit patterns, at most 2^32 - 1
 * @throws TypeError if values is no Uint16Array
 * @example
 * const bits = new Uint16Array(4096).fill(0x3f80);
 * compressBfloat16(bits).length // 4108: of 8192
 */
export function compressBfloat16(values: Uint16Array): Uint8Array<ArrayBuffer> {
  if (!(values instanceof Uint16Array)) throw new TypeError("compressBfloat16: expected a Uint16Array of bfloat16 bit patterns.");
  const n = values.length;
  if (n > 0xffffffff) throw new RangeError(`compressBfloat16: expected at most 2^32 - 1 values, got ${n}. Compress in parts.`);
  const counts = new Float64Array(256);
  for (let i = 0; i < n; i++) counts[(values[i] >> 7) & 255]++;
  const { symbols, lengths, codes } = canonical(
    huffmanLengths(counts),
    [...counts.keys()].filter((s) => counts[s] > 0),
  );
  const bits = counts.reduce((sum, c, s) => sum + c * lengths[s], 0);
  const plain = HEADER + 2 * symbols.length;
  const out = new Uint8Array(plain + n + Math.ceil(bits / 8));
  out.set(MAGIC);
  new DataView(out.buffer).setUint32(4, n, true);
  new DataView(out.buffer).setUint16(8, symbols.length, true);
  for (const [i, s] of symbols.entries()) out.set([s, lengths[s]], HEADER + 2 * i);
  let to = plain + n;
  let acc = 0;
  let have = 0;
  for (let i = 0; i < n; i++) {
    const v = values[i];
    out[plain + i] = ((v >> 8) & 128) | (v & 127);
    const s = (v >> 7) & 255;
    // Fewer than 8 bits wait in acc, and a code has at most 24.
    acc = (acc << lengths[s]) | codes[s];
    for (have += lengths[s]; have >= 8; have -= 8) out[to++] = acc >>> (have - 8);
    acc &= 255;
  }
  if (have > 0) out[to] = acc << (8 - have);
  return out;
}

/**
 * The bit patterns of `compressBfloat16`.
 * @throws LowbitError E_CONTAINER for anything that it did not write: truncated, with bytes to spare, or with a damaged
 * code
 * @example
 * const bits = Uint16Array.of(0x3f80, 0xbf80); // 1 and -1
 * decompressBfloat16(compressBfloat16(bits)) // [0x3f80, 0xbf80]
 */
export function decompressBfloat16(bytes: Uint8Array): Uint16Array<ArrayBuffer> {
  if (!(bytes instanceof Uint8Array)) throw new TypeError("decompressBfloat16: expected a Uint8Array.");
  const broken = (expected: string, got: unknown) =>
    new LowbitError("E_CONTAINER", `decompressBfloat16: expected ${expected}, got ${got}. Is the data whole, and from compressBfloat16?`);
  if (bytes.length < HEADER || MAGIC.some((m, i) => bytes[i] !== m))
    throw broken(`"LBF1" and a header of ${HEADER} bytes`, "something else");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const n = view.getUint32(4, true);
  const used = view.getUint16(8, true);
  const plain = HEADER + 2 * used;
  if (used > 256 || (n > 0 ? used < 1 : used > 0)) throw broken("1..256 symbols (none for no values)", used);
  if (bytes.length < plain + n) throw broken(`at least ${plain + n} bytes for ${n} values`, bytes.length);
  const lengths = new Uint8Array(256);
  const seen = new Set<number>();
  let kraft = 0;
  for (let i = 0; i < used; i++) {
    const [s, length] = [bytes[HEADER + 2 * i], bytes[HEADER + 2 * i + 1]];
    if (seen.has(s) || length > LONGEST || (length === 0 && used > 1))
      throw broken(`distinct symbols of 1..${LONGEST} bits`, `${s}: ${length}`);
    seen.add(s);
    lengths[s] = length;
    kraft += 2 ** -length;
  }
  if (used > 0 && kraft !== 1) throw broken("a complete prefix code", `a Kraft sum of ${kraft}`);
  const { symbols, codes } = canonical(lengths, [...seen]);

  // Short codes by table: symbol | length << 8. Longer ones by the first code of each length.
  const table = new Uint16Array(2 ** FAST);
  const first = new Float64Array(LONGEST + 2);
  const start = new Int32Array(LONGEST + 2);
  for (let i = symbols.length - 1; i >= 0; i--) {
    const s = symbols[i];
    const length = lengths[s];
    first[length] = codes[s];
    start[length] = i;
    if (length <= FAST) table.fill(s | (length << 8), codes[s] * 2 ** (FAST - length), (codes[s] + 1) * 2 ** (FAST - length));
  }
  const count = new Int32Array(LONGEST + 1);
  for (const s of symbols) count[lengths[s]]++;

  const out = new Uint16Array(n);
  const stream = bytes.subarray(plain + n);
  let at = 0; // bits; a double, since streams may exceed 2^31 bits
  const totalBits = stream.length * 8;
  for (let i = 0; i < n; i++) {
    const byte = Math.floor(at / 8);
    const window = ((stream[byte] << 24) | (stream[byte + 1] << 16) | (stream[byte + 2] << 8) | stream[byte + 3]) << (at - byte * 8);
    const entry = table[window >>> (32 - FAST)];
    let s = entry & 255;
    let length = entry >> 8;
    if (length === 0 && used > 1) {
      for (length = FAST + 1; length <= LONGEST; length++) {
        const index = (window >>> (32 - length)) - first[length];
        if (count[length] > 0 && index >= 0 && index < count[length]) {
          s = symbols[start[length] + index];
          break;
        }
      }
      // A complete code leaves no window without a symbol.
    }
    at += length;
    const m = bytes[plain + i];
    out[i] = ((m & 128) << 8) | (s << 7) | (m & 127);
  }
  if (Math.ceil(at / 8) !== stream.length) throw broken(`${Math.ceil(at / 8)} bytes of codes`, stream.length);
  if (at < totalBits && (stream[stream.length - 1] & (2 ** (totalBits - at) - 1)) !== 0)
    throw broken("zero bits after the last code", "others");
  return out;
}

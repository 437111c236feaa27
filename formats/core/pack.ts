// Dense bit packing of codes, any width 1..32, least significant bit first: code i occupies bits i*bits .. i*bits +
// bits - 1 of the little-endian bit stream, and may straddle bytes. For 4 bits this is "first element in the low
// nibble" (ONNX); for 6 bits four codes in three bytes. Containers with another order (bitsandbytes, ggml, GPTQ) have
// their own exporters.
import { isA } from "./check.ts";
import { LowbitError } from "./errors.ts";

/** Codes of up to 8, 16 and 32 bits. */
export type Codes = Uint8Array | Uint16Array | Uint32Array;

function checkBits(bits: number): void {
  if (!Number.isInteger(bits) || bits < 1 || bits > 32)
    throw new RangeError(`bits: expected an integer in 1..32, got ${bits}. Pass the width of one code.`);
}

/**
 * Bytes that `count` codes of `bits` bits take: ceil(count * bits / 8).
 * @example packedBytes(5, 3) // 2: 15 bits
 */
export function packedBytes(count: number, bits: number): number {
  return Math.ceil((count * bits) / 8);
}

/** An array that holds codes of the given width: Uint8Array to 8 bits, Uint16Array to 16, Uint32Array to 32. */
export function codeArray(bits: number, count: number): Codes {
  return bits <= 8 ? new Uint8Array(count) : bits <= 16 ? new Uint16Array(count) : new Uint32Array(count);
}

/**
 * Packs codes of `bits` bits (1..32) densely, least significant bit first; unused bits of the last byte are zero.
 * @throws RangeError if bits is not in 1..32 or a code does not fit into bits.
 * @example packCodes([1, 2, 3, 4], 6) // Uint8Array [0x81, 0x30, 0x10]
 */
export function packCodes(codes: ArrayLike<number>, bits: number): Uint8Array {
  checkBits(bits);
  if (typeof codes !== "object" || codes === null || !Number.isSafeInteger(codes.length))
    throw new TypeError(`packCodes codes: expected an array of codes, got ${isA(codes)}. Pass a typed array or an array of integers.`);
  const limit = 2 ** bits;
  for (let i = 0; i < codes.length; i++) {
    const c = codes[i];
    if (!(c >= 0 && c < limit && Number.isInteger(c)))
      throw new RangeError(`codes[${i}]: expected an integer in 0..${limit - 1} (${bits} bits), got ${c}. Mask or re-encode the codes.`);
  }
  const out = new Uint8Array(packedBytes(codes.length, bits));
  packInto(codes, 0, codes.length, bits, out, 0);
  return out;
}

/**
 * Packs codes[start .. start+count) into out from byte `at` on; used row by row by packed tensors. Codes are not
 * checked. The bytes must be zero before.
 */
export function packInto(codes: ArrayLike<number>, start: number, count: number, bits: number, out: Uint8Array, at: number): void {
  const end = start + count;
  if (bits === 8) {
    for (let i = start; i < end; i++) out[at++] = codes[i];
    return;
  }
  if (bits === 4) {
    let i = start;
    for (; i + 1 < end; i += 2) out[at++] = codes[i] | (codes[i + 1] << 4);
    if (i < end) out[at] = codes[i];
    return;
  }
  if (bits === 16 || bits === 32) {
    for (let i = start; i < end; i++) for (let b = 0, c = codes[i]; b < bits; b += 8, c >>>= 8) out[at++] = c & 255;
    return;
  }
  // acc holds fewer than 8 pending bits; a code of more than 24 bits is fed in two parts so that 32-bit integers
  // suffice.
  let acc = 0;
  let have = 0;
  const low = bits > 24 ? 16 : bits;
  const high = bits - low;
  const lowMask = 2 ** low - 1;
  for (let i = start; i < end; i++) {
    const c = codes[i];
    acc |= (c & lowMask) << have;
    for (have += low; have >= 8; have -= 8, acc >>>= 8) out[at++] = acc & 255;
    if (high > 0) {
      acc |= (c >>> low) << have;
      for (have += high; have >= 8; have -= 8, acc >>>= 8) out[at++] = acc & 255;
    }
  }
  if (have > 0) out[at] = acc & 255;
}

/**
 * Reads `count` codes of `bits` bits (1..32) back. Returns Uint8Array to 8 bits, Uint16Array to 16, Uint32Array to 32.
 * @throws RangeError if bits is not in 1..32 or count is not a natural number; LowbitError E_SHAPE if bytes are too
 * few.
 * @example unpackCodes(Uint8Array.of(0x81, 0x30, 0x10), 6, 4) // [1, 2, 3, 4]
 */
export function unpackCodes(bytes: Uint8Array, bits: number, count: number): Codes {
  checkBits(bits);
  if (!Number.isSafeInteger(count) || count < 0) throw new RangeError(`count: expected a natural number, got ${count}.`);
  if (!(bytes instanceof Uint8Array)) throw new TypeError(`unpackCodes bytes: expected a Uint8Array, got ${isA(bytes)}.`);
  const need = packedBytes(count, bits);
  if (bytes.length < need)
    throw new LowbitError(
      "E_SHAPE",
      `unpackCodes: expected at least ${need} bytes for ${count} codes of ${bits} bits, got ${bytes.length}. Pass the whole packed array or a smaller count.`,
    );
  const out = codeArray(bits, count);
  unpackInto(bytes, 0, bits, out, 0, count);
  return out;
}

/** Reads `count` codes that start at byte `at` into out[start ..]. The bytes must be there. */
export function unpackInto(bytes: Uint8Array, at: number, bits: number, out: Codes, start: number, count: number): void {
  const end = start + count;
  if (bits === 8) {
    for (let i = start; i < end; i++) out[i] = bytes[at++];
    return;
  }
  if (bits === 4) {
    let i = start;
    for (; i + 1 < end; i += 2) {
      const b = bytes[at++];
      out[i] = b & 15;
      out[i + 1] = b >>> 4;
    }
    if (i < end) out[i] = bytes[at] & 15;
    return;
  }
  if (bits < 8) {
    // a code lies in two bytes at most; the last ones may have no second byte
    const mask = (1 << bits) - 1;
    const last = at + packedBytes(count, bits) - 1;
    for (let i = start, bit = 0; i < end; i++) {
      out[i] = ((bytes[at] | (at < last ? bytes[at + 1] << 8 : 0)) >>> bit) & mask;
      bit += bits;
      at += bit >>> 3;
      bit &= 7;
    }
    return;
  }
  if (bits === 16) {
    for (let i = start; i < end; i++, at += 2) out[i] = bytes[at] | (bytes[at + 1] << 8);
    return;
  }
  if (bits === 32 && out instanceof Uint32Array) {
    // typed arrays have the byte order of the platform: little-endian wherever JavaScript runs today
    new Uint8Array(out.buffer, out.byteOffset + 4 * start, 4 * count).set(bytes.subarray(at, at + 4 * count));
    return;
  }
  let acc = 0;
  let have = 0;
  const low = bits > 24 ? 16 : bits;
  const high = bits - low;
  const lowMask = 2 ** low - 1;
  const highMask = 2 ** high - 1;
  for (let i = start; i < end; i++) {
    for (; have < low; have += 8) acc |= bytes[at++] << have;
    let c = acc & lowMask;
    acc >>>= low;
    have -= low;
    if (high > 0) {
      for (; have < high; have += 8) acc |= bytes[at++] << have;
      c = (c | ((acc & highMask) << low)) >>> 0;
      acc >>>= high;
      have -= high;
    }
    out[i] = c;
  }
}

// Straight loops for bulk conversion of float32, where bulk.ts can use them. Two ideas: (1) a format of at most 8 bits
// is read from a table indexed by the top bits of the float32 with all lower bits folded into the last one ("sticky"),
// which is exact when every boundary is a float32 with few bits; (2) binary16 and bfloat16 are rounded on the bits
// themselves. Both equal `format.encode` for every float32.
import { nextDown } from "./round.ts";
import type { EncodeOptions, NumberFormat } from "./types.ts";

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

export interface Direct {
  /** Bits dropped from the right; their OR goes into the last bit kept. */
  readonly drop: number;
  /** Code by index; -1 where the policies refuse the value. */
  readonly codes: Int16Array;
}

/**
 * The table of idea (1) or null. @param up the smallest double of each slot, @param slotOf the slot of a double, @param
 * slots the code of each
 */
export function directTable(
  up: Float64Array,
  slotOf: (x: number) => number,
  slots: Int32Array,
  nan: number,
  negativeZero: number,
): Direct | null {
  // Bits that boundaries use: each must be a float32 b (values from b on) or the double just above one (values above
  // b).
  let drop = 16;
  for (const x of up) {
    if (!Number.isFinite(x) || Math.abs(x) === Number.MAX_VALUE || x === 0) continue;
    f32[0] = x;
    if (f32[0] !== x) f32[0] = nextDown(x);
    if (f32[0] !== x && f32[0] !== nextDown(x)) return null;
    if (u32[0] !== 0) drop = Math.min(drop, 31 - Math.clz32(u32[0] & -u32[0]) - 1);
  }
  if (drop < 14) return null;
  const codes = new Int16Array(2 ** (32 - drop));
  for (let i = 0; i < codes.length; i++) {
    u32[0] = (i << drop) >>> 0;
    const x = f32[0];
    codes[i] = x !== x ? nan : Object.is(x, -0) ? negativeZero : slots[slotOf(x)];
  }
  return { drop, codes };
}

/** Returns the index of the first refused value or -1. */
export function encodeDirect({ drop, codes }: Direct, values: Float32Array, out: Uint8Array): number {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const mask = (1 << drop) - 1; // not 2 ** drop: that is a double, and the loop would compute in doubles
  let refused = 0;
  for (let i = 0; i < bits.length; i++) {
    const u = bits[i];
    const c = codes[(u >>> drop) | (((u & mask) + mask) >>> drop)];
    refused |= c;
    out[i] = c;
  }
  if (refused >= 0) return -1;
  for (let i = 0; ; i++) {
    const u = bits[i];
    if (codes[(u >>> drop) | (((u & mask) + mask) >>> drop)] < 0) return i;
  }
}

export interface BitRounding {
  /** Same exponent field as float32 (bfloat16), or the fields of binary16. */
  readonly layout: "upper half" | "binary16";
  /** Codes of overflow and infinity (both signs) and of NaN. */
  readonly over: number;
  readonly under: number;
  readonly inf: number;
  readonly negativeInf: number;
  readonly nan: number;
}

/** Idea (2), or null where the fields of the format or the options do not allow it. */
export function bitRounding(format: NumberFormat, options: EncodeOptions, codeOf: (x: number) => number): BitRounding | null {
  const { access, limits } = format;
  if (access.kind !== "shift" || format.bits !== 16 || !limits.hasInf || !limits.hasNegativeZero) return null;
  const layout =
    access.exponentBits === 8 && access.bias === 127 ? "upper half" : access.exponentBits === 5 && access.bias === 15 ? "binary16" : null;
  if (layout === null || (options.rounding ?? format.defaults.rounding) !== "halfEven") return null;
  const found: BitRounding = {
    layout,
    over: codeOf(Number.MAX_VALUE),
    under: codeOf(-Number.MAX_VALUE),
    inf: codeOf(Infinity),
    negativeInf: codeOf(-Infinity),
    nan: codeOf(NaN),
  };
  return Math.min(found.over, found.under, found.inf, found.negativeInf, found.nan) < 0 ? null : found;
}

/** The code of a float32 bit pattern that is infinite, NaN or rounds beyond the largest number. */
function special(r: BitRounding, u: number): number {
  const a = u & 0x7fffffff;
  const negative = u !== a;
  if (a > 0x7f800000) return r.nan;
  if (a === 0x7f800000) return negative ? r.negativeInf : r.inf;
  return negative ? r.under : r.over;
}

export function encodeBits(r: BitRounding, values: Float32Array, out: Uint16Array): void {
  const bits = new Int32Array(values.buffer, values.byteOffset, values.length);
  if (r.layout === "binary16") encodeBinary16(r, bits, out);
  else encodeUpperHalf(r, bits, out);
}

// Adding half a unit less one, and the lowest bit kept, then cutting rounds half to even; a carry runs into the
// exponent as it should. Constants are written out: the engine folds them, which variables from a descriptor would not
// be.

function encodeUpperHalf(r: BitRounding, bits: Int32Array, out: Uint16Array): void {
  const n = bits.length;
  for (let i = 0; i < n; i++) {
    const u = bits[i];
    const a = u & 0x7fffffff;
    const m = (a + 0x7fff + ((a >> 16) & 1)) >>> 16;
    out[i] = m < 0x7f80 ? m | ((u >>> 16) & 0x8000) : special(r, u);
  }
}

/**
 * What becomes of the significand, by sign and exponent of a float32: bits 0..15 are added to it, bits 16..20 are its
 * shift, bit 23 is the hidden one, which subnormal results (exponent below 113 = 127 - 14) need and normal ones have in
 * their exponent.
 */
function binary16Steps(): Int32Array {
  return Int32Array.from({ length: 512 }, (_, i) => {
    const sign = (i & 256) << 7;
    const e = i & 255;
    if (e >= 143) return sign | 0x7c00 | (31 << 16); // 2^16 and more, infinity, NaN
    if (e >= 113) return sign | ((e - 112) << 10) | (13 << 16);
    return sign | (Math.min(31, 126 - e) << 16) | 0x800000;
  });
}

// A constant, which engines compile into the loop.
const STEPS = /* @__PURE__ */ binary16Steps();

/** The magnitude and sign of the binary16 nearest to a float32; infinity for what overflows. */
function binary16Of(u: number): number {
  const p = STEPS[u >>> 23];
  const shift = (p >> 16) & 31;
  const m = (u & 0x7fffff) | (p & 0x800000);
  return (p & 0xffff) + ((m + ((1 << (shift - 1)) - 1) + ((m >>> shift) & 1)) >>> shift);
}

/** 0x38800000 is 2^-14, the smallest normal binary16. */
const NORMAL16 = 0x38800000;

function encodeBinary16(r: BitRounding, bits: Int32Array, out: Uint16Array): void {
  const n = bits.length;
  // Normal numbers have a shorter way, but choosing it per value costs more than it saves where other numbers are
  // frequent.
  const stride = (n >>> 6) + 1;
  let others = 0;
  for (let i = 0; i < n; i += stride) if ((bits[i] & 0x7fffffff) < NORMAL16) others++;
  if (others > 6) {
    for (let i = 0; i < n; i++) {
      const c = binary16Of(bits[i]);
      out[i] = (c & 0x7c00) === 0x7c00 ? special(r, bits[i]) : c;
    }
    return;
  }
  for (let i = 0; i < n; i++) {
    const u = bits[i];
    const a = u & 0x7fffffff;
    // 0x1c000 moves the exponent from bias 127 to bias 15: (127 - 15) << 10. The largest NaN run into bit 31: the shift
    // is an unsigned one.
    const m = a >= NORMAL16 ? ((a + 0xfff + ((a >> 13) & 1)) >>> 13) - 0x1c000 : binary16Of(a);
    out[i] = m < 0x7c00 ? m | ((u >>> 16) & 0x8000) : special(r, u);
  }
}

/** float32 values by code, for decoding into a Float32Array. */
const tables = new WeakMap<NumberFormat, Float32Array>();

/**
 * Decodes codes that cannot be out of range (their array is as wide as the format) into float32. One loop per kind of
 * array keeps each monomorphic.
 */
export function decodeTable(format: NumberFormat, codes: Uint8Array | Uint16Array, out: Float32Array): void {
  const { access } = format;
  if (codes instanceof Uint16Array && access.kind === "shift" && access.exponentBits === 8 && access.bias === 127 && format.limits.hasInf) {
    upperHalf(codes, new Uint32Array(out.buffer, out.byteOffset, out.length));
    return;
  }
  let table = tables.get(format);
  if (table === undefined) tables.set(format, (table = Float32Array.from(format.table!)));
  if (codes instanceof Uint16Array) decode16(table, codes, out);
  else decode8(table, codes, out);
}

/** bfloat16: the upper half of a float32, specials included. */
function upperHalf(codes: Uint16Array, bits: Uint32Array): void {
  for (let i = 0; i < codes.length; i++) bits[i] = codes[i] << 16;
}

function decode16(table: Float32Array, codes: Uint16Array, out: Float32Array): void {
  for (let i = 0; i < codes.length; i++) out[i] = table[codes[i]];
}

function decode8(table: Float32Array, codes: Uint8Array, out: Float32Array): void {
  for (let i = 0; i < codes.length; i++) out[i] = table[codes[i]];
}

// Bulk encode and decode of arrays: typed-array loops, no closure per element. Encoding is one idea for every format of
// at most 16 bits: "slots" (codes in ascending order of value, policies included) with the smallest double that belongs
// to each, found from the top 16 bits of the float32 nearest to the value. Equal to `format.encode` for every input,
// which the tests check around every boundary.
import { checkEncodeOptions, isA } from "./check.ts";
import { uncheckedEncode } from "./codec.ts";
import { LowbitError } from "./errors.ts";
import { bitRounding, decodeTable, directTable, encodeBits, encodeDirect, type BitRounding, type Direct } from "./fast.ts";
import { codeArray, type Codes } from "./pack.ts";
import { bisect, nextUp } from "./round.ts";
import type { EncodeOptions, NumberFormat, Rounding } from "./types.ts";

export interface Slots {
  /** up[i]: the smallest double that belongs to slot i (up[0] = -Infinity). */
  readonly up: Float64Array;
  /** Code of each slot; -1: the policy is an error, the scalar encoder words it. */
  readonly codes: Int32Array;
  /** By the top 16 bits of a float32: the slot of the smallest double that rounds into that bucket. */
  readonly start: Uint16Array;
  readonly nan: number;
  readonly negativeZero: number;
  /**
   * Faster ways for float32 input, where they apply; direct tables are made when an array is long enough to pay for
   * them.
   */
  readonly rounding: BitRounding | null;
  direct: Direct | null | undefined;
}

/** Arrays shorter than this do not pay for a direct table. */
const DIRECT_FROM = 4096;

const cache = new WeakMap<NumberFormat, Map<string, Slots>>();
const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

/** The smallest double that rounds up from lo to hi. */
function firstUp(lo: number, hi: number, tie: number, loCode: number, hiCode: number, rounding: Rounding): number {
  const above = nextUp(tie);
  const spansZero = lo < 0 && hi > 0;
  switch (rounding) {
    case "halfEven":
      return loCode >= 0 ? (loCode & 1 && !(hiCode >= 0 && hiCode & 1) ? tie : above) : hiCode & 1 ? above : tie;
    case "halfExpand":
      return tie > 0 ? tie : above;
    case "halfTrunc":
      return tie < 0 ? tie : above;
    case "halfCeil":
      return tie;
    case "halfFloor":
      return above;
    case "trunc":
      return spansZero ? nextUp(0) : hi > 0 ? hi : nextUp(lo);
    case "expand":
      return spansZero ? nextUp(0) : hi > 0 ? nextUp(lo) : hi;
    case "ceil":
      return nextUp(lo);
    default:
      return hi;
  }
}

function makeSlots(format: NumberFormat, options: EncodeOptions): Slots {
  const order = format.order!;
  const { values, boundaries } = order;
  const rounding = options.rounding ?? format.defaults.rounding;
  const codeOf = (x: number): number => {
    try {
      return format.encode(x, options);
    } catch (error) {
      if (error instanceof LowbitError && error.code === "E_VALUE") return -1;
      throw error;
    }
  };
  const up: number[] = [-Infinity];
  const codes: number[] = [codeOf(-Infinity)];
  const add = (from: number, code: number) => {
    if (code === codes[codes.length - 1]) return;
    // A boundary that coincides with the value below leaves no room for its slot (posits around zero have such
    // boundaries).
    if (from <= up[up.length - 1]) {
      up.pop();
      codes.pop();
    }
    up.push(from);
    codes.push(code);
  };
  add(-Number.MAX_VALUE, codeOf(-Number.MAX_VALUE));
  // The outermost slots are found by asking the scalar encoder where it stops overflowing: policies then live in one
  // place.
  add(
    bisect((x) => codeOf(x) === codeOf(values[0]), -Number.MAX_VALUE, values[0]),
    order.codes[0],
  );
  for (let i = 0; i + 1 < values.length; i++) {
    const [lo, hi] = [values[i], values[i + 1]];
    // Both values are exact whatever the boundary (a posit's around zero coincides with zero).
    const first = Math.min(hi, Math.max(nextUp(lo), firstUp(lo, hi, boundaries[i], order.codes[i], order.codes[i + 1], rounding)));
    const negativeZero = hi === 0 ? codeOf(-0) : -1;
    if (negativeZero >= 0 && negativeZero !== order.codes[i + 1]) add(first, negativeZero);
    add(hi === 0 && negativeZero >= 0 && negativeZero !== order.codes[i + 1] ? 0 : first, order.codes[i + 1]);
  }
  const top = values[values.length - 1];
  const overflow = codeOf(Number.MAX_VALUE);
  if (overflow !== order.codes[values.length - 1])
    add(
      bisect((x) => codeOf(x) === overflow, top, Number.MAX_VALUE),
      overflow,
    );
  add(Infinity, codeOf(Infinity));
  return {
    up: Float64Array.from(up),
    codes: Int32Array.from(codes),
    start: bucketStarts(up),
    nan: codeOf(NaN),
    negativeZero: codeOf(-0),
    rounding: bitRounding(format, options, codeOf),
    direct: undefined,
  };
}

/** The slot of a double: the last one that starts at or below it. */
function slotOf(up: ArrayLike<number>, x: number): number {
  let lo = 0;
  let hi = up.length - 1;
  while (lo < hi) {
    const mid = (lo + hi + 1) >> 1;
    if (up[mid] <= x) lo = mid;
    else hi = mid - 1;
  }
  return lo;
}

function bucketStarts(up: readonly number[]): Uint16Array {
  const start = new Uint16Array(65536);
  for (let b = 0; b < 65536; b++) {
    // The smallest double that Math.fround takes into the bucket lies at most half a float32 step below its smallest
    // float32; one whole step is safe.
    u32[0] = (b < 0x8000 ? b << 16 : (b << 16) | 0xffff) >>> 0;
    const edge = f32[0];
    if (Number.isNaN(edge)) {
      start[b] = b < 0x8000 ? up.length - 1 : 0;
      continue;
    }
    u32[0] = b === 0 ? 0x80000001 : b < 0x8000 ? u32[0] - 1 : u32[0] + 1;
    start[b] = slotOf(up, Number.isNaN(f32[0]) ? edge : f32[0]);
  }
  return start;
}

/**
 * The slots of a format under named policies, made once. Null where encoding is no function of the value alone: above
 * 16 bits, stochastic rounding, overflow "wrap".
 */
export function encodeSlots(format: NumberFormat, options: EncodeOptions): Slots | null {
  const rounding = options.rounding ?? format.defaults.rounding;
  if (format.order === null || rounding === "stochastic" || options.overflow === "wrap") return null;
  let byOptions = cache.get(format);
  if (byOptions === undefined) cache.set(format, (byOptions = new Map()));
  const key = `${options.rounding ?? ""},${options.overflow ?? ""},${options.infinity ?? ""},${options.nan ?? ""}`;
  let slots = byOptions.get(key);
  if (slots === undefined) byOptions.set(key, (slots = makeSlots(format, options)));
  return slots;
}

/**
 * Codes of all values, each equal to `format.encode(value, options)`: rounded once from the double (or float32) given.
 * @param out codes are written here where given (as long as values, of the width of the format)
 * @throws TypeError (values or out of another type, a policy that does not exist), LowbitError E_VALUE (a value that
 * the policies refuse, with its index), E_UNSUPPORTED, E_SHAPE
 * @example
 * encodeArray(float4_e2m1fn, Float32Array.of(0.4, 1.3, -5, 9)) // [1, 3, 14, 7]: .5, 1.5, -4, 6
 * encodeArray(int4, Float32Array.of(2.5), undefined, { rounding: "halfExpand" }) // [3]; the format's own: [2]
 */
export function encodeArray(format: NumberFormat, values: Float32Array | Float64Array, out?: Codes, options: EncodeOptions = {}): Codes {
  if (!(values instanceof Float32Array || values instanceof Float64Array))
    throw new TypeError(
      `encodeArray values: expected a Float32Array or Float64Array, got ${isA(values)}. Convert it with Float64Array.from(values).`,
    );
  if (out !== undefined && !(out instanceof Uint8Array || out instanceof Uint16Array || out instanceof Uint32Array))
    throw new TypeError(`encodeArray out: expected a Uint8Array, Uint16Array or Uint32Array, got ${isA(out)}. Leave it undefined.`);
  checkEncodeOptions("encodeArray", options);
  const n = values.length;
  const codes = out ?? codeArray(format.bits, n);
  if (codes.length < n || codes.BYTES_PER_ELEMENT * 8 < format.bits)
    throw new LowbitError(
      "E_SHAPE",
      `encodeArray: expected room for ${n} codes of ${format.bits} bits, got ${codes.constructor.name} of ${codes.length}. Leave out undefined or enlarge it.`,
    );
  const rounding = options.rounding ?? format.defaults.rounding;
  if (codes instanceof Uint32Array && isBinary32(format) && rounding === "halfEven" && encodeBinary32(values, codes)) return codes;
  const slots = encodeSlots(format, options);
  if (slots === null) {
    const encode = uncheckedEncode(format);
    for (let i = 0; i < n; i++) codes[i] = encode(values[i], options);
    return codes;
  }
  const bad = values instanceof Float32Array ? encode32(slots, values, codes) : encode64(slots, values, codes);
  if (bad >= 0) {
    try {
      format.encode(values[bad], options);
    } catch (error) {
      if (error instanceof LowbitError) throw new LowbitError(error.code, `values[${bad}]: ${error.message}`, { cause: error });
      throw error;
    }
  }
  return codes;
}

/** Are codes the bits of a float32? */
function isBinary32({ access, bits, limits }: NumberFormat): boolean {
  return bits === 32 && access.kind === "shift" && access.exponentBits === 8 && access.bias === 127 && access.signed && limits.hasInf;
}

/** False, with codes of no meaning, where a value is not finite or overflows: policies decide then. */
function encodeBinary32(values: Float32Array | Float64Array, codes: Uint32Array): boolean {
  const floats = new Float32Array(codes.buffer, codes.byteOffset, codes.length);
  floats.set(values);
  // a difference with itself is 0 for finite numbers, else NaN, which a sum keeps
  let spoilt = 0;
  for (let i = 0; i < values.length; i++) spoilt += floats[i] - floats[i];
  return spoilt === 0;
}

// The two loops differ only in how the bits of the value are read; both return the index of the first refused value or
// -1.
function encode32(slots: Slots, values: Float32Array, out: Codes): number {
  const { up, codes, start, nan, negativeZero } = slots;
  if (slots.rounding && out instanceof Uint16Array) {
    encodeBits(slots.rounding, values, out);
    return -1;
  }
  if (out instanceof Uint8Array && values.length >= DIRECT_FROM) {
    if (slots.direct === undefined) slots.direct = directTable(up, (x) => slotOf(up, x), codes, nan, negativeZero);
    if (slots.direct) return encodeDirect(slots.direct, values, out);
  }
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const lastSlot = up.length - 1;
  for (let i = 0; i < values.length; i++) {
    const x = values[i];
    const u = bits[i];
    let s = start[u >>> 16];
    while (s < lastSlot && x >= up[s + 1]) s++;
    const c = x !== x ? nan : u === 0x80000000 ? negativeZero : codes[s];
    if (c < 0) return i;
    out[i] = c;
  }
  return -1;
}

function encode64(slots: Slots, values: Float64Array, out: Codes): number {
  const { up, codes, start, nan, negativeZero } = slots;
  const lastSlot = up.length - 1;
  for (let i = 0; i < values.length; i++) {
    const x = values[i];
    f32[0] = x;
    let s = start[u32[0] >>> 16];
    while (s < lastSlot && x >= up[s + 1]) s++;
    const c = x !== x ? nan : x === 0 && 1 / x < 0 ? negativeZero : codes[s];
    if (c < 0) return i;
    out[i] = c;
  }
  return -1;
}

/**
 * Values of all codes. @param out Float32Array or Float64Array of at least codes.length; default Float32Array (float32
 * holds every format of at most 16 bits but wide posits). @throws TypeError for other types, RangeError for a code that
 * does not fit, LowbitError E_SHAPE
 * @example decodeArray(float4_e2m1fn, [1, 3, 14, 7]) // [0.5, 1.5, -4, 6]
 */
export function decodeArray<T extends Float32Array | Float64Array = Float32Array>(
  format: NumberFormat,
  codes: ArrayLike<number>,
  out?: T,
): T {
  if (typeof codes !== "object" || codes === null || !Number.isSafeInteger(codes.length) || codes.length < 0)
    throw new TypeError(`decodeArray codes: expected an array of codes, got ${isA(codes)}. Pass a typed array or an array of integers.`);
  if (out !== undefined && !(out instanceof Float32Array || out instanceof Float64Array))
    throw new TypeError(`decodeArray out: expected a Float32Array or Float64Array, got ${isA(out)}. Leave it undefined.`);
  const n = codes.length;
  const values = out ?? (new Float32Array(n) as T);
  if (values.length < n)
    throw new LowbitError(
      "E_SHAPE",
      `decodeArray: expected room for ${n} values, got ${values.length}. Leave out undefined or enlarge it.`,
    );
  const { table } = format;
  if (codes instanceof Uint32Array && isBinary32(format)) {
    values.set(new Float32Array(codes.buffer, codes.byteOffset, n));
    return values;
  }
  if (table === null) {
    for (let i = 0; i < n; i++) values[i] = format.decode(codes[i]);
    return values;
  }
  if (values instanceof Float32Array && (codes instanceof Uint8Array || codes instanceof Uint16Array))
    if (codes.BYTES_PER_ELEMENT * 8 === format.bits) {
      decodeTable(format, codes, values);
      return values;
    }
  const size = table.length;
  for (let i = 0; i < n; i++) {
    const c = codes[i];
    if (c >>> 0 !== c || c >= size) format.decode(c); // throws
    values[i] = table[c];
  }
  return values;
}

// Decoding and encoding of a format as an expression over 32-bit words: one small graph with three printers, JavaScript
// (`compileExpr` here), WebAssembly SIMD (kernels/wasm) and WGSL (kernels/wgsl). Floats travel as their bits, so that
// no printer can flush a subnormal or lose a NaN on the way. Arithmetic forms are used where the format's fields allow;
// every other format of at most 16 bits is a table or a search.
import { encodeSlots, type Slots } from "./bulk.ts";
import type { EncodeOptions, NumberFormat } from "./types.ts";

/** `u32`: a word (signed operations read it as two's complement); `f32`: a float32; `bool`: a condition. */
export type ExprType = "u32" | "f32" | "bool";

/**
 * u32 -> u32: `and or xor add sub` (modulo 2^32), `shl shrU shrS` (the count is a constant), `minU`; `roundShift(m,
 * s)`: m < 2^24 divided by 2^s, 0 <= s <= 25, ties to even; `lookup(index)`: a word of `table`; `rank(key)`: how many
 * words of the ascending `table` are <= key, both signed; `select(condition, yes, no)`.
 * `toFloat`: a signed integer below 2^24 as f32, exact. `fmul fadd` on f32; results are normal, zero, or exact. `bits`:
 * the word of an f32. `eq ltU ltS` of words.
 */
export type ExprOp =
  | "input"
  | "const"
  | "and"
  | "or"
  | "xor"
  | "add"
  | "sub"
  | "shl"
  | "shrU"
  | "shrS"
  | "minU"
  | "roundShift"
  | "lookup"
  | "rank"
  | "select"
  | "toFloat"
  | "fmul"
  | "fadd"
  | "bits"
  | "eq"
  | "ltU"
  | "ltS";

/** A node; nodes are shared, so printers name each once. */
export interface Expr {
  readonly op: ExprOp;
  readonly type: ExprType;
  readonly args: readonly Expr[];
  /** Of a `const`: the word (0..2^32-1) or the float32. */
  readonly value?: number;
  /** Of `lookup` and `rank`. */
  readonly table?: Uint32Array;
}

const node = (op: ExprOp, type: ExprType, ...args: Expr[]): Expr => ({ op, type, args });

/** The argument: a code, or the bits of a float32. */
export const input: Expr = { op: "input", type: "u32", args: [] };
export const word = (value: number): Expr => ({ op: "const", type: "u32", args: [], value: value >>> 0 });
export const real = (value: number): Expr => ({ op: "const", type: "f32", args: [], value });

const and = (a: Expr, b: Expr): Expr => node("and", "u32", a, b);
const or = (a: Expr, b: Expr): Expr => node("or", "u32", a, b);
const add = (a: Expr, b: Expr): Expr => node("add", "u32", a, b);
const sub = (a: Expr, b: Expr): Expr => node("sub", "u32", a, b);
const shl = (a: Expr, count: number): Expr => (count === 0 ? a : node("shl", "u32", a, word(count)));
const shrU = (a: Expr, count: number): Expr => (count === 0 ? a : node("shrU", "u32", a, word(count)));
const shrS = (a: Expr, count: number): Expr => (count === 0 ? a : node("shrS", "u32", a, word(count)));
const bits = (a: Expr): Expr => node("bits", "u32", a);
const eq = (a: Expr, b: Expr): Expr => node("eq", "bool", a, b);
const ltU = (a: Expr, b: Expr): Expr => node("ltU", "bool", a, b);
const ltS = (a: Expr, b: Expr): Expr => node("ltS", "bool", a, b);
const select = (condition: Expr, yes: Expr, no: Expr): Expr => node("select", "u32", condition, yes, no);

const lookup = (table: Uint32Array, index: Expr): Expr => ({ op: "lookup", type: "u32", args: [index], table });
const rank = (table: Uint32Array, key: Expr): Expr => ({ op: "rank", type: "u32", args: [key], table });

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

function bitsOf(value: number): number {
  f32[0] = value;
  return u32[0];
}

const NAN = 0x7fc00000;
const INFINITE = 0x7f800000;

/** What an encoder yields where the policies refuse a value; the scalar encoder then words the error. */
export const REFUSED = 0xffffffff;

/**
 * The bits of the float32 nearest to the value of a code, or null above 16 bits. Exact for every format whose values
 * are float32 (all but wide posits); NaN is one of the quiet NaNs.
 */
export function decodeExpr(format: NumberFormat): Expr | null {
  const { table } = format;
  if (table === null) return null;
  return affineDecode(table) ?? fieldDecode(format, table) ?? lookup(Uint32Array.from(table, bitsOf), input);
}

/** Codes that are integers (two's complement or unsigned): value = (integer + shift) * unit. */
function affine(table: Float64Array): { readonly signed: boolean; readonly unit: number; readonly shift: number } | null {
  const n = table.length;
  for (const signed of [true, false]) {
    const integer = (code: number): number => (signed && code >= n / 2 ? code - n : code);
    const unit = table[1] - table[0];
    const shift = table[0] / unit;
    if (!Number.isFinite(unit) || !Number.isFinite(shift) || Math.fround(unit) !== unit || Math.fround(shift) !== shift) continue;
    // -0 is no integer's image: such tables (sign-magnitude) fail here
    if (table.every((value, code) => Object.is(Math.fround(Math.fround(integer(code) + shift) * unit), value)))
      return { signed, unit, shift };
  }
  return null;
}

function affineDecode(table: Float64Array): Expr | null {
  const form = affine(table);
  if (form === null) return null;
  const width = Math.log2(table.length);
  const whole = node("toFloat", "f32", form.signed ? shrS(shl(input, 32 - width), 32 - width) : input);
  const moved = form.shift === 0 ? whole : node("fadd", "f32", whole, real(form.shift));
  return bits(form.unit === 1 ? moved : node("fmul", "f32", moved, real(form.unit)));
}

/** Sign, exponent and mantissa fields: shifted into place, subnormals converted as integers, specials by comparison. */
function fieldDecode(format: NumberFormat, table: Float64Array): Expr | null {
  const { access } = format;
  if (access.kind !== "shift" || !access.subnormals) return null;
  const { exponentBits, mantissaBits, bias, signed } = access;
  const width = exponentBits + mantissaBits;
  if (width + (signed ? 1 : 0) !== format.bits) return null;
  const codes = 2 ** width;
  const specials: number[] = [];
  for (let code = 0; code < table.length; code++) if (!Number.isFinite(table[code])) specials.push(code);
  // infinity at the first code of the last binade, NaN above, for both signs
  const infinity = codes - 2 ** mantissaBits;
  const ieee =
    Math.abs(table[infinity]) === Infinity &&
    specials.length === (table.length / codes) * 2 ** mantissaBits &&
    specials.every((code) => code % codes >= infinity);
  if (!ieee && specials.length > 4) return null;
  // the fields of float32 itself, cut off: specials and subnormals come out right
  if (ieee && signed && exponentBits === 8 && bias === 127) return shl(input, 32 - format.bits);
  if (bias > 126 || 1 - bias - mantissaBits < -126 || 2 ** exponentBits - 1 - bias > 127) return null;
  const magnitude = signed ? and(input, word(codes - 1)) : input;
  const normal = add(shl(magnitude, 23 - mantissaBits), word((127 - bias) << 23));
  const small = bits(node("fmul", "f32", node("toFloat", "f32", magnitude), real(2 ** (1 - bias - mantissaBits))));
  let value = select(ltU(magnitude, word(2 ** mantissaBits)), small, normal);
  if (ieee) {
    const infinite = word(infinity);
    value = select(ltU(magnitude, infinite), value, select(eq(magnitude, infinite), word(INFINITE), word(NAN)));
  }
  if (signed) value = or(value, shl(shrU(input, width), 31));
  if (!ieee) for (const code of specials) value = select(eq(input, word(code)), word(bitsOf(table[code])), value);
  return value;
}

/**
 * The code of a float32 given by its bits, as `format.encode(value, options)`; REFUSED where that throws for the value.
 * Null above 16 bits, for stochastic rounding and for `overflow: "wrap"`.
 * @throws LowbitError E_UNSUPPORTED for policies that the format cannot follow
 */
export function encodeExpr(format: NumberFormat, options: EncodeOptions = {}): Expr | null {
  const slots = encodeSlots(format, options);
  if (slots === null) return null;
  const magnitude = and(input, word(0x7fffffff));
  // words whose signed order is the order of the floats: the magnitude bits of negative ones are flipped
  const key = node("xor", "u32", input, shrU(shrS(input, 31), 1));
  const { thresholds, codes, first, last } = keySlots(slots, format);
  const even = (options.rounding ?? format.defaults.rounding) === "halfEven";
  const core = even && codes.length > 8 ? (fieldEncode(format, magnitude) ?? integerEncode(format, magnitude)) : null;
  let code: Expr;
  if (core === null) code = chain(thresholds, codes, key);
  else {
    // inside first..last the arithmetic form, outside whatever the policies say
    const low = chain(thresholds.slice(0, first), codes.slice(0, first), key);
    const high = chain(thresholds.slice(last + 1), codes.slice(last + 1), key);
    code = last + 1 < codes.length ? select(ltS(key, word(thresholds[last + 1])), core, high) : core;
    if (first > 0) code = select(ltS(key, word(thresholds[first])), low, code);
  }
  if (compileExpr(code)(0x80000000) !== (slots.negativeZero & 0xffffffff) >>> 0)
    code = select(eq(input, word(0x80000000)), word(slots.negativeZero), code);
  return select(ltU(word(INFINITE), magnitude), word(slots.nan), code);
}

/**
 * Slots by the key of the smallest float32 in each; slots that hold no float32 vanish. `first`..`last` are those of
 * finite values.
 */
function keySlots(slots: Slots, format: NumberFormat) {
  const thresholds: number[] = [];
  const codes: number[] = [];
  slots.up.forEach((up, i) => {
    f32[0] = up;
    let key = u32[0] ^ ((u32[0] | 0) >> 31 >>> 1) | 0; // prettier-ignore
    if (f32[0] < up) key++;
    if (thresholds.length > 0 && thresholds[thresholds.length - 1] === key) {
      thresholds.pop();
      codes.pop();
    }
    thresholds.push(key);
    codes.push(slots.codes[i]);
  });
  const { codes: order } = format.order!;
  return { thresholds, codes, first: codes.indexOf(order[0]), last: codes.lastIndexOf(order[order.length - 1]) };
}

/** The code of the slot that holds a key: a few comparisons, or a search. */
function chain(thresholds: readonly number[], codes: readonly number[], key: Expr): Expr {
  if (codes.length === 0) return word(REFUSED);
  if (codes.length > 4) return lookup(Uint32Array.from(codes), rank(Uint32Array.from(thresholds.slice(1)), key));
  let code = word(codes[0]);
  for (let i = 1; i < codes.length; i++) code = select(ltS(key, word(thresholds[i])), code, word(codes[i]));
  return code;
}

/**
 * The exponent field of a magnitude and its significand with the hidden bit. Subnormal float32 have none, but callers
 * shift those by 25 bits or more: below half a unit with the bit as without.
 */
function split(magnitude: Expr): { readonly field: Expr; readonly significand: Expr } {
  return { field: shrU(magnitude, 23), significand: or(and(magnitude, word(0x7fffff)), word(0x800000)) };
}

/** Rounding to integers, half to even, for values that do not overflow. */
function integerEncode(format: NumberFormat, unbounded: Expr): Expr | null {
  const form = affine(format.table!);
  if (form === null || form.shift !== 0 || !Number.isInteger(Math.log2(form.unit))) return null;
  const { values } = format.order!;
  const negative = shrS(input, 31);
  const most = (value: number): number => bitsOf(Math.abs(value));
  // the bound of negative values (zero where there are none) is the other one plus a difference
  const [above, below] = [most(values[values.length - 1]), most(values[0])];
  const bound = add(word(above), and(negative, word(below - above)));
  const { field, significand } = split(node("minU", "u32", unbounded, bound));
  // bit 0 of a significand is worth 2^(field - 150)
  const unit = 150 + Math.log2(form.unit);
  if (unit < 25) return null;
  const shift = node("minU", "u32", sub(word(unit), field), word(25));
  const rounded = node("roundShift", "u32", significand, shift);
  if (!form.signed) return rounded;
  return and(sub(node("xor", "u32", rounded, negative), negative), word(2 ** format.bits - 1));
}

/** Rounding on the fields, half to even, for magnitudes that do not overflow. */
function fieldEncode(format: NumberFormat, unbounded: Expr): Expr | null {
  const { access } = format;
  if (access.kind !== "shift" || !access.subnormals || access.mantissaBits === 0) return null;
  const { exponentBits, mantissaBits, bias, signed } = access;
  if (exponentBits + mantissaBits + (signed ? 1 : 0) !== format.bits || bias > 127 || mantissaBits > 22) return null;
  // what lies above the largest value and does not overflow is that value
  const magnitude = node("minU", "u32", unbounded, word(bitsOf(format.limits.max)));
  let rounded: Expr;
  if (bias === 127) {
    // exponents as in float32: half a unit less one, and the lowest bit kept, then cut; a carry runs into the exponent
    // as it should
    const cut = 23 - mantissaBits;
    rounded = shrU(add(magnitude, add(word(2 ** (cut - 1) - 1), and(shrU(magnitude, cut), word(1)))), cut);
  } else {
    const { field, significand } = split(magnitude);
    // exponent field of the result, at least 1: below that the significand is shifted further (subnormal results)
    const rebase = 127 - bias;
    if (24 + rebase - mantissaBits < 25) return null;
    const start = node("minU", "u32", field, word(rebase + 1));
    const shift = node("minU", "u32", sub(word(24 + rebase - mantissaBits), start), word(25));
    const exponent = shl(sub(field, start), mantissaBits);
    rounded = add(exponent, node("roundShift", "u32", significand, shift));
  }
  if (!signed) return select(ltS(input, word(0)), word(0), rounded);
  const signedCode = or(rounded, shl(shrU(input, 31), format.bits - 1));
  return format.limits.hasNegativeZero ? signedCode : select(eq(rounded, word(0)), word(0), signedCode);
}

/** Nodes in an order in which arguments come first, each once: what a printer walks. */
export function exprNodes(expr: Expr): readonly Expr[] {
  const seen = new Set<Expr>();
  const visit = (e: Expr): void => {
    if (seen.has(e)) return;
    e.args.forEach(visit);
    seen.add(e);
  };
  visit(expr);
  return [...seen];
}

/** The JavaScript printer: a function of the input word (u32 in, u32 or float32 out). */
export function compileExpr(expr: Expr): (input: number) => number {
  const nodes = exprNodes(expr);
  const values = new Float64Array(nodes.length);
  const place = new Map(nodes.map((e, i) => [e, i]));
  const steps = nodes.map((e) => {
    const [a, b, c] = e.args.map((arg) => place.get(arg)!);
    return { evaluate: EVALUATE[e.op], e, a, b, c };
  });
  return (x) => {
    for (let i = 0; i < steps.length; i++) {
      const { evaluate, e, a, b, c } = steps[i];
      values[i] = e.op === "input" ? x >>> 0 : evaluate(values[a], values[b], values[c], e);
    }
    return values[values.length - 1];
  };
}

type Evaluate = (a: number, b: number, c: number, e: Expr) => number;

const EVALUATE: Record<ExprOp, Evaluate> = {
  input: (a) => a,
  const: (_a, _b, _c, e) => e.value!,
  and: (a, b) => (a & b) >>> 0,
  or: (a, b) => (a | b) >>> 0,
  xor: (a, b) => (a ^ b) >>> 0,
  add: (a, b) => (a + b) >>> 0,
  sub: (a, b) => (a - b) >>> 0,
  shl: (a, b) => (a << b) >>> 0,
  shrU: (a, b) => a >>> b,
  shrS: (a, b) => (a >> b) >>> 0,
  minU: (a, b) => Math.min(a, b),
  roundShift: (m, s) => {
    const down = Math.floor(m / 2 ** s);
    const rest = m / 2 ** s - down;
    return rest > 0.5 || (rest === 0.5 && down % 2 === 1) ? down + 1 : down;
  },
  bits: bitsOf,
  toFloat: (a) => a | 0,
  fmul: (a, b) => Math.fround(a * b),
  fadd: (a, b) => Math.fround(a + b),
  eq: (a, b) => (a === b ? 1 : 0),
  ltU: (a, b) => (a < b ? 1 : 0),
  ltS: (a, b) => ((a | 0) < (b | 0) ? 1 : 0),
  select: (a, b, c) => (a !== 0 ? b : c),
  lookup: (a, _b, _c, e) => e.table![a],
  rank: (a, _b, _c, e) => {
    let [lo, hi] = [0, e.table!.length];
    while (lo < hi) {
      const mid = (lo + hi) >> 1;
      if ((e.table![mid] | 0) <= (a | 0)) lo = mid + 1;
      else hi = mid;
    }
    return lo;
  },
};

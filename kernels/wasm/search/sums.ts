// Products of packed rows with a query, four rows at a time, each at an address of its own.
import { type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { halfWords, placeFields } from "../float/fields.ts";
import { QUERY_HEAD, queryRange, queryVectors, SCAN_ROWS, type ScanSpec } from "./layout.ts";

const DOT = "i32x4.relaxed_dot_i8x16_i7x16_add_s";
const DOT16 = "i16x8.relaxed_dot_i8x16_i7x16_s";
/** Products of a loop's body before it becomes a loop. */
const UNROLLED = 256;

/**
 * Adds the products of one vector of four rows; `at`: offset of the vector in a row, `q`: offset of its query vectors.
 * `end` must follow the last one of a run.
 */
interface Step {
  (at: number, q: number): void;
  readonly end: () => void;
}
const endless = (step: (at: number, q: number) => void): Step => Object.assign(step, { end: () => undefined });

type Accumulators = readonly (readonly Local[])[];

/** Adds products of a vector of operands with the vectors `q` of every plane. */
type Multiply = (row: number, operand: Emit, q: readonly Local[]) => void;

function relaxedMultiply(f: FunctionBuilder, { bits, planes }: ScanSpec, acc: Accumulators): Multiply {
  const t = f.local("v128");
  return (row, operand, q) => {
    if (planes === 2) f.set(t, operand);
    for (let plane = 0; plane < planes; plane++) {
      const value = planes === 2 ? f.get(t) : operand;
      const [a, b] = bits === 8 ? [value, f.get(q[plane])] : [f.get(q[plane]), value];
      f.set(acc[plane][row], f.op(DOT, a, b, acc[plane][row]));
    }
  };
}

/** Sums of i16 as long as they fit, then widened. Counts while the code is written: `widen` begins anew. */
function relaxedMultiply16(f: FunctionBuilder, spec: ScanSpec, acc: Accumulators): { multiply: Multiply; widen: () => void } {
  const { bits, planes, most } = spec;
  const limit = bits === 8 ? 1 : Math.floor(32767 / (2 * 127 * most));
  const t = f.local("v128");
  const ones = f.constant16(1);
  const part = limit === 1 ? [] : acc.map((rows) => f.locals("v128", rows.length));
  const counts = new Int32Array(SCAN_ROWS);
  const add = (plane: number, row: number, products: Emit): void =>
    f.set(acc[plane][row], f.op("i32x4.add", acc[plane][row], f.op("i32x4.dot_i16x8_s", products, ones)));
  const widenRow = (row: number): void => {
    if (counts[row] > 0) part.forEach((rows, plane) => add(plane, row, f.get(rows[row])));
    counts[row] = 0;
  };
  const multiply: Multiply = (row, operand, q) => {
    if (counts[row] === limit) widenRow(row);
    if (planes === 2) f.set(t, operand);
    for (let plane = 0; plane < planes; plane++) {
      const value = planes === 2 ? f.get(t) : operand;
      const products = bits === 8 ? f.op(DOT16, value, q[plane]) : f.op(DOT16, q[plane], value);
      if (limit === 1) add(plane, row, products);
      else f.set(part[plane][row], counts[row] === 0 ? products : f.op("i16x8.add", part[plane][row], products));
    }
    counts[row]++;
  };
  return {
    multiply,
    widen: () => {
      for (let row = 0; row < SCAN_ROWS; row++) widenRow(row);
    },
  };
}

function simdMultiply(f: FunctionBuilder, { planes }: ScanSpec, acc: Accumulators): Multiply {
  const [t, low, high] = f.locals("v128", 3);
  return (row, operand, q) => {
    f.set(t, operand);
    f.set(low, f.op("i16x8.extend_low_i8x16_s", t));
    f.set(high, f.op("i16x8.extend_high_i8x16_s", t));
    for (let plane = 0; plane < planes; plane++) {
      const a = acc[plane][row];
      f.set(a, f.op("i32x4.add", a, f.op("i32x4.dot_i16x8_s", low, q[2 * plane])));
      f.set(a, f.op("i32x4.add", a, f.op("i32x4.dot_i16x8_s", high, q[2 * plane + 1])));
    }
  };
}

function dotStep(f: FunctionBuilder, spec: ScanSpec, p: readonly Local[], query: Local, acc: Accumulators): Step {
  const { bits, planes, style, table } = spec;
  const mask = bits === 8 ? null : f.constant8(2 ** bits - 1);
  const values = table === null ? null : f.constant("table", f.v128(Array.from({ length: 16 }, (_, i) => table[i] ?? 0)));
  const x = bits === 8 ? [] : f.locals("v128", SCAN_ROWS);
  const q = f.locals("v128", planes * (style === "simd" ? 2 : 1));
  const narrow = style === "madd16" ? relaxedMultiply16(f, spec, acc) : null;
  const multiply = narrow !== null ? narrow.multiply : style === "dot" ? relaxedMultiply(f, spec, acc) : simdMultiply(f, spec, acc);
  const operand = (r: number, at: number, field: number): Emit => {
    if (mask === null) return f.load("v128.load", p[r], at);
    const index = f.op("v128.and", field === 0 ? x[r] : f.op("i16x8.shr_u", x[r], f.i32(bits * field)), mask);
    // indices are below 16: relaxed swizzles agree
    return values === null ? index : f.op(style === "simd" ? "i8x16.swizzle" : "i8x16.relaxed_swizzle", values, index);
  };
  const step = (at: number, from: number): void => {
    x.forEach((v, r) => f.set(v, f.load("v128.load", p[r], at)));
    for (let field = 0; field < 8 / bits; field++) {
      q.forEach((v, i) => f.set(v, f.load("v128.load", query, from + 16 * (field * q.length + i))));
      for (let r = 0; r < SCAN_ROWS; r++) multiply(r, operand(r, at, field), q);
    }
  };
  return Object.assign(step, { end: () => narrow?.widen() });
}

/** Floats of 8 and 16 bits as float32, too small by a power of two that the factor of the query makes up for. */
function decoded(f: FunctionBuilder, { bits, mantissaBits }: ScanSpec): (x: Local) => readonly Emit[] {
  const both = (words: Local, mantissa: 7 | 10): readonly Emit[] => [
    halfWords(f, words, "lower", mantissa),
    halfWords(f, words, "upper", mantissa),
  ];
  if (bits === 16) return (x) => both(x, mantissaBits as 7 | 10);
  const [even, odd] = f.locals("v128", 2);
  return (x) => {
    f.set(even, placeFields(f, 8, mantissaBits!, f.op("i16x8.shl", x, f.i32(8))));
    f.set(odd, placeFields(f, 8, mantissaBits!, x));
    return [...both(even, 7), ...both(odd, 7)];
  };
}

function floatStep(f: FunctionBuilder, spec: ScanSpec, p: readonly Local[], query: Local, acc: readonly Local[]): Step {
  const q = f.locals("v128", queryVectors(spec));
  const x = f.local("v128");
  const values = spec.bits === 32 ? (v: Local): readonly Emit[] => [f.get(v)] : decoded(f, spec);
  return endless((at, from) => {
    q.forEach((v, i) => f.set(v, f.load("v128.load", query, from + 16 * i)));
    for (let r = 0; r < SCAN_ROWS; r++) {
      f.set(x, f.load("v128.load", p[r], at));
      values(x).forEach((value, i) => f.set(acc[r], f.op("f32x4.add", acc[r], f.op("f32x4.mul", value, q[i]))));
    }
  });
}

/**
 * Runs `step` on all vectors of a row: unrolled where that is short, else in a loop, which moves `p` and `query` and
 * puts them back.
 */
function eachVector(f: FunctionBuilder, spec: ScanSpec, p: readonly Local[], query: Local, step: Step): void {
  const per = 16 * queryVectors(spec);
  const cost = SCAN_ROWS * queryVectors(spec);
  const turn = Math.max(1, Math.min(spec.vectors, Math.floor(UNROLLED / cost)));
  const turns = Math.floor(spec.vectors / turn);
  const steps = (count: number): void => {
    for (let v = 0; v < count; v++) step(16 * v, QUERY_HEAD + per * v);
    step.end();
  };
  if (turns === 1) {
    steps(spec.vectors);
    return;
  }
  const left = f.local("i32");
  f.set(left, f.i32(turns));
  f.doWhile(() => {
    steps(turn);
    for (const row of p) f.bump(row, 16 * turn);
    f.bump(query, per * turn);
    f.bump(left, -1);
  }, left);
  steps(spec.vectors - turns * turn);
  for (const row of p) f.bump(row, -16 * turn * turns);
  f.bump(query, -per * turn * turns);
}

const lanes = (words: readonly number[]): number[] => words.flatMap((w) => [4 * w, 4 * w + 1, 4 * w + 2, 4 * w + 3]);

/** The sums of four vectors, one a lane. */
function sumLanes(f: FunctionBuilder, add: string, [a, b, c, d]: readonly Local[]): Emit {
  const half = (x: Local, y: Local): Emit => f.op(add, f.shuffle(lanes([0, 4, 1, 5]), x, y), f.shuffle(lanes([2, 6, 3, 7]), x, y));
  f.set(a, half(a, b));
  f.set(c, half(c, d));
  return f.op(add, f.shuffle(lanes([0, 1, 4, 5]), a, c), f.shuffle(lanes([2, 3, 6, 7]), a, c));
}

/**
 * The sums of products of the rows at four addresses `p`, times the factors of the query, into `score`. `rowSums`: the
 * sums of the codes of these rows, where `queryRange` has an offset.
 */
export function writeSums(f: FunctionBuilder, spec: ScanSpec, p: readonly Local[], query: Local, score: Local, rowSums: Emit): () => void {
  if (spec.kind === "hamming") return hammingSums(f, spec, p, query, score);
  const acc = Array.from({ length: spec.kind === "dot" ? spec.planes : 1 }, () => f.locals("v128", SCAN_ROWS));
  const step = spec.kind === "dot" ? dotStep(f, spec, p, query, acc) : floatStep(f, spec, p, query, acc[0]);
  return () => {
    for (const plane of acc) for (const a of plane) f.set(a, f.constant32(0));
    eachVector(f, spec, p, query, step);
    if (spec.kind === "float") {
      f.set(score, f.op("f32x4.mul", sumLanes(f, "f32x4.add", acc[0]), f.load("v128.load32_splat", query)));
      return;
    }
    const { offset } = queryRange(spec);
    const sums = (plane: number): Emit => {
      const all = sumLanes(f, "i32x4.add", acc[plane]);
      return offset === 0 ? all : f.op("i32x4.sub", all, f.op("i32x4.mul", rowSums, f.v128i32(offset)));
    };
    f.set(score, planeScore(f, spec, query, 0, sums(0)));
    if (spec.planes === 2) f.set(score, f.op("f32x4.add", score, planeScore(f, spec, query, 1, sums(1))));
  };
}

/** Words of a query that stay in registers. */
const WORDS_HELD = 6;

export interface Differing {
  /** Before any row. */
  readonly begin: () => void;
  /** The bits in which the row at an address, or so many bytes behind it, differs from the query. */
  readonly count: (p: Local, offset?: number) => Emit;
}

/** Kind hamming: a population count of each word of 64 bits, which processors have as one instruction. */
export function writeDiffering(f: FunctionBuilder, spec: ScanSpec, query: Local): Differing {
  const words = 2 * spec.vectors;
  const held = words <= WORDS_HELD ? f.locals("i64", words) : [];
  const wordOf = (w: number): Emit => f.load("i64.load", query, QUERY_HEAD + 8 * w);
  const count = (p: Local, offset = 0): Emit => {
    const word = (w: number): Emit => f.op("i64.popcnt", f.op("i64.xor", held[w] ?? wordOf(w), f.load("i64.load", p, offset + 8 * w)));
    let sum = word(0);
    for (let w = 1; w < words; w++) sum = f.op("i64.add", sum, word(w));
    return f.op("i32.wrap_i64", sum);
  };
  return { begin: () => held.forEach((v, w) => f.set(v, wordOf(w))), count };
}

/** Differing bits of four rows as sums of products. */
function hammingSums(f: FunctionBuilder, spec: ScanSpec, p: readonly Local[], query: Local, score: Local): () => void {
  const { begin, count } = writeDiffering(f, spec, query);
  const counts = f.local("v128");
  return () => {
    begin();
    p.forEach((at, lane) => f.set(counts, f.lane("i32x4.replace_lane", lane, counts, count(at))));
    f.set(score, planeScore(f, spec, query, 0, f.get(counts)));
  };
}

/** Integer sums of a plane as float32: (sum, twice where values are doubled, less the shift) * the plane's factor. */
function planeScore(f: FunctionBuilder, spec: ScanSpec, query: Local, plane: number, sum: Emit): Emit {
  const whole = spec.doubled ? f.op("i32x4.shl", sum, f.i32(1)) : sum;
  const less = f.op("i32x4.sub", whole, f.load("v128.load32_splat", query, 8 * plane + 4));
  return f.op("f32x4.mul", f.op("f32x4.convert_i32x4_s", less), f.load("v128.load32_splat", query, 8 * plane));
}

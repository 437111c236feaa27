// Scans packed vectors, row by row as they are stored, against queries, and keeps the best: score = (sum of products) *
// factor of the row + offset of the row. Row-major codes, dense, least significant bit first, each row padded to whole
// vectors of 16 bytes; the query is laid out to fit them: for every vector of codes and every field of its bytes the 16
// query values that meet it.
//
//   dot      integer codes of 1, 2, 4 or 8 bits times a query of one or two integer planes (the second holds what the
//            first leaves)
//   hamming  1-bit codes against a 1-bit query
//   float    float32 rows times a float32 query; for formats that are decoded panel by panel
//
// Work is shared out in items of rows; within one, every query passes over its rows while they are in the cache. A
// filter is a bit for each row.
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { STATE, writeTopK } from "./topk.ts";

export interface ScanSpec {
  readonly kind: "dot" | "hamming" | "float";
  /**
   * dot: `dot` for relaxed dot products to i32, `madd16` for those to i16 (faster where an engine makes the former of
   * several instructions), `simd` for baseline SIMD128.
   */
  readonly style: "dot" | "madd16" | "simd";
  readonly bits: 1 | 2 | 4 | 8 | 32;
  /** Vectors of 16 bytes in a row. */
  readonly vectors: number;
  /** Bytes from one row to the next. */
  readonly stride: number;
  /** Integer planes of the query, see `queryRange`. */
  readonly planes: 1 | 2;
  /** Operand of each code of at most 4 bits, 0..127; null where the field is the operand. */
  readonly table: readonly number[] | null;
  /** Values are 2 * operand - shift. */
  readonly doubled: boolean;
  /** The largest operand: how many products of two fit an i16. */
  readonly most: number;
  /** Rows have an offset beside the factor. */
  readonly offset: boolean;
  readonly shared: boolean;
}

/**
 * Arguments of `work`, words: addresses, unless they say otherwise. `mask` 0: no filter. `firstRow`: number of row 0 of
 * these codes.
 */
export const SCAN_ARGUMENTS = [
  "codes", "factors", "offsets", "sums", "ids", "mask", "rows", "rowsPerItem", "queries", "query", "queryBytes", "slots", "states", "stateBytes", "firstRow",
] as const; // prettier-ignore
export type ScanArgument = (typeof SCAN_ARGUMENTS)[number];

/** Rows that are computed together; codes, factors and offsets are padded to a multiple of it. */
export const SCAN_ROWS = 4;

/** The head of a query: for each plane its factor (f32) and what is taken from its sum (i32). */
export const QUERY_HEAD = 64;

/** Vectors of a query that meet one vector of codes. */
export function queryVectors(spec: Pick<ScanSpec, "kind" | "style" | "bits" | "planes">): number {
  if (spec.kind !== "dot") return 1;
  return (8 / spec.bits) * spec.planes * (spec.style === "simd" ? 2 : 1);
}

/**
 * The integers of a query plane: at most `max` in magnitude, stored with `offset` added. A relaxed dot product takes
 * one operand of 7 bits, without a sign: fields of codes, which are that, or else the query, whose offset times the sum
 * of a row's codes (argument `sums`) is taken from the products.
 */
export function queryRange({ style, bits }: Pick<ScanSpec, "style" | "bits">): { readonly max: number; readonly offset: number } {
  return style !== "simd" && bits === 8 ? { max: 63, offset: 64 } : { max: 127, offset: 0 };
}

/** Bytes of a query with its head. */
export const queryBytes = (spec: Pick<ScanSpec, "kind" | "style" | "bits" | "planes" | "vectors">): number =>
  QUERY_HEAD + 16 * spec.vectors * queryVectors(spec);

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

function dotStep(f: FunctionBuilder, spec: ScanSpec, p: Local, query: Local, acc: Accumulators): Step {
  const { bits, planes, style, table, stride } = spec;
  const mask = bits === 8 ? null : f.constant8(2 ** bits - 1);
  const values = table === null ? null : f.constant("table", f.v128(Array.from({ length: 16 }, (_, i) => table[i] ?? 0)));
  const x = bits === 8 ? [] : f.locals("v128", SCAN_ROWS);
  const q = f.locals("v128", planes * (style === "simd" ? 2 : 1));
  const narrow = style === "madd16" ? relaxedMultiply16(f, spec, acc) : null;
  const multiply = narrow !== null ? narrow.multiply : style === "dot" ? relaxedMultiply(f, spec, acc) : simdMultiply(f, spec, acc);
  const operand = (r: number, at: number, field: number): Emit => {
    if (mask === null) return f.load("v128.load", p, at + r * stride);
    const index = f.op("v128.and", field === 0 ? x[r] : f.op("i16x8.shr_u", x[r], f.i32(bits * field)), mask);
    // indices are below 16: relaxed swizzles agree
    return values === null ? index : f.op(style === "simd" ? "i8x16.swizzle" : "i8x16.relaxed_swizzle", values, index);
  };
  const step = (at: number, from: number): void => {
    x.forEach((v, r) => f.set(v, f.load("v128.load", p, at + r * stride)));
    for (let field = 0; field < 8 / bits; field++) {
      q.forEach((v, i) => f.set(v, f.load("v128.load", query, from + 16 * (field * q.length + i))));
      for (let r = 0; r < SCAN_ROWS; r++) multiply(r, operand(r, at, field), q);
    }
  };
  return Object.assign(step, { end: () => narrow?.widen() });
}

function floatStep(f: FunctionBuilder, spec: ScanSpec, p: Local, query: Local, acc: readonly Local[]): Step {
  const q = f.local("v128");
  return endless((at, from) => {
    f.set(q, f.load("v128.load", query, from));
    for (let r = 0; r < SCAN_ROWS; r++)
      f.set(acc[r], f.op("f32x4.add", acc[r], f.op("f32x4.mul", q, f.load("v128.load", p, at + r * spec.stride))));
  });
}

/**
 * Runs `step` on all vectors of a row: unrolled where that is short, else in a loop, which moves `p` and `query` and
 * puts them back.
 */
function eachVector(f: FunctionBuilder, spec: ScanSpec, p: Local, query: Local, step: Step): void {
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
    f.bump(p, 16 * turn);
    f.bump(query, per * turn);
    f.bump(left, -1);
  }, left);
  steps(spec.vectors - turns * turn);
  f.bump(p, -16 * turn * turns);
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

/** The sums of products of four rows at `p`, without factors of the rows, into `score`. */
function writeSums(f: FunctionBuilder, spec: ScanSpec, p: Local, query: Local, score: Local, rowSums: Emit): () => void {
  if (spec.kind === "hamming") {
    const sum = f.local("i64");
    const word = (r: number, w: number): Emit =>
      f.op("i64.popcnt", f.op("i64.xor", f.load("i64.load", query, QUERY_HEAD + 8 * w), f.load("i64.load", p, r * spec.stride + 8 * w)));
    return () => {
      for (let r = 0; r < SCAN_ROWS; r++) {
        f.set(sum, word(r, 0));
        for (let w = 1; w < 2 * spec.vectors; w++) f.set(sum, f.op("i64.add", sum, word(r, w)));
        const count = f.op("i32.wrap_i64", sum);
        f.set(score, r === 0 ? f.op("i32x4.splat", count) : f.lane("i32x4.replace_lane", r, score, count));
      }
      f.set(score, planeScore(f, spec, query, 0, f.get(score)));
    };
  }
  const acc = Array.from({ length: spec.kind === "dot" ? spec.planes : 1 }, () => f.locals("v128", SCAN_ROWS));
  const step = spec.kind === "dot" ? dotStep(f, spec, p, query, acc) : floatStep(f, spec, p, query, acc[0]);
  return () => {
    for (const plane of acc) for (const a of plane) f.set(a, f.constant32(0));
    eachVector(f, spec, p, query, step);
    if (spec.kind === "float") {
      f.set(score, sumLanes(f, "f32x4.add", acc[0]));
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

/** Integer sums of a plane as float32: (sum, twice where values are doubled, less the shift) * the plane's factor. */
function planeScore(f: FunctionBuilder, spec: ScanSpec, query: Local, plane: number, sum: Emit): Emit {
  const whole = spec.doubled ? f.op("i32x4.shl", sum, f.i32(1)) : sum;
  const less = f.op("i32x4.sub", whole, f.load("v128.load32_splat", query, 8 * plane + 4));
  return f.op("f32x4.mul", f.op("f32x4.convert_i32x4_s", less), f.load("v128.load32_splat", query, 8 * plane));
}

/** enter(args, state, scores, row, bits): offers the rows of four whose bit is set. */
function writeEnter(m: ModuleBuilder, offer: FunctionRef): FunctionRef {
  return m.func(null, ["i32", "i32", "v128", "i32", "i32"], [], (f) => {
    const [args, state, scores, first, bits] = [0, 1, 2, 3, 4].map((i) => f.param(i));
    const [lane, row] = f.locals("i32", 2);
    const field = (name: ScanArgument): Emit => f.load("i32.load", args, 4 * SCAN_ARGUMENTS.indexOf(name));
    f.store("v128.store", state, STATE.scores, scores);
    f.while(bits, () => {
      f.set(lane, f.op("i32.ctz", bits));
      f.set(bits, f.op("i32.and", bits, f.op("i32.sub", bits, f.i32(1))));
      f.set(row, f.op("i32.add", first, lane));
      f.if(f.op("i32.lt_u", row, field("rows")), () => {
        const score = f.load("f32.load", f.op("i32.add", state, f.op("i32.shl", lane, f.i32(2))), STATE.scores);
        const id = f.load("i32.load", f.op("i32.add", field("ids"), f.op("i32.shl", row, f.i32(2))));
        f.run(f.call(offer, state, score, id, f.op("i32.add", field("firstRow"), row)));
      });
    });
  });
}

/**
 * scan(args, query, state, row, end): rows row .. end - 1, a multiple of four from a multiple of four on, against one
 * query.
 */
function writeScan(m: ModuleBuilder, spec: ScanSpec, enter: FunctionRef): FunctionRef {
  return m.func(null, ["i32", "i32", "i32", "i32", "i32"], [], (f) => {
    const [args, query, state, row, end] = [0, 1, 2, 3, 4].map((i) => f.param(i));
    const [p, mask, place, bits] = f.locals("i32", 4);
    const score = f.local("v128");
    const field = (name: ScanArgument): Emit => f.load("i32.load", args, 4 * SCAN_ARGUMENTS.indexOf(name));
    const sums = writeSums(f, spec, p, query, score, f.load("v128.load", f.op("i32.add", field("sums"), place)));
    f.set(mask, field("mask"));
    f.set(p, f.op("i32.add", field("codes"), f.op("i32.mul", row, f.i32(spec.stride))));
    f.set(place, f.op("i32.shl", row, f.i32(2)));
    const block = (): void => {
      sums();
      f.set(score, f.op("f32x4.mul", score, f.load("v128.load", f.op("i32.add", field("factors"), place))));
      if (spec.offset) f.set(score, f.op("f32x4.add", score, f.load("v128.load", f.op("i32.add", field("offsets"), place))));
      f.set(
        bits,
        f.op("i32.and", bits, f.op("i32x4.bitmask", f.op("f32x4.ge", score, f.load("v128.load32_splat", state, STATE.threshold)))),
      );
      f.if(bits, () => f.run(f.call(enter, args, state, score, row, bits)));
    };
    f.while(f.op("i32.lt_u", row, end), () => {
      f.set(bits, f.i32(15));
      f.if(mask, () => {
        const byte = f.load("i32.load8_u", f.op("i32.add", mask, f.op("i32.shr_u", row, f.i32(3))));
        f.set(bits, f.op("i32.and", f.op("i32.shr_u", byte, f.op("i32.and", row, f.i32(4))), f.i32(15)));
      });
      f.if(bits, block);
      f.bump(p, SCAN_ROWS * spec.stride);
      f.bump(place, 4 * SCAN_ROWS);
      f.bump(row, SCAN_ROWS);
    });
  });
}

/**
 * A module whose `work` scans; its arguments are SCAN_ARGUMENTS. Each thread takes the next slot of states when it
 * begins.
 */
export function scanModule(spec: ScanSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const { offer } = writeTopK(m);
  const scan = writeScan(m, spec, writeEnter(m, offer));
  writeWork(m, (f, args) => {
    const field = (name: ScanArgument): Emit => f.load("i32.load", args, 4 * SCAN_ARGUMENTS.indexOf(name));
    const [own, from, to, left, query, state] = f.locals("i32", 6);
    const slot = f.atomic("i32.atomic.rmw.add", field("slots"), 0, f.i32(1));
    f.set(own, f.op("i32.add", field("states"), f.op("i32.mul", slot, f.op("i32.mul", field("queries"), field("stateBytes")))));
    return (item) => {
      f.set(from, f.op("i32.mul", item, field("rowsPerItem")));
      f.set(to, f.op("i32.add", from, field("rowsPerItem")));
      f.set(to, f.op("select", to, field("rows"), f.op("i32.lt_u", to, field("rows"))));
      f.set(left, field("queries"));
      f.set(query, field("query"));
      f.set(state, own);
      f.doWhile(() => {
        f.run(f.call(scan, args, query, state, from, to));
        f.set(query, f.op("i32.add", query, field("queryBytes")));
        f.set(state, f.op("i32.add", state, field("stateBytes")));
        f.bump(left, -1);
      }, left);
    };
  });
  return m.bytes();
}

export const scan = family("scan", scanModule);

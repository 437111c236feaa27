// What the loops of the search of scales share (search.ts): the workspace, arithmetic in lanes, loops over runs, widths
// and elements.
import type { SearchSpec } from "../../../formats/core/search.ts";
import { ROOM } from "../../../formats/core/search.ts";
import type { Emit, FunctionBuilder, Local, Operand } from "../engine/asm.ts";

export const HIGH = [8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15];

export interface SearchLayout {
  readonly room: number;
  readonly x: number;
  readonly u: number;
  readonly x32: number;
  readonly w32: number;
  readonly q32: number;
  readonly x64: number;
  readonly u64: number;
  /** Widths as float32 and as float64. */
  readonly widths: number;
  readonly own: number;
  readonly bytes: number;
}

/** Where things lie in the workspace of a search. */
export function searchLayout({ runs, size, widths, own }: SearchSpec): SearchLayout {
  let bytes = 0;
  const take = (n: number): number => ((bytes += Math.ceil(n / 16) * 16), bytes - Math.ceil(n / 16) * 16);
  const n = runs * size;
  return {
    room: take(8 * runs * ROOM.length),
    x: take(4 * n),
    u: take(4 * n),
    x32: take(4 * n),
    w32: take(8 * n),
    q32: take(16 * size),
    x64: take(8 * n),
    u64: take(8 * n),
    widths: take(4 * widths.length),
    own: take(8 * own.length),
    bytes,
  };
}

const MAGIC = 6755399441055744;
const MAGIC32 = 12582912;

/** A lane type with its operations as expressions, and what several functions share. */
export function lanes(f: FunctionBuilder, type: "f32x4" | "f64x2") {
  const op = (name: string) => (a: Operand, b?: Operand) => f.op(`${type}.${name}`, a, b);
  const constant = (value: number): Local => {
    if (type === "f32x4") return f.constantF32(value);
    const bytes = new Uint8Array(Float64Array.of(value, value).buffer);
    return f.constant(`f64 ${Object.is(value, -0) ? "-0" : value}`, f.v128(bytes));
  };
  const magic = type === "f32x4" ? MAGIC32 : MAGIC;
  const [add, sub] = [op("add"), op("sub")];
  return {
    add,
    sub,
    mul: op("mul"),
    div: op("div"),
    abs: op("abs"),
    neg: op("neg"),
    /** pmin(a, b) = b < a ? b : a, pmax(a, b) = a < b ? b : a */
    pmin: op("pmin"),
    pmax: op("pmax"),
    gt: op("gt"),
    lt: op("lt"),
    ge: op("ge"),
    le: op("le"),
    eq: op("eq"),
    constant,
    nearest: (v: Operand): Emit => sub(add(v, constant(magic)), constant(magic)),
    select: (mask: Operand, then: Operand, otherwise: Operand): Emit => f.op("v128.bitselect", then, otherwise, mask),
    where: (mask: Operand, v: Operand): Emit => f.op("v128.and", v, mask),
  };
}

export type Lanes = ReturnType<typeof lanes>;
export type Layout = SearchLayout;

/** body(a, o) for every group of runs: x at a + its offset, the room's arrays at o + their offsets. */
export function overGroups(f: FunctionBuilder, spec: SearchSpec, lane: 2 | 4, body: (a: Local, o: Local) => void): void {
  const base = f.param(0);
  const [a, o, left] = f.locals("i32", 3);
  f.set(a, base);
  f.set(o, base);
  f.set(left, f.i32(spec.runs / lane));
  f.doWhile(() => {
    body(a, o);
    f.bump(a, 16 * spec.size);
    f.bump(o, 8 * lane);
    f.bump(left, -1);
  }, left);
}

/** body(pointer) for each of `count` widths of `bytes` bytes at base + offset. */
export function overWidths(f: FunctionBuilder, offset: number, bytes: number, count: number, body: (width: Local) => void): void {
  const [width, left] = f.locals("i32", 2);
  f.set(width, f.op("i32.add", f.param(0), f.i32(offset)));
  f.set(left, f.i32(count));
  f.doWhile(() => {
    body(width);
    f.bump(width, bytes);
    f.bump(left, -1);
  }, left);
}

export const room = (spec: SearchSpec, name: (typeof ROOM)[number]): number => 8 * spec.runs * ROOM.indexOf(name);

/** Four float32 results to the room. */
export function storeFour(f: FunctionBuilder, o: Local, offset: number, v: Local): void {
  f.store("v128.store", o, offset, f.op("f64x2.promote_low_f32x4", v));
  f.store("v128.store", o, offset + 16, f.op("f64x2.promote_low_f32x4", f.shuffle(HIGH, v, v)));
}

export const times = (n: number, body: (j: number) => void): void => {
  for (let j = 0; j < n; j++) body(j);
};

/** Least and largest value of each run; the least at most 0. */
export function bounds(f: FunctionBuilder, l: Lanes, size: number, value: (j: number) => Emit, low: Local, high: Local): void {
  f.set(low, l.constant(0));
  f.set(high, l.constant(-Infinity));
  const v = f.local("v128");
  times(size, (j) => {
    f.set(v, value(j));
    f.set(low, l.pmin(low, v));
    f.set(high, l.pmax(high, v));
  });
}

/** Values and weights of a pair of runs. */
export const pair = (f: FunctionBuilder, a: Local, at: Layout, weighted: boolean) => ({
  x: (j: number): Emit => f.load("v128.load", a, at.x64 + 16 * j),
  /** v times the weight of element j. */
  weigh: (j: number, v: Operand): Operand => (weighted ? f.op("f64x2.mul", f.load("v128.load", a, at.u64 + 16 * j), v) : v),
});

/** How codes follow from values: v(j) is what the scale divides, `code` makes a code of the quotient. */
export interface Codes {
  value(l: Lanes, x: Emit, m: Local): Emit;
  code(l: Lanes, quotient: Emit): Emit;
  inverse(f: FunctionBuilder, l: Lanes, s: Local): Emit;
}

// Rows of float32 in the kernels of operators: any length, any address that is a multiple of 4, nothing read or written
// beyond an end. A row is found by two numbers, so that heads of a packed projection, halves of a joined product and
// broadcast operands need no copy: row i lies at address + floor(i / per) * outer + (i mod per) * inner, in bytes.
import type { Emit, FunctionBuilder, Local, Operand } from "../engine/asm.ts";

/** Words of one operand in a job's arguments. */
export const PLACE_WORDS = 3;

export interface Rows {
  readonly address: number;
  /** Bytes from one run of `per` rows to the next. */
  readonly outer: number;
  /** Bytes from a row to the next within. */
  readonly inner: number;
}

/** Rows that lie one after the other, `width` floats each. */
export const rowsAt = (address: number, width: number, per = 1): Rows => ({ address, outer: 4 * width * per, inner: 4 * width });

/** The same values for every row. */
export const everyRow = (address: number): Rows => ({ address, outer: 0, inner: 0 });

/** Reads an operand's row: `index` is its place among the operands, whose words begin at `first`. */
export function rowAddress(f: FunctionBuilder, args: Local, first: number, index: number, run: Operand, within: Operand): Emit {
  const field = (i: number): Emit => f.load("i32.load", args, 4 * (first + PLACE_WORDS * index + i));
  return f.op("i32.add", f.op("i32.add", field(0), f.op("i32.mul", run, field(1))), f.op("i32.mul", within, field(2)));
}

/** Words of operands. */
export const placeWords = (rows: readonly Rows[]): number[] => rows.flatMap(({ address, outer, inner }) => [address, outer, inner]);

/** into = `count` floats (1..3, a local) at address + offset, `fill` beyond. */
export function loadSome(f: FunctionBuilder, into: Local, address: Operand, count: Local, fill: Operand): void {
  f.set(into, f.loadLane("v128.load32_lane", address, 0, 0, fill));
  f.if(f.op("i32.gt_u", count, f.i32(1)), () => f.set(into, f.loadLane("v128.load32_lane", address, 4, 1, into)));
  f.if(f.op("i32.gt_u", count, f.i32(2)), () => f.set(into, f.loadLane("v128.load32_lane", address, 8, 2, into)));
}

/** Stores `count` floats (1..3). */
export function storeSome(f: FunctionBuilder, address: Operand, count: Local, value: Local): void {
  const lane = (i: number): void => f.store("f32.store", address, 4 * i, f.lane("f32x4.extract_lane", i, value));
  lane(0);
  f.if(f.op("i32.gt_u", count, f.i32(1)), () => lane(1));
  f.if(f.op("i32.gt_u", count, f.i32(2)), () => lane(2));
}

/** Bytes of a shuffle that moves lanes of 32 bits. */
export const words = (lanes: readonly number[]): number[] => lanes.flatMap((lane) => [0, 1, 2, 3].map((i) => 4 * lane + i));

/** The sum or another fold of the four lanes, in all lanes. */
export function foldLanes(f: FunctionBuilder, op: string, v: Local): void {
  for (const lanes of [[2, 3, 0, 1], [1, 0, 3, 2]]) f.set(v, f.op(op, v, f.shuffle(words(lanes), v, v))); // prettier-ignore
}

/** Adds signed bytes to sums of 32 bits, four to each. */
export function addBytes(f: FunctionBuilder, sums: Local, bytes: Operand): void {
  f.set(sums, f.op("i32x4.add", sums, f.op("i32x4.extadd_pairwise_i16x8_s", f.op("i16x8.extadd_pairwise_i8x16_s", bytes))));
}

/** Transposes four vectors of words; `t` are two that it may use. */
export function transposeFour(f: FunctionBuilder, v: readonly Local[], t: readonly Local[]): void {
  f.set(t[0], f.shuffle(words([0, 4, 1, 5]), v[0], v[1]));
  f.set(t[1], f.shuffle(words([0, 4, 1, 5]), v[2], v[3]));
  f.set(v[0], f.shuffle(words([2, 6, 3, 7]), v[0], v[1]));
  f.set(v[2], f.shuffle(words([2, 6, 3, 7]), v[2], v[3]));
  f.set(v[1], f.shuffle(words([2, 3, 6, 7]), t[0], t[1]));
  f.set(t[0], f.shuffle(words([0, 1, 4, 5]), t[0], t[1]));
  f.set(v[3], f.shuffle(words([2, 3, 6, 7]), v[0], v[2]));
  f.set(v[2], f.shuffle(words([0, 1, 4, 5]), v[0], v[2]));
  f.set(v[0], f.get(t[0]));
}

/** The sums, or other folds, of four vectors' lanes, as one vector in the place of the first. */
export function sumFour(f: FunctionBuilder, [a, b, c, d]: readonly Local[], op = "f32x4.add"): void {
  const both = (p: Local, q: Local): Emit => f.op(op, f.shuffle(words([0, 4, 1, 5]), p, q), f.shuffle(words([2, 6, 3, 7]), p, q));
  f.set(a, both(a, b));
  f.set(c, both(c, d));
  f.set(a, f.op(op, f.shuffle(words([0, 1, 4, 5]), a, c), f.shuffle(words([2, 3, 6, 7]), a, c)));
}

/**
 * Passes over `width` floats (a local) at byte offset `at`, which it moves from 0: whole vectors in turns of `unroll`,
 * then one by one, then the tail. `each(i, tail)`: vector i of a turn, at `at` + 16 i; `tail` is the count of floats
 * that are left, or null. `apart`: the vectors of a turn share nothing, and are computed in lockstep.
 */
export function eachVector(
  f: FunctionBuilder,
  width: Local,
  at: Local,
  unroll: number,
  each: (i: number, tail: Local | null) => void,
  apart = false,
): void {
  const end = f.local("i32");
  f.set(at, f.i32(0));
  for (const turn of unroll === 1 ? [1] : [unroll, 1]) {
    f.set(end, f.op("i32.shl", f.op("i32.and", width, f.i32(-4 * turn)), f.i32(2)));
    f.while(f.op("i32.lt_u", at, end), () => {
      const bodies = Array.from({ length: turn }, (_, i) => () => each(i, null));
      if (apart) f.lockstep(bodies);
      else for (const body of bodies) body();
      f.bump(at, 16 * turn);
    });
  }
  f.set(end, f.op("i32.and", width, f.i32(3)));
  f.if(end, () => each(0, end));
}

/** Runs of rows as items of a job: words `per` (rows of a run), `rows`, `step` (rows of an item). */
export const ROW_WORDS = ["width", "per", "rows", "step"] as const;

export function eachRow(f: FunctionBuilder, args: Local, item: Local, each: (run: Local, within: Local) => void): void {
  const [row, last, run, within] = f.locals("i32", 4);
  const field = (name: (typeof ROW_WORDS)[number]): Emit => f.load("i32.load", args, 4 * ROW_WORDS.indexOf(name));
  f.set(row, f.op("i32.mul", item, field("step")));
  f.set(last, f.op("i32.add", row, field("step")));
  f.set(last, f.op("select", last, field("rows"), f.op("i32.lt_u", last, field("rows"))));
  f.set(run, f.op("i32.div_u", row, field("per")));
  f.set(within, f.op("i32.rem_u", row, field("per")));
  f.while(f.op("i32.lt_u", row, last), () => {
    each(run, within);
    f.bump(within, 1);
    f.if(f.op("i32.eq", within, field("per")), () => {
      f.set(within, f.i32(0));
      f.bump(run, 1);
    });
    f.bump(row, 1);
  });
}

/** A job over rows: its items, each of some 4096 floats, and the words that `eachRow` reads. */
export function rowJob(rows: number, width: number, per = rows): { readonly items: number; readonly words: readonly number[] } {
  const step = Math.max(1, Math.round(4096 / Math.max(1, width)));
  return { items: Math.ceil(rows / step), words: [width, Math.max(1, per), rows, step] };
}

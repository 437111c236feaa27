// Reductions of float32 [outer, axis, inner] over the middle: adjacent axes are one, others are brought together by a
// copy (copy.ts). Sums run in 16 float32 partial sums where inner is 1, else in order. max, min and products give NaN
// where a value is NaN. argmax and argmin give int32 indices, the first of equal values or the last.
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { eachVector, foldLanes, loadSome, storeSome } from "./rows.ts";
import { i32s, least } from "./tiles.ts";

export const REDUCTIONS = ["sum", "mean", "sumSquares", "l1", "l2", "max", "min", "prod", "argmax", "argmin"] as const;
export type Reduction = (typeof REDUCTIONS)[number];

export interface ReduceSpec {
  readonly op: Reduction;
  /** Values side by side (inner is 1), or `inner` apart. */
  readonly side: "rows" | "columns";
  /** argmax, argmin: the last of equal values. */
  readonly last: boolean;
  readonly shared: boolean;
}

export interface ReduceJob {
  readonly outer: number;
  readonly axis: number;
  readonly inner: number;
  /** Addresses of [outer, axis, inner] and [outer, inner]. */
  readonly x: number;
  readonly y: number;
}

const FIELDS = ["axis", "inner", "total", "step", "pieces", "span", "x", "y"] as const;
type Field = (typeof FIELDS)[number];

export const reduceSpec = (op: Reduction, job: Pick<ReduceJob, "inner">, shared: boolean, last = false): ReduceSpec => ({
  op,
  side: job.inner === 1 ? "rows" : "columns",
  last: last && (op === "argmax" || op === "argmin"),
  shared,
});

/** Items and arguments. @throws RangeError for nothing to take the greatest, least or first of */
export function reduceJob(job: ReduceJob, { op }: ReduceSpec): { readonly items: number; readonly args: Int32Array } {
  const { outer, axis, inner } = job;
  if (axis === 0 && ["max", "min", "argmax", "argmin"].includes(op))
    throw new RangeError(`reduce ${op}: expected at least one value, got none.`);
  // an item has some 16 K values
  const span = inner === 1 ? 1 : Math.min(inner, Math.max(16, Math.ceil(16384 / Math.max(1, axis) / 16) * 16));
  const pieces = Math.ceil(inner / Math.max(1, span));
  const step = pieces > 1 ? 1 : Math.max(1, Math.floor(16384 / Math.max(1, axis * inner)));
  return { items: Math.ceil(outer / step) * pieces, args: Int32Array.of(axis, inner, outer, step, pieces, span, job.x, job.y) };
}

const START: Readonly<Record<Exclude<Reduction, "argmax" | "argmin">, number>> = {
  sum: 0, mean: 0, sumSquares: 0, l1: 0, l2: 0, max: -Infinity, min: Infinity, prod: 1,
}; // prettier-ignore

/** What a value adds to, and how. */
function fold(
  f: FunctionBuilder,
  op: Reduction,
): { readonly start: Local; readonly op: string; map(v: Local): Emit; finish(sum: Local, count: Local): void } {
  const plain = op === "argmax" ? "max" : op === "argmin" ? "min" : op;
  const square = plain === "sumSquares" || plain === "l2";
  return {
    start: f.constantF32(START[plain]),
    op: plain === "max" || plain === "min" ? `f32x4.${plain}` : plain === "prod" ? "f32x4.mul" : "f32x4.add",
    map: (v) => (square ? f.op("f32x4.mul", v, v) : plain === "l1" ? f.op("f32x4.abs", v) : f.get(v)),
    finish(sum, count) {
      if (plain === "mean") f.set(sum, f.op("f32x4.div", sum, f.op("f32x4.splat", f.op("f32.convert_i32_u", count))));
      if (plain === "l2") f.set(sum, f.op("f32x4.sqrt", sum));
    },
  };
}

const isArg = (op: Reduction): boolean => op === "argmax" || op === "argmin";

/** row(x, axis, y): values side by side. */
function writeRow(f: FunctionBuilder, spec: ReduceSpec): void {
  const [x, axis, y] = [0, 1, 2].map((i) => f.param(i));
  const sums = f.locals("v128", 4);
  const v = f.local("v128");
  const place = f.local("i32");
  const { start, op, map, finish } = fold(f, spec.op);
  // a padding that maps to what changes nothing
  for (const sum of sums) f.set(sum, start);
  eachVector(f, axis, place, 4, (i, tail) => {
    const at = f.op("i32.add", x, place);
    if (tail === null) f.set(v, f.load("v128.load", at, 16 * i));
    else loadSome(f, v, at, tail, start);
    f.set(sums[i], f.op(op, sums[i], map(v)));
  });
  f.set(sums[0], f.op(op, f.op(op, sums[0], sums[1]), f.op(op, sums[2], sums[3])));
  foldLanes(f, op, sums[0]);
  if (!isArg(spec.op)) {
    finish(sums[0], axis);
    f.store("f32.store", y, 0, f.lane("f32x4.extract_lane", 0, sums[0]));
    return;
  }
  // where it is: groups of four first, from the front or the back; a row with a NaN has index 0
  const [index, found] = f.locals("i32", 2);
  const same = (at: Emit, load: string): Emit => f.op("v128.any_true", f.op("f32x4.eq", f.load(load, at), sums[0]));
  const address = f.op("i32.add", x, f.op("i32.shl", index, f.i32(2)));
  const look = (count: number, going: Emit, move: () => void, load: string): void => {
    f.while(f.op("i32.and", f.op("i32.eqz", found), going), () => {
      f.set(found, same(address, load));
      f.if(f.op("i32.eqz", found), move);
    });
    if (count === 4) f.set(found, f.i32(0));
  };
  if (!spec.last) {
    look(4, f.op("i32.le_u", f.op("i32.add", index, f.i32(4)), axis), () => f.bump(index, 4), "v128.load");
    look(1, f.op("i32.lt_u", index, axis), () => f.bump(index, 1), "v128.load32_splat");
  } else {
    f.set(index, f.op("i32.sub", axis, f.i32(1)));
    look(1, f.op("i32.ge_s", index, f.i32(0)), () => f.bump(index, -1), "v128.load32_splat");
  }
  f.store("i32.store", y, 0, f.op("select", index, f.i32(0), found));
}

/** columns(x, axis, step, y, count): up to four columns, `step` bytes from a value of a column to the next. */
function writeColumns(f: FunctionBuilder, spec: ReduceSpec, vectors: number): void {
  const [x, axis, step, y, count] = [0, 1, 2, 3, 4].map((i) => f.param(i));
  const sums = f.locals("v128", vectors);
  const places = f.locals("v128", isArg(spec.op) ? vectors : 0);
  const [v, index, mask] = f.locals("v128", 3);
  const left = f.local("i32");
  const { start, op, map, finish } = fold(f, spec.op);
  const arg = isArg(spec.op);
  const better = { argmax: spec.last ? "f32x4.ge" : "f32x4.gt", argmin: spec.last ? "f32x4.le" : "f32x4.lt" }[
    spec.op as "argmax" | "argmin"
  ];
  for (const sum of sums) f.set(sum, start);
  f.set(left, f.get(axis));
  f.while(left, () => {
    sums.forEach((sum, i) => {
      if (vectors > 1) f.set(v, f.load("v128.load", x, 16 * i));
      else
        f.if(
          f.op("i32.ge_u", count, f.i32(4)),
          () => f.set(v, f.load("v128.load", x)),
          () => loadSome(f, v, x, count, start),
        );
      if (arg) {
        f.set(mask, f.op(better, v, sum));
        f.set(places[i], f.op("v128.bitselect", index, places[i], mask));
        f.set(sum, f.op("v128.bitselect", v, sum, mask));
      } else f.set(sum, f.op(op, sum, map(v)));
    });
    if (arg) f.set(index, f.op("i32x4.add", index, f.constant32(1)));
    f.bump(x, step);
    f.bump(left, -1);
  });
  sums.forEach((sum, i) => {
    const result = arg ? places[i] : sum;
    if (!arg) finish(sum, axis);
    if (vectors > 1) f.store("v128.store", y, 16 * i, result);
    else
      f.if(
        f.op("i32.ge_u", count, f.i32(4)),
        () => f.store("v128.store", y, 0, result),
        () => storeSome(f, y, count, result),
      );
  });
}

/** A module whose `work` reduces; its arguments are `reduceJob`'s. */
export function reduceModule(spec: ReduceSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const row = spec.side === "rows" ? m.func(null, i32s(3), [], (f) => writeRow(f, spec)) : null;
  const wide = row === null ? m.func(null, i32s(5), [], (f) => writeColumns(f, spec, 4)) : null;
  const four = row === null ? m.func(null, i32s(5), [], (f) => writeColumns(f, spec, 1)) : null;
  writeWork(m, (f, args) => {
    const field = (name: Field): Emit => f.load("i32.load", args, 4 * FIELDS.indexOf(name));
    const [index, last, begin, count, x, y] = f.locals("i32", 6);
    const words = (value: Emit): Emit => f.op("i32.shl", value, f.i32(2));
    return (item) => {
      f.set(begin, f.op("i32.mul", f.op("i32.rem_u", item, field("pieces")), field("span")));
      f.set(index, f.op("i32.mul", f.op("i32.div_u", item, field("pieces")), field("step")));
      f.set(last, least(f, f.op("i32.add", index, field("step")), field("total")));
      f.while(f.op("i32.lt_u", index, last), () => {
        f.set(
          x,
          f.op(
            "i32.add",
            field("x"),
            words(f.op("i32.add", f.op("i32.mul", index, f.op("i32.mul", field("axis"), field("inner"))), begin)),
          ),
        );
        f.set(y, f.op("i32.add", field("y"), words(f.op("i32.add", f.op("i32.mul", index, field("inner")), begin))));
        if (row !== null) f.run(f.call(row, x, field("axis"), y));
        else {
          f.set(count, least(f, field("span"), f.op("i32.sub", field("inner"), begin)));
          for (const [columns, target] of [[16, wide!], [4, four!]] as const)
            f.while(columns === 16 ? f.op("i32.ge_u", count, f.i32(16)) : count, () => {
              f.run(f.call(target, x, field("axis"), words(field("inner")), y, count));
              f.bump(x, 4 * columns);
              f.bump(y, 4 * columns);
              f.set(count, f.op("i32.sub", count, least(f, count, f.i32(columns))));
            });
        } // prettier-ignore
        f.bump(index, 1);
      });
    };
  });
  return m.bytes();
}

export const reduce = family("reduce", reduceModule);

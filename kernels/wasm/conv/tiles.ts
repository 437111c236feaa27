// Sums of integer convolutions (conv.ts) over a panel of taps, in tiles of filters by eight outputs that stay in
// registers, and how they leave: beside the products, or in a pass of their own.
import type { Emit, FunctionBuilder, Local, Operand } from "../engine/asm.ts";
import { finishBytes, finishVector, moveSome, narrowCodes, type Finish } from "./finish.ts";
import { ROW, SPAN, type PackSpec } from "./taps.ts";

export interface IntegerConvSpec extends PackSpec {
  readonly to: Finish;
  /** Float32 sums have a bias added. */
  readonly bias: boolean;
  /** Units per turn of the inner loop: 1 for V8 11, which schedules longer blocks into spills. */
  readonly unroll: 1 | 4;
  readonly shared: boolean;
}

/** Filters of a tile: two vectors of sums each; products of words need a register of their own. */
export const tileFilters = (style: IntegerConvSpec["style"]): 4 | 6 => (style === "words" ? 4 : 6);
/**
 * Filters of each tile of a group: of six, but the last or the last two of four where that leaves fewer empty. In
 * groups of one channel, which depthwise.ts reads too, all are of one height.
 */
export function tileHeights(style: IntegerConvSpec["style"], filters: number, isDeep: boolean): number[] {
  const heights: number[] = [];
  for (let left = filters; left > 0; left -= heights.at(-1)!)
    heights.push(isDeep && (left < 5 || left === 7 || left === 8) ? 4 : tileFilters(style));
  return heights;
}

/** Arguments of a job. */
export const FIELDS = [
  "groups", "mBlocks", "nBlocks", "m", "n", "units", "chunk", "mSpan", "nSpan", "w", "wGroup", "offsets", "factors", "bias", "x", "xBatch", "xGroup", "xZero",
  "y", "yGroup", "yZero", "low", "high", "table", "width", "columnStep", "rowStep", "deep", "round", "zeroTerm",
] as const; // prettier-ignore
export type Field = (typeof FIELDS)[number];

export const TILES = ["w", "panel", "sums", "units", "before", "filters", "width", "args", "y", "yStep", "offsets", "factors", "bias"] as const; // prettier-ignore
const DOT = "i32x4.relaxed_dot_i8x16_i7x16_add_s";

/**
 * tiles(...): sums [filters][32] over `units` of a panel, eight outputs at a time, added to those of the units before.
 * `width`: bytes of a unit that count. `late`: sums also leave as results, those of eight outputs among the products of
 * the next, a filter in each turn. (A pass of its own was an eighth of a layer of 32 units; all at a tile's end, from
 * registers or memory, took as long: a processor looks less far ahead.)
 */
export function writeTiles(f: FunctionBuilder, spec: IntegerConvSpec, late: boolean): void {
  const { style, unroll, to } = spec;
  const [firstW, firstPanel, firstSums, units, before, left, width, args, firstY, yStep, ...terms] = TILES.map((_, i) => f.param(i));
  const [w, panel, turns, half, sums, y] = f.locals("i32", 6);
  const most = tileFilters(style);
  const all = Array.from({ length: most }, () => f.locals("v128", 2));
  const [p0, p1, x] = f.locals("v128", 3);
  const done = late ? writeLate(f, spec, [p0, p1, x], yStep, args) : null;
  const drain = (): void => {
    if (done !== null) f.while(done.left, done.next);
  };
  const field = (name: Field): Emit => f.load("i32.load", args, 4 * FIELDS.indexOf(name));
  const some = (least: number): Emit => f.op("i32.ge_s", turns, f.i32(least));
  /** A tile of `height` filters. */
  const tile = (height: number): void => {
    const acc = all.slice(0, height);
    const each = (use: (sum: Local, offset: number) => void): void =>
      acc.forEach((sum, r) => sum.forEach((v, j) => use(v, ROW * r + 16 * j)));
    const step = (count: number): void => {
      for (let u = 0; u < count; u++) {
        f.set(p0, f.load("v128.load", panel, ROW * u));
        f.set(p1, f.load("v128.load", panel, ROW * u + 16));
        acc.forEach((sum, r) => {
          f.set(x, f.load("v128.load32_splat", w, 4 * (height * u + r)));
          sum.forEach((v, j) => {
            const p = j === 0 ? p0 : p1;
            f.set(v, style === "words" ? f.op("i32x4.add", f.op("i32x4.dot_i16x8_s", p, x), v) : f.op(DOT, x, p, v));
          });
        });
      }
      f.bump(w, 4 * height * count);
      f.bump(panel, ROW * count);
      f.bump(turns, -count);
    };
    f.set(half, f.i32(0));
    if (late) f.set(y, firstY);
    f.doWhile(
      () => {
        f.set(w, f.op("i32.add", firstW, f.op("i32.mul", before, f.i32(4 * height))));
        f.set(panel, f.op("i32.add", firstPanel, half));
        f.set(sums, f.op("i32.add", firstSums, half));
        f.set(turns, units);
        f.if(
          before,
          () => each((sum, offset) => f.set(sum, f.load("v128.load", sums, offset))),
          () => each((sum) => f.set(sum, f.constant32(0))),
        );
        if (unroll > 1)
          f.while(some(unroll), () => {
            step(unroll);
            if (done !== null) f.if(done.left, done.next);
          });
        f.while(some(1), () => step(1));
        each((sum, offset) => f.store("v128.store", sums, offset, sum));
        if (done !== null) {
          drain();
          done.begin(sums, y, ...terms, f.op("select", left, f.i32(height), f.op("i32.lt_s", left, f.i32(height))));
          f.bump(y, 8 * finishBytes(to));
        }
        f.bump(half, 32);
      },
      f.op("i32.lt_u", half, width),
    );
    f.bump(firstW, f.op("i32.mul", field("units"), f.i32(4 * height)));
    f.bump(firstSums, ROW * height);
    f.bump(left, -height);
    if (!late) return;
    f.bump(firstY, f.op("i32.mul", yStep, f.i32(height)));
    for (const term of terms) f.bump(term, 4 * height);
  };
  f.doWhile(
    () => {
      if (most === 4) return tile(4);
      const isTwo = f.op("i32.eq", f.op("i32.shr_s", f.op("i32.add", left, f.i32(1)), f.i32(1)), f.i32(4));
      const isLow = f.op("i32.and", field("deep"), f.op("i32.or", f.op("i32.lt_s", left, f.i32(5)), isTwo));
      f.if(
        isLow,
        () => tile(4),
        () => tile(6),
      );
    },
    f.op("i32.gt_s", left, f.i32(0)),
  );
  drain();
}

/** Results of filters, eight outputs of each, one filter at a time: three registers are what products leave. */
function writeLate(f: FunctionBuilder, { to, bias }: IntegerConvSpec, [a, b, x]: readonly Local[], yStep: Local, args: Local) {
  const [sums, y, offsets, factors, biases, left] = f.locals("i32", 6);
  const both = (value: (v: Local) => Emit): void => [a, b].forEach((v) => f.set(v, value(v)));
  const word = (name: Field): void => f.set(x, f.load("v128.load32_splat", args, 4 * FIELDS.indexOf(name)));
  return {
    /** How many filters are left. */
    left,
    begin(...values: readonly Operand[]): void {
      [sums, y, offsets, factors, biases, left].forEach((local, i) => f.set(local, values[i]));
    },
    next(): void {
      f.set(a, f.load("v128.load", sums));
      f.set(b, f.load("v128.load", sums, 16));
      f.set(x, f.load("v128.load32_splat", offsets));
      both((v) => f.op("i32x4.add", v, x));
      if (to !== "int32") {
        f.set(x, f.load("v128.load32_splat", factors));
        both((v) => f.op("f32x4.mul", f.op("f32x4.convert_i32x4_s", v), x));
        if (bias) {
          f.set(x, f.load("v128.load32_splat", biases));
          both((v) => f.op("f32x4.add", v, x));
        }
        word("low");
        both((v) => f.op("f32x4.pmax", x, v));
        word("high");
        both((v) => f.op("f32x4.pmin", x, v));
      }
      if (to === "int8" || to === "uint8") {
        word("round");
        both((v) => f.op("f32x4.add", v, x));
        word("zeroTerm");
        both((v) => f.op("i32x4.add", v, x));
        f.run(f.loadLane("v128.store64_lane", y, 0, 0, narrowCodes(f, to, [a, b, a, b])));
      } else [a, b].forEach((v, j) => f.store("v128.store", y, 16 * j, v));
      f.bump(sums, ROW);
      f.bump(y, yStep);
      for (const term of [offsets, factors, biases]) f.bump(term, 4);
      f.bump(left, -1);
    },
  };
}

export const FINISH = ["sums", "filters", "columns", "y", "yStep", "offsets", "factors", "bias", "args", "spare"] as const;

/** finish(...): up to 16 results of each filter. */
export function writeFinish(f: FunctionBuilder, spec: IntegerConvSpec): void {
  const [sums, filters, columns, y, yStep, offsets, factors, biases, args, spare] = FINISH.map((_, i) => f.param(i));
  const { to } = spec;
  const size = finishBytes(to);
  const v = f.locals("v128", 4);
  const [offset, factor, bias, low, high, zero] = f.locals("v128", 6);
  const [target, from, bytes] = f.locals("i32", 3);
  const word = (name: Field): Emit => f.load("v128.load32_splat", args, 4 * FIELDS.indexOf(name));
  if (to !== "int32") {
    f.set(low, word("low"));
    f.set(high, word("high"));
    f.set(zero, word("zeroTerm"));
  }
  f.doWhile(() => {
    f.set(offset, f.load("v128.load32_splat", offsets));
    if (to !== "int32") f.set(factor, f.load("v128.load32_splat", factors));
    if (spec.bias) f.set(bias, f.load("v128.load32_splat", biases));
    f.set(target, f.op("select", y, spare, f.op("i32.eq", columns, f.i32(SPAN))));
    v.forEach((sum, i) => {
      f.set(sum, f.op("i32x4.add", f.load("v128.load", sums, 16 * i), offset));
      finishVector(f, to, sum, factor, spec.bias ? bias : null, { low, high, zero });
      if (size === 4) f.store("v128.store", target, 16 * i, sum);
    });
    if (to === "int8" || to === "uint8") f.store("v128.store", target, 0, narrowCodes(f, to, v));
    f.if(f.op("i32.ne", columns, f.i32(SPAN)), () => {
      f.set(from, spare);
      f.set(target, y);
      f.set(bytes, f.op("i32.mul", columns, f.i32(size)));
      moveSome(f, from, target, bytes);
    });
    f.bump(sums, ROW);
    f.bump(y, yStep);
    for (const term of [offsets, factors, biases]) f.bump(term, 4);
    f.bump(filters, -1);
  }, f.get(filters));
}

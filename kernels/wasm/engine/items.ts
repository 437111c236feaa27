// How the threads of a job share its items. Each has a range of its own, taken front to back, and helps the others when
// that is done: threads read and write far apart, and no word goes back and forth between cores at every item. (With
// one counter for all, neighbouring blocks ran at once: prefetched twice, results in one pair of cache lines. That cost
// 3 to 4 % of products on two threads.)
import type { Emit, FunctionBuilder, Local, ModuleBuilder, Operand } from "./asm.ts";

/**
 * Most words of a job's arguments. The ranges follow: for each thread its next item, the end of its range and the
 * number of threads.
 */
export const ARGUMENT_WORDS = 64;
/** Bytes from one range to the next: caches fetch lines of 64 bytes in pairs. */
const RANGE = 128;
const END = 4;
const THREADS = 8;

/** Bytes of an argument block with its ranges. */
export const jobBytes = (threads: number): number => 4 * ARGUMENT_WORDS + RANGE * threads;

/** Writes the argument block of a job. */
export function writeJob(words: Int32Array, args: Int32Array, items: number, threads: number): void {
  if (args.length > ARGUMENT_WORDS) throw new RangeError(`job: expected at most ${ARGUMENT_WORDS} arguments, got ${args.length}`);
  words.set(args);
  for (let t = 0; t < threads; t++) {
    const at = ARGUMENT_WORDS + (t * RANGE) / 4;
    words[at] = Math.floor((items * t) / threads);
    words[at + END / 4] = Math.floor((items * (t + 1)) / threads);
    words[at + THREADS / 4] = threads;
  }
}

/**
 * Defines `work(args, panel, thread)`, which runs items until none are left. `start` emits what precedes the first and
 * returns the writer of one.
 */
export function writeWork(m: ModuleBuilder, start: (f: FunctionBuilder, args: Local, panel: Local) => (item: Local) => void): void {
  m.func("work", ["i32", "i32", "i32"], [], (f) => {
    const [args, panel, thread] = [0, 1, 2].map((i) => f.param(i));
    const [item, range, left] = f.locals("i32", 3);
    const each = start(f, args, panel);
    const take = (): void => f.set(item, f.atomic("i32.atomic.rmw.add", range, 0, f.i32(1)));
    const place = (): void =>
      f.set(range, f.op("i32.add", f.op("i32.add", args, f.i32(4 * ARGUMENT_WORDS)), f.op("i32.mul", thread, f.i32(RANGE))));
    place();
    f.set(left, f.load("i32.load", range, THREADS));
    f.doWhile(() => {
      take();
      f.while(f.op("i32.lt_u", item, f.load("i32.load", range, END)), () => {
        each(item);
        take();
      });
      f.bump(thread, 1);
      f.set(thread, f.op("select", thread, f.i32(0), f.op("i32.lt_u", thread, f.load("i32.load", range, THREADS))));
      place();
      f.bump(left, -1);
    }, left);
  });
}

/**
 * Arguments of jobs that write activations as records, in the order of tiles and, within, of groups: `per` of `total`
 * records are an item. `width`: bytes of a staged group of a row; `bytes`: of a record; `factor` and `wide`: the
 * writer's own. No part of the code: weights with groups of any size share a module.
 */
export const RECORD_ARGUMENTS = ["x", "a", "groups", "total", "per", "width", "bytes", "factor", "wide"] as const;
export type RecordArgument = (typeof RECORD_ARGUMENTS)[number];

/**
 * A job for `tiles` of `mr` staged rows at `x`, groups of `group` elements; records of `bytes` go to `a`. `elements` of
 * an item: some 5 us of work.
 */
export function recordJob(job: {
  readonly x: number;
  readonly a: number;
  readonly tiles: number;
  readonly mr: number;
  readonly groups: number;
  readonly group: number;
  readonly bytes: number;
  readonly factor?: number;
  readonly wide?: number;
  readonly elements?: number;
}): { items: number; args: Int32Array } {
  const { x, a, groups, group, bytes, factor = 0, wide = 0, elements = 16384 } = job;
  const per = Math.max(1, Math.round(elements / (job.mr * group)));
  const total = job.tiles * groups;
  return { items: Math.ceil(total / per), args: Int32Array.of(x, a, groups, total, per, 4 * group, bytes, factor, wide) };
}

/**
 * Defines `work` of such a job: `each(f, x, a, count, stride, field, first)` writes `count` records of a tile at `a`,
 * from group `first` on, from the rows at `x`, `stride` bytes apart.
 */
export function writeRecords(
  m: ModuleBuilder,
  mr: number,
  each: (f: FunctionBuilder, x: Local, a: Local, count: Local, stride: Local, field: (name: RecordArgument) => Emit, first: Local) => void,
): void {
  writeWork(m, (f, args) => {
    const field = (name: RecordArgument): Emit => f.load("i32.load", args, 4 * RECORD_ARGUMENTS.indexOf(name));
    const [first, end, tile, inTile, count, x, a, stride] = f.locals("i32", 8);
    const least = (p: Operand, q: Operand): Emit => f.op("select", p, q, f.op("i32.lt_u", p, q));
    return (item) => {
      f.set(first, f.op("i32.mul", item, field("per")));
      f.set(end, f.op("i32.add", first, field("per")));
      f.set(end, least(end, field("total")));
      f.set(stride, f.op("i32.mul", field("groups"), field("width")));
      f.while(f.op("i32.lt_u", first, end), () => {
        f.set(tile, f.op("i32.div_u", first, field("groups")));
        f.set(inTile, f.op("i32.rem_u", first, field("groups")));
        f.set(count, f.op("i32.sub", field("groups"), inTile));
        f.set(a, f.op("i32.sub", end, first));
        f.set(count, least(count, a));
        f.set(x, f.op("i32.add", field("x"), f.op("i32.mul", tile, f.op("i32.mul", stride, f.i32(mr)))));
        f.set(x, f.op("i32.add", x, f.op("i32.mul", inTile, field("width"))));
        f.set(a, f.op("i32.add", field("a"), f.op("i32.mul", first, field("bytes"))));
        // before the writer moves its operands
        f.set(first, f.op("i32.add", first, count));
        each(f, x, a, count, stride, field, inTile);
      });
    };
  });
}

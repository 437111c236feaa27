// How many streams this machine reads from memory at their best: measured, for processors differ. Reading 100 MB, an
// AMD Zen 3 takes four at 20 GB/s and two at 16; a Zen 5 takes two at 40 and three or more at 12.
import { ModuleBuilder, type Emit } from "./asm.ts";
import { engine, type Space } from "./engine.ts";

/** Blocks of memory that a kernel reads side by side. */
export type Streams = 2 | 4;

/** Bytes of a turn: a stream reads so many, then the next one does. */
const TURN = 1024;
const WINDOW = 4 * 1024 * 1024;
const ROUNDS = 3;
const WARM = 2000;

/** A memory in use up to here is larger than the caches that two kinds of windows could stay in. */
const LEAST = 48 * 1024 * 1024;

/** read(from, streams, part): `streams` parts of `part` bytes each, one after the other in memory, in turns. */
function readerModule(shared: boolean): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared });
  m.func("read", ["i32", "i32", "i32"], ["i32"], (f) => {
    const [from, streams, part] = [0, 1, 2].map((i) => f.param(i));
    const [at, end, line, left, stop] = f.locals("i32", 5);
    const sums = f.locals("v128", 4);
    f.set(at, f.get(from));
    f.set(end, f.op("i32.add", from, part));
    f.doWhile(
      () => {
        f.set(line, f.get(at));
        f.set(left, f.get(streams));
        f.doWhile(() => {
          f.set(stop, f.op("i32.add", line, f.i32(TURN)));
          f.doWhile(
            () => {
              for (let i = 0; i < 16; i++) f.set(sums[i % 4], f.op("v128.or", sums[i % 4], f.load("v128.load", line, 16 * i)));
              f.bump(line, 256);
            },
            f.op("i32.lt_u", line, stop),
          );
          f.bump(line, f.op("i32.sub", part, f.i32(TURN)));
          f.bump(left, -1);
        }, left);
        f.bump(at, TURN);
      },
      f.op("i32.lt_u", at, end),
    );
    // a result, so that the reads count
    const all = sums.map((sum): Emit => f.get(sum)).reduce((a, b) => f.op("v128.or", a, b));
    f.run(f.lane("i32x4.extract_lane", 0, all));
  });
  return m.bytes();
}

/**
 * The faster of 2 and 4 streams, read from the first 24 MB of a memory, which have left the caches while the rest was
 * written: 3 ms. Four must gain a tenth. @returns null for a memory of which less is in use than caches may hold
 */
export function measureStreams(space: Space, shared: boolean, now: () => number = () => performance.now()): Streams | null {
  if (space.arena.mark < LEAST) return null;
  const { memory } = space.arena;
  const { read } = new engine.Instance(new engine.Module(readerModule(shared)), { m: { m: memory } }).exports;
  const best = [Infinity, Infinity];
  // V8 replaces its first code while it is called; a clock may stand still
  for (let begin = now(), calls = 0; now() - begin < 1 && calls < WARM; calls++) read(0, 2, 8192);
  for (let round = 0; round < ROUNDS; round++)
    ([2, 4] as const).forEach((streams, i) => {
      const begin = now();
      read((2 * round + i) * WINDOW, streams, WINDOW / streams);
      best[i] = Math.min(best[i], now() - begin);
    });
  return best[1] < 0.9 * best[0] ? 4 : 2;
}

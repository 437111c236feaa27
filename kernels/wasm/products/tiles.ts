// How rows of activations and of results are laid out for the tiles of all products.
import type { FunctionBuilder, Local, Operand } from "../engine/asm.ts";

/**
 * Values between rows of a result of `rows` x `n`: whole blocks, and no power of two, for rows that far apart would
 * share the few lines of one cache set.
 */
export function resultStride(n: number, rows: number): number {
  const stride = Math.ceil(n / 16) * 16;
  return rows > 1 && stride % 256 === 0 ? stride + 16 : stride;
}

/** Zeros the 64 bytes of a block in each of `rows` rows of a result at `c`, `ldc` bytes apart. */
export function zeroBlock(f: FunctionBuilder, c: Operand, ldc: Operand, rows: number): void {
  const row = f.local("i32");
  f.set(row, c);
  for (let r = 0; r < rows; r++) {
    if (r > 0) f.bump(row, ldc);
    for (let j = 0; j < 4; j++) f.store("v128.store", row, 16 * j, f.constant32(0));
  }
}

/**
 * Lines of the next chunk of weights that a tile reads before its own work, until that chunk is in the cache: the first
 * few start the processor's prefetching, and more at once would wait for memory. A model of 128 rows a product gains 3
 * % (int8) and 1 to 2 % (int4), products of 64 rows 3 to 7 % where chunks are decoded into a panel.
 */
const LOOK_AHEAD = 4;
const LOOK_AHEAD_BYTES = 64 * LOOK_AHEAD;

/**
 * Sets the range that is looked ahead at: from `from` on, `bytes` or to the end of the weights. Lengths are compared,
 * not addresses: these wrap where a memory ends, and before its first bytes.
 */
export function aimAhead(f: FunctionBuilder, ahead: Local, aheadEnd: Local, from: Operand, bytes: Operand, end: Local): void {
  f.set(ahead, from);
  f.set(aheadEnd, f.op("i32.sub", end, ahead));
  f.set(aheadEnd, f.op("select", bytes, aheadEnd, f.op("i32.lt_u", bytes, aheadEnd)));
  f.bump(aheadEnd, ahead);
}

/** Reads the next lines of the range, if as many are left. */
export function lookAhead(f: FunctionBuilder, ahead: Local, aheadEnd: Local): void {
  f.if(f.op("i32.ge_s", f.op("i32.sub", aheadEnd, ahead), f.i32(LOOK_AHEAD_BYTES)), () => {
    for (let line = 0; line < LOOK_AHEAD; line++) f.run(f.op("drop", f.load("i32.load", ahead, 64 * line)));
    f.bump(ahead, LOOK_AHEAD_BYTES);
  });
}

/** Rows of a tile for m rows of activations, at most `most`: the fewest tiles, evenly filled. */
export const tileRows = (m: number, most: number): number => Math.ceil(m / Math.ceil(m / most));

/**
 * mr rows of x (ldx bytes apart) to a as [units][mr], units of 4 bytes: four at a time, rows in pairs. `each` sees
 * every vector first: four units of row r, or, at the end of a row, one unit and zeros.
 */
export function writePackRows(
  f: FunctionBuilder,
  mr: number,
  x: Local,
  a: Local,
  units: Local,
  ldx: Local,
  each: (v: Local, r: number, count: 1 | 4) => void = () => {},
): void {
  const rows: Local[] = [x];
  for (let r = 1; r < mr; r++) {
    const row = f.local("i32");
    f.set(row, f.op("i32.add", rows[r - 1], ldx));
    rows.push(row);
  }
  const [first, second, zipped] = f.locals("v128", 3);
  const store = (name: string, offset: number, lane: number, v: Local): void => f.run(f.loadLane(name, a, offset, lane, v));
  const step = (count: 1 | 4): void => {
    for (const row of rows) f.bump(row, 4 * count);
    f.bump(a, 4 * count * mr);
    f.bump(units, -count);
  };
  f.while(f.op("i32.ge_s", units, f.i32(4)), () => {
    for (let r = 0; r < mr; r += 2) {
      f.set(first, f.load("v128.load", rows[r]));
      each(first, r, 4);
      if (r + 1 === mr) for (let i = 0; i < 4; i++) store("v128.store32_lane", 4 * (i * mr + r), i, first);
      else {
        f.set(second, f.load("v128.load", rows[r + 1]));
        each(second, r + 1, 4);
        for (const half of [0, 8]) {
          const bytes = [0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23].map((byte) => byte + half);
          f.set(zipped, f.shuffle(bytes, first, second));
          for (let i = 0; i < 2; i++) store("v128.store64_lane", 4 * ((half / 4 + i) * mr + r), i, zipped);
        }
      }
    }
    step(4);
  });
  f.while(f.op("i32.gt_s", units, f.i32(0)), () => {
    rows.forEach((row, r) => {
      f.set(first, f.load("v128.load32_zero", row));
      each(first, r, 1);
      store("v128.store32_lane", 4 * r, 0, first);
    });
    step(1);
  });
}

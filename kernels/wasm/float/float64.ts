// The float64 product of the quantizers' algebra in SIMD128: C += alpha A^T B in place, A [depth][lda], B [depth][ldb],
// C [m][ldc]. Each thread takes column tiles, packs B and then A into strips of four, [strip][depth][4], and computes
// tiles of four by four in eight accumulators: 16 multiply-adds per step on 2 vector and 4 splat loads. Every sum runs
// over the depth in order from 0 and is then added to C, so tiles and threads do not change a bit. Layout idea: Goto
// and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008.
import { family } from "../engine/family.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { writeWork } from "../engine/items.ts";

/**
 * Rows packed at once, and columns of a tile: with a depth of 128, A takes 128 KB and B 256 KB of the second-level
 * cache.
 */
const ROWS = 128;
export const TILE_COLUMNS = 256;
/** Longest depth of one call: the panels of a thread stay below 1 MB. */
export const MAX_DEPTH = 256;

/** 32-bit words of the argument block; `one` and `alpha` are doubles. */
const PRODUCT_WORDS = 16;
const ARGUMENTS = ["columns", "a", "lda", "b", "ldb", "c", "ldc", "m", "n", "depth", "lower", "items"] as const;
const ONE = 48;
const ALPHA = 56;

/** Where operands lie: byte addresses, and row lengths in doubles. */
export interface ProductPlace {
  readonly a: number;
  readonly lda: number;
  readonly b: number;
  readonly ldb: number;
  readonly c: number;
  readonly ldc: number;
  readonly m: number;
  readonly n: number;
  /** At most MAX_DEPTH. */
  readonly depth: number;
  readonly alpha: number;
  /** Only entries of C on and below the diagonal are needed; others of its column tiles are changed too. */
  readonly lower: boolean;
}

/** The job of a product for a number of threads: its items are tiles of columns. */
export function productJob(p: ProductPlace, threads: number): { readonly items: number; readonly args: Int32Array } {
  const words = new Int32Array(PRODUCT_WORDS);
  // Two tiles a thread at least; lower triangles have tiles of unequal work.
  const columns = Math.max(4, Math.min(TILE_COLUMNS, Math.ceil(p.n / ((p.lower ? 4 : 2) * threads) / 4) * 4));
  const items = Math.ceil(p.n / columns);
  const values = {
    ...p,
    columns,
    items,
    lda: 8 * p.lda,
    ldb: 8 * p.ldb,
    ldc: 8 * p.ldc,
    lower: p.lower ? 1 : 0,
  };
  ARGUMENTS.forEach((name, i) => (words[i] = values[name]));
  const doubles = new Float64Array(words.buffer);
  doubles[ONE / 8] = 1;
  doubles[ALPHA / 8] = p.alpha;
  return { items, args: words };
}

/** Scratch bytes of a thread. */
export const productPanelBytes = (depth: number): number => 8 * depth * (TILE_COLUMNS + ROWS) + 128;

/** Bytes that may be read, not used, after the last number of A and B. */
export const PRODUCT_SLACK = 32;

/** pack(to, from, ld, strips, depth, factor): four columns at a time, times the double at `factor`. */
function writePack(f: FunctionBuilder): void {
  const [to, from, ld, strips, depth, factor] = [0, 1, 2, 3, 4, 5].map((i) => f.param(i));
  const [at, end] = f.locals("i32", 2);
  const times = f.local("v128");
  f.set(times, f.load("v128.load64_splat", factor));
  f.while(f.op("i32.gt_s", strips, f.i32(0)), () => {
    f.set(at, from);
    f.set(end, f.op("i32.add", to, f.op("i32.shl", depth, f.i32(5))));
    f.doWhile(
      () => {
        for (const half of [0, 16]) f.store("v128.store", to, half, f.op("f64x2.mul", f.load("v128.load", at, half), times));
        f.bump(at, ld);
        f.bump(to, 32);
      },
      f.op("i32.lt_u", to, end),
    );
    f.bump(from, 32);
    f.bump(strips, -1);
  });
}

/** block(a, b, c, ldc, rows, columns, depth, spare): C += A^T B of packed strips; `spare` holds a tile at the edge. */
function writeBlock(f: FunctionBuilder): void {
  const [a, b, c, ldc, rows, columns, depth, spare] = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => f.param(i));
  const [pa, pb, end, to, row, left, stripBytes, i, j] = f.locals("i32", 9);
  const [b0, b1, splat] = f.locals("v128", 3);
  const acc = f.locals("v128", 8);
  f.set(stripBytes, f.op("i32.shl", depth, f.i32(5)));
  f.while(f.op("i32.gt_s", columns, f.i32(0)), () => {
    f.set(pa, a);
    f.set(row, c);
    f.set(left, rows);
    f.doWhile(
      () => {
        f.set(pb, b);
        f.set(end, f.op("i32.add", pa, stripBytes));
        for (const v of acc) f.set(v, f.v128f32(0));
        f.doWhile(
          () => {
            f.set(b0, f.load("v128.load", pb));
            f.set(b1, f.load("v128.load", pb, 16));
            for (let r = 0; r < 4; r++) {
              f.set(splat, f.load("v128.load64_splat", pa, 8 * r));
              f.set(acc[2 * r], f.op("f64x2.add", acc[2 * r], f.op("f64x2.mul", splat, b0)));
              f.set(acc[2 * r + 1], f.op("f64x2.add", acc[2 * r + 1], f.op("f64x2.mul", splat, b1)));
            }
            f.bump(pa, 32);
            f.bump(pb, 32);
          },
          f.op("i32.lt_u", pa, end),
        );
        f.set(to, row);
        f.if(
          f.op("i32.and", f.op("i32.ge_s", left, f.i32(4)), f.op("i32.ge_s", columns, f.i32(4))),
          () => {
            for (let r = 0; r < 4; r++) {
              for (let half = 0; half < 2; half++)
                f.store("v128.store", to, 16 * half, f.op("f64x2.add", f.load("v128.load", to, 16 * half), acc[2 * r + half]));
              f.bump(to, ldc);
            }
          },
          () => {
            acc.forEach((v, at) => f.store("v128.store", spare, 16 * at, v));
            f.set(i, f.i32(0));
            f.doWhile(
              () => {
                f.set(j, f.i32(0));
                f.doWhile(
                  () => {
                    const entry: Emit = f.op("i32.add", to, f.op("i32.shl", j, f.i32(3)));
                    const own = f.op("i32.add", spare, f.op("i32.add", f.op("i32.shl", i, f.i32(5)), f.op("i32.shl", j, f.i32(3))));
                    f.store("f64.store", entry, 0, f.op("f64.add", f.load("f64.load", entry), f.load("f64.load", own)));
                    f.bump(j, 1);
                  },
                  f.op("i32.and", f.op("i32.lt_s", j, f.i32(4)), f.op("i32.lt_s", j, columns)),
                );
                f.bump(to, ldc);
                f.bump(i, 1);
              },
              f.op("i32.and", f.op("i32.lt_s", i, f.i32(4)), f.op("i32.lt_s", i, left)),
            );
          },
        );
        f.bump(row, f.op("i32.shl", ldc, f.i32(2)));
        f.bump(left, -4);
      },
      f.op("i32.gt_s", left, f.i32(0)),
    );
    f.bump(b, stripBytes);
    f.bump(c, 32);
    f.bump(columns, -4);
  });
}

/** A module with `work`. */
export function float64Module(spec: { readonly shared: boolean }): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const pack = m.func(null, ["i32", "i32", "i32", "i32", "i32", "i32"], [], writePack);
  const block = m.func(null, ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], [], writeBlock);
  writeWork(m, (f, args, panel) => {
    const field = (name: (typeof ARGUMENTS)[number]): Emit => f.load("i32.load", args, 4 * ARGUMENTS.indexOf(name));
    const [j0, columns, i0, rows, packedA, spare] = f.locals("i32", 6);
    const strips = (count: Local): Emit => f.op("i32.shr_u", f.op("i32.add", count, f.i32(3)), f.i32(2));
    const least = (a: Emit, b: Emit): Emit => f.op("select", a, b, f.op("i32.lt_s", a, b));
    f.set(packedA, f.op("i32.add", panel, f.op("i32.mul", field("depth"), f.i32(8 * TILE_COLUMNS))));
    f.set(spare, f.op("i32.add", packedA, f.op("i32.mul", field("depth"), f.i32(8 * ROWS))));
    return (item) => {
      // tiles of a lower triangle shrink: taken from both ends in turn, so that the threads' ranges are worth the same
      const fromEnd = f.op("i32.sub", f.op("i32.sub", field("items"), f.i32(1)), f.op("i32.shr_u", item, f.i32(1)));
      f.set(j0, f.op("select", fromEnd, f.op("i32.shr_u", item, f.i32(1)), f.op("i32.and", item, f.i32(1))));
      f.set(j0, f.op("i32.mul", f.op("select", j0, item, field("lower")), field("columns")));
      f.set(columns, least(field("columns"), f.op("i32.sub", field("n"), j0)));
      const eight = (v: Local): Emit => f.op("i32.shl", v, f.i32(3));
      const one = f.op("i32.add", args, f.i32(ONE));
      const alpha = f.op("i32.add", args, f.i32(ALPHA));
      f.run(f.call(pack, panel, f.op("i32.add", field("b"), eight(j0)), field("ldb"), strips(columns), field("depth"), one));
      f.set(i0, f.op("select", j0, f.i32(0), field("lower")));
      f.while(f.op("i32.lt_s", i0, field("m")), () => {
        f.set(rows, least(f.i32(ROWS), f.op("i32.sub", field("m"), i0)));
        f.run(f.call(pack, packedA, f.op("i32.add", field("a"), eight(i0)), field("lda"), strips(rows), field("depth"), alpha));
        const to = f.op("i32.add", f.op("i32.add", field("c"), eight(j0)), f.op("i32.mul", i0, field("ldc")));
        f.run(f.call(block, packedA, panel, to, field("ldc"), rows, columns, field("depth"), spare));
        f.bump(i0, ROWS);
      });
    };
  });
  return m.bytes();
}

export const float64 = family("float64", float64Module);

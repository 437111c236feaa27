// Products with sparse weights: y[m][n] = sum over the columns that a row (or a block of four rows) of W keeps. Weights
// are a stream: for each step the places of its columns, then its weights; activations lie column by column in tiles of
// some rows, so that a step is contiguous loads, and zeros cost nothing. float32, or exact int8 in pairs of columns:
// any two, which are joined as they are loaded, or (1x4) neighbours, which lie joined in the tile.
// Sources: Fast Sparse ConvNets (arXiv 1911.09723), constant-block SpMM (4x1 blocks and their multiples).
import { family } from "../engine/family.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { writeWork } from "../engine/items.ts";

export type SparseBlock = "1x1" | "4x1" | "1x4";

export interface SparseSpec {
  readonly type: "float32" | "int8";
  /** Rows x columns of W that are kept together; 1x4, columns from a multiple of 4 on, only of int8. */
  readonly block: SparseBlock;
  readonly relaxed: boolean;
  readonly shared: boolean;
}

export const blockRows = (block: SparseBlock): 1 | 4 => (block === "4x1" ? 4 : 1);

/**
 * Rows of activations of a tile: 12 accumulators, or 8 for blocks of int8: pairs of columns take registers, and 128
 * rows are whole tiles.
 */
export const sparseTile = ({ type, block }: Pick<SparseSpec, "type" | "block">): number =>
  block === "1x4" ? 32 : block === "1x1" ? 48 : type === "int8" ? 8 : 12;
/** Bytes of an activation in a tile. */
export const sparseElement = (type: SparseSpec["type"]): number => (type === "int8" ? 2 : 4);
/** Bytes of a step: one column and its weights, or two columns and pairs of weights in 16 bits, or two such pairs. */
export const sparseStep = ({ type, block }: Pick<SparseSpec, "type" | "block">): number =>
  block === "1x4" ? 12 : (type === "int8" ? 8 : 4) + 4 * blockRows(block);

/**
 * Arguments of `work`. An item is a part of the groups (of `rows` rows of W) for one tile. `starts`: u32 by group and
 * one more, bytes into `stream`; `tileBytes`: of activations; `ldc`: bytes between rows of c.
 */
export const SPARSE_ARGUMENTS = ["stream", "starts", "a", "c", "ldc", "groups", "per", "parts", "tileBytes"] as const;

/** group(stream, end, a, c, ldc): a group of rows for a tile. */
function writeGroup(f: FunctionBuilder, spec: SparseSpec): void {
  const { type, block, relaxed } = spec;
  const rows = blockRows(block);
  const vectors = sparseTile(spec) / 4;
  const step = sparseStep(spec);
  const [at, end, a, c, ldc] = [0, 1, 2, 3, 4].map((i) => f.param(i));
  const acc = Array.from({ length: rows }, () => f.locals("v128", vectors));
  const x = f.locals("v128", rows === 1 && type === "int8" ? 2 : vectors);
  const w = f.local("v128");
  const [p, q] = f.locals("i32", 2);
  const [u, v] = f.locals("v128", 2);
  f.while(f.op("i32.lt_u", at, end), () => {
    f.set(p, f.op("i32.add", a, f.load("i32.load", at)));
    if (type === "float32") {
      if (rows > 1) x.forEach((own, i) => f.set(own, f.load("v128.load", p, 16 * i)));
      for (let r = 0; r < rows; r++) {
        f.set(w, f.load("v128.load32_splat", at, 4 + 4 * r));
        for (let i = 0; i < vectors; i++) {
          const value = rows > 1 ? x[i] : f.load("v128.load", p, 16 * i);
          f.set(
            acc[r][i],
            relaxed ? f.op("f32x4.relaxed_madd", w, value, acc[r][i]) : f.op("f32x4.add", acc[r][i], f.op("f32x4.mul", w, value)),
          );
        }
      }
    } else if (block === "1x4") {
      for (let pair = 0; pair < 2; pair++) {
        f.set(w, f.load("v128.load32_splat", at, 4 + 4 * pair));
        acc[0].forEach((sum, i) => {
          const value = f.load("v128.load", p, 16 * (pair * vectors + i));
          f.set(sum, f.op("i32x4.add", sum, f.op("i32x4.dot_i16x8_s", w, value)));
        });
      }
    } else {
      f.set(q, f.op("i32.add", a, f.load("i32.load", at, 4)));
      const multiply = (r: number, i: number, value: Local): void =>
        f.set(acc[r][i], f.op("i32x4.add", acc[r][i], f.op("i32x4.dot_i16x8_s", w, value)));
      const low = [0, 1, 2, 3].flatMap((i) => [2 * i, 2 * i + 1, 16 + 2 * i, 17 + 2 * i]);
      if (rows === 1) f.set(w, f.load("v128.load32_splat", at, 8));
      for (let i = 0; i < vectors; i += 2) {
        f.set(u, f.load("v128.load", p, 8 * i));
        f.set(v, f.load("v128.load", q, 8 * i));
        const [first, second] = rows === 1 ? x : [x[i], x[i + 1]];
        f.set(first, f.shuffle(low, u, v));
        f.set(second, f.shuffle(low.map((b) => b + 8), u, v)); // prettier-ignore
        if (rows === 1) [first, second].forEach((value, j) => multiply(0, i + j, value));
      }
      if (rows > 1)
        for (let r = 0; r < rows; r++) {
          f.set(w, f.load("v128.load32_splat", at, 8 + 4 * r));
          x.forEach((value, i) => multiply(r, i, value));
        }
    }
    f.bump(at, step);
  });
  for (let i = 0; i < vectors; i++) {
    if (rows === 1)
      for (let lane = 0; lane < 4; lane++) {
        f.run(f.loadLane("v128.store32_lane", c, 0, lane, acc[0][i]));
        f.bump(c, ldc);
      }
    else {
      // four rows of W x four of activations, turned
      const [even, odd] = [[0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23], [8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31]]; // prettier-ignore
      const halves = [0, 8].map((from) => [0, 16].flatMap((side) => Array.from({ length: 8 }, (_, b) => side + from + b)));
      for (const pick of [even, odd]) {
        f.set(u, f.shuffle(pick, acc[0][i], acc[1][i]));
        f.set(v, f.shuffle(pick, acc[2][i], acc[3][i]));
        for (const half of halves) {
          f.store("v128.store", c, 0, f.shuffle(half, u, v));
          f.bump(c, ldc);
        }
      }
    }
  }
}

export function sparseModule(spec: SparseSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const group = m.func("group", new Array<"i32">(5).fill("i32"), [], (f) => writeGroup(f, spec));
  writeWork(m, (f, args) => {
    const field = (name: (typeof SPARSE_ARGUMENTS)[number]): Emit => f.load("i32.load", args, 4 * SPARSE_ARGUMENTS.indexOf(name));
    const [tile, g, last, a, c, start] = f.locals("i32", 6);
    return (item) => {
      f.set(tile, f.op("i32.div_u", item, field("parts")));
      f.set(g, f.op("i32.mul", f.op("i32.rem_u", item, field("parts")), field("per")));
      f.set(last, f.op("i32.add", g, field("per")));
      f.set(last, f.op("select", last, field("groups"), f.op("i32.lt_u", last, field("groups"))));
      f.set(a, f.op("i32.add", field("a"), f.op("i32.mul", tile, field("tileBytes"))));
      f.set(c, f.op("i32.add", field("c"), f.op("i32.mul", f.op("i32.mul", tile, f.i32(sparseTile(spec))), field("ldc"))));
      f.bump(c, f.op("i32.mul", g, f.i32(4 * blockRows(spec.block))));
      f.while(f.op("i32.lt_u", g, last), () => {
        f.set(start, f.op("i32.add", field("starts"), f.op("i32.shl", g, f.i32(2))));
        const stream = (offset: number): Emit => f.op("i32.add", field("stream"), f.load("i32.load", start, offset));
        f.run(f.call(group, stream(0), stream(4), a, c, field("ldc")));
        f.bump(c, 4 * blockRows(spec.block));
        f.bump(g, 1);
      });
    };
  });
  return m.bytes();
}

/** Arguments of packing: `rows` rows of `k` activations at x into tiles at a. An item is a tile. */
export const SPARSE_PACK_ARGUMENTS = ["x", "a", "rows", "k", "tileBytes"] as const;

/**
 * A module whose `work` turns rows of activations (float32 or int8) into tiles; rows that are not there repeat the
 * last.
 */
export function sparsePackModule(spec: Omit<SparseSpec, "relaxed">): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const { type, block } = spec;
  const tile = sparseTile(spec);
  // of 1x4 two columns at a time, joined: the second of an odd last one is whatever follows, and multiplied by zero
  const joined = block === "1x4";
  const [from, to] = joined ? [2, 4] : type === "int8" ? [1, 2] : [4, 4];
  writeWork(m, (f, args) => {
    const field = (name: (typeof SPARSE_PACK_ARGUMENTS)[number]): Emit => f.load("i32.load", args, 4 * SPARSE_PACK_ARGUMENTS.indexOf(name));
    const [row, left, a, count, steps] = f.locals("i32", 5);
    const x = f.locals("i32", 4);
    const v = f.local("v128");
    return (item) => {
      f.set(steps, joined ? f.op("i32.shr_u", f.op("i32.add", field("k"), f.i32(1)), f.i32(1)) : field("k"));
      f.set(a, f.op("i32.add", field("a"), f.op("i32.mul", item, field("tileBytes"))));
      f.set(row, f.op("i32.mul", item, f.i32(tile)));
      f.set(count, f.i32(tile / 4));
      f.doWhile(() => {
        for (const own of x) {
          const last = f.op("i32.sub", field("rows"), f.i32(1));
          const index = f.op("select", row, last, f.op("i32.lt_u", row, last));
          f.set(own, f.op("i32.add", field("x"), f.op("i32.mul", index, f.op("i32.mul", field("k"), f.i32(type === "int8" ? 1 : 4)))));
          f.bump(row, 1);
        }
        f.set(left, f.get(steps));
        f.doWhile(() => {
          if (type === "int8")
            x.forEach((own, i) => {
              for (let c = 0; c < from; c++) f.store("i32.store16", a, to * i + 2 * c, f.load("i32.load8_s", own, c));
            });
          else {
            f.set(v, f.load("v128.load32_zero", x[0]));
            for (let i = 1; i < 4; i++) f.set(v, f.loadLane("v128.load32_lane", x[i], 0, i, v));
            f.store("v128.store", a, 0, v);
          }
          for (const own of x) f.bump(own, from);
          f.bump(a, tile * to);
          f.bump(left, -1);
        }, left);
        // the next four rows of the tile, from its first column
        f.bump(a, f.op("i32.sub", f.i32(4 * to), f.op("i32.mul", steps, f.i32(tile * to))));
        f.bump(count, -1);
      }, count);
    };
  });
  return m.bytes();
}

export const sparse = family("sparse", sparseModule);
export const sparsePack = family("sparse pack", sparsePackModule);

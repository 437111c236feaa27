// Products with sparse weights: y[m][n] = sum over the columns that a row (or a block of four rows) of W keeps. Weights
// are a stream: for each step the places of its columns, then its weights; activations lie column by column in tiles of
// some rows, so that a step is contiguous loads, and zeros cost nothing. float32, or exact int8: in four columns a step
// where the relaxed dot product is exact for whole bytes, else in pairs of i16. Columns are any, joined as they are
// loaded, or (1x4) neighbours, which lie joined in the tile.
// Sources: Fast Sparse ConvNets (arXiv 1911.09723), constant-block SpMM (4x1 blocks and their multiples).
import { family } from "../engine/family.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { writeWork } from "../engine/items.ts";

export type SparseBlock = "1x1" | "4x1" | "1x4";

export interface SparseSpec {
  /**
   * What is multiplied: float32, or int8 as pairs of i16 ("words"), or as four bytes at once where the relaxed dot
   * product is exact for unsigned or signed ones.
   */
  readonly type: "float32" | "words" | "bytes-u" | "bytes-s";
  /** Rows x columns of W that are kept together; 1x4, columns from a multiple of 4 on, only of int8. */
  readonly block: SparseBlock;
  readonly relaxed: boolean;
  readonly shared: boolean;
}

/** Are four bytes multiplied at once? */
export const isBytes = (type: SparseSpec["type"]): boolean => type === "bytes-u" || type === "bytes-s";

type Kind = Pick<SparseSpec, "type" | "block">;

export const blockRows = (block: SparseBlock): 1 | 4 => (block === "4x1" ? 4 : 1);

/**
 * Rows of activations of a tile: 12 accumulators, or 8 for blocks of int8: columns that are joined take registers, and
 * 128 rows are whole tiles.
 */
export const sparseTile = ({ type, block }: Kind): number =>
  block === "1x4" ? 32 : block === "1x1" ? (isBytes(type) ? 32 : 48) : type === "float32" ? 12 : 8;
/** Bytes of an activation in a tile. */
export const sparseElement = (type: SparseSpec["type"]): number => (type === "float32" ? 4 : isBytes(type) ? 1 : 2);
/** Columns that are packed at once: tiles have room for whole ones. */
export const sparsePadding = (type: SparseSpec["type"]): number => (isBytes(type) ? 16 : 4);
/** Blocks of a step: columns of the same rows that are multiplied at once. */
export const stepBlocks = ({ type, block }: Kind): number => (block === "1x4" ? 1 : 4 / sparseElement(type));
/** Bytes of a step: places of its blocks, then of each row a float32, two i16 or four bytes; of words and 1x4 twice. */
export const sparseStep = ({ type, block }: Kind): number =>
  4 * (stepBlocks({ type, block }) + blockRows(block) * (type === "words" && block === "1x4" ? 2 : 1));
/** Bytes before the steps of a group: int32 sums to begin with, of bytes. */
export const sparseHeader = ({ type, block }: Kind): number => (isBytes(type) ? 4 * blockRows(block) : 0);

/**
 * Arguments of `work`. An item is a part of the groups (of `rows` rows of W) for one tile. `starts`: u32 by group and
 * one more, bytes into `stream`; `tileBytes`: of activations; `ldc`: bytes between rows of c.
 */
export const SPARSE_ARGUMENTS = ["stream", "starts", "a", "c", "ldc", "groups", "per", "parts", "tileBytes"] as const;

const DOT = "i32x4.relaxed_dot_i8x16_i7x16_add_s";

/** Bytes of two vectors by turns, in units of `size`: the first (0) or second half of each. */
export const zip = (size: number, half: 0 | 1): number[] =>
  Array.from({ length: 16 }, (_, i) => {
    const unit = Math.floor(i / size);
    return (unit % 2) * 16 + half * 8 + Math.floor(unit / 2) * size + (i % size);
  });

interface BytesStep {
  readonly at: Local;
  readonly place: (i: number) => Emit;
  readonly acc: readonly (readonly Local[])[];
  readonly x: readonly Local[];
  readonly w: Local;
  readonly u: Local;
  readonly v: Local;
}

/** A step of bytes: activations of four columns are joined, four bytes a row of the tile. */
function writeBytes(f: FunctionBuilder, { block }: SparseSpec, { at, place, acc, x, w, u, v }: BytesStep): void {
  const multiply = (r: number, i: number, value: Local | Emit): void => f.set(acc[r][i], f.op(DOT, w, value, acc[r][i]));
  if (block === "1x4") {
    const p = f.local("i32");
    f.set(p, place(0));
    f.set(w, f.load("v128.load32_splat", at, 4));
    return acc[0].forEach((_, i) => multiply(0, i, f.load("v128.load", p, 16 * i)));
  }
  const places = f.locals("i32", 4);
  places.forEach((own, i) => f.set(own, place(i)));
  if (block === "4x1") {
    const [first, second] = [[0, 1], [2, 3]].map((pair) => pair.map((i) => f.load("v128.load64_zero", places[i]))); // prettier-ignore
    f.set(u, f.shuffle(zip(1, 0), first[0], first[1]));
    f.set(v, f.shuffle(zip(1, 0), second[0], second[1]));
    x.forEach((own, i) => f.set(own, f.shuffle(zip(2, i as 0 | 1), u, v)));
    return acc.forEach((row, r) => {
      f.set(w, f.load("v128.load32_splat", at, 16 + 4 * r));
      row.forEach((_, i) => multiply(r, i, x[i]));
    });
  }
  f.set(w, f.load("v128.load32_splat", at, 16));
  for (let i = 0; i < acc[0].length; i += 4) {
    x.forEach((own, j) => f.set(own, f.load("v128.load", places[j], 4 * i)));
    for (const half of [0, 1] as const) {
      f.set(u, f.shuffle(zip(1, half), x[0], x[1]));
      f.set(v, f.shuffle(zip(1, half), x[2], x[3]));
      for (const side of [0, 1] as const) multiply(0, i + 2 * half + side, f.shuffle(zip(2, side), u, v));
    }
  }
}

/** group(stream, end, a, c, ldc): a group of rows for a tile. */
function writeGroup(f: FunctionBuilder, spec: SparseSpec): void {
  const { type, block, relaxed } = spec;
  const rows = blockRows(block);
  const vectors = sparseTile(spec) / 4;
  const step = sparseStep(spec);
  const [at, end, a, c, ldc] = [0, 1, 2, 3, 4].map((i) => f.param(i));
  const acc = Array.from({ length: rows }, () => f.locals("v128", vectors));
  const x = f.locals("v128", rows > 1 ? vectors : type === "words" ? 2 : 4);
  const w = f.local("v128");
  const [p, q] = f.locals("i32", 2);
  const [u, v] = f.locals("v128", 2);
  if (isBytes(type)) {
    for (let r = 0; r < rows; r++) for (const sum of acc[r]) f.set(sum, f.load("v128.load32_splat", at, 4 * r));
    f.bump(at, sparseHeader(spec));
  }
  f.while(f.op("i32.lt_u", at, end), () => {
    const place = (i: number): Emit => f.op("i32.add", a, f.load("i32.load", at, 4 * i));
    if (isBytes(type)) {
      writeBytes(f, spec, { at, place, acc, x, w, u, v });
      return f.bump(at, step);
    }
    f.set(p, place(0));
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
      f.set(q, place(1));
      const multiply = (r: number, i: number, value: Local): void =>
        f.set(acc[r][i], f.op("i32x4.add", acc[r][i], f.op("i32x4.dot_i16x8_s", w, value)));
      if (rows === 1) f.set(w, f.load("v128.load32_splat", at, 8));
      for (let i = 0; i < vectors; i += 2) {
        f.set(u, f.load("v128.load", p, 8 * i));
        f.set(v, f.load("v128.load", q, 8 * i));
        const [first, second] = rows === 1 ? x : [x[i], x[i + 1]];
        f.set(first, f.shuffle(zip(2, 0), u, v));
        f.set(second, f.shuffle(zip(2, 1), u, v));
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
      for (const pick of [0, 1] as const) {
        f.set(u, f.shuffle(zip(4, pick), acc[0][i], acc[1][i]));
        f.set(v, f.shuffle(zip(4, pick), acc[2][i], acc[3][i]));
        for (const half of [0, 1] as const) {
          f.store("v128.store", c, 0, f.shuffle(zip(8, half), u, v));
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

export const sparse = family("sparse", sparseModule);

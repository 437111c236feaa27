// Rows of activations as tiles of sparse products (sparse.ts): column by column, of 1x4 in columns that lie joined.
import { family } from "../engine/family.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { writeWork } from "../engine/items.ts";
import { isBytes, sparseTile, zip, type SparseSpec } from "./sparse.ts";

/** Of bytes-u, bytes are offset by 128. */
export type SparsePackSpec = Pick<SparseSpec, "type" | "block" | "shared">;

/** Arguments of packing: `rows` rows of `k` activations at x into tiles at a. An item is a tile. */
export const SPARSE_PACK_ARGUMENTS = ["x", "a", "rows", "k", "tileBytes"] as const;

/** Rows that are packed at once: `x` are their addresses, `a` where their first column goes, `left` the columns. */
type Strip = (x: readonly Local[], a: Local, left: Local) => void;

/** How a tile is made of strips of `rows` rows, `rowBytes` of the tile apart. */
interface Strips {
  readonly rows: number;
  readonly bytes: number;
  readonly write: Strip;
}

/** float32 or words, one column at a time; words of 1x4 two at a time, joined. */
function stripOfValues(f: FunctionBuilder, { type, block }: SparsePackSpec, tile: number): Strips {
  // the second of an odd last pair is whatever follows, and multiplied by zero
  const joined = block === "1x4";
  const [from, to] = joined ? [2, 4] : type === "words" ? [1, 2] : [4, 4];
  const v = f.local("v128");
  return {
    rows: 4,
    bytes: 4 * to,
    write(x, a, left) {
      if (joined) f.set(left, f.op("i32.shr_u", f.op("i32.add", left, f.i32(1)), f.i32(1)));
      f.doWhile(() => {
        if (type === "words")
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
    },
  };
}

/** Bytes, 16 columns at a time: those beyond the last are whatever follows, and of no weight or of one of zero. */
function stripOfBytes(f: FunctionBuilder, { type, block }: SparsePackSpec, tile: number): Strips {
  const rows = block === "1x4" ? 4 : 8;
  const v = f.locals("v128", rows);
  const w = f.locals("v128", rows);
  /** Rows in pairs that lie half of them apart, in units of `size`: after log2(rows) times all lie turned. */
  const turn = (from: readonly Local[], into: readonly Local[], size: number): void =>
    into.forEach((own, i) => f.set(own, f.shuffle(zip(size, (i & 1) as 0 | 1), from[i >> 1], from[(i >> 1) + rows / 2])));
  return {
    rows,
    bytes: block === "1x4" ? 16 : 8,
    write(x, a, left) {
      f.doWhile(
        () => {
          v.forEach((own, i) => {
            f.set(own, f.load("v128.load", x[i]));
            if (type === "bytes-u") f.set(own, f.op("v128.xor", own, f.constant8(128)));
          });
          if (block === "1x4") {
            turn(v, w, 4);
            turn(w, v, 4);
            v.forEach((own, quad) => f.store("v128.store", a, 4 * tile * quad, own));
          } else {
            turn(v, w, 1);
            turn(w, v, 1);
            turn(v, w, 1);
            w.forEach((own, pair) => {
              if (tile === 8) f.store("v128.store", a, 16 * pair, own);
              else for (let i = 0; i < 2; i++) f.run(f.loadLane("v128.store64_lane", a, tile * (2 * pair + i), i, own));
            });
          }
          for (const own of x) f.bump(own, 16);
          f.bump(a, 16 * tile);
          f.bump(left, -16);
        },
        f.op("i32.gt_s", left, f.i32(0)),
      );
    },
  };
}

/**
 * A module whose `work` turns rows of activations (float32 or int8) into tiles; rows that are not there repeat the
 * last.
 */
export function sparsePackModule(spec: SparsePackSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const tile = sparseTile(spec);
  const size = spec.type === "float32" ? 4 : 1;
  writeWork(m, (f, args) => {
    const field = (name: (typeof SPARSE_PACK_ARGUMENTS)[number]): Emit => f.load("i32.load", args, 4 * SPARSE_PACK_ARGUMENTS.indexOf(name));
    const { rows, bytes, write } = (isBytes(spec.type) ? stripOfBytes : stripOfValues)(f, spec, tile);
    const [row, left, a, to, count] = f.locals("i32", 5);
    const x = f.locals("i32", rows);
    return (item) => {
      f.set(to, f.op("i32.add", field("a"), f.op("i32.mul", item, field("tileBytes"))));
      f.set(row, f.op("i32.mul", item, f.i32(tile)));
      f.set(count, f.i32(tile / rows));
      f.doWhile(() => {
        for (const own of x) {
          const last = f.op("i32.sub", field("rows"), f.i32(1));
          const index = f.op("select", row, last, f.op("i32.lt_u", row, last));
          f.set(own, f.op("i32.add", field("x"), f.op("i32.mul", index, f.op("i32.mul", field("k"), f.i32(size)))));
          f.bump(row, 1);
        }
        f.set(left, field("k"));
        f.set(a, to);
        write(x, a, left);
        f.bump(to, bytes);
        f.bump(count, -1);
      }, count);
    };
  });
  return m.bytes();
}

export const sparsePack = family("sparse pack", sparsePackModule);

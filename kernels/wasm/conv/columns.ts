// A matrix [k, n] of uint8 around 128, packed as the weights of integer products (../dot/int8.ts, style "simd"): blocks
// of 16 columns, 4 k of each column together, as signed bytes. For products of two computed matrices.
import { ModuleBuilder, type Emit } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";

const COLUMNS = ["x", "k", "n", "w"] as const;

export interface ColumnsJob {
  /** The matrix, one row after the other; 16 bytes behind it are read where n is no multiple of 16. */
  readonly x: number;
  readonly k: number;
  readonly n: number;
  /** Packed: `columnsBytes`. */
  readonly w: number;
}

export const columnsBytes = (k: number, n: number): number => 64 * Math.ceil(n / 16) * Math.ceil(k / 4);

/** Items (blocks of columns) and arguments. */
export function columnsJob(job: ColumnsJob): { readonly items: number; readonly args: Int32Array } {
  return { items: Math.ceil(job.n / 16), args: Int32Array.from(COLUMNS, (name) => job[name]) };
}

/** Bytes of two vectors by turns, in units of `size`: the first (0) or second half of each. */
const zip = (size: number, half: number): number[] =>
  Array.from({ length: 16 }, (_, i) => {
    const unit = Math.floor(i / size);
    return (unit % 2) * 16 + half * 8 + Math.floor(unit / 2) * size + (i % size);
  });

export function columnsModule({ shared }: { readonly shared: boolean }): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared });
  writeWork(m, (f, args) => {
    const field = (name: (typeof COLUMNS)[number]): Emit => f.load("i32.load", args, 4 * COLUMNS.indexOf(name));
    const [at, out, left] = f.locals("i32", 3);
    const rows = f.locals("v128", 4);
    const pairs = f.locals("v128", 4);
    return (block) => {
      f.set(at, f.op("i32.add", field("x"), f.op("i32.shl", block, f.i32(4))));
      f.set(left, field("k"));
      const quads = f.op("i32.shr_u", f.op("i32.add", left, f.i32(3)), f.i32(2));
      f.set(out, f.op("i32.add", field("w"), f.op("i32.mul", block, f.op("i32.shl", quads, f.i32(6)))));
      f.while(f.op("i32.gt_s", left, f.i32(0)), () => {
        rows.forEach((row, i) => {
          f.set(row, f.op("v128.xor", f.load("v128.load", at), f.constant8(128)));
          f.bump(left, -1);
          // rows beyond the last are that one again: what they are multiplied with is zero
          if (i < 3) f.bump(at, f.op("select", field("n"), f.i32(0), f.op("i32.gt_s", left, f.i32(0))));
          else f.bump(at, field("n"));
        });
        for (const half of [0, 1]) {
          f.set(pairs[half], f.shuffle(zip(1, half), rows[0], rows[1]));
          f.set(pairs[2 + half], f.shuffle(zip(1, half), rows[2], rows[3]));
        }
        for (let j = 0; j < 4; j++) f.store("v128.store", out, 16 * j, f.shuffle(zip(2, j & 1), pairs[j >> 1], pairs[2 + (j >> 1)]));
        f.bump(out, 64);
      });
    };
  });
  return m.bytes();
}

export const codeColumns = family("code columns", columnsModule);

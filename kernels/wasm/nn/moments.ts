// Sums and sums of squares of rows of int32, exact in 64 bits: what integer normalisations need of a row.
import { ModuleBuilder, type Emit } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";

/** Arguments of `work`, i32 each; its items are rows of `width` int32, a multiple of 4. */
const MOMENTS_ARGUMENTS = ["x", "y", "width"] as const;

/** Items and arguments: two int64 a row go to `y`, the sum and the sum of squares. */
export function momentsJob(job: { readonly rows: number; readonly width: number; readonly x: number; readonly y: number }): {
  readonly items: number;
  readonly args: Int32Array;
} {
  return { items: job.rows, args: Int32Array.from(MOMENTS_ARGUMENTS, (name) => job[name]) };
}

export function momentsModule({ shared }: { readonly shared: boolean }): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared });
  writeWork(m, (f, args) => {
    const field = (name: (typeof MOMENTS_ARGUMENTS)[number]): Emit => f.load("i32.load", args, 4 * MOMENTS_ARGUMENTS.indexOf(name));
    const [x, end, y, bytes] = f.locals("i32", 4);
    const [v, ones, sum, squares] = f.locals("v128", 4);
    return (row) => {
      f.set(bytes, f.op("i32.shl", field("width"), f.i32(2)));
      f.set(x, f.op("i32.add", field("x"), f.op("i32.mul", row, bytes)));
      f.set(end, f.op("i32.add", x, bytes));
      f.set(y, f.op("i32.add", field("y"), f.op("i32.shl", row, f.i32(4))));
      f.set(ones, f.v128i32(1));
      f.set(sum, f.v128i32(0));
      f.set(squares, f.v128i32(0));
      f.doWhile(
        () => {
          f.set(v, f.load("v128.load", x));
          for (const half of ["low", "high"] as const) {
            f.set(sum, f.op("i64x2.add", sum, f.op(`i64x2.extmul_${half}_i32x4_s`, v, ones)));
            f.set(squares, f.op("i64x2.add", squares, f.op(`i64x2.extmul_${half}_i32x4_s`, v, v)));
          }
          f.bump(x, 16);
        },
        f.op("i32.lt_u", x, end),
      );
      for (const [i, both] of [sum, squares].entries()) {
        f.set(both, f.op("i64x2.add", both, f.shuffle([8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7], both, both)));
        f.store("i64.store", y, 8 * i, f.lane("i64x2.extract_lane", 0, both));
      }
    };
  });
  return m.bytes();
}

export const moments = family("moments", momentsModule);

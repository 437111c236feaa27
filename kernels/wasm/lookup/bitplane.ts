// Bit-plane matrix product: U[M,N] = sum over k of uA * uW for unsigned words of p and q bits, by AND and popcount of
// single-bit planes, plane pair (i, j) with weight 2^(i+j). Signed, offset and bipolar words are affine in unsigned
// ones, so this one form serves all (`affineWords` in kernels/planes.ts); padding bits are zeros and add nothing. Fast
// where p * q is small; elsewhere the byte kernels of gemm.ts do more per instruction.
import { family } from "../engine/family.ts";
import { ModuleBuilder, type Emit } from "../engine/asm.ts";
import { writeWork } from "../engine/items.ts";

export interface BitplaneSpec {
  readonly activationBits: number;
  readonly weightBits: number;
  readonly shared: boolean;
}

/** Rows of W per tile. */
export const BITPLANE_ROWS = 2;

/**
 * Arguments of `work`, i32 each: `pairs` of W rows (its items), `rows` of A, `vectors` of 128 k. U is [rows][2 *
 * pairs].
 */
export const BITPLANE_ARGUMENTS = ["pairs", "a", "w", "c", "rows", "vectors"] as const;

/** A module with `work`. */
export function bitplaneModule(spec: BitplaneSpec): Uint8Array<ArrayBuffer> {
  const { activationBits: p, weightBits: q } = spec;
  const m = new ModuleBuilder({ shared: spec.shared });
  const orders = p + q - 1;
  // a byte gains at most 8 per plane pair of its order
  const most = Math.floor(255 / (8 * Math.min(p, q)));
  const tile = m.func("tile", ["i32", "i32", "i32", "i32"], [], (f) => {
    const [a, w, c, vectors] = [0, 1, 2, 3].map((i) => f.param(i));
    const second = f.local("i32");
    const n = f.local("i32");
    const counts = Array.from({ length: BITPLANE_ROWS }, () => f.locals("v128", orders));
    const totals = f.locals("v128", BITPLANE_ROWS);
    const planes = f.locals("v128", p);
    const weight = f.local("v128");
    f.set(second, f.op("i32.add", w, f.op("i32.mul", vectors, f.i32(16 * q))));
    f.while(f.op("i32.gt_s", vectors, f.i32(0)), () => {
      f.set(n, f.op("select", f.i32(most), vectors, f.op("i32.gt_s", vectors, f.i32(most))));
      f.set(vectors, f.op("i32.sub", vectors, n));
      for (const row of counts) for (const count of row) f.set(count, f.v128i32(0));
      f.doWhile(
        () => {
          for (let i = 0; i < p; i++) f.set(planes[i], f.load("v128.load", a, 16 * i));
          for (let row = 0; row < BITPLANE_ROWS; row++)
            for (let j = 0; j < q; j++) {
              f.set(weight, f.load("v128.load", row === 0 ? w : second, 16 * j));
              for (let i = 0; i < p; i++) {
                const count = counts[row][i + j];
                f.set(count, f.op("i8x16.add", count, f.op("i8x16.popcnt", f.op("v128.and", planes[i], weight))));
              }
            }
          f.bump(a, 16 * p);
          f.bump(w, 16 * q);
          f.bump(second, 16 * q);
          f.bump(n, -1);
        },
        f.op("i32.gt_s", n, f.i32(0)),
      );
      for (let row = 0; row < BITPLANE_ROWS; row++)
        for (let s = 0; s < orders; s++) {
          const wide = f.op("i32x4.extadd_pairwise_i16x8_u", f.op("i16x8.extadd_pairwise_i8x16_u", counts[row][s]));
          f.set(totals[row], f.op("i32x4.add", totals[row], s === 0 ? wide : f.op("i32x4.shl", wide, f.i32(s))));
        }
    });
    totals.forEach((total, row) => {
      const sum = [0, 1, 2, 3].map((i): Emit => f.lane("i32x4.extract_lane", i, total)).reduce((x, y) => f.op("i32.add", x, y));
      f.store("i32.store", c, 4 * row, sum);
    });
  });
  writeWork(m, (f, args) => {
    const field = (name: (typeof BITPLANE_ARGUMENTS)[number]): Emit => f.load("i32.load", args, 4 * BITPLANE_ARGUMENTS.indexOf(name));
    const [w, a, c, left] = f.locals("i32", 4);
    return (pair) => {
      f.set(w, f.op("i32.add", field("w"), f.op("i32.mul", pair, f.op("i32.mul", field("vectors"), f.i32(16 * q * BITPLANE_ROWS)))));
      f.set(c, f.op("i32.add", field("c"), f.op("i32.mul", pair, f.i32(4 * BITPLANE_ROWS))));
      f.set(a, field("a"));
      f.set(left, field("rows"));
      f.while(f.op("i32.gt_s", left, f.i32(0)), () => {
        f.run(f.call(tile, a, w, c, field("vectors")));
        f.bump(a, f.op("i32.mul", field("vectors"), f.i32(16 * p)));
        f.bump(c, f.op("i32.mul", field("pairs"), f.i32(4 * BITPLANE_ROWS)));
        f.bump(left, -1);
      });
    };
  });
  return m.bytes();
}

export const bitplane = family("bitplane", bitplaneModule);

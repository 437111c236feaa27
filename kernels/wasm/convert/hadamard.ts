// Fast Walsh-Hadamard transform of rows of n = 2^p float32 in place: y = scale * H x, H[i][j] = (-1)^popcount(i & j)
// (Sylvester order). The first pass does four levels on 16 elements in registers, later passes two levels at a time;
// additions only, then one multiplication.
import { family } from "../engine/family.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { writeWork } from "../engine/items.ts";

export interface HadamardSpec {
  /** A power of two from 4 on. */
  readonly n: number;
  readonly shared: boolean;
}

/** Two levels inside a vector: pairs, then pairs of pairs; sign flips are exact. */
function insideVector(f: FunctionBuilder, v: Local): void {
  // [a, b, c, d] -> [a + b, a - b, c + d, c - d]: [a, a, c, c] + [b, -b, d, -d]
  const odd = f.constant("sign 1", f.v128([0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0, 128]));
  const high = f.constant("sign 2", f.v128([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 128]));
  const pick = (lanes: readonly number[]) =>
    f.shuffle(
      lanes.flatMap((lane) => [4 * lane, 4 * lane + 1, 4 * lane + 2, 4 * lane + 3]),
      v,
      v,
    );
  f.set(v, f.op("f32x4.add", pick([0, 0, 2, 2]), f.op("v128.xor", pick([1, 1, 3, 3]), odd)));
  f.set(v, f.op("f32x4.add", pick([0, 1, 0, 1]), f.op("v128.xor", pick([2, 3, 2, 3]), high)));
}

/** Levels across the vectors of `v`: butterflies at distance 1, 2, ... vectors. */
function acrossVectors(f: FunctionBuilder, v: readonly Local[], t: Local): void {
  for (let distance = 1; distance < v.length; distance *= 2)
    for (let i = 0; i < v.length; i++) {
      if ((i & distance) !== 0) continue;
      const [a, b] = [v[i], v[i + distance]];
      f.set(t, f.op("f32x4.sub", a, b));
      f.set(a, f.op("f32x4.add", a, b));
      f.set(b, f.get(t));
    }
}

/** Arguments of `work`, i32 each but the last, a float32: `rows` of n floats at `x`, `per` to an item. */
export const HADAMARD_ARGUMENTS = ["x", "rows", "per", "scale"] as const;

/** A module whose `work` transforms rows. */
export function hadamardModule(spec: HadamardSpec): Uint8Array<ArrayBuffer> {
  const { n } = spec;
  const m = new ModuleBuilder({ shared: spec.shared });
  const width = Math.min(4, n / 4);
  const first = m.func(null, ["i32", "f32"], [], (f) => {
    const [x, scale] = [f.param(0), f.param(1)];
    const v = f.locals("v128", width);
    const [t, s] = f.locals("v128", 2);
    const end = f.local("i32");
    f.set(s, f.op("f32x4.splat", scale));
    f.set(end, f.op("i32.add", x, f.i32(4 * n)));
    f.doWhile(
      () => {
        v.forEach((local, i) => f.set(local, f.load("v128.load", x, 16 * i)));
        v.forEach((local) => insideVector(f, local));
        acrossVectors(f, v, t);
        v.forEach((local, i) => f.store("v128.store", x, 16 * i, f.op("f32x4.mul", local, s)));
        f.bump(x, 16 * width);
      },
      f.op("i32.lt_u", x, end),
    );
  });
  const passes: ReturnType<typeof m.func>[] = [];
  for (let h = 4 * width; h < n;) {
    const levels = h * 4 <= n ? 2 : 1;
    const distance = h;
    passes.push(
      m.func(null, ["i32"], [], (f) => {
        const x = f.param(0);
        const v = f.locals("v128", 2 ** levels);
        const t = f.local("v128");
        const [end, stop] = f.locals("i32", 2);
        f.set(end, f.op("i32.add", x, f.i32(4 * n)));
        f.doWhile(
          () => {
            f.set(stop, f.op("i32.add", x, f.i32(4 * distance)));
            f.doWhile(
              () => {
                v.forEach((local, i) => f.set(local, f.load("v128.load", x, 4 * distance * i)));
                acrossVectors(f, v, t);
                v.forEach((local, i) => f.store("v128.store", x, 4 * distance * i, local));
                f.bump(x, 16);
              },
              f.op("i32.lt_u", x, stop),
            );
            f.bump(x, 4 * distance * (2 ** levels - 1));
          },
          f.op("i32.lt_u", x, end),
        );
      }),
    );
    h *= 2 ** levels;
  }
  writeWork(m, (f, args) => {
    const field = (name: (typeof HADAMARD_ARGUMENTS)[number], type: "i32" | "f32" = "i32"): Emit =>
      f.load(`${type}.load`, args, 4 * HADAMARD_ARGUMENTS.indexOf(name));
    const [x, row, end] = f.locals("i32", 3);
    return (item) => {
      f.set(row, f.op("i32.mul", item, field("per")));
      f.set(x, f.op("i32.add", field("x"), f.op("i32.mul", row, f.i32(4 * n))));
      f.set(end, f.op("i32.add", row, field("per")));
      f.set(end, f.op("select", end, field("rows"), f.op("i32.lt_u", end, field("rows"))));
      f.while(f.op("i32.lt_u", row, end), () => {
        f.run(f.call(first, x, field("scale", "f32")));
        for (const pass of passes) f.run(f.call(pass, x));
        f.bump(x, 4 * n);
        f.bump(row, 1);
      });
    };
  });
  return m.bytes();
}

export const hadamard = family("hadamard", hadamardModule);

// Packs float32 rows onto integers of 8 or 4 bits with one float32 scale a row, or onto their signs, in place in an
// index: the codes, scales and rounding of `quantize` for the same format (scale amax / largest integer rounded to
// float32, quotients in binary64, halves to even; signs: zero is positive), which a test holds. What it cannot do bit
// for bit (values that are not finite, rows of very small ones) it counts, and the caller goes the general way.
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { foldLanes } from "../nn/rows.ts";

export interface PackSpec {
  readonly bits: 8 | 4 | 1;
  /** The largest integer: codes are -max..max in two's complement. */
  readonly max: number;
  /** Every byte of codes is stored with these bits turned over. */
  readonly flip: number;
  /** Signs of x - |x| centre, |x| the norm of a row. */
  readonly centred: boolean;
  readonly shared: boolean;
}

/**
 * Arguments of `work`, words. x: rows of `width` floats, a multiple of `packStep`, padded with zeros (signs: with -1,
 * but where they are centred; centre: `width` floats).
 * codes: rows of `stride` bytes. For each row: scales (f32), squares (i32: sum of the squares of its integers), sums
 * (i32: of the integers). refused: a counter.
 */
export const PACK_ARGUMENTS = [
  "x",
  "codes",
  "stride",
  "rows",
  "rowsPerItem",
  "width",
  "scales",
  "squares",
  "sums",
  "refused",
  "centre",
] as const;
type PackArgument = (typeof PACK_ARGUMENTS)[number];

/** What the length of a row of x is a multiple of. */
export const packStep = ({ bits }: Pick<PackSpec, "bits">): number => (bits === 8 ? 16 : 32);

/** Rows with a smaller extreme than this are refused: their scale may be subnormal. */
const LEAST = 1e-30;
/** Rows with a larger extreme are: their norm may be beyond what an index takes. */
const LARGEST = 1e14;
/** 1.5 * 2^52: adding it leaves a double's nearest integer in its low bits. */
const MAGIC = new Uint8Array(Float64Array.of(6755399441055744, 6755399441055744).buffer);

/** Four integers: x / scale, halves to even. */
function quotients(f: FunctionBuilder, x: Local, offset: number, scale: Local, pair: readonly Local[]): Emit {
  const magic = f.constant("magic", f.v128(MAGIC));
  const [low, high] = pair;
  const round = (values: Emit): Emit => f.op("f64x2.add", f.op("f64x2.div", f.op("f64x2.promote_low_f32x4", values), scale), magic);
  return () => {
    f.set(low, round(f.load("v128.load64_zero", x, offset)));
    f.set(high, round(f.load("v128.load64_zero", x, offset + 8)));
    f.run(f.shuffle([0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27], low, high));
  };
}

/** row(x, codes, width, scale at, square at, sum at) -> 1 where it is refused. */
function integerRow(f: FunctionBuilder, spec: PackSpec): void {
  const [x, to, width, scaleAt, squareAt, sumAt] = [0, 1, 2, 3, 4, 5].map((i) => f.param(i));
  const [most, scale, squares, sums, low, high, a, b] = f.locals("v128", 8);
  const pair = f.locals("v128", 2);
  const [at, end] = f.locals("i32", 2);
  f.set(at, x);
  f.set(end, f.op("i32.add", x, f.op("i32.shl", width, f.i32(2))));
  f.doWhile(
    () => {
      // max propagates NaN
      for (let i = 0; i < 4; i++) f.set(most, f.op("f32x4.max", most, f.op("f32x4.abs", f.load("v128.load", at, 16 * i))));
      f.bump(at, 64);
    },
    f.op("i32.lt_u", at, end),
  );
  foldLanes(f, "f32x4.max", most);
  const amax = f.lane("f32x4.extract_lane", 0, most);
  f.if(f.op("i32.eqz", f.op("f32.lt", amax, f.f32(LARGEST))), () => f.run(() => (f.run(f.i32(1)), f.run(f.op("return")))));
  f.if(f.op("i32.and", f.op("f32.lt", amax, f.f32(LEAST)), f.op("f32.gt", amax, f.f32(0))), () =>
    f.run(() => (f.run(f.i32(1)), f.run(f.op("return")))),
  );
  const quotient = f.op("f32.demote_f64", f.op("f64.div", f.op("f64.promote_f32", amax), f.op("f64.promote_f32", f.f32(spec.max))));
  f.store("f32.store", scaleAt, 0, f.op("select", quotient, f.f32(1), f.op("f32.gt", amax, f.f32(0))));
  f.set(scale, f.op("f64x2.splat", f.op("f64.promote_f32", f.load("f32.load", scaleAt))));
  f.set(at, x);
  f.doWhile(
    () => {
      const parts = spec.bits === 8 ? [low] : [low, high];
      for (const [part, target] of parts.entries()) {
        const four = (i: number): Emit => quotients(f, at, 64 * part + 16 * i, scale, pair);
        f.set(a, f.op("i16x8.narrow_i32x4_s", four(0), four(1)));
        f.set(b, f.op("i16x8.narrow_i32x4_s", four(2), four(3)));
        for (const v of [a, b]) {
          f.set(squares, f.op("i32x4.add", squares, f.op("i32x4.dot_i16x8_s", v, v)));
          f.set(sums, f.op("i32x4.add", sums, f.op("i32x4.dot_i16x8_s", v, f.constant16(1))));
        }
        f.set(target, f.op("i8x16.narrow_i16x8_s", a, b));
      }
      // pairs of bytes in a lane of 16 bits: the first code in the low nibble
      const nibbles = (v: Local): Emit =>
        f.op("v128.or", f.op("v128.and", v, f.constant16(0x0f)), f.op("v128.and", f.op("i16x8.shr_u", v, f.i32(4)), f.constant16(0xf0)));
      const codes = spec.bits === 8 ? f.get(low) : f.op("i8x16.narrow_i16x8_u", nibbles(low), nibbles(high));
      f.store("v128.store", to, 0, spec.flip === 0 ? codes : f.op("v128.xor", codes, f.constant8(spec.flip)));
      f.bump(to, 16);
      f.bump(at, 64 * parts.length);
    },
    f.op("i32.lt_u", at, end),
  );
  foldLanes(f, "i32x4.add", squares);
  foldLanes(f, "i32x4.add", sums);
  f.store("i32.store", squareAt, 0, f.lane("i32x4.extract_lane", 0, squares));
  f.store("i32.store", sumAt, 0, f.lane("i32x4.extract_lane", 0, sums));
  f.run(f.i32(0));
}

/** row(x, codes, width, centre, 0, 0): the same for signs: 32 values are 4 bytes. */
function signRow(f: FunctionBuilder, { flip, centred }: PackSpec): void {
  const [x, to, width, centre] = [0, 1, 2, 3].map((i) => f.param(i));
  const [v, most, norm] = f.locals("v128", 3);
  const [at, end, word] = f.locals("i32", 3);
  f.set(at, x);
  f.set(end, f.op("i32.add", x, f.op("i32.shl", width, f.i32(2))));
  if (centred) {
    f.doWhile(
      () => {
        f.set(v, f.load("v128.load", at));
        f.set(norm, f.op("f32x4.add", norm, f.op("f32x4.mul", v, v)));
        f.bump(at, 16);
      },
      f.op("i32.lt_u", at, end),
    );
    foldLanes(f, "f32x4.add", norm);
    f.set(norm, f.op("f32x4.sqrt", norm));
    f.set(at, x);
  }
  const zero = (i: number): Emit => (centred ? f.op("f32x4.mul", norm, f.load("v128.load", centre, 16 * i)) : f.get(f.constant32(0)));
  f.doWhile(
    () => {
      f.set(word, f.i32(0));
      for (let i = 0; i < 8; i++) {
        f.set(v, f.load("v128.load", at, 16 * i));
        f.set(most, f.op("f32x4.max", most, f.op("f32x4.abs", v)));
        const bits = f.op("i32x4.bitmask", f.op("f32x4.ge", v, zero(i)));
        f.set(word, f.op("i32.or", word, f.op("i32.shl", bits, f.i32(4 * i))));
      }
      f.store("i32.store", to, 0, f.op("i32.xor", word, f.i32(Math.imul(flip, 0x01010101))));
      f.bump(to, 4);
      f.bump(at, 128);
      if (centred) f.bump(centre, 128);
    },
    f.op("i32.lt_u", at, end),
  );
  // NaN is not below
  f.run(f.op("i32.ne", f.op("i32x4.bitmask", f.op("f32x4.lt", most, f.constantF32(LARGEST))), f.i32(15)));
}

/** A module whose `work` packs rows. */
export function packModule(spec: PackSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const row: FunctionRef = m.func(null, ["i32", "i32", "i32", "i32", "i32", "i32"], ["i32"], (f) =>
    spec.bits === 1 ? signRow(f, spec) : integerRow(f, spec),
  );
  writeWork(m, (f, args) => {
    const field = (name: PackArgument): Emit => f.load("i32.load", args, 4 * PACK_ARGUMENTS.indexOf(name));
    const [r, end, refused] = f.locals("i32", 3);
    const word = (name: PackArgument): Emit => f.op("i32.add", field(name), f.op("i32.shl", r, f.i32(2)));
    return (item) => {
      f.set(r, f.op("i32.mul", item, field("rowsPerItem")));
      f.set(end, f.op("i32.add", r, field("rowsPerItem")));
      f.set(end, f.op("select", end, field("rows"), f.op("i32.lt_u", end, field("rows"))));
      f.while(f.op("i32.lt_u", r, end), () => {
        const x = f.op("i32.add", field("x"), f.op("i32.mul", r, f.op("i32.shl", field("width"), f.i32(2))));
        const to = f.op("i32.add", field("codes"), f.op("i32.mul", r, field("stride")));
        f.set(
          refused,
          spec.bits === 1
            ? f.call(row, x, to, field("width"), field("centre"), f.i32(0), f.i32(0))
            : f.call(row, x, to, field("width"), word("scales"), word("squares"), word("sums")),
        );
        f.if(refused, () => f.run(f.op("drop", f.atomic("i32.atomic.rmw.add", field("refused"), 0, f.i32(1)))));
        f.bump(r, 1);
      });
    };
  });
  return m.bytes();
}

export const pack = family("search-pack", packModule);

// Bulk work on blocks of float32, whatever the format: largest magnitude, least and largest value, and the arithmetic
// between values and scales. Every function walks `blocks` blocks of `length` values (any length from 1 on) that follow
// each other. Bit-identical to the loops of src/tensor/quantize/index.ts and formats/core/packed.ts, whose arithmetic
// is binary64: products of float32 numbers are exact there, so that one float32 operation rounds the same; quotients
// are computed in binary64 and rounded to float32 "to odd", which keeps their side of every boundary whose last bit is
// zero.
import { family } from "../engine/family.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local, type Operand } from "../engine/asm.ts";

export interface BlocksSpec {
  readonly shared: boolean;
}

/** Values that fill or lead beyond a block are read up to here past its end. */
export const BLOCKS_SLACK = 16;

/**
 * do { } over 16, 4 and 1 values: `body(width, offset)` emits code for the vector (4 values) or the single value at x +
 * offset.
 */
function overBlock(f: FunctionBuilder, x: Local, length: Local, body: (single: boolean, offset: number) => void): void {
  const left = f.local("i32");
  f.set(left, length);
  f.while(f.op("i32.ge_s", left, f.i32(16)), () => {
    for (let i = 0; i < 4; i++) body(false, 16 * i);
    f.bump(x, 64);
    f.bump(left, -16);
  });
  f.while(f.op("i32.ge_s", left, f.i32(4)), () => {
    body(false, 0);
    f.bump(x, 16);
    f.bump(left, -4);
  });
  f.while(left, () => {
    body(true, 0);
    f.bump(x, 4);
    f.bump(left, -1);
  });
}

/** The value of the four lanes that `name` (i32x4.max_s and its kin) leaves. */
function across(f: FunctionBuilder, v: Local, name: string): Emit {
  f.set(v, f.op(name, v, f.shuffle([8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7], v, v)));
  f.set(v, f.op(name, v, f.shuffle([4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11], v, v)));
  return f.lane("i32x4.extract_lane", 0, v);
}

/**
 * absmax(x, out, blocks, length): the largest |x| of each block, NaN where there is one. Magnitudes compare as
 * integers, NaN above all.
 */
function absmax(m: ModuleBuilder): void {
  m.func("absmax", ["i32", "i32", "i32", "i32"], [], (f) => {
    const [x, out, blocks, length] = [0, 1, 2, 3].map((i) => f.param(i));
    const acc = f.locals("v128", 4);
    const zero = f.constant32(0);
    const mask = f.constant32(0x7fffffff);
    f.while(blocks, () => {
      for (const a of acc) f.set(a, zero);
      overBlock(f, x, length, (single, offset) => {
        const a = acc[(offset / 16) % 4];
        f.set(a, f.op("i32x4.max_s", a, f.op("v128.and", f.load(single ? "v128.load32_splat" : "v128.load", x, offset), mask)));
      });
      f.set(acc[0], f.op("i32x4.max_s", f.op("i32x4.max_s", acc[0], acc[1]), f.op("i32x4.max_s", acc[2], acc[3])));
      f.store("i32.store", out, 0, across(f, acc[0], "i32x4.max_s"));
      f.bump(out, 4);
      f.bump(blocks, -1);
    });
  });
}

/**
 * range(x, least, largest, blocks, length): both NaN where a block holds one; -0 is below +0. Float bits order as
 * signed integers once the magnitude of negative ones is inverted.
 */
function range(m: ModuleBuilder): void {
  m.func("range", ["i32", "i32", "i32", "i32", "i32"], [], (f) => {
    const [x, least, largest, blocks, length] = [0, 1, 2, 3, 4].map((i) => f.param(i));
    const [lo, hi] = f.locals("i32", 2);
    const low = f.locals("v128", 2);
    const high = f.locals("v128", 2);
    const key = f.local("v128");
    const top = f.constant32(0x7fffffff);
    const bottom = f.constant32(-0x80000000);
    const bits = (v: Operand): Emit => f.op("i32.xor", v, f.op("i32.and", f.op("i32.shr_s", v, f.i32(31)), f.i32(0x7fffffff)));
    f.while(blocks, () => {
      for (let i = 0; i < 2; i++) {
        f.set(low[i], top);
        f.set(high[i], bottom);
      }
      overBlock(f, x, length, (single, offset) => {
        const i = (offset / 16) % 2;
        f.set(key, f.load(single ? "v128.load32_splat" : "v128.load", x, offset));
        f.set(key, f.op("v128.xor", key, f.op("i32x4.shr_u", f.op("i32x4.shr_s", key, f.i32(31)), f.i32(1))));
        f.set(low[i], f.op("i32x4.min_s", low[i], key));
        f.set(high[i], f.op("i32x4.max_s", high[i], key));
      });
      f.set(low[0], f.op("i32x4.min_s", low[0], low[1]));
      f.set(high[0], f.op("i32x4.max_s", high[0], high[1]));
      f.set(lo, across(f, low[0], "i32x4.min_s"));
      f.set(hi, across(f, high[0], "i32x4.max_s"));
      // beyond the keys of the infinities lie NaN
      f.if(f.op("i32.or", f.op("i32.gt_s", hi, f.i32(0x7f800000)), f.op("i32.lt_s", lo, f.i32(0x807fffff | 0))), () => {
        f.set(lo, f.i32(0x7fc00000));
        f.set(hi, f.i32(0x7fc00000));
      });
      f.store("i32.store", least, 0, bits(lo));
      f.store("i32.store", largest, 0, bits(hi));
      f.bump(least, 4);
      f.bump(largest, 4);
      f.bump(blocks, -1);
    });
  });
}

/** name(x, p, q, blocks, length): x = step(x) in place, for each block with p[block] (and q[block]) in every lane. */
function inPlace(
  m: ModuleBuilder,
  name: string,
  loads: readonly ("v128.load32_splat" | "v128.load64_splat")[],
  step: (f: FunctionBuilder, v: Local, params: readonly Local[], temporaries: readonly Local[]) => Emit,
): void {
  m.func(name, ["i32", ...loads.map(() => "i32" as const), "i32", "i32"], [], (f) => {
    const x = f.param(0);
    const [blocks, length] = [f.param(loads.length + 1), f.param(loads.length + 2)];
    const params = f.locals("v128", loads.length);
    const v = f.local("v128");
    const temporaries = f.locals("v128", 6);
    f.while(blocks, () => {
      loads.forEach((load, i) => f.set(params[i], f.load(load, f.param(1 + i))));
      overBlock(f, x, length, (single, offset) => {
        f.set(v, f.load(single ? "v128.load32_zero" : "v128.load", x, offset));
        if (single) {
          const result = f.local("v128");
          f.set(result, step(f, v, params, temporaries));
          f.run(f.loadLane("v128.store32_lane", x, offset, 0, result));
        } else f.store("v128.store", x, offset, step(f, v, params, temporaries));
      });
      loads.forEach((load, i) => f.bump(f.param(1 + i), load === "v128.load64_splat" ? 8 : 4));
      f.bump(blocks, -1);
    });
  });
}

const upper = (f: FunctionBuilder, v: Local): Emit => f.shuffle([8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15], v, v);
/** The low words of the lanes of two i64x2. */
const lowWords = (f: FunctionBuilder, a: Operand, b: Operand): Emit =>
  f.shuffle([0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27], a, b);
const joinHalves = (f: FunctionBuilder, a: Operand, b: Operand): Emit =>
  f.shuffle([0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23], a, b);

/**
 * x / s in binary64, to odd in float32: the nearest float32, and where that is even but not the quotient, the odd one
 * on the other side of it.
 */
function oddQuotient(f: FunctionBuilder, v: Local, s: Local, t: readonly Local[]): Emit {
  const [low, high, near, back, grows, differs] = t;
  f.set(low, f.op("f64x2.div", f.op("f64x2.promote_low_f32x4", v), s));
  f.set(high, f.op("f64x2.div", f.op("f64x2.promote_low_f32x4", upper(f, v)), s));
  f.set(near, joinHalves(f, f.op("f32x4.demote_f64x2_zero", low), f.op("f32x4.demote_f64x2_zero", high)));
  f.set(back, f.op("f64x2.promote_low_f32x4", near));
  f.set(differs, f.op("f64x2.ne", low, back));
  f.set(grows, f.op("f64x2.gt", f.op("f64x2.abs", low), f.op("f64x2.abs", back)));
  f.set(back, f.op("f64x2.promote_low_f32x4", upper(f, near)));
  f.set(differs, lowWords(f, differs, f.op("f64x2.ne", high, back)));
  f.set(grows, lowWords(f, grows, f.op("f64x2.gt", f.op("f64x2.abs", high), f.op("f64x2.abs", back))));
  const one = f.constant32(1);
  // an even float32 that is not the quotient: one step up or down
  f.set(differs, f.op("v128.and", differs, f.op("i32x4.sub", f.op("v128.and", near, one), one)));
  return f.op("i32x4.add", near, f.op("v128.and", differs, f.op("v128.or", f.op("v128.not", grows), one)));
}

/** x * s + o in binary64, rounded to float32. */
function affine(f: FunctionBuilder, v: Local, s: Local, o: Local): Emit {
  const half = (x: Operand): Emit =>
    f.op("f32x4.demote_f64x2_zero", f.op("f64x2.add", f.op("f64x2.mul", f.op("f64x2.promote_low_f32x4", x), s), o));
  return joinHalves(f, half(v), half(upper(f, v)));
}

/**
 * Module with absmax, range and, in place on x [blocks][length]: multiply(x, s32), quotient(x, s32) rounded to float32,
 * odd(x, s64), positive(x): -0 becomes +0, shifted(x, z32, s32) = (x - z) * s, affine(x, s64, o64) = x * s + o,
 * whole(x, lo32, hi32, z32) = nearest integer of x between lo and hi, halves to even, plus z. words8 / words16(x, out,
 * count, mask): integers in float32 to codes of 8 or 16 bits, 16 at a time.
 */
export function blocksModule({ shared }: BlocksSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared });
  absmax(m);
  range(m);
  const [single, double] = ["v128.load32_splat", "v128.load64_splat"] as const;
  inPlace(m, "multiply", [single], (f, v, [s]) => f.op("f32x4.mul", v, s));
  inPlace(m, "quotient", [single], (f, v, [s]) => f.op("f32x4.div", v, s));
  inPlace(m, "shifted", [single, single], (f, v, [z, s]) => f.op("f32x4.mul", f.op("f32x4.sub", v, z), s));
  inPlace(m, "positive", [], (f, v) => f.op("f32x4.add", v, f.constant32(0)));
  inPlace(m, "odd", [double], (f, v, [s], t) => oddQuotient(f, v, s, t));
  inPlace(m, "affine", [double, double], (f, v, [s, o]) => affine(f, v, s, o));
  inPlace(m, "whole", [single, single, single], (f, v, [lo, hi, z]) =>
    f.op("f32x4.add", f.op("f32x4.nearest", f.op("f32x4.pmin", f.op("f32x4.pmax", v, lo), hi)), z),
  );
  for (const bits of [8, 16] as const)
    m.func(`words${bits}`, ["i32", "i32", "i32", "i32"], [], (f) => {
      const [x, out, count, mask] = [0, 1, 2, 3].map((i) => f.param(i));
      const all = f.local("v128");
      f.set(all, f.op("i32x4.splat", mask));
      const quad = (i: number): Emit => f.op("v128.and", f.op("i32x4.trunc_sat_f32x4_s", f.load("v128.load", x, 16 * i)), all);
      const octet = (i: number): Emit => f.op("i16x8.narrow_i32x4_u", quad(2 * i), quad(2 * i + 1));
      f.while(f.op("i32.gt_s", count, f.i32(0)), () => {
        if (bits === 8) f.store("v128.store", out, 0, f.op("i8x16.narrow_i16x8_u", octet(0), octet(1)));
        else for (let i = 0; i < 2; i++) f.store("v128.store", out, 16 * i, octet(i));
        f.bump(x, 64);
        f.bump(out, 2 * bits);
        f.bump(count, -16);
      });
    });
  return m.bytes();
}

export const blocks = family("blocks", blocksModule);

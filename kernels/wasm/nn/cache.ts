// Keys and values in fewer bits: what a cache of attention holds, and the kernel that writes rows of float32 into it. A
// row is one head of one token.
//   float16  IEEE half, half to even; beyond 65504 infinity
//   int8     code = round(x / scale), scale = max |x| / 127
//   int4     code = round(x / scale) + zero, 0..15, scale = (max - min) / 15 with 0 between min and max;
//            of 16 values, byte i holds value i low and value i + 8 high
// int8 and int4 keep a word beside each row, in a plane [head][token]: the scale; with int4 its last four bits are the
// zero point and count as 0 in the scale. Rounding is half to even.
// A row with an infinity or a NaN gets a scale that is none, and attends as NaN.
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local, type Operand } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { eachRow, eachVector, foldLanes, placeWords, ROW_WORDS, rowAddress, rowJob, type Rows } from "./rows.ts";
import { i32s } from "./tiles.ts";

export type CacheKind = "float32" | "float16" | "int8" | "int4";

/** Bytes of a row of `head` values. */
export const cacheRowBytes = (kind: CacheKind, head: number): number => ({ float32: 4, float16: 2, int8: 1, int4: 0.5 })[kind] * head;

/** Does it keep a word beside each row? */
export const hasScales = (kind: CacheKind): boolean => kind === "int8" || kind === "int4";

/** A head's length must be a multiple of this. */
export const headUnit = (kind: CacheKind): number => (hasScales(kind) ? 16 : 4);

/** Four halves, in the low lanes of 32 bits, as float32. Leaves one vector. */
export function halves(f: FunctionBuilder, words: Operand): Emit {
  const [h, magnitude] = f.locals("v128", 2);
  return () => {
    f.set(h, words);
    f.set(magnitude, f.op("i32x4.shl", f.op("v128.and", h, f.constant32(0x7fff)), f.i32(13)));
    const infinite = f.op("v128.and", f.op("i32x4.gt_s", magnitude, f.constant32(0x0f7fffff)), f.constant32(0x7f800000));
    const sign = f.op("i32x4.shl", f.op("v128.and", h, f.constant32(0x8000)), f.i32(16));
    f.run(f.op("v128.or", f.op("v128.or", f.op("f32x4.mul", magnitude, f.constantF32(2 ** 112)), infinite), sign));
  };
}

/** Four float32 as halves in the low lanes of 32 bits. Leaves one vector. */
function toHalves(f: FunctionBuilder, x: Local): Emit {
  const [magnitude, normal, small] = f.locals("v128", 3);
  return () => {
    f.set(magnitude, f.op("v128.and", x, f.constant32(0x7fffffff)));
    // rounds to nearest even and moves the exponent; what lies below 2^-14 is rounded by an addition instead
    const odd = f.op("v128.and", f.op("i32x4.shr_u", magnitude, f.i32(13)), f.constant32(1));
    f.set(normal, f.op("i32x4.add", f.op("i32x4.add", magnitude, f.constant32(0xfff)), odd));
    f.set(normal, f.op("i32x4.sub", f.op("i32x4.shr_u", normal, f.i32(13)), f.constant32(112 << 10)));
    f.set(normal, f.op("i32x4.min_s", normal, f.constant32(0x7c00)));
    f.set(small, f.op("i32x4.sub", f.op("f32x4.add", magnitude, f.constantF32(0.5)), f.constantF32(0.5)));
    f.set(normal, f.op("v128.bitselect", small, normal, f.op("i32x4.lt_s", magnitude, f.constant32(0x38800000))));
    f.set(normal, f.op("v128.bitselect", f.constant32(0x7e00), normal, f.op("i32x4.gt_s", magnitude, f.constant32(0x7f800000))));
    f.run(f.op("v128.or", normal, f.op("v128.and", f.op("i32x4.shr_u", x, f.i32(16)), f.constant32(0x8000))));
  };
}

export interface AppendSpec {
  readonly kind: Exclude<CacheKind, "float32">;
  readonly shared: boolean;
}

export interface AppendJob {
  readonly tokens: number;
  readonly heads: number;
  /** Values of a head. */
  readonly width: number;
  /** A run of rows is one token. */
  readonly x: Rows;
  /** Codes: outer from token to token, inner from head to head, of the first token that is written. */
  readonly y: Rows;
  /** Words, likewise: outer is 4. */
  readonly scales?: Rows;
}

/** Items and arguments. @throws RangeError for heads that a kind does not hold */
export function appendJob(job: AppendJob, { kind }: AppendSpec): { readonly items: number; readonly args: Int32Array } {
  const { tokens, heads, width } = job;
  if (width % headUnit(kind) !== 0)
    throw new RangeError(`cache ${kind}: expected heads of a multiple of ${headUnit(kind)} values, got ${width}.`);
  const { items, words } = rowJob(tokens * heads, width, heads);
  return { items, args: Int32Array.of(...words, ...placeWords([job.x, job.y, job.scales ?? { address: 0, outer: 0, inner: 0 }])) };
}

/** row(x, y, scale, width). */
function writeRow(f: FunctionBuilder, { kind }: AppendSpec): void {
  const [x, y, scaleAt, width] = [0, 1, 2, 3].map((i) => f.param(i));
  const [v, least, most, scale, zero] = f.locals("v128", 5);
  const four = f.locals("v128", 4);
  const place = f.local("i32");
  const load = (i: number): Emit => f.load("v128.load", f.op("i32.add", x, place), 16 * i);
  if (kind === "float16") {
    const half = toHalves(f, v);
    eachVector(f, width, place, 1, () => {
      f.set(v, load(0));
      f.set(v, half);
      f.set(v, f.op("i16x8.narrow_i32x4_u", v, v));
      f.store("i64.store", f.op("i32.add", y, f.op("i32.shr_u", place, f.i32(1))), 0, f.lane("i64x2.extract_lane", 0, v));
    });
    return;
  }
  f.set(least, f.constant32(0));
  f.set(most, f.constant32(0));
  eachVector(f, width, place, 4, (i) => {
    f.set(v, load(i));
    if (kind === "int8") f.set(most, f.op("f32x4.max", most, f.op("f32x4.abs", v)));
    else {
      f.set(most, f.op("f32x4.max", most, v));
      f.set(least, f.op("f32x4.min", least, v));
    }
  });
  foldLanes(f, "f32x4.max", most);
  if (kind === "int8") f.set(scale, f.op("f32x4.div", most, f.constantF32(127)));
  else {
    foldLanes(f, "f32x4.min", least);
    // halves first: the span of two float32 may be none
    const span = f.op("f32x4.sub", f.op("f32x4.mul", most, f.constantF32(1 / 15)), f.op("f32x4.mul", least, f.constantF32(1 / 15)));
    f.set(scale, f.op("v128.and", f.op("i32x4.add", span, f.constant32(8)), f.constant32(-16)));
    // of zeros only: codes of zero, and a scale that is zero
    f.set(zero, f.op("f32x4.nearest", f.op("f32x4.div", f.op("f32x4.neg", least), scale)));
    f.set(zero, f.op("i32x4.min_s", f.op("i32x4.trunc_sat_f32x4_u", zero), f.constant32(15)));
  }
  const word = kind === "int8" ? f.get(scale) : f.op("v128.or", scale, zero);
  f.store("i32.store", scaleAt, 0, f.lane("i32x4.extract_lane", 0, word));
  /** Sixteen codes as eight and eight of 16 bits, clamped to what they may be. */
  const code = (i: number): Emit => {
    const near = f.op("i32x4.trunc_sat_f32x4_s", f.op("f32x4.nearest", f.op("f32x4.div", load(i), scale)));
    if (kind === "int8") return f.op("i32x4.max_s", near, f.constant32(-127));
    // beyond what 32 bits hold the sum would wrap
    const bounded = f.op("i32x4.max_s", f.op("i32x4.min_s", near, f.constant32(15)), f.constant32(-15));
    return f.op("i32x4.min_s", f.op("i32x4.max_s", f.op("i32x4.add", bounded, zero), f.constant32(0)), f.constant32(15));
  };
  eachVector(f, width, place, 4, (i) => {
    f.set(four[i], code(i));
    if (i < 3) return;
    const [a, b] = [f.op("i16x8.narrow_i32x4_s", four[0], four[1]), f.op("i16x8.narrow_i32x4_s", four[2], four[3])];
    if (kind === "int8")
      f.store("v128.store", f.op("i32.add", y, f.op("i32.shr_u", place, f.i32(2))), 0, f.op("i8x16.narrow_i16x8_s", a, b));
    else {
      f.set(v, f.op("v128.or", a, f.op("i16x8.shl", b, f.i32(4))));
      f.set(v, f.op("i8x16.narrow_i16x8_u", v, v));
      f.store("i64.store", f.op("i32.add", y, f.op("i32.shr_u", place, f.i32(3))), 0, f.lane("i64x2.extract_lane", 0, v));
    }
  });
}

/** A module whose `work` writes rows into a cache; its arguments are `appendJob`'s. */
export function appendModule(spec: AppendSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const row = m.func(null, i32s(4), [], (f) => writeRow(f, spec));
  writeWork(m, (f, args) => (item) => {
    eachRow(f, args, item, (run, within) => {
      const [x, y, scale] = [0, 1, 2].map((i) => rowAddress(f, args, ROW_WORDS.length, i, run, within));
      f.run(f.call(row, x, y, scale, f.load("i32.load", args)));
    });
  });
  return m.bytes();
}

export const append = family("append", appendModule);

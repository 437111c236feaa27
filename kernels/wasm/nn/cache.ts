// Keys and values in fewer bits: what a cache of attention holds, and the kernel that writes rows of float32 into it. A
// row is one head of one token.
//   float16  IEEE half, half to even; beyond 65504 infinity
//   int8     code = round(x / scale), scale = max |x| / 127
//   int4     code = round(x / scale) + zero, 0..15, scale = (max - min) / 15 with 0 between min and max;
//            of 16 values, byte i holds value i low and value i + 8 high
// int8 and int4 keep a word beside each row, in a plane [head][token]: the scale; with int4 its last four bits are the
// zero point and count as 0 in the scale. Rounding is half to even.
//   int4_halves  int4 with a scale and a zero point for each half of a row (`firstHalf`): 16 bits of the word each, the
//            first half low: the first 12 bits of the scale behind its sign (the others are 0), then the zero point
// A row with an infinity or a NaN gets a scale that is none, and attends as NaN.
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local, type Operand } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { eachRow, eachVector, foldLanes, placeWords, ROW_WORDS, rowAddress, rowJob, type Rows } from "./rows.ts";
import { i32s } from "./tiles.ts";

export type CacheKind = "float32" | "float16" | "int8" | "int4" | "int4_halves";

/** Kinds of values: halves are for keys alone. */
export type ValueKind = Exclude<CacheKind, "int4_halves">;

const VALUE_BYTES: Readonly<Record<CacheKind, number>> = { float32: 4, float16: 2, int8: 1, int4: 0.5, int4_halves: 0.5 };

/** Bytes of a row of `head` values. */
export const cacheRowBytes = (kind: CacheKind, head: number): number => VALUE_BYTES[kind] * head;

/** Are its codes of 4 bits with a zero point? */
export const isFour = (kind: CacheKind | undefined): boolean => kind === "int4" || kind === "int4_halves";

/** Does it keep a word beside each row? */
export const hasScales = (kind: CacheKind): boolean => kind === "int8" || isFour(kind);

/**
 * Are keys of this kind, and their queries, kept as a Hadamard transform of each head makes them? Products stay what
 * they are, and a channel larger than the others does not take the codes of a row for itself (QuaRot,
 * arXiv 2404.00456, section 4.1).
 */
export const isSpread = (kind: CacheKind): boolean => kind === "int4_halves";
/** Values of a transform: the greatest power of two that divides a head. */
export const spreadWidth = (head: number): number => head & -head;
/** What a transformed key is multiplied by, and a query: powers of two, exact on every backend; 1 / n together. */
export const keyFactor = (head: number): number => 2 ** -Math.ceil(Math.log2(spreadWidth(head)) / 2);
export const queryFactor = (head: number): number => 2 ** -Math.floor(Math.log2(spreadWidth(head)) / 2);

/** Values of the first half of a row; the longer half where a row is an odd number of sixteens. */
export const firstHalf = (head: number): number => 16 * Math.ceil(head / 32);

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

/** Bits of a scale that 12 bits hold. */
export const HALF_SCALE = 0x7ff80000;

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

/** float16: row(x, y, width). The others: row(x, y, width), and leaves the word of scale and zero point. */
function writeRow(f: FunctionBuilder, { kind }: AppendSpec): void {
  const [x, y, width] = [0, 1, 2].map((i) => f.param(i));
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
    if (kind === "int4") f.set(scale, f.op("v128.and", f.op("i32x4.add", span, f.constant32(8)), f.constant32(-16)));
    else f.set(scale, f.op("v128.and", span, f.constant32(HALF_SCALE)));
    // of zeros only: codes of zero, and a scale that is zero
    f.set(zero, f.op("f32x4.nearest", f.op("f32x4.div", f.op("f32x4.neg", least), scale)));
    f.set(zero, f.op("i32x4.min_s", f.op("i32x4.trunc_sat_f32x4_u", zero), f.constant32(15)));
  }
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
  if (kind === "int4_halves") f.set(scale, f.op("i32x4.shr_u", scale, f.i32(15)));
  const word = kind === "int8" ? f.get(scale) : f.op("v128.or", scale, zero);
  f.run(f.lane("i32x4.extract_lane", 0, word));
}

/** A module whose `work` writes rows into a cache; its arguments are `appendJob`'s. */
export function appendModule(spec: AppendSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const row = m.func(null, i32s(3), spec.kind === "float16" ? [] : ["i32"], (f) => writeRow(f, spec));
  writeWork(m, (f, args) => {
    const [x, y, width, first] = f.locals("i32", 4);
    return (item) =>
      eachRow(f, args, item, (run, within) => {
        const place = (i: number): Emit => rowAddress(f, args, ROW_WORDS.length, i, run, within);
        f.set(width, f.load("i32.load", args));
        if (spec.kind === "float16") return f.run(f.call(row, place(0), place(1), width));
        if (spec.kind !== "int4_halves") return f.store("i32.store", place(2), 0, f.call(row, place(0), place(1), width));
        f.set(x, place(0));
        f.set(y, place(1));
        // firstHalf(width)
        f.set(first, f.op("i32.and", f.op("i32.shr_u", f.op("i32.add", width, f.i32(31)), f.i32(1)), f.i32(-16)));
        f.set(width, f.op("i32.sub", width, first));
        const [from, to] = [f.op("i32.add", x, f.op("i32.shl", first, f.i32(2))), f.op("i32.add", y, f.op("i32.shr_u", first, f.i32(1)))];
        const second = f.call(row, from, to, width);
        f.store("i32.store", place(2), 0, f.op("i32.or", f.call(row, x, y, first), f.op("i32.shl", second, f.i32(16))));
      });
  });
  return m.bytes();
}

export const append = family("append", appendModule);

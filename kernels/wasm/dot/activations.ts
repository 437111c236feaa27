// Activations for the integer kernels: every group of a row gets a scale amax / 127 (8 bits; 31 for 6, 7 for 4) or
// amax / 32639 (16 bits: 127 * 256 + 127, so that both bytes stay signed), codes rne(x / scale), and the sums that
// correct for the weights' shift. A group that holds NaN or an infinity gets a scale that makes the row's results NaN.
// Input is staged: groups padded with zeros to the kernel's group. `mixed`: the first groups of a row, as many as the
// job's `wide` says, have codes of 8 bits and the others `codeBits`, in one pass and in the same records.
import { family } from "../engine/family.ts";
import { activationMax, type ActivationBits } from "../../activations.ts";
import { ROUND } from "../conv/finish.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local, type Operand } from "../engine/asm.ts";
import { activationRecord, type DotStyle } from "./gemmspec.ts";
import { writeRecords } from "../engine/items.ts";
import { addBytes, foldLanes, sumFour, words } from "../nn/rows.ts";

/** What the code depends on; see `RECORD_ARGUMENTS` for what it is told at each call. */
export interface ActivationSpec {
  readonly style: DotStyle;
  /** i16 operands in the order of k, for zipped planes; otherwise even k, then odd k. */
  readonly inOrder: boolean;
  /** Width of the operands. */
  readonly activationBits: 8 | 16;
  /** Bits of the codes in them: 4, 6 or 8 of bytes, 16. */
  readonly codeBits: ActivationBits;
  readonly mr: number;
  /** Corrections hold the sum over all planes (zero points, i16 operands) or one per plane. */
  readonly totals: boolean;
  readonly mixed: boolean;
  readonly shared: boolean;
}

/** Bits of 2^-100 and 2^100: quotients by scales between are finite and at most the largest code. */
const [LEAST_SCALE, MOST_SCALE] = [0x0d800000, 0x71800000];

/** Rounds floats of at most 2^22 to integers, half to even. */
const rounded = (f: FunctionBuilder, v: Operand): Emit =>
  f.op("i32x4.sub", f.op("f32x4.add", v, f.constantF32(ROUND)), f.constantF32(ROUND));

/** Magnitudes compare as integers, NaN above infinity above the rest. */
function grow(f: FunctionBuilder, most: Local, v: Operand): void {
  f.set(most, f.op("i32x4.max_u", most, f.op("v128.and", v, f.constant32(0x7fffffff))));
}

/** Codes of four vectors as bytes, added to `sums`. */
function packBytes(f: FunctionBuilder, [a, b, c, d]: readonly Local[], into: Local, sums: Local): void {
  f.set(into, f.op("i8x16.narrow_i16x8_s", f.op("i16x8.narrow_i32x4_s", a, b), f.op("i16x8.narrow_i32x4_s", c, d)));
  addBytes(f, sums, into);
}

/** Runs over the vectors from `at` to `end`, four at a time and the rest one by one. */
function vectors(f: FunctionBuilder, at: Local, end: Local, each: (count: 1 | 4) => void): void {
  f.while(f.op("i32.ge_s", f.op("i32.sub", end, at), f.i32(64)), () => {
    each(4);
    f.bump(at, 64);
  });
  f.while(f.op("i32.lt_u", at, end), () => {
    each(1);
    f.bump(at, 16);
  });
}

/**
 * The scale of the group of floats from `x` to `end`: amax / max; NaN or infinite where the group is. `at` and `amax`
 * are overwritten.
 */
export function groupScale(f: FunctionBuilder, x: Local, at: Local, end: Local, amax: Local, max: number | Local): Emit {
  f.set(amax, f.v128f32(0));
  f.set(at, x);
  vectors(f, at, end, (count) => {
    for (let i = 0; i < count; i++) grow(f, amax, f.load("v128.load", at, 16 * i));
  });
  foldLanes(f, "i32x4.max_u", amax);
  return f.op("f32.div", f.lane("f32x4.extract_lane", 0, amax), typeof max === "number" ? f.f32(max) : max);
}

/** Sets q to the codes (i32) of the four floats at `at`, of magnitudes to `max`: a number, or four lanes of it. */
export function roundCodes(f: FunctionBuilder, q: Local, at: Local, scale4: Local, max: number | Local): void {
  // 0 / 0 is NaN and becomes code 0; a subnormal scale may be short of bits, so codes are clamped
  f.set(q, f.op("f32x4.div", f.load("v128.load", at), scale4));
  f.set(q, f.op("v128.and", q, f.op("f32x4.eq", q, q)));
  f.set(q, f.op("f32x4.pmin", typeof max === "number" ? f.constantF32(max) : max, q));
  f.set(q, f.op("f32x4.pmax", typeof max === "number" ? f.constantF32(-max) : f.op("f32x4.neg", max), q));
  f.set(q, rounded(f, q));
}

/**
 * A module whose `work` quantizes staged rows to records: see `recordJob`; the factor is that of the corrections,
 * `correctionFactor`.
 */
export function activationModule(spec: ActivationSpec): Uint8Array<ArrayBuffer> {
  const { header: codes, quad } = activationRecord({ ...spec, group: 4 });
  const { mr, activationBits } = spec;
  const narrow = activationMax(spec.codeBits);
  const bytes = spec.style !== "simd" && activationBits === 8;
  /** Codes are two planes of bytes. */
  const planes = spec.style !== "simd" && activationBits === 16;
  const m = new ModuleBuilder({ shared: spec.shared });
  // one row of a tile; `header` = record + 4 r, `data` = record + r * quad bytes
  const quantize = m.func(null, Array<"i32">(spec.mixed ? 8 : 7).fill("i32"), [], (f) => {
    const [x, header, data, groups, width, record, factor] = [0, 1, 2, 3, 4, 5, 6].map((i) => f.param(i));
    const wide = spec.mixed ? { left: f.param(7), max: f.local("f32"), max4: f.local("v128") } : null;
    const [end, at, out, lowSum, highSum] = f.locals("i32", 5);
    const [amax, low, high, sums, highSums, scale4] = f.locals("v128", 6);
    const q = f.locals("v128", 4);
    const scale = f.local("f32");
    const bytesOf = (v: Local): Emit => {
      const pairs = f.op("i16x8.narrow_i32x4_s", v, v);
      return f.lane("i32x4.extract_lane", 0, f.op("i8x16.narrow_i16x8_s", pairs, pairs));
    };
    /** Stores the codes of vectors side by side, and adds them up. */
    const put = (vectors: readonly Local[]): void => {
      if (bytes && vectors.length === 4) {
        packBytes(f, vectors, low, sums);
        vectors.forEach((_, i) => f.run(f.loadLane("v128.store32_lane", out, codes + i * quad * mr, i, low)));
        return;
      }
      vectors.forEach((v, i) => {
        const offset = codes + i * quad * mr;
        if (bytes || spec.style === "simd") f.set(sums, f.op("i32x4.add", sums, v));
        if (spec.style === "simd") {
          // pairs (k, k + 2) and (k + 1, k + 3) meet the even and odd bytes of the weights
          const order = spec.inOrder ? [0, 1, 4, 5, 8, 9, 12, 13] : [0, 1, 8, 9, 4, 5, 12, 13];
          f.run(f.loadLane("v128.store64_lane", out, offset, 0, f.shuffle([...order, ...order], v, v)));
        } else if (bytes) f.store("i32.store", out, offset, bytesOf(v));
        else {
          f.set(high, f.op("i32x4.shr_s", f.op("i32x4.add", v, f.constant32(128)), f.i32(8)));
          f.set(low, f.op("i32x4.sub", v, f.op("i32x4.shl", high, f.i32(8))));
          f.set(sums, f.op("i32x4.add", sums, low));
          f.set(highSums, f.op("i32x4.add", highSums, high));
          f.store("i32.store", out, offset, bytesOf(low));
          f.store("i32.store", out, offset + 4, bytesOf(high));
        }
      });
    };
    /** Codes where nothing needs to be caught: `roundCodes` without its comparisons. */
    const writeQuick = (): void =>
      vectors(f, at, end, (count) => {
        const own = q.slice(0, count);
        own.forEach((v, i) => {
          f.set(v, f.op("f32x4.div", f.load("v128.load", at, 16 * i), scale4));
          f.set(v, rounded(f, v));
        });
        put(own);
        f.bump(out, count * quad * mr);
      });
    const writeSlow = (): void =>
      f.doWhile(
        () => {
          roundCodes(f, q[0], at, scale4, wide?.max4 ?? narrow);
          put([q[0]]);
          f.bump(at, 16);
          f.bump(out, quad * mr);
        },
        f.op("i32.lt_u", at, end),
      );
    /** The sum of four lanes; v is overwritten. */
    const total = (v: Local): Emit => {
      foldLanes(f, "i32x4.add", v);
      return f.lane("i32x4.extract_lane", 0, v);
    };
    f.while(f.op("i32.gt_s", groups, f.i32(0)), () => {
      f.set(end, f.op("i32.add", x, width));
      if (wide !== null) {
        const { left, max, max4 } = wide;
        f.set(max, f.op("select", f.f32(activationMax(8)), f.f32(narrow), f.op("i32.gt_s", left, f.i32(0))));
        f.set(max4, f.op("f32x4.splat", max));
        f.bump(left, -1);
      }
      f.set(scale, groupScale(f, x, at, end, amax, wide?.max ?? narrow));
      f.set(scale4, f.op("f32x4.splat", scale));
      f.set(sums, f.v128i32(0));
      if (planes) f.set(highSums, f.v128i32(0));
      f.set(at, x);
      f.set(out, data);
      const above = f.op("i32.sub", f.op("i32.reinterpret_f32", scale), f.i32(LEAST_SCALE));
      f.if(f.op("i32.lt_u", above, f.i32(MOST_SCALE - LEAST_SCALE)), writeQuick, writeSlow);
      f.set(lowSum, total(sums));
      if (planes) f.set(highSum, total(highSums));
      const all = planes ? f.op("i32.add", lowSum, f.op("i32.shl", highSum, f.i32(8))) : lowSum;
      f.store("f32.store", header, 0, scale);
      f.store("i32.store", header, 4 * mr, f.op("i32.mul", spec.totals ? all : lowSum, factor));
      f.store("i32.store", header, 8 * mr, planes ? f.op("i32.mul", highSum, factor) : f.i32(0));
      f.store("f32.store", header, 12 * mr, f.op("f32.mul", f.op("f32.convert_i32_s", all), scale));
      f.set(x, end);
      f.bump(header, record);
      f.bump(data, record);
      f.set(groups, f.op("i32.sub", groups, f.i32(1)));
    });
  });
  const four =
    bytes && !spec.mixed && mr >= FOUR ? m.func(null, Array<"i32">(7).fill("i32"), [], (f) => writeFour(f, spec, quantize)) : null;
  const fours = four === null ? 0 : mr - (mr % FOUR);
  writeRecords(m, mr, (f, x, a, count, stride, field, first) => {
    for (let r = 0; r < mr; r += r < fours ? FOUR : 1) {
      const header = f.op("i32.add", a, f.i32(4 * r));
      const last = [count, field("width"), field("bytes"), field("factor")];
      const left = spec.mixed ? [f.op("i32.sub", field("wide"), first)] : [];
      if (r < fours) f.run(f.call(four!, x, stride, header, ...last));
      else f.run(f.call(quantize, x, header, f.op("i32.add", a, f.i32(r * quad)), ...last, ...left));
      f.bump(x, r < fours ? f.op("i32.mul", stride, f.i32(FOUR)) : stride);
    }
  });
  return m.bytes();
}

/** Rows that are written together, where codes are bytes: a quad of each is one vector, and so are their scales. */
const FOUR = 4;

/**
 * quantize(x, stride, header, groups, width, record, factor) of four rows: what `one` writes row by row, which does it
 * where a scale is not ordinary. Folds, divisions and sums are shared: .77 of the time of rows one by one.
 */
function writeFour(f: FunctionBuilder, { mr, codeBits }: ActivationSpec, one: FunctionRef): void {
  const [x, stride, header, groups, width, record, factor] = [0, 1, 2, 3, 4, 5, 6].map((i) => f.param(i));
  const [at, out] = f.locals("i32", 2);
  const rows = [x, ...f.locals("i32", FOUR - 1)];
  const at4 = f.locals("i32", FOUR);
  const v = f.locals("v128", FOUR);
  const scale4 = f.locals("v128", FOUR);
  const [scales, sums, codes] = f.locals("v128", 3);
  const max = activationMax(codeBits);
  /** Over the quads of the group, four at a time and the rest one by one. */
  const eachQuad = (body: (quad: number) => void, done: (quads: 1 | 4) => void = () => {}): void => {
    f.set(at, f.i32(0));
    for (const quads of [4, 1] as const)
      f.while(f.op("i32.ge_s", f.op("i32.sub", width, at), f.i32(16 * quads)), () => {
        at4.forEach((address, r) => f.set(address, f.op("i32.add", rows[r], at)));
        for (let quad = 0; quad < quads; quad++) body(quad);
        f.bump(at, 16 * quads);
        done(quads);
      });
  };
  for (let r = 1; r < FOUR; r++) f.set(rows[r], f.op("i32.add", rows[r - 1], stride));
  f.while(f.op("i32.gt_s", groups, f.i32(0)), () => {
    for (const most of v) f.set(most, f.constant32(0));
    eachQuad((quad) => v.forEach((most, r) => grow(f, most, f.load("v128.load", at4[r], 16 * quad))));
    sumFour(f, v, "i32x4.max_u");
    f.set(scales, f.op("f32x4.div", v[0], f.constantF32(max)));
    const above = f.op("i32x4.sub", scales, f.constant32(LEAST_SCALE));
    f.if(
      f.op("i32.eqz", f.op("v128.any_true", f.op("i32x4.gt_u", above, f.constant32(MOST_SCALE - LEAST_SCALE - 1)))),
      () => {
        scale4.forEach((scale, r) => f.set(scale, f.shuffle(words([r, r, r, r]), scales, scales)));
        f.set(sums, f.constant32(0));
        f.set(out, f.op("i32.add", header, f.i32(16 * mr)));
        eachQuad(
          (quad) => {
            v.forEach((code, r) => f.set(code, f.op("f32x4.div", f.load("v128.load", at4[r], 16 * quad), scale4[r])));
            for (const code of v) f.set(code, rounded(f, code));
            packBytes(f, v, codes, sums);
            f.store("v128.store", out, 4 * mr * quad, codes);
          },
          (quads) => f.bump(out, 4 * mr * quads),
        );
        f.store("v128.store", header, 0, scales);
        f.store("v128.store", header, 4 * mr, f.op("i32x4.mul", sums, f.op("i32x4.splat", factor)));
        f.store("v128.store", header, 8 * mr, f.constant32(0));
        f.store("v128.store", header, 12 * mr, f.op("f32x4.mul", f.op("f32x4.convert_i32x4_s", sums), scales));
      },
      () =>
        rows.forEach((row, r) => {
          const own = f.op("i32.add", header, f.i32(4 * r));
          f.run(f.call(one, row, own, own, f.i32(1), width, record, factor));
        }),
    );
    for (const row of rows) f.bump(row, width);
    f.bump(header, record);
    f.bump(groups, -1);
  });
}

export const activations = family("activations", activationModule);

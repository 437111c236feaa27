// Activations for the integer kernels: every group of a row gets a scale amax / 127 (8 bits; 31 for 6, 7 for 4) or
// amax / 32639 (16 bits: 127 * 256 + 127, so that both bytes stay signed), codes rne(x / scale), and the sums that
// correct for the weights' shift. A group that holds NaN or an infinity gets a scale that makes the row's results NaN.
// Input is staged: groups padded with zeros to the kernel's group. `mixed`: the first groups of a row, as many as the
// job's `wide` says, have codes of 8 bits and the others `codeBits`, in one pass and in the same records.
import { family } from "../engine/family.ts";
import { activationMax, type ActivationBits } from "../../activations.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { activationRecord, type DotStyle } from "./gemmspec.ts";
import { writeRecords } from "../engine/items.ts";

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

/** 1.5 * 2^23: a float32 of this size holds integers only. */
const ROUND = 12582912;

/**
 * The scale of the group of floats from `x` to `end`: amax / max; NaN or infinite where the group is. `at` and `amax`
 * are overwritten.
 */
export function groupScale(f: FunctionBuilder, x: Local, at: Local, end: Local, amax: Local, max: number | Local): Emit {
  f.set(amax, f.v128f32(0));
  f.set(at, x);
  f.doWhile(
    () => {
      // magnitudes compare as integers, NaN above infinity above the rest
      f.set(amax, f.op("i32x4.max_u", amax, f.op("f32x4.abs", f.load("v128.load", at))));
      f.bump(at, 16);
    },
    f.op("i32.lt_u", at, end),
  );
  for (const lanes of [
    [2, 3, 0, 1],
    [1, 0, 3, 2],
  ]) {
    const bytes = lanes.flatMap((lane) => [0, 1, 2, 3].map((b) => 4 * lane + b));
    f.set(amax, f.op("i32x4.max_u", amax, f.shuffle(bytes, amax, amax)));
  }
  return f.op("f32.div", f.lane("f32x4.extract_lane", 0, amax), typeof max === "number" ? f.f32(max) : max);
}

/** Sets q to the codes (i32) of the four floats at `at`, of magnitudes to `max`: a number, or four lanes of it. */
export function roundCodes(f: FunctionBuilder, q: Local, at: Local, scale4: Local, max: number | Local): void {
  // 0 / 0 is NaN and becomes code 0; a subnormal scale may be short of bits, so codes are clamped. Adding 1.5 * 2^23
  // rounds to even like `nearest` and leaves the integer in the low bits.
  f.set(q, f.op("f32x4.div", f.load("v128.load", at), scale4));
  f.set(q, f.op("v128.and", q, f.op("f32x4.eq", q, q)));
  f.set(q, f.op("f32x4.pmin", typeof max === "number" ? f.constantF32(max) : max, q));
  f.set(q, f.op("f32x4.pmax", typeof max === "number" ? f.constantF32(-max) : f.op("f32x4.neg", max), q));
  f.set(q, f.op("i32x4.sub", f.op("f32x4.add", q, f.constantF32(ROUND)), f.constantF32(ROUND)));
}

/**
 * A module whose `work` quantizes staged rows to records: see `recordJob`; the factor is that of the corrections,
 * `correctionFactor`.
 */
export function activationModule(spec: ActivationSpec): Uint8Array<ArrayBuffer> {
  const { header: codes, quad } = activationRecord({ ...spec, group: 4 });
  const { mr, activationBits } = spec;
  const narrow = activationMax(spec.codeBits);
  const m = new ModuleBuilder({ shared: spec.shared });
  // one row of a tile; `header` = record + 4 r, `data` = record + r * quad bytes
  const quantize = m.func(null, Array<"i32">(spec.mixed ? 8 : 7).fill("i32"), [], (f) => {
    const [x, header, data, groups, width, record, factor] = [0, 1, 2, 3, 4, 5, 6].map((i) => f.param(i));
    const wide = spec.mixed ? { left: f.param(7), max: f.local("f32"), max4: f.local("v128") } : null;
    const [end, at, out, lowSum, highSum] = f.locals("i32", 5);
    const [amax, q, low, high, sums, highSums, scale4] = f.locals("v128", 7);
    const scale = f.local("f32");
    const total4 = (v: typeof amax): Emit =>
      [0, 1, 2, 3].map((i): Emit => f.lane("i32x4.extract_lane", i, v)).reduce((a, b) => f.op("i32.add", a, b));
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
      f.set(highSums, f.v128i32(0));
      f.set(at, x);
      f.set(out, data);
      f.doWhile(
        () => {
          roundCodes(f, q, at, scale4, wide?.max4 ?? narrow);
          const bytesOf = (v: typeof q): Emit => {
            const words = f.op("i16x8.narrow_i32x4_s", v, v);
            return f.lane("i32x4.extract_lane", 0, f.op("i8x16.narrow_i16x8_s", words, words));
          };
          if (spec.style === "simd") {
            f.set(sums, f.op("i32x4.add", sums, q));
            // pairs (k, k + 2) and (k + 1, k + 3) meet the even and odd bytes of the weights
            const words = spec.inOrder ? [0, 1, 4, 5, 8, 9, 12, 13] : [0, 1, 8, 9, 4, 5, 12, 13];
            const pairs = f.shuffle([...words, ...words], q, q);
            f.set(low, pairs);
            f.store("i32.store", out, codes, f.lane("i32x4.extract_lane", 0, low));
            f.store("i32.store", out, codes + 4, f.lane("i32x4.extract_lane", 1, low));
          } else if (activationBits === 8) {
            f.set(sums, f.op("i32x4.add", sums, q));
            f.store("i32.store", out, codes, bytesOf(q));
          } else {
            f.set(high, f.op("i32x4.shr_s", f.op("i32x4.add", q, f.constant32(128)), f.i32(8)));
            f.set(low, f.op("i32x4.sub", q, f.op("i32x4.shl", high, f.i32(8))));
            f.set(sums, f.op("i32x4.add", sums, low));
            f.set(highSums, f.op("i32x4.add", highSums, high));
            f.store("i32.store", out, codes, bytesOf(low));
            f.store("i32.store", out, codes + 4, bytesOf(high));
          }
          f.bump(at, 16);
          f.bump(out, quad * mr);
        },
        f.op("i32.lt_u", at, end),
      );
      f.set(lowSum, total4(sums));
      f.set(highSum, total4(highSums));
      const total = f.op("i32.add", lowSum, f.op("i32.shl", highSum, f.i32(8)));
      f.store("f32.store", header, 0, scale);
      f.store("i32.store", header, 4 * mr, f.op("i32.mul", spec.totals ? total : lowSum, factor));
      f.store("i32.store", header, 8 * mr, f.op("i32.mul", highSum, factor));
      f.store("f32.store", header, 12 * mr, f.op("f32.mul", f.op("f32.convert_i32_s", total), scale));
      f.set(x, end);
      f.bump(header, record);
      f.bump(data, record);
      f.set(groups, f.op("i32.sub", groups, f.i32(1)));
    });
  });
  writeRecords(m, mr, (f, x, a, count, stride, field, first) => {
    for (let r = 0; r < mr; r++) {
      const data = f.op("i32.add", a, f.i32(r * quad));
      const left = spec.mixed ? [f.op("i32.sub", field("wide"), first)] : [];
      const header = f.op("i32.add", a, f.i32(4 * r));
      f.run(f.call(quantize, x, header, data, count, field("width"), field("bytes"), field("factor"), ...left));
      f.bump(x, stride);
    }
  });
  return m.bytes();
}

export const activations = family("activations", activationModule);

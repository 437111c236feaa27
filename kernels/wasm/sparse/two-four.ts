// Products of int8 activations by 2:4 sparse 4-bit weights: of four neighbours along k at most two are not zero, and
// only those are stored, with their places in 2 bits (6 bits for two weights instead of 8). Places become lanes of a
// swizzle, which picks from 16 activations what the weights are multiplied with; sums of a block are exact integers.
// Source: Sparse-MARLIN (arXiv 2408.11743). Not here: which weights stay (src/quantize/sparsity.ts).
import { family } from "../engine/family.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { writeWork } from "../engine/items.ts";
import { activationRecord } from "../dot/gemmspec.ts";

export interface TwoFourSpec {
  /**
   * Relaxed products of bytes with sums in i16 (exact: weights are 0..15), or in i32 where these are exact for unsigned
   * or signed activations of 8 bits, or i16 products.
   */
  readonly style: "dot-u" | "dot-s" | "madd16" | "simd";
  /** Rows of activations of a tile. */
  readonly mr: number;
  /** Groups are one step. */
  readonly short: boolean;
  readonly shared: boolean;
}

/** Rows of W that are stored together, and how many of k. */
export const TWO_FOUR_ROWS = 4;
export const TWO_FOUR_SPAN = 32;
/** Most rows of a tile. */
export const TWO_FOUR_MOST = 4;

/**
 * Bytes of a step (4 rows x 32 of k): places, two bits for each weight of a lane, then the weights less -8 in two
 * vectors; a group begins with its four float32 scales, and of "dot-u" with four int32 sums: activations are greater by
 * 128 there.
 */
export const TWO_FOUR_STEP = 48;
const headerBytes = (style: TwoFourSpec["style"]): 16 | 32 => (style === "dot-u" ? 32 : 16);
export const twoFourGroup = (span: number, style: TwoFourSpec["style"]): number =>
  headerBytes(style) + (TWO_FOUR_STEP * span) / TWO_FOUR_SPAN;

/** Arguments of `work`, i32 each: an item is 16 rows of W. `steps`: of a group. */
export const TWO_FOUR_ARGUMENTS = ["a", "w", "c", "ldc", "groups", "steps", "tiles"] as const;

const OFFSET = 8;
const DOT = "i32x4.relaxed_dot_i8x16_i7x16_add_s";

/**
 * One part of a step for one row: 16 picked activations times their weights into `parts`: i16 sums of both, two a row
 * of W, or i32 sums of rows 0 and 1 and of rows 2 and 3.
 */
function multiplyPart(
  f: FunctionBuilder,
  style: "madd16" | "simd",
  x: Local,
  weight: Local,
  parts: readonly Local[],
  isFirst: boolean,
): void {
  if (style === "madd16") {
    const product = f.op("i16x8.relaxed_dot_i8x16_i7x16_s", x, weight);
    const value = f.op("i16x8.sub", product, f.op("i16x8.relaxed_dot_i8x16_i7x16_s", x, f.constant8(OFFSET)));
    return f.set(parts[0], isFirst ? value : f.op("i16x8.add", parts[0], value));
  }
  (["low", "high"] as const).forEach((half, i) => {
    const extend = `i16x8.extend_${half}_i8x16_s` as const;
    const product = f.op("i32x4.dot_i16x8_s", f.op(extend, x), f.op(extend, weight));
    f.set(parts[i], isFirst ? product : f.op("i32x4.add", parts[i], product));
  });
}

/** The four sums of a step, by row of W. */
function sumOf(f: FunctionBuilder, style: "madd16" | "simd", parts: readonly Local[]): Emit {
  if (style === "madd16") return f.op("i32x4.dot_i16x8_s", parts[0], f.constant16(1));
  const lanes = (first: number): number[] => [0, 2, 4, 6].flatMap((lane) => [0, 1, 2, 3].map((b) => 4 * (lane + first) + b));
  return f.op("i32x4.add", f.shuffle(lanes(0), parts[0], parts[1]), f.shuffle(lanes(1), parts[0], parts[1]));
}

const TILE = ["a", "w", "c", "ldc", "groups", "steps", "aStride"] as const;

/** tile(...): mr rows of activations by four rows of W. */
function writeTile(f: FunctionBuilder, { style, mr, short }: TwoFourSpec): void {
  const [a, w, c, ldc, groups, steps, aStride] = TILE.map((_, i) => f.param(i));
  const { header } = activationRecord({ style: "dot", activationBits: 8, group: TWO_FOUR_SPAN, mr: 1 });
  const acc = f.locals("v128", mr);
  const sums = f.locals("v128", mr);
  const isDot = style === "dot-u" || style === "dot-s";
  const parts = Array.from({ length: mr }, () => f.locals("v128", style === "simd" ? 2 : 1));
  const first = f.local("v128");
  const [x, places, place, both, weight] = f.locals("v128", 5);
  const rows: Local[] = [a, ...f.locals("i32", mr - 1)];
  const at: Local[] = f.locals("i32", mr);
  const scales = f.local("v128");
  const left = f.local("i32");
  for (let r = 1; r < mr; r++) f.set(rows[r], f.op("i32.add", rows[r - 1], aStride));
  const step = (isOnly: boolean): void => {
    f.set(places, f.load("v128.load", w));
    for (let q = 0; q < 4; q++) {
      // lanes of a row of W: two of one four, two of the next
      const base = Array.from({ length: 16 }, (_, lane) => 8 * (q & 1) + 2 * (lane & 2));
      const field = f.op("v128.and", q === 0 ? places : f.op("i16x8.shr_u", places, f.i32(2 * q)), f.constant8(3));
      f.set(place, f.op("v128.or", field, f.constant(`lanes ${q & 1}`, f.v128(base))));
      if (q % 2 === 0) f.set(both, f.load("v128.load", w, 16 + 8 * q));
      f.set(weight, f.op("v128.and", q & 1 ? f.op("i16x8.shr_u", both, f.i32(4)) : both, f.constant8(15)));
      if (style !== "madd16") f.set(weight, f.op("i8x16.sub", weight, f.constant8(OFFSET)));
      at.forEach((own, r) => {
        if (isDot) {
          // two places of a vector
          const [picked] = parts[r];
          if (q % 2 === 0) {
            const bytes = f.load("v128.load", own, 16 * (q >> 1));
            f.set(picked, style === "dot-u" ? f.op("v128.xor", bytes, f.constant8(128)) : bytes);
          }
          const sum = q === 0 && isOnly ? first : sums[r];
          return f.set(sums[r], f.op(DOT, weight, f.op("i8x16.relaxed_swizzle", picked, place), sum));
        }
        const from = f.load("v128.load", own, 16 * (q >> 1));
        f.set(x, f.op(style === "simd" ? "i8x16.swizzle" : "i8x16.relaxed_swizzle", from, place));
        multiplyPart(f, style, x, weight, parts[r], q === 0);
      });
    }
    at.forEach((own, r) => {
      if (!isDot) {
        const sum = sumOf(f, style, parts[r]);
        f.set(sums[r], isOnly ? sum : f.op("i32x4.add", sums[r], sum));
      }
      f.bump(own, TWO_FOUR_SPAN);
    });
    f.bump(w, TWO_FOUR_STEP);
  };
  f.doWhile(() => {
    f.set(scales, f.load("v128.load", w));
    f.set(first, style === "dot-u" ? f.load("v128.load", w, 16) : f.v128i32(0));
    f.bump(w, headerBytes(style));
    rows.forEach((row, r) => f.set(at[r], f.op("i32.add", row, f.i32(header))));
    if (short) step(true);
    else {
      for (const sum of sums) f.set(sum, first);
      f.set(left, steps);
      f.doWhile(() => {
        step(false);
        f.bump(left, -1);
      }, left);
    }
    rows.forEach((row, r) => {
      const factor = f.op("f32x4.mul", scales, f.load("v128.load32_splat", row));
      f.set(acc[r], f.op("f32x4.add", acc[r], f.op("f32x4.mul", f.op("f32x4.convert_i32x4_s", sums[r]), factor)));
      f.set(row, at[r]);
    });
    f.bump(groups, -1);
  }, groups);
  for (const sum of acc) {
    f.store("v128.store", c, 0, sum);
    f.bump(c, ldc);
  }
}

export function twoFourModule(spec: TwoFourSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const tile = m.func("tile", new Array<"i32">(TILE.length).fill("i32"), [], (f) => writeTile(f, spec));
  const { header } = activationRecord({ style: "dot", activationBits: 8, group: TWO_FOUR_SPAN, mr: 1 });
  writeWork(m, (f, args) => {
    const field = (name: (typeof TWO_FOUR_ARGUMENTS)[number]): Emit => f.load("i32.load", args, 4 * TWO_FOUR_ARGUMENTS.indexOf(name));
    const [w, c, a, to, left, part, bytes, aStride] = f.locals("i32", 8);
    return (block) => {
      // of four rows of W, and of a row of activations
      const span = f.op("i32.mul", field("steps"), f.i32(TWO_FOUR_STEP));
      f.set(bytes, f.op("i32.mul", field("groups"), f.op("i32.add", span, f.i32(headerBytes(spec.style)))));
      const codes = f.op("i32.mul", field("steps"), f.i32(TWO_FOUR_SPAN));
      f.set(aStride, f.op("i32.mul", field("groups"), f.op("i32.add", codes, f.i32(header))));
      f.set(w, f.op("i32.add", field("w"), f.op("i32.mul", f.op("i32.shl", block, f.i32(2)), bytes)));
      f.set(c, f.op("i32.add", field("c"), f.op("i32.shl", block, f.i32(6))));
      f.set(part, f.i32(4));
      f.doWhile(() => {
        f.set(a, field("a"));
        f.set(to, c);
        f.set(left, field("tiles"));
        f.doWhile(() => {
          f.run(f.call(tile, a, w, to, field("ldc"), field("groups"), field("steps"), aStride));
          f.bump(a, f.op("i32.mul", aStride, f.i32(spec.mr)));
          f.bump(to, f.op("i32.mul", field("ldc"), f.i32(spec.mr)));
          f.bump(left, -1);
        }, left);
        f.bump(w, bytes);
        f.bump(c, 4 * TWO_FOUR_ROWS);
        f.bump(part, -1);
      }, part);
    };
  });
  return m.bytes();
}

export const twoFour = family("2:4", twoFourModule);

/**
 * Packs four rows of integer weights (-8 to 7) of one group of `span`, the numbers of row r from `rows[r]` on, at
 * `into`; k beyond `count` counts as zero. @returns false where four neighbours have more than two that are not zero
 */
export function packTwoFour(
  rows: readonly (Int8Array | null)[],
  count: number,
  span: number,
  scales: Float32Array,
  style: TwoFourSpec["style"],
  into: Uint8Array,
): boolean {
  into.fill(0);
  const header = headerBytes(style);
  const sums = style === "dot-u" ? new Int32Array(into.buffer, into.byteOffset + 16, TWO_FOUR_ROWS) : null;
  new Float32Array(into.buffer, into.byteOffset, TWO_FOUR_ROWS).set(scales);
  for (let step = 0; step < span / TWO_FOUR_SPAN; step++) {
    const at = header + TWO_FOUR_STEP * step;
    // zero is stored as 8
    into.fill(0x88, at + 16, at + TWO_FOUR_STEP);
    for (let r = 0; r < TWO_FOUR_ROWS; r++)
      for (let four = 0; four < 8; four++) {
        const [part, side] = [four >> 1, four & 1];
        let kept = 0;
        for (let place = 0; place < 4; place++) {
          const k = TWO_FOUR_SPAN * step + 4 * four + place;
          const v = k < count ? (rows[r]?.[k] ?? 0) : 0;
          if (v === 0) continue;
          if (kept === 2) return false;
          if (sums !== null) sums[r] -= 128 * v;
          const lane = 4 * r + 2 * side + kept++;
          into[at + lane] |= place << (2 * part);
          const byte = at + 16 + 16 * (part >> 1) + lane;
          into[byte] = part & 1 ? (into[byte] & 15) | ((v + OFFSET) << 4) : (into[byte] & 240) | (v + OFFSET);
        }
      }
  }
  return true;
}

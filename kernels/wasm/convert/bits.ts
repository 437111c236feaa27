// Dense bit packing of codes in SIMD, widths 1..7 and 9..15 (8 and 16 are plain copies), the layout of
// formats/core/pack.ts: code i at bits i*bits of a little-endian stream. Unpacking brings the bytes that hold a code
// into its lane, multiplies the code to the top of the lane (a shift by lane) and shifts it down. Packing joins
// neighbours in lanes of twice the width, three times.
import { family } from "../engine/family.ts";
import { ModuleBuilder } from "../engine/asm.ts";

export interface BitsSpec {
  /** 1..7 or 9..15. */
  readonly bits: number;
  readonly shared: boolean;
}

/** Codes that `pack` and `unpack` take at a time: their count is a multiple of it. */
export const BITS_STEP = 16;
/** Bytes that may be read or written beyond the end of either side. */
export const BITS_SLACK = 16;

/** Are codes of this width packed by a kernel? */
export const packsBits = (bits: number): boolean => bits !== 8 && bits >= 1 && bits <= 15;

/**
 * Module with unpack(bytes, codes, count), and pack(codes, bytes, count) that returns the OR of all codes in 8 or 16
 * bits (repeated to 32), so that codes which do not fit are seen. Codes are bytes up to 8 bits, 16-bit words above.
 */
export function bitsModule({ bits, shared }: BitsSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared });
  const wide = bits > 8;
  const lanes = wide ? 4 : 8;
  const laneBytes = 16 / lanes;
  const lane = wide ? "i32x4" : "i16x8";
  /**
   * For the codes `from` on, one per lane: where their bytes are, and the factor that moves them to the top of the
   * lane.
   */
  const window = (from: number): { readonly shuffle: number[]; readonly factors: Uint8Array } => {
    const shuffle: number[] = [];
    const factors = new Uint8Array(16);
    const words = wide ? new Uint32Array(factors.buffer) : new Uint16Array(factors.buffer);
    for (let i = 0; i < lanes; i++) {
      const bit = (from + i) * bits;
      // bytes above the code are shifted out, so that any byte does there
      for (let b = 0; b < laneBytes; b++) shuffle.push(Math.min(15, (bit >> 3) + b));
      words[i] = 2 ** (8 * laneBytes - bits - (bit & 7));
    }
    return { shuffle, factors };
  };
  m.func("unpack", ["i32", "i32", "i32"], [], (f) => {
    const [from, to, count] = [0, 1, 2].map((i) => f.param(i));
    const end = f.local("i32");
    const v = f.local("v128");
    // 2 * lanes codes are taken from one load and fill one store
    const step = 2 * lanes;
    const half = (i: number) => {
      const { shuffle, factors } = window(i * lanes);
      const top = f.op(`${lane}.mul`, f.shuffle(shuffle, v, v), f.constant(`factors ${i}`, f.v128(factors)));
      return f.op(`${lane}.shr_u`, top, f.i32(8 * laneBytes - bits));
    };
    f.set(end, f.op("i32.add", to, wide ? f.op("i32.shl", count, f.i32(1)) : count));
    f.while(f.op("i32.lt_u", to, end), () => {
      for (let i = 0; i < BITS_STEP / step; i++) {
        f.set(v, f.load("v128.load", from, (i * step * bits) / 8));
        f.store("v128.store", to, 16 * i, f.op(wide ? "i16x8.narrow_i32x4_u" : "i8x16.narrow_i16x8_u", half(0), half(1)));
      }
      f.bump(from, 2 * bits);
      f.bump(to, wide ? 32 : 16);
    });
  });
  m.func("pack", ["i32", "i32", "i32"], ["i32"], (f) => {
    const [from, to, count] = [0, 1, 2].map((i) => f.param(i));
    const end = f.local("i32");
    const [v, all, high] = f.locals("v128", 3);
    const mask = (bytes: number) =>
      f.constant(`low ${bytes}`, f.v128(Array.from({ length: 16 }, (_, i) => (i % (2 * bytes) < bytes ? 255 : 0))));
    /** Two neighbours of `width` bits in lanes of `bytes` bytes become one of twice the width. */
    const join = (type: string, bytes: number, width: number): void =>
      f.set(
        v,
        f.op("v128.or", f.op("v128.and", v, mask(bytes)), f.op(`${type}.shl`, f.op(`${type}.shr_u`, v, f.i32(8 * bytes)), f.i32(width))),
      );
    f.set(end, f.op("i32.add", from, wide ? f.op("i32.shl", count, f.i32(1)) : count));
    f.while(f.op("i32.lt_u", from, end), () => {
      f.set(v, f.load("v128.load", from));
      f.set(all, f.op("v128.or", all, v));
      if (wide) {
        join("i32x4", 2, bits);
        join("i64x2", 4, 2 * bits);
        // 4 * bits of each half, 36 to 60: the upper half crosses the middle
        f.set(high, f.shuffle([8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15], v, v));
        const low = f.constant("lower half", f.v128(Array.from({ length: 16 }, (_, i) => (i < 8 ? 255 : 0))));
        const shifted = f.shuffle(
          [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23],
          f.op("i64x2.shl", high, f.i32(4 * bits)),
          f.op("i64x2.shr_u", high, f.i32(64 - 4 * bits)),
        );
        f.store("v128.store", to, 0, f.op("v128.or", f.op("v128.and", v, low), shifted));
        f.bump(to, bits);
      } else {
        join("i16x8", 1, bits);
        join("i32x4", 2, 2 * bits);
        join("i64x2", 4, 4 * bits);
        f.run(f.loadLane("v128.store64_lane", to, 0, 0, v));
        f.run(f.loadLane("v128.store64_lane", to, bits, 1, v));
        f.bump(to, 2 * bits);
      }
      f.bump(from, 16);
    });
    f.set(all, f.op("v128.or", all, f.shuffle([8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15], all, all)));
    f.run(f.op("i32.or", f.lane("i32x4.extract_lane", 0, all), f.lane("i32x4.extract_lane", 1, all)));
  });
  return m.bytes();
}

export const bits = family("bits", bitsModule);

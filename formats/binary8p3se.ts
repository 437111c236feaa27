// binary8p3se: IEEE P3109 (draft), precision 3, signed, extended: infinity = 0x7f, -infinity = 0xff.
//   s eeeee mm   bias 16 = 2^4, max 49152, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

/**
 * IEEE P3109 (draft) K8P3se: `s eeeee mm`, 8 bits; -49152 .. 49152, smallest positive 2^-17, smallest normal 2^-15;
 * 253 finite; infinities, NaN.
 * @example binary8p3se.decode(0x39) // 0.3125
 */
export const binary8p3se = /* @__PURE__ */ defineBinary8(3, "se");

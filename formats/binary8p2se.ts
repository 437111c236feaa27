// binary8p2se: IEEE P3109 (draft), precision 2, signed, extended: infinity = 0x7f, -infinity = 0xff.
//   s eeeeee m   bias 32 = 2^5, max 2.14748e+09, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

/**
 * IEEE P3109 (draft) K8P2se: `s eeeeee m`, 8 bits; -2^31 .. 2^31, smallest positive 2^-32, smallest normal 2^-31; 253
 * finite; infinities, NaN.
 * @example binary8p2se.decode(0x3c) // 0.25
 */
export const binary8p2se = /* @__PURE__ */ defineBinary8(2, "se");

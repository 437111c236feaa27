// binary8p7se: IEEE P3109 (draft), precision 7, signed, extended: infinity = 0x7f, -infinity = 0xff.
//   s e mmmmmm   bias 1 = 2^0, max 1.96875, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

/**
 * IEEE P3109 (draft) K8P7se: `s e mmmmmm`, 8 bits; -1.96875 .. 1.96875, smallest positive 0.015625, smallest normal 1;
 * 253 finite; infinities, NaN.
 * @example binary8p7se.decode(0x13) // 0.296875
 */
export const binary8p7se = /* @__PURE__ */ defineBinary8(7, "se");

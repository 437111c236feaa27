// binary8p6se: IEEE P3109 (draft), precision 6, signed, extended: infinity = 0x7f, -infinity = 0xff.
//   s ee mmmmm   bias 2 = 2^1, max 3.875, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

/**
 * IEEE P3109 (draft) K8P6se: `s ee mmmmm`, 8 bits; -3.875 .. 3.875, smallest positive 0.015625, smallest normal 0.5;
 * 253 finite; infinities, NaN.
 * @example binary8p6se.decode(0x13) // 0.296875
 */
export const binary8p6se = /* @__PURE__ */ defineBinary8(6, "se");

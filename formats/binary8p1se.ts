// binary8p1se: IEEE P3109 (draft), precision 1, signed, extended: infinity = 0x7f, -infinity = 0xff.
//   s eeeeeee   bias 64 = 2^6, max 4.61169e+18, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

/**
 * IEEE P3109 (draft) K8P1se: `s eeeeeee`, 8 bits; -2^62 .. 2^62, smallest positive 2^-63; 253 finite; infinities, NaN.
 * @example binary8p1se.decode(0x3e) // 0.25
 */
export const binary8p1se = /* @__PURE__ */ defineBinary8(1, "se");

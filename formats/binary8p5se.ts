// binary8p5se: IEEE P3109 (draft), precision 5, signed, extended: infinity = 0x7f, -infinity = 0xff.
//   s eee mmmm   bias 4 = 2^2, max 15, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

/**
 * IEEE P3109 (draft) K8P5se: `s eee mmmm`, 8 bits; -15 .. 15, smallest positive 0.0078125, smallest normal 0.125; 253
 * finite; infinities, NaN.
 * @example binary8p5se.decode(0x23) // 0.296875
 */
export const binary8p5se = /* @__PURE__ */ defineBinary8(5, "se");

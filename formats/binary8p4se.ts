// binary8p4se: IEEE P3109 (draft), precision 4, signed, extended: infinity = 0x7f, -infinity = 0xff.
//   s eeee mmm   bias 8 = 2^3, max 224, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

/**
 * IEEE P3109 (draft) K8P4se: `s eeee mmm`, 8 bits; -224 .. 224, smallest positive 0.0009765625, smallest normal
 * 0.0078125; 253 finite; infinities, NaN.
 * @example binary8p4se.decode(0x32) // 0.3125
 */
export const binary8p4se = /* @__PURE__ */ defineBinary8(4, "se");

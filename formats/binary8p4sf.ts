// binary8p4sf: IEEE P3109 (draft), precision 4, signed, finite: no infinity.
//   s eeee mmm   bias 8 = 2^3, max 240, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

/**
 * IEEE P3109 (draft) K8P4sf: `s eeee mmm`, 8 bits; -240 .. 240, smallest positive 0.0009765625, smallest normal
 * 0.0078125; 255 finite; NaN.
 * @example binary8p4sf.decode(0x32) // 0.3125
 */
export const binary8p4sf = /* @__PURE__ */ defineBinary8(4, "sf");

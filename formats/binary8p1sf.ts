// binary8p1sf: IEEE P3109 (draft), precision 1, signed, finite: no infinity.
//   s eeeeeee   bias 64 = 2^6, max 9.22337e+18, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

/**
 * IEEE P3109 (draft) K8P1sf: `s eeeeeee`, 8 bits; -2^63 .. 2^63, smallest positive 2^-63; 255 finite; NaN.
 * @example binary8p1sf.decode(0x3e) // 0.25
 */
export const binary8p1sf = /* @__PURE__ */ defineBinary8(1, "sf");

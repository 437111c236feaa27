// binary8p2sf: IEEE P3109 (draft), precision 2, signed, finite: no infinity.
//   s eeeeee m   bias 32 = 2^5, max 3.22123e+09, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

/**
 * IEEE P3109 (draft) K8P2sf: `s eeeeee m`, 8 bits; -3221225472 .. 3221225472, smallest positive 2^-32, smallest normal
 * 2^-31; 255 finite; NaN.
 * @example binary8p2sf.decode(0x3c) // 0.25
 */
export const binary8p2sf = /* @__PURE__ */ defineBinary8(2, "sf");

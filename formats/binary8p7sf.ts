// binary8p7sf: IEEE P3109 (draft), precision 7, signed, finite: no infinity.
//   s e mmmmmm   bias 1 = 2^0, max 1.98438, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

/**
 * IEEE P3109 (draft) K8P7sf: `s e mmmmmm`, 8 bits; -1.984375 .. 1.984375, smallest positive 0.015625, smallest normal
 * 1; 255 finite; NaN.
 * @example binary8p7sf.decode(0x13) // 0.296875
 */
export const binary8p7sf = /* @__PURE__ */ defineBinary8(7, "sf");

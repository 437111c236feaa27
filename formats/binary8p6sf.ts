// binary8p6sf: IEEE P3109 (draft), precision 6, signed, finite: no infinity.
//   s ee mmmmm   bias 2 = 2^1, max 3.9375, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

/**
 * IEEE P3109 (draft) K8P6sf: `s ee mmmmm`, 8 bits; -3.9375 .. 3.9375, smallest positive 0.015625, smallest normal 0.5;
 * 255 finite; NaN.
 * @example binary8p6sf.decode(0x13) // 0.296875
 */
export const binary8p6sf = /* @__PURE__ */ defineBinary8(6, "sf");

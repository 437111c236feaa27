// binary8p5sf: IEEE P3109 (draft), precision 5, signed, finite: no infinity.
//   s eee mmmm   bias 4 = 2^2, max 15.5, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

/**
 * IEEE P3109 (draft) K8P5sf: `s eee mmmm`, 8 bits; -15.5 .. 15.5, smallest positive 0.0078125, smallest normal 0.125;
 * 255 finite; NaN.
 * @example binary8p5sf.decode(0x23) // 0.296875
 */
export const binary8p5sf = /* @__PURE__ */ defineBinary8(5, "sf");

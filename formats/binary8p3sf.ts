// binary8p3sf: IEEE P3109 (draft), precision 3, signed, finite: no infinity.
//   s eeeee mm   bias 16 = 2^4, max 57344, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

/**
 * IEEE P3109 (draft) K8P3sf: `s eeeee mm`, 8 bits; -57344 .. 57344, smallest positive 2^-17, smallest normal 2^-15;
 * 255 finite; NaN.
 * @example binary8p3sf.decode(0x39) // 0.3125
 */
export const binary8p3sf = /* @__PURE__ */ defineBinary8(3, "sf");

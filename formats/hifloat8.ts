// hifloat8: 8 bits with a prefix code for the width of the exponent: 3 mantissa bits around 1, 1 at the ends (Huawei
// Ascend).
//   s dot e m   range 2^-22 .. 2^15, NaN = 0x80, infinity = 0x6f and 0xef; no -0
import { defineHifloat8 } from "./define/hifloat.ts";

/**
 * Ascend HiFloat8 (arXiv 2409.16626): `s ddddddd`, 8 bits; -32768 .. 32768, smallest positive 2^-22, smallest normal
 * 2^-15; 253 finite; infinities, NaN.
 * @example hifloat8.decode(0x32) // 0.3125
 */
export const hifloat8 = /* @__PURE__ */ defineHifloat8();

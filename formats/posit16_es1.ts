// posit16_es1: 16-bit posit with 1 exponent bit (2018 draft).
//   s r..r e f..f   maxpos 2^28, minpos 2^-28, NaR = 1 followed by zeros
import { definePosit } from "./define/posit.ts";

/**
 * posit with es exponent bits, 2018 draft of the posit standard: `s rrrrrrrrrrrrrrr`, 16 bits; -2^28 .. 2^28, smallest
 * positive 2^-28; 65535 finite; NaN.
 * @example posit16_es1.decode(0x2333) // 0.29998779296875
 */
export const posit16_es1 = /* @__PURE__ */ definePosit({ bits: 16, es: 1 });

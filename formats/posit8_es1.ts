// posit8_es1: 8-bit posit with 1 exponent bit (2018 style).
//   s r..r e f..f   maxpos 2^12, minpos 2^-12, NaR = 1 followed by zeros
import { definePosit } from "./define/posit.ts";

/**
 * posit with es exponent bits, 2018 draft of the posit standard: `s rrrrrrr`, 8 bits; -4096 .. 4096, smallest positive
 * 2^-12; 255 finite; NaN.
 * @example posit8_es1.decode(0x23) // 0.296875
 */
export const posit8_es1 = /* @__PURE__ */ definePosit({ bits: 8, es: 1 });

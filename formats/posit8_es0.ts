// posit8_es0: 8-bit posit with 0 exponent bits (2018 draft).
//   s r..r f..f   maxpos 2^6, minpos 2^-6, NaR = 1 followed by zeros
import { definePosit } from "./define/posit.ts";

/**
 * posit with es exponent bits, 2018 draft of the posit standard: `s rrrrrrr`, 8 bits; -64 .. 64, smallest positive
 * 0.015625; 255 finite; NaN.
 * @example posit8_es0.decode(0x13) // 0.296875
 */
export const posit8_es0 = /* @__PURE__ */ definePosit({ bits: 8, es: 0 });

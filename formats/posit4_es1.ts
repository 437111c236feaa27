// posit4_es1: 4-bit posit with 1 exponent bit (XR-NPE).
//   s r..r e f..f   maxpos 2^4, minpos 2^-4, NaR = 1 followed by zeros
import { definePosit } from "./define/posit.ts";

/**
 * posit with es exponent bits, 2018 draft of the posit standard: `s rrr`, 4 bits; -16 .. 16, smallest positive 0.0625;
 * 15 finite; NaN.
 * @example posit4_es1.decode(0x2) // 0.25
 */
export const posit4_es1 = /* @__PURE__ */ definePosit({ bits: 4, es: 1 });

// posit8_es2: 8-bit posit with 2 exponent bits (Posit Standard 2022).
//   s r..r ee f..f   maxpos 2^24, minpos 2^-24, NaR = 1 followed by zeros
import { definePosit } from "./define/posit.ts";

/**
 * Posit Standard 2022: `s rrrrrrr`, 8 bits; -2^24 .. 2^24, smallest positive 2^-24; 255 finite; NaN.
 * @example posit8_es2.decode(0x32) // 0.3125
 */
export const posit8_es2 = /* @__PURE__ */ definePosit({ bits: 8, es: 2, aliases: ["posit8"] });

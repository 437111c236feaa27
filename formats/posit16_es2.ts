// posit16_es2: 16-bit posit with 2 exponent bits (Posit Standard 2022).
//   s r..r ee f..f   maxpos 2^56, minpos 2^-56, NaR = 1 followed by zeros
import { definePosit } from "./define/posit.ts";

/**
 * Posit Standard 2022: `s rrrrrrrrrrrrrrr`, 16 bits; -2^56 .. 2^56, smallest positive 2^-56; 65535 finite; NaN.
 * @example posit16_es2.decode(0x319a) // 0.300048828125
 */
export const posit16_es2 = /* @__PURE__ */ definePosit({ bits: 16, es: 2, aliases: ["posit16"] });

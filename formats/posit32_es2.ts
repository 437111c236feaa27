// posit32_es2: 32-bit posit with 2 exponent bits (Posit Standard 2022).
//   s r..r ee f..f   maxpos 2^120, minpos 2^-120, NaR = 1 followed by zeros
import { definePosit } from "./define/posit.ts";

/**
 * Posit Standard 2022: `s rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr`, 32 bits; -2^120 .. 2^120, smallest positive 2^-120;
 * 4294967295 finite; NaN.
 * @example posit32_es2.decode(0x3199999a) // 0.30000000074505806
 */
export const posit32_es2 = /* @__PURE__ */ definePosit({ bits: 32, es: 2, aliases: ["posit32"] });

// posit8_es2: 8-bit posit with 2 exponent bits (Posit Standard 2022).
//   s r..r ee f..f   maxpos 2^24, minpos 2^-24, NaR = 1 followed by zeros
import { definePosit } from "./define/posit.ts";

export const posit8_es2 = /* @__PURE__ */ definePosit({ bits: 8, es: 2, aliases: ["posit8"] });

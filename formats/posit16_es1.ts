// posit16_es1: 16-bit posit with 1 exponent bit (2018 draft).
//   s r..r e f..f   maxpos 2^28, minpos 2^-28, NaR = 1 followed by zeros
import { definePosit } from "./define/posit.ts";

export const posit16_es1 = /* @__PURE__ */ definePosit({ bits: 16, es: 1 });

// posit8_es0: 8-bit posit with 0 exponent bits (2018 draft).
//   s r..r f..f   maxpos 2^6, minpos 2^-6, NaR = 1 followed by zeros
import { definePosit } from "./define/posit.ts";

export const posit8_es0 = /* @__PURE__ */ definePosit({ bits: 8, es: 0 });

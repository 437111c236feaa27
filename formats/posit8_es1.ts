// posit8_es1: 8-bit posit with 1 exponent bit (2018 style).
//   s r..r e f..f   maxpos 2^12, minpos 2^-12, NaR = 1 followed by zeros
import { definePosit } from "./define/posit.ts";

export const posit8_es1 = /* @__PURE__ */ definePosit({ bits: 8, es: 1 });

// posit4_es1: 4-bit posit with 1 exponent bit (XR-NPE).
//   s r..r e f..f   maxpos 2^4, minpos 2^-4, NaR = 1 followed by zeros
import { definePosit } from "./define/posit.ts";

export const posit4_es1 = /* @__PURE__ */ definePosit({ bits: 4, es: 1 });

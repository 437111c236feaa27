// hifloat8: 8 bits with a prefix code for the width of the exponent: 3 mantissa bits around 1, 1 at the ends (Huawei
// Ascend).
//   s dot e m   range 2^-22 .. 2^15, NaN = 0x80, infinity = 0x6f and 0xef; no -0
import { defineHifloat8 } from "./define/hifloat.ts";

export const hifloat8 = /* @__PURE__ */ defineHifloat8();

// float6_e2m3fn: OCP MX v1.0 FP6 E2M3.
//   s ee mmm   bias 1, max 7.5 = 1.875 * 2^2, step 0.125 below 2, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * OCP MX v1.0 FP6 E2M3; ml_dtypes float6_e2m3fn: `s ee mmm`, 6 bits; -7.5 .. 7.5, smallest positive 0.125, smallest
 * normal 1; 63 finite; -0.
 * @example float6_e2m3fn.decode(0x02) // 0.25
 */
export const float6_e2m3fn = /* @__PURE__ */ defineFloat({
  name: "float6_e2m3fn",
  aliases: ["e2m3", "e2m3fn", "fp6_e2m3", "float6_e2m3"],
  exponentBits: 2,
  mantissaBits: 3,
  bias: 1,
  specials: "finite",
  spec: "OCP MX v1.0 FP6 E2M3; ml_dtypes float6_e2m3fn",
});

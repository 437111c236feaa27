// float6_e3m2fn: OCP MX v1.0 FP6 E3M2.
//   s eee mm   bias 3, max 28 = 1.75 * 2^4, smallest 0.0625, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * OCP MX v1.0 FP6 E3M2; ml_dtypes float6_e3m2fn: `s eee mm`, 6 bits; -28 .. 28, smallest positive 0.0625, smallest
 * normal 0.25; 63 finite; -0.
 * @example float6_e3m2fn.decode(0x05) // 0.3125
 */
export const float6_e3m2fn = /* @__PURE__ */ defineFloat({
  name: "float6_e3m2fn",
  aliases: ["e3m2", "e3m2fn", "fp6_e3m2", "float6_e3m2"],
  exponentBits: 3,
  mantissaBits: 2,
  bias: 3,
  specials: "finite",
  spec: "OCP MX v1.0 FP6 E3M2; ml_dtypes float6_e3m2fn",
});

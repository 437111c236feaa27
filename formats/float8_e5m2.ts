// float8_e5m2: OCP OFP8 E5M2.
//   s eeeee mm   bias 15, max 57344 = 1.75 * 2^15, infinity 0x7c, NaN 0x7d..0x7f
import { defineFloat } from "./define/float.ts";

/**
 * OCP OFP8 E5M2; ml_dtypes float8_e5m2; ONNX FLOAT8E5M2: `s eeeee mm`, 8 bits; -57344 .. 57344, smallest positive
 * 2^-16, smallest normal 2^-14; 247 finite; -0, infinities, NaN.
 * @example float8_e5m2.decode(0x35) // 0.3125
 */
export const float8_e5m2 = /* @__PURE__ */ defineFloat({
  name: "float8_e5m2",
  aliases: ["e5m2", "float8e5m2", "fp8_e5m2", "f8_e5m2"],
  exponentBits: 5,
  mantissaBits: 2,
  bias: 15,
  specials: "ieee",
  spec: "OCP OFP8 E5M2; ml_dtypes float8_e5m2; ONNX FLOAT8E5M2",
  onnx: 19,
});

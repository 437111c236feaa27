// float8_e4m3fn: OCP OFP8 E4M3.
//   s eeee mmm   bias 7, max 448 = 1.75 * 2^8, NaN = s.1111.111, no infinity
import { defineFloat } from "./define/float.ts";

/**
 * OCP OFP8 E4M3; ml_dtypes float8_e4m3fn; ONNX FLOAT8E4M3FN: `s eeee mmm`, 8 bits; -448 .. 448, smallest positive
 * 0.001953125, smallest normal 0.015625; 253 finite; -0, NaN.
 * @example float8_e4m3fn.decode(0x2a) // 0.3125
 */
export const float8_e4m3fn = /* @__PURE__ */ defineFloat({
  name: "float8_e4m3fn",
  aliases: ["e4m3fn", "e4m3", "float8e4m3fn", "fp8_e4m3", "f8_e4m3"],
  exponentBits: 4,
  mantissaBits: 3,
  bias: 7,
  specials: "fn",
  spec: "OCP OFP8 E4M3; ml_dtypes float8_e4m3fn; ONNX FLOAT8E4M3FN",
  onnx: 17,
});

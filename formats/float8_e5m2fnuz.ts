// float8_e5m2fnuz: ml_dtypes float8_e5m2fnuz.
//   s eeeee mm   bias 16, max 57344 = 1.75 * 2^15, NaN = 0x80, no infinity, no -0
import { defineFloat } from "./define/float.ts";

/**
 * ml_dtypes float8_e5m2fnuz; ONNX FLOAT8E5M2FNUZ (Graphcore, AMD): `s eeeee mm`, 8 bits; -57344 .. 57344, smallest
 * positive 2^-17, smallest normal 2^-15; 255 finite; NaN.
 * @example float8_e5m2fnuz.decode(0x39) // 0.3125
 */
export const float8_e5m2fnuz = /* @__PURE__ */ defineFloat({
  name: "float8_e5m2fnuz",
  aliases: ["e5m2fnuz", "float8e5m2fnuz", "f8_e5m2fnuz"],
  exponentBits: 5,
  mantissaBits: 2,
  bias: 16,
  specials: "fnuz",
  spec: "ml_dtypes float8_e5m2fnuz; ONNX FLOAT8E5M2FNUZ (Graphcore, AMD)",
  onnx: 20,
});

// float8_e4m3fnuz: ml_dtypes float8_e4m3fnuz.
//   s eeee mmm   bias 8, max 240 = 1.875 * 2^7, NaN = 0x80, no infinity, no -0
import { defineFloat } from "./define/float.ts";

/**
 * ml_dtypes float8_e4m3fnuz; ONNX FLOAT8E4M3FNUZ (Graphcore, AMD): `s eeee mmm`, 8 bits; -240 .. 240, smallest
 * positive 0.0009765625, smallest normal 0.0078125; 255 finite; NaN.
 * @example float8_e4m3fnuz.decode(0x32) // 0.3125
 */
export const float8_e4m3fnuz = /* @__PURE__ */ defineFloat({
  name: "float8_e4m3fnuz",
  aliases: ["e4m3fnuz", "float8e4m3fnuz", "f8_e4m3fnuz"],
  exponentBits: 4,
  mantissaBits: 3,
  bias: 8,
  specials: "fnuz",
  spec: "ml_dtypes float8_e4m3fnuz; ONNX FLOAT8E4M3FNUZ (Graphcore, AMD)",
  onnx: 18,
});

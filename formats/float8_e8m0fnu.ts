// float8_e8m0fnu: OCP MX v1.0 E8M0, the shared scale of microscaling blocks: a power of two, no sign, no zero, no
// infinity.
//   eeeeeeee   value 2^(e-127): 2^-127 (code 0, a float32 subnormal) .. 2^127 (0xfe); NaN = 0xff
// Ties round up, as ml_dtypes and ONNX "nearest" do. Zero and negative values are out of range: NaN by default, code 0
// when saturating.
import { defineFloat } from "./define/float.ts";

/**
 * OCP MX v1.0 E8M0; ml_dtypes float8_e8m0fnu; ONNX FLOAT8E8M0: `eeeeeeee`, 8 bits; 2^-127 .. 2^127, smallest positive
 * 2^-127; 255 finite; NaN, no zero.
 * @example float8_e8m0fnu.decode(0x7d) // 0.25
 */
export const float8_e8m0fnu = /* @__PURE__ */ defineFloat({
  name: "float8_e8m0fnu",
  aliases: ["e8m0", "ue8m0", "e8m0fnu", "float8e8m0", "f8_e8m0"],
  exponentBits: 8,
  mantissaBits: 0,
  bias: 127,
  specials: "fn",
  signed: false,
  subnormals: false,
  spec: "OCP MX v1.0 E8M0; ml_dtypes float8_e8m0fnu; ONNX FLOAT8E8M0",
  onnx: 24,
  defaults: { rounding: "halfCeil" },
});

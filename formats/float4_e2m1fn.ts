// float4_e2m1fn: OCP MX v1.0 FP4 E2M1.
//   s ee m   bias 1: 0 0.5 1 1.5 2 3 4 6 and their negatives, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * OCP MX v1.0 FP4 E2M1; ml_dtypes float4_e2m1fn; ONNX FLOAT4E2M1: `s ee m`, 4 bits; -6 .. 6, smallest positive 0.5,
 * smallest normal 1; 15 finite; -0.
 * @example float4_e2m1fn.decode(0x1) // 0.5
 */
export const float4_e2m1fn = /* @__PURE__ */ defineFloat({
  name: "float4_e2m1fn",
  aliases: ["e2m1", "e2m1fn", "float4e2m1", "float4_e2m1", "fp4_e2m1"],
  exponentBits: 2,
  mantissaBits: 1,
  bias: 1,
  specials: "finite",
  spec: "OCP MX v1.0 FP4 E2M1; ml_dtypes float4_e2m1fn; ONNX FLOAT4E2M1",
  onnx: 23,
});

// msfp12: Microsoft floating point, 12-bit: a block of 16 sign-magnitude fractions under one 8-bit exponent.
//   s mmm, exponent E8M0 per 16: 4.5 bits per value The element is float4_e1m2, a uniform grid -3.5..3.5 in steps of
//   0.5, and the scale 2^(floor(log2 amax) - 1): amax has its leading one in the top mantissa bit. Rounds to nearest,
//   ties to even; the largest magnitudes saturate. Not the "MX" of shared microexponents.
import { defineBlock } from "./define/block.ts";
import { float4_e1m2 } from "./float4_e1m2.ts";
import { float8_e8m0fnu } from "./float8_e8m0fnu.ts";

/**
 * Microsoft Floating Point (Darvish Rouhani et al., NeurIPS 2020): float4_e1m2 under float8_e8m0fnu per 16 elements;
 * 4.5 bits per value.
 * @example quantize(tensor(values, [rows, k]), msfp12)
 */
export const msfp12 = /* @__PURE__ */ defineBlock({
  name: "msfp12",
  aliases: ["bfp12"],
  element: float4_e1m2,
  scales: [{ format: float8_e8m0fnu, span: 16 }],
  scaleRule: "floor",
  nonFinite: "scale",
  spec: "Microsoft Floating Point (Darvish Rouhani et al., NeurIPS 2020)",
});

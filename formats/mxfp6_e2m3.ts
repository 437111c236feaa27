// mxfp6_e2m3: OCP MX v1.0, blocks of 32 along k with a shared power of two.
//   element float6_e2m3fn (max 7.5), scale E8M0 per 32: 6.25 bits per value Scale rule "floor" (OCP 6.3): 2^(floor(log2
//   amax) - 2), found from the bits; larger elements saturate. An all-zero block gets scale code 0; NaN or infinity in
//   a block makes its scale NaN (0xff). Other rules: ceil, rceil, even, mse, quest.
import { defineBlock } from "./define/block.ts";
import { float6_e2m3fn } from "./float6_e2m3fn.ts";
import { float8_e8m0fnu } from "./float8_e8m0fnu.ts";

/**
 * OCP Microscaling Formats (MX) v1.0: float6_e2m3fn under float8_e8m0fnu per 32 elements; 6.25 bits per value.
 * @example quantize(tensor(values, [rows, k]), mxfp6_e2m3)
 */
export const mxfp6_e2m3 = /* @__PURE__ */ defineBlock({
  name: "mxfp6_e2m3",
  aliases: ["mxfp6"],
  element: float6_e2m3fn,
  scales: [{ format: float8_e8m0fnu, span: 32 }],
  scaleRule: "floor",
  nonFinite: "scale",
  spec: "OCP Microscaling Formats (MX) v1.0",
});

// mxfp8_e4m3: OCP MX v1.0, blocks of 32 along k with a shared power of two.
//   element float8_e4m3fn (max 448), scale E8M0 per 32: 8.25 bits per value Scale rule "floor" (OCP 6.3): 2^(floor(log2
//   amax) - 8), found from the bits; larger elements saturate. An all-zero block gets scale code 0; NaN or infinity in
//   a block makes its scale NaN (0xff). Other rules: ceil, rceil, even, mse, quest.
import { defineBlock } from "./define/block.ts";
import { float8_e4m3fn } from "./float8_e4m3fn.ts";
import { float8_e8m0fnu } from "./float8_e8m0fnu.ts";

/**
 * OCP Microscaling Formats (MX) v1.0: float8_e4m3fn under float8_e8m0fnu per 32 elements; 8.25 bits per value.
 * @example quantize(tensor(values, [rows, k]), mxfp8_e4m3)
 */
export const mxfp8_e4m3 = /* @__PURE__ */ defineBlock({
  name: "mxfp8_e4m3",
  aliases: ["mxfp8"],
  element: float8_e4m3fn,
  scales: [{ format: float8_e8m0fnu, span: 32 }],
  scaleRule: "floor",
  nonFinite: "scale",
  spec: "OCP Microscaling Formats (MX) v1.0",
});

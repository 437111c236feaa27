// mxfp8_e5m2: OCP MX v1.0, blocks of 32 along k with a shared power of two.
//   element float8_e5m2 (max 57344), scale E8M0 per 32: 8.25 bits per value Scale rule "floor" (OCP 6.3): 2^(floor(log2
//   amax) - 15), found from the bits; larger elements saturate. An all-zero block gets scale code 0; NaN or infinity in
//   a block makes its scale NaN (0xff). Other rules: ceil, rceil, even, mse, quest.
import { defineBlock } from "./define/block.ts";
import { float8_e5m2 } from "./float8_e5m2.ts";
import { float8_e8m0fnu } from "./float8_e8m0fnu.ts";

/**
 * OCP Microscaling Formats (MX) v1.0: float8_e5m2 under float8_e8m0fnu per 32 elements; 8.25 bits per value.
 * @example quantize(tensor(values, [rows, k]), mxfp8_e5m2)
 */
export const mxfp8_e5m2 = /* @__PURE__ */ defineBlock({
  name: "mxfp8_e5m2",
  aliases: [],
  element: float8_e5m2,
  scales: [{ format: float8_e8m0fnu, span: 32 }],
  scaleRule: "floor",
  nonFinite: "scale",
  spec: "OCP Microscaling Formats (MX) v1.0",
});

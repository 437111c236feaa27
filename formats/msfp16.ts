// msfp16: Microsoft floating point, 16-bit: a block of 16 sign-magnitude fractions of 7 bits under one 8-bit exponent.
//   s mmmmmmm, exponent E8M0 per 16: 8.5 bits per value The element is a float8 with one exponent bit: a uniform grid
//   -3.96875..3.96875 in steps of 1/32, with the scale 2^(floor(log2 amax) - 1), as msfp12.
import { defineBlock } from "./define/block.ts";
import { defineFloat } from "./define/float.ts";
import { float8_e8m0fnu } from "./float8_e8m0fnu.ts";

/**
 * Microsoft Floating Point (Darvish Rouhani et al., NeurIPS 2020): float8_e1m6 under float8_e8m0fnu per 16 elements;
 * 8.5 bits per value.
 * @example quantize(tensor(values, [rows, k]), msfp16)
 */
export const msfp16 = /* @__PURE__ */ defineBlock({
  name: "msfp16",
  aliases: ["bfp16"],
  element: /* @__PURE__ */ defineFloat({ name: "float8_e1m6", exponentBits: 1, mantissaBits: 6, bias: 0, specials: "finite" }),
  scales: [{ format: float8_e8m0fnu, span: 16 }],
  scaleRule: "floor",
  nonFinite: "scale",
  spec: "Microsoft Floating Point (Darvish Rouhani et al., NeurIPS 2020)",
});

// mxint8: OCP MX v1.0, integers in blocks of 32 along k with a shared power of two.
//   element two's complement integer / 2^6 (max 127/64; the most negative code is never produced, and decodes), scale
//   E8M0 per 32: 8.25 bits per value Scale rule "floor": 2^floor(log2 amax); what lies between the largest element and
//   2 saturates. Rule "rceil" never saturates ("INT v.s. FP" eq. 9). An all-zero block gets scale code 0; NaN or
//   infinity in a block makes its scale NaN (0xff).
import { defineBlock } from "./define/block.ts";
import { defineFixed } from "./define/fixed.ts";
import { float8_e8m0fnu } from "./float8_e8m0fnu.ts";

/**
 * OCP Microscaling Formats (MX) v1.0: fixed8_f6 under float8_e8m0fnu per 32 elements; 8.25 bits per value.
 * @example quantize(tensor(values, [rows, k]), mxint8)
 */
export const mxint8 = /* @__PURE__ */ defineBlock({
  name: "mxint8",
  element: /* @__PURE__ */ defineFixed({ bits: 8, fraction: 6 }),
  scales: [{ format: float8_e8m0fnu, span: 32 }],
  scaleRule: "floor",
  nonFinite: "scale",
  spec: "OCP Microscaling Formats (MX) v1.0",
});

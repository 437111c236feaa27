// mxint4: four-bit integers in blocks of 32 along k with a shared power of two, as MXINT8.
//   element two's complement integer / 2^2 (max 7/4; the most negative code is never produced, and decodes), scale E8M0
//   per 32: 4.25 bits per value Scale rule "floor": 2^floor(log2 amax); what lies between the largest element and 2
//   saturates. Rule "rceil" never saturates ("INT v.s. FP" eq. 9). An all-zero block gets scale code 0; NaN or infinity
//   in a block makes its scale NaN (0xff).
import { defineBlock } from "./define/block.ts";
import { defineFixed } from "./define/fixed.ts";
import { float8_e8m0fnu } from "./float8_e8m0fnu.ts";

/**
 * INT v.s. FP (arXiv 2510.25602), Table 1: fixed4_f2 under float8_e8m0fnu per 32 elements; 4.25 bits per value.
 * @example quantize(tensor(values, [rows, k]), mxint4)
 */
export const mxint4 = /* @__PURE__ */ defineBlock({
  name: "mxint4",
  element: /* @__PURE__ */ defineFixed({ bits: 4, fraction: 2 }),
  scales: [{ format: float8_e8m0fnu, span: 32 }],
  scaleRule: "floor",
  nonFinite: "scale",
  spec: "INT v.s. FP (arXiv 2510.25602), Table 1",
});

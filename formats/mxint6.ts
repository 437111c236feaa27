// mxint6: six-bit integers in blocks of 32 along k with a shared power of two, as MXINT8.
//   element two's complement integer / 2^4 (max 31/16; the most negative code is never produced, and decodes), scale
//   E8M0 per 32: 6.25 bits per value Scale rule "floor": 2^floor(log2 amax); what lies between the largest element and
//   2 saturates. Rule "rceil" never saturates ("INT v.s. FP" eq. 9). An all-zero block gets scale code 0; NaN or
//   infinity in a block makes its scale NaN (0xff).
import { defineBlock } from "./define/block.ts";
import { defineFixed } from "./define/fixed.ts";
import { float8_e8m0fnu } from "./float8_e8m0fnu.ts";

/**
 * INT v.s. FP (arXiv 2510.25602), Table 1: fixed6_f4 under float8_e8m0fnu per 32 elements; 6.25 bits per value.
 * @example quantize(tensor(values, [rows, k]), mxint6)
 */
export const mxint6 = /* @__PURE__ */ defineBlock({
  name: "mxint6",
  element: /* @__PURE__ */ defineFixed({ bits: 6, fraction: 4 }),
  scales: [{ format: float8_e8m0fnu, span: 32 }],
  scaleRule: "floor",
  nonFinite: "scale",
  spec: "INT v.s. FP (arXiv 2510.25602), Table 1",
});

// dfp16: dynamic fixed point: a whole tensor of 16-bit integers under one shared exponent.
//   16-bit two's complement -32767..32767, exponent E8M0 per tensor: 16 bits per value Exponent floor(log2 amax) - 14,
//   so that the largest magnitude lies in 2^14..2^15. One outlier costs the small values their bits. Products fit 31
//   bits: `dotInt16` sums them without overflow.
import { defineBlock } from "./define/block.ts";
import { defineInt } from "./define/int.ts";
import { float8_e8m0fnu } from "./float8_e8m0fnu.ts";

/**
 * Mixed Precision Training of CNNs using Integer Operations (arXiv 1802.00930): int16 under float8_e8m0fnu per tensor;
 * 16 bits per value.
 * @example quantize(tensor(values, [rows, k]), dfp16)
 */
export const dfp16 = /* @__PURE__ */ defineBlock({
  name: "dfp16",
  element: /* @__PURE__ */ defineInt({ bits: 16, signed: true }),
  scales: [{ format: float8_e8m0fnu, span: "tensor" }],
  scaleRule: "floor",
  nonFinite: "error",
  spec: "Mixed Precision Training of CNNs using Integer Operations (arXiv 1802.00930)",
});

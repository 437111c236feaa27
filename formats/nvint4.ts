// nvint4: four-bit integers -7..7 with the scales of nvfp4.
//   siii, scale E4M3 per 16, float32 per tensor: 4.5 bits per value     value = element * block scale * tensor scale
// tensor scale = amax / (448 * 7); block scale = E4M3(block amax / 7 / tensor scale), clamped below at 2^-6.
import { defineBlock } from "./define/block.ts";
import { float32 } from "./float32.ts";
import { float8_e4m3fn } from "./float8_e4m3fn.ts";
import { int4 } from "./int4.ts";

/**
 * INT v.s. FP (arXiv 2510.25602), Table 1: int4 under float8_e4m3fn per 16 elements, then float32 per tensor; 4.5 bits
 * per value.
 * @example quantize(tensor(values, [rows, k]), nvint4)
 */
export const nvint4 = /* @__PURE__ */ defineBlock({
  name: "nvint4",
  element: int4,
  scales: [
    { format: float8_e4m3fn, span: 16 },
    { format: float32, span: "tensor" },
  ],
  scaleRule: "torchao",
  spec: "INT v.s. FP (arXiv 2510.25602), Table 1",
});

// mxfp4_fourthirds: E2M1 in blocks of 32 with scale (4/3) 2^(floor(log2 amax) - 2), as MR-GPTQ and Quartet files
// have it.
//   s ee m, scale E8M0 per 32 = 2^floor(log2 amax), one float32 1/3 per tensor: 4.25 bits per value
//   value = element * scale / 3
// The largest magnitude of a block lies in 3..6 of the element: nothing saturates. The scale bytes are not those of OCP
// mxfp4.
import { defineBlock } from "./define/block.ts";
import { float32 } from "./float32.ts";
import { float4_e2m1fn } from "./float4_e2m1fn.ts";
import { float8_e8m0fnu } from "./float8_e8m0fnu.ts";

/**
 * MR-GPTQ (arXiv 2509.23202), FP-Quant abs_max: float4_e2m1fn under float8_e8m0fnu per 32 elements, then float32 per
 * tensor; 4.25 bits per value.
 * @example quantize(tensor(values, [rows, k]), mxfp4_fourthirds)
 */
export const mxfp4_fourthirds = /* @__PURE__ */ defineBlock({
  name: "mxfp4_fourthirds",
  element: float4_e2m1fn,
  scales: [
    { format: float8_e8m0fnu, span: 32 },
    { format: float32, span: "tensor" },
  ],
  scaleRule: "fourThirds",
  nonFinite: "scale",
  spec: "MR-GPTQ (arXiv 2509.23202), FP-Quant abs_max",
});

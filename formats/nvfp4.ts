// nvfp4: NVIDIA's FP4: E2M1 in blocks of 16 along k, an E4M3 scale per block and a float32 scale per tensor.
//   s ee m, scale E4M3 per 16, float32 per tensor: 4.5 bits per value     value = element * block scale * tensor scale
// tensor scale = amax / (448 * 6); block scale = E4M3(block amax / 6 / tensor scale), by default as torchao has it:
// clamped below at 2^-6, codes from
// float32 products with reciprocals. Rules "te" (no clamp), "modelopt", "mse", "fourOverSix", "max".
import { defineBlock } from "./define/block.ts";
import { float32 } from "./float32.ts";
import { float4_e2m1fn } from "./float4_e2m1fn.ts";
import { float8_e4m3fn } from "./float8_e4m3fn.ts";

/**
 * NVIDIA NVFP4; torchao nvfp4_quantize: float4_e2m1fn under float8_e4m3fn per 16 elements, then float32 per tensor;
 * 4.5 bits per value.
 * @example quantize(tensor(values, [rows, k]), nvfp4)
 */
export const nvfp4 = /* @__PURE__ */ defineBlock({
  name: "nvfp4",
  element: float4_e2m1fn,
  scales: [
    { format: float8_e4m3fn, span: 16 },
    { format: float32, span: "tensor" },
  ],
  scaleRule: "torchao",
  spec: "NVIDIA NVFP4; torchao nvfp4_quantize",
});

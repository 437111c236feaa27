// nf4_b64: NF4 in blocks of 64 with a float32 absmax, as QLoRA without double quantization.
//   iiii, scale float32 per 64: 4.5 bits per value     value = level * absmax
import { defineBlock } from "./define/block.ts";
import { float32 } from "./float32.ts";
import { nf4 } from "./nf4.ts";

/**
 * QLoRA (arXiv 2305.14314); bitsandbytes NF4, block size 64: nf4 under float32 per 64 elements; 4.5 bits per value.
 * @example quantize(tensor(values, [rows, k]), nf4_b64)
 */
export const nf4_b64 = /* @__PURE__ */ defineBlock({
  element: nf4,
  scales: [{ format: float32, span: 64 }],
  spec: "QLoRA (arXiv 2305.14314); bitsandbytes NF4, block size 64",
});

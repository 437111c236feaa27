// nf4_b64_dq: NF4 in blocks of 64 whose scales are quantized again (QLoRA's double quantization, as bitsandbytes ships
// it).
//   iiii, scale dynamic8 per 64, float32 per 16384, float32 mean per tensor: 4.127 bits per value
//   value = level * (dynamic8 * scale + mean) The mean of all absmax is taken out, the rest is quantized in runs of 256
//   with the signed dynamic map. Runs start anew with every row (bitsandbytes flattens the tensor; the same where 16384
//   divides k). Codes are found with the scales as stored.
import { defineBlock } from "./define/block.ts";
import { dynamic8 } from "./dynamic8.ts";
import { float32 } from "./float32.ts";
import { nf4 } from "./nf4.ts";

/**
 * QLoRA (arXiv 2305.14314) 3; bitsandbytes compress_statistics: nf4 under dynamic8 per 64 elements, then float32 per
 * 16384 elements; 4.1328 bits per value.
 * @example quantize(tensor(values, [rows, k]), nf4_b64_dq)
 */
export const nf4_b64_dq = /* @__PURE__ */ defineBlock({
  name: "nf4_b64_dq",
  aliases: ["nf4_dq"],
  element: nf4,
  scales: [
    { format: dynamic8, span: 64 },
    { format: float32, span: 64 * 256 },
  ],
  offset: { role: "mean", levels: [{ format: float32, span: "tensor" }] },
  spec: "QLoRA (arXiv 2305.14314) 3; bitsandbytes compress_statistics",
});

// ggml_q5_0: 32 elements in 22 bytes, 5.5 bits per value.
//   d:f16  qh:u32  qs[16]     q(j) = nibble j | bit j of qh << 4     value = (q - 16) * d
// d = (signed value of largest magnitude) / -16.
import { defineGgmlSplit } from "./define/ggml.ts";
import { int5 } from "./int5.ts";

/**
 * ggml Q5_0 (type 6); ggml-quants.c: 32 values in 22 bytes, 5.5 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_q5_0)
 */
export const ggml_q5_0 = /* @__PURE__ */ defineGgmlSplit({
  name: "ggml_q5_0",
  aliases: ["q5_0", "gguf_q5_0"],
  spec: "Q5_0 (type 6)",
  gguf: 6,
  element: int5,
});

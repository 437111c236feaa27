// ggml_q5_1: 32 elements in 24 bytes, 6 bits per value.
//   d:f16  m:f16  qh:u32  qs[16]     q(j) = nibble j | bit j of qh << 4     value = q * d + m
// m = minimum, d = (maximum - minimum) / 31.
import { defineGgmlSplit } from "./define/ggml.ts";
import { uint5 } from "./uint5.ts";

/**
 * ggml Q5_1 (type 7); ggml-quants.c: 32 values in 24 bytes, 6 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_q5_1)
 */
export const ggml_q5_1 = /* @__PURE__ */ defineGgmlSplit({
  name: "ggml_q5_1",
  aliases: ["q5_1", "gguf_q5_1"],
  spec: "Q5_1 (type 7)",
  gguf: 7,
  element: uint5,
});

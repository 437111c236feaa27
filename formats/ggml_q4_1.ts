// ggml_q4_1: 32 elements in 20 bytes, 5 bits per value.
//   d:f16  m:f16  qs[16]     qs[j] = q(j) | q(j+16) << 4     value = q * d + m
// m = minimum, d = (maximum - minimum) / 15.
import { defineGgmlSplit } from "./define/ggml.ts";
import { uint4 } from "./uint4.ts";

/**
 * ggml Q4_1 (type 3); ggml-quants.c: 32 values in 20 bytes, 5 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_q4_1)
 */
export const ggml_q4_1 = /* @__PURE__ */ defineGgmlSplit({
  name: "ggml_q4_1",
  aliases: ["q4_1", "gguf_q4_1"],
  spec: "Q4_1 (type 3)",
  gguf: 3,
  element: uint4,
});

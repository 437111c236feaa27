// ggml_q4_0: 32 elements in 18 bytes, 4.5 bits per value.
//   d:f16  qs[16]     qs[j] = q(j) | q(j+16) << 4     value = (q - 8) * d
// d = (signed value of largest magnitude) / -8, so that the extreme is reached exactly and d may be negative.
import { defineGgmlSplit } from "./define/ggml.ts";
import { int4 } from "./int4.ts";

/**
 * ggml Q4_0 (type 2); ggml-quants.c: 32 values in 18 bytes, 4.5 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_q4_0)
 */
export const ggml_q4_0 = /* @__PURE__ */ defineGgmlSplit({
  name: "ggml_q4_0",
  aliases: ["q4_0", "gguf_q4_0"],
  spec: "Q4_0 (type 2)",
  gguf: 2,
  element: int4,
});

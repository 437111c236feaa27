// bfloat16: bfloat16: the upper half of IEEE binary32.
//   s eeeeeeee mmmmmmm   bias 127, max 3.3895314e38 = (2 - 2^-7) * 2^127
import { defineFloat } from "./define/float.ts";

export const bfloat16 = /* @__PURE__ */ defineFloat({
  name: "bfloat16",
  aliases: ["bf16"],
  exponentBits: 8,
  mantissaBits: 7,
  bias: 127,
  specials: "ieee",
  spec: "bfloat16: the upper half of IEEE binary32; ONNX BFLOAT16",
  onnx: 16,
});

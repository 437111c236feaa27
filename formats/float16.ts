// float16: IEEE 754-2019 binary16.
//   s eeeee mmmmmmmmmm   bias 15, max 65504 = (2 - 2^-10) * 2^15
import { defineFloat } from "./define/float.ts";

export const float16 = /* @__PURE__ */ defineFloat({
  name: "float16",
  aliases: ["f16", "fp16", "half", "binary16"],
  exponentBits: 5,
  mantissaBits: 10,
  bias: 15,
  specials: "ieee",
  spec: "IEEE 754-2019 binary16; ONNX FLOAT16",
  onnx: 10,
});

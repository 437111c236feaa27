// float32: IEEE 754-2019 binary32.
//   s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm   bias 127, max (2 - 2^-23) * 2^127
import { defineFloat } from "./define/float.ts";

export const float32 = /* @__PURE__ */ defineFloat({
  name: "float32",
  aliases: ["f32", "fp32", "binary32"],
  exponentBits: 8,
  mantissaBits: 23,
  bias: 127,
  specials: "ieee",
  spec: "IEEE 754-2019 binary32; ONNX FLOAT",
  onnx: 1,
});

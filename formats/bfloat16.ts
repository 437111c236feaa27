// bfloat16: bfloat16: the upper half of IEEE binary32.
//   s eeeeeeee mmmmmmm   bias 127, max 3.3895314e38 = (2 - 2^-7) * 2^127
import { defineFloat } from "./define/float.ts";

/**
 * bfloat16: the upper half of IEEE binary32; ONNX BFLOAT16: `s eeeeeeee mmmmmmm`, 16 bits; -3.3895313892515355e+38 ..
 * 3.3895313892515355e+38, smallest positive 2^-133, smallest normal 2^-126; 65279 finite; -0, infinities, NaN.
 * @example bfloat16.decode(0x3e9a) // 0.30078125
 */
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

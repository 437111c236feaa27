// float16: IEEE 754-2019 binary16.
//   s eeeee mmmmmmmmmm   bias 15, max 65504 = (2 - 2^-10) * 2^15
import { defineFloat } from "./define/float.ts";

/**
 * IEEE 754-2019 binary16; ONNX FLOAT16: `s eeeee mmmmmmmmmm`, 16 bits; -65504 .. 65504, smallest positive 2^-24,
 * smallest normal 2^-14; 63487 finite; -0, infinities, NaN.
 * @example float16.decode(0x34cd) // 0.300048828125
 */
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

// float32: IEEE 754-2019 binary32.
//   s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm   bias 127, max (2 - 2^-23) * 2^127
import { defineFloat } from "./define/float.ts";

/**
 * IEEE 754-2019 binary32; ONNX FLOAT: `s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm`, 32 bits; -3.4028234663852886e+38 ..
 * 3.4028234663852886e+38, smallest positive 2^-149, smallest normal 2^-126; 4278190079 finite; -0, infinities, NaN.
 * @example float32.decode(0x3e99999a) // 0.30000001192092896
 */
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

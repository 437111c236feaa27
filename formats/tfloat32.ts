// tfloat32: NVIDIA TensorFloat-32, a float32 word of which 19 bits count.
//   s eeeeeeee mmmmmmmmmm 0000000000000   bias 127, max (2 - 2^-10) * 2^127
// The low 13 bits are written as 0 and ignored when read.
import { defineFloat } from "./define/float.ts";

/**
 * NVIDIA TF32 (Ampere), 1-8-10 in a 32-bit word: `s eeeeeeee mmmmmmmmmm -------------`, 32 bits;
 * -3.4011621342146535e+38 .. 3.4011621342146535e+38, smallest positive 2^-136, smallest normal 2^-126; 522239 finite;
 * -0, infinities, NaN.
 * @example tfloat32.decode(0x3e99a000) // 0.300048828125
 */
export const tfloat32 = /* @__PURE__ */ defineFloat({
  name: "tfloat32",
  aliases: ["tf32"],
  exponentBits: 8,
  mantissaBits: 10,
  bias: 127,
  specials: "ieee",
  padding: 13,
  spec: "NVIDIA TF32 (Ampere), 1-8-10 in a 32-bit word",
});

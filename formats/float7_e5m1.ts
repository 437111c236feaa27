// float7_e5m1: as Tilus lists it.
//   s eeeee m   bias 15, max 49152, smallest 3.05176e-05, infinity and NaN in the top exponent
import { defineFloat } from "./define/float.ts";

/**
 * Tilus float7_e5m1: `s eeeee m`, 7 bits; -49152 .. 49152, smallest positive 2^-15, smallest normal 2^-14; 123 finite;
 * -0, infinities, NaN.
 * @example float7_e5m1.decode(0x1a) // 0.25
 */
export const float7_e5m1 = /* @__PURE__ */ defineFloat({
  name: "float7_e5m1",
  aliases: ["e5m1"],
  exponentBits: 5,
  mantissaBits: 1,
  bias: 15,
  specials: "ieee",
  spec: "Tilus float7_e5m1",
});

// float6_e4m1: as Tilus lists it.
//   s eeee m   bias 7, max 384, smallest 0.0078125, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * Tilus float6_e4m1: `s eeee m`, 6 bits; -384 .. 384, smallest positive 0.0078125, smallest normal 0.015625; 63
 * finite; -0.
 * @example float6_e4m1.decode(0x0a) // 0.25
 */
export const float6_e4m1 = /* @__PURE__ */ defineFloat({
  name: "float6_e4m1",
  aliases: ["e4m1", "float6_e4m1fn"],
  exponentBits: 4,
  mantissaBits: 1,
  bias: 7,
  specials: "finite",
  spec: "Tilus float6_e4m1",
});

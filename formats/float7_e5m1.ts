// float7_e5m1: as Tilus lists it.
//   s eeeee m   bias 15, max 49152, smallest 3.05176e-05, infinity and NaN in the top exponent
import { defineFloat } from "./define/float.ts";

export const float7_e5m1 = /* @__PURE__ */ defineFloat({
  name: "float7_e5m1",
  aliases: ["e5m1"],
  exponentBits: 5,
  mantissaBits: 1,
  bias: 15,
  specials: "ieee",
  spec: "Tilus float7_e5m1",
});

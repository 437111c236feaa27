// float7_e4m2: as Tilus lists it.
//   s eeee mm   bias 7, max 448, smallest 0.00390625, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * Tilus float7_e4m2: `s eeee mm`, 7 bits; -448 .. 448, smallest positive 0.00390625, smallest normal 0.015625; 127
 * finite; -0.
 * @example float7_e4m2.decode(0x15) // 0.3125
 */
export const float7_e4m2 = /* @__PURE__ */ defineFloat({
  name: "float7_e4m2",
  aliases: ["e4m2", "float7_e4m2fn"],
  exponentBits: 4,
  mantissaBits: 2,
  bias: 7,
  specials: "finite",
  spec: "Tilus float7_e4m2",
});

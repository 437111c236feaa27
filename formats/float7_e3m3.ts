// float7_e3m3: as Tilus lists it.
//   s eee mmm   bias 3, max 30, smallest 0.03125, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * Tilus float7_e3m3: `s eee mmm`, 7 bits; -30 .. 30, smallest positive 0.03125, smallest normal 0.25; 127 finite; -0.
 * @example float7_e3m3.decode(0x0a) // 0.3125
 */
export const float7_e3m3 = /* @__PURE__ */ defineFloat({
  name: "float7_e3m3",
  aliases: ["e3m3", "float7_e3m3fn"],
  exponentBits: 3,
  mantissaBits: 3,
  bias: 3,
  specials: "finite",
  spec: "Tilus float7_e3m3",
});

// float7_e2m4: as Tilus lists it.
//   s ee mmmm   bias 1, max 7.75, smallest 0.0625, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * Tilus float7_e2m4: `s ee mmmm`, 7 bits; -7.75 .. 7.75, smallest positive 0.0625, smallest normal 1; 127 finite; -0.
 * @example float7_e2m4.decode(0x05) // 0.3125
 */
export const float7_e2m4 = /* @__PURE__ */ defineFloat({
  name: "float7_e2m4",
  aliases: ["e2m4", "float7_e2m4fn"],
  exponentBits: 2,
  mantissaBits: 4,
  bias: 1,
  specials: "finite",
  spec: "Tilus float7_e2m4",
});

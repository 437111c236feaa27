// float5_e3m1: as Tilus lists it.
//   s eee m   bias 3, max 24, smallest 0.125, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * Tilus float5_e3m1: `s eee m`, 5 bits; -24 .. 24, smallest positive 0.125, smallest normal 0.25; 31 finite; -0.
 * @example float5_e3m1.decode(0x02) // 0.25
 */
export const float5_e3m1 = /* @__PURE__ */ defineFloat({
  name: "float5_e3m1",
  aliases: ["e3m1", "float5_e3m1fn"],
  exponentBits: 3,
  mantissaBits: 1,
  bias: 3,
  specials: "finite",
  spec: "Tilus float5_e3m1",
});

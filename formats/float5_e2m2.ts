// float5_e2m2: as Tilus lists it.
//   s ee mm   bias 1, max 7, smallest 0.25, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * Tilus float5_e2m2: `s ee mm`, 5 bits; -7 .. 7, smallest positive 0.25, smallest normal 1; 31 finite; -0.
 * @example float5_e2m2.decode(0x01) // 0.25
 */
export const float5_e2m2 = /* @__PURE__ */ defineFloat({
  name: "float5_e2m2",
  aliases: ["e2m2", "float5_e2m2fn"],
  exponentBits: 2,
  mantissaBits: 2,
  bias: 1,
  specials: "finite",
  spec: "Tilus float5_e2m2",
});

// float5_e1m3: as Tilus lists it. With one exponent bit and bias 0 the values are a uniform grid.
//   s e mmm   bias 0, max 3.75, smallest 0.25, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * Tilus float5_e1m3: `s e mmm`, 5 bits; -3.75 .. 3.75, smallest positive 0.25, smallest normal 2; 31 finite; -0.
 * @example float5_e1m3.decode(0x01) // 0.25
 */
export const float5_e1m3 = /* @__PURE__ */ defineFloat({
  name: "float5_e1m3",
  aliases: ["e1m3", "float5_e1m3fn"],
  exponentBits: 1,
  mantissaBits: 3,
  bias: 0,
  specials: "finite",
  spec: "Tilus float5_e1m3",
});

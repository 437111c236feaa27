// float5_e4m0: powers of two, sign and exponent; exponent 0 is zero. Boundaries are arithmetic midpoints (1.5 * 2^k),
// ties to the even code.
//   s eeee   bias 7, max 256, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * power-of-two format: sign and exponent: `s eeee`, 5 bits; -256 .. 256, smallest positive 0.015625; 31 finite; -0.
 * @example float5_e4m0.decode(0x05) // 0.25
 */
export const float5_e4m0 = /* @__PURE__ */ defineFloat({
  name: "float5_e4m0",
  aliases: ["e4m0", "pow2_5"],
  exponentBits: 4,
  mantissaBits: 0,
  bias: 7,
  specials: "finite",
  spec: "power-of-two format: sign and exponent",
});

// float8_e7m0: powers of two, sign and exponent; exponent 0 is zero. Boundaries are arithmetic midpoints (1.5 * 2^k),
// ties to the even code.
//   s eeeeeee   bias 63, max 2^64, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * power-of-two format: sign and exponent: `s eeeeeee`, 8 bits; -2^64 .. 2^64, smallest positive 2^-62; 255 finite; -0.
 * @example float8_e7m0.decode(0x3d) // 0.25
 */
export const float8_e7m0 = /* @__PURE__ */ defineFloat({
  name: "float8_e7m0",
  aliases: ["e7m0", "pow2_8"],
  exponentBits: 7,
  mantissaBits: 0,
  bias: 63,
  specials: "finite",
  spec: "power-of-two format: sign and exponent",
});

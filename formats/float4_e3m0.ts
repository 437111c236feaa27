// float4_e3m0: powers of two, sign and exponent; exponent 0 is zero. Boundaries are arithmetic midpoints (1.5 * 2^k),
// ties to the even code.
//   s eee   bias 3, max 16, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * power-of-two format: sign and exponent (LLM-FP4 E3M0): `s eee`, 4 bits; -16 .. 16, smallest positive 0.25; 15
 * finite; -0.
 * @example float4_e3m0.decode(0x1) // 0.25
 */
export const float4_e3m0 = /* @__PURE__ */ defineFloat({
  name: "float4_e3m0",
  aliases: ["e3m0", "pow2_4"],
  exponentBits: 3,
  mantissaBits: 0,
  bias: 3,
  specials: "finite",
  spec: "power-of-two format: sign and exponent (LLM-FP4 E3M0)",
});

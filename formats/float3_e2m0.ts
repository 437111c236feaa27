// float3_e2m0: powers of two, sign and exponent; exponent 0 is zero. Boundaries are arithmetic midpoints (1.5 * 2^k),
// ties to the even code.
//   s ee   bias 1, max 4, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * power-of-two format: sign and exponent: `s ee`, 3 bits; -4 .. 4, smallest positive 1; 7 finite; -0.
 * @example float3_e2m0.decode(0x2) // 2
 */
export const float3_e2m0 = /* @__PURE__ */ defineFloat({
  name: "float3_e2m0",
  aliases: ["e2m0", "pow2_3"],
  exponentBits: 2,
  mantissaBits: 0,
  bias: 1,
  specials: "finite",
  spec: "power-of-two format: sign and exponent",
});

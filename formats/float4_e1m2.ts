// float4_e1m2: as Tilus lists it. With one exponent bit and bias 0 the values are a uniform grid.
//   s e mm   bias 0, max 3.5, smallest 0.5, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * Tilus float4_e1m2: `s e mm`, 4 bits; -3.5 .. 3.5, smallest positive 0.5, smallest normal 2; 15 finite; -0.
 * @example float4_e1m2.decode(0x1) // 0.5
 */
export const float4_e1m2 = /* @__PURE__ */ defineFloat({
  name: "float4_e1m2",
  aliases: ["e1m2", "float4_e1m2fn"],
  exponentBits: 1,
  mantissaBits: 2,
  bias: 0,
  specials: "finite",
  spec: "Tilus float4_e1m2",
});

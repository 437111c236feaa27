// float3_e1m1: as Tilus lists it. With one exponent bit and bias 0 the values are a uniform grid.
//   s e m   bias 0, max 3, smallest 1, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

/**
 * Tilus float3_e1m1: `s e m`, 3 bits; -3 .. 3, smallest positive 1, smallest normal 2; 7 finite; -0.
 * @example float3_e1m1.decode(0x3) // 3
 */
export const float3_e1m1 = /* @__PURE__ */ defineFloat({
  name: "float3_e1m1",
  aliases: ["e1m1", "float3_e1m1fn"],
  exponentBits: 1,
  mantissaBits: 1,
  bias: 0,
  specials: "finite",
  spec: "Tilus float3_e1m1",
});

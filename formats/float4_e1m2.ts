// float4_e1m2: as Tilus lists it. With one exponent bit and bias 0 the values are a uniform grid.
//   s e mm   bias 0, max 3.5, smallest 0.5, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

export const float4_e1m2 = /* @__PURE__ */ defineFloat({
  name: "float4_e1m2",
  aliases: ["e1m2", "float4_e1m2fn"],
  exponentBits: 1,
  mantissaBits: 2,
  bias: 0,
  specials: "finite",
  spec: "Tilus float4_e1m2",
});

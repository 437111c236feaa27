// float5_e2m2: as Tilus lists it.
//   s ee mm   bias 1, max 7, smallest 0.25, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

export const float5_e2m2 = /* @__PURE__ */ defineFloat({
  name: "float5_e2m2",
  aliases: ["e2m2", "float5_e2m2fn"],
  exponentBits: 2,
  mantissaBits: 2,
  bias: 1,
  specials: "finite",
  spec: "Tilus float5_e2m2",
});

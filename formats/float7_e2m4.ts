// float7_e2m4: as Tilus lists it.
//   s ee mmmm   bias 1, max 7.75, smallest 0.0625, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

export const float7_e2m4 = /* @__PURE__ */ defineFloat({
  name: "float7_e2m4",
  aliases: ["e2m4", "float7_e2m4fn"],
  exponentBits: 2,
  mantissaBits: 4,
  bias: 1,
  specials: "finite",
  spec: "Tilus float7_e2m4",
});

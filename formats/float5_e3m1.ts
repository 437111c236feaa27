// float5_e3m1: as Tilus lists it.
//   s eee m   bias 3, max 24, smallest 0.125, no infinity, no NaN
import { defineFloat } from "./define/float.ts";

export const float5_e3m1 = /* @__PURE__ */ defineFloat({
  name: "float5_e3m1",
  aliases: ["e3m1", "float5_e3m1fn"],
  exponentBits: 3,
  mantissaBits: 1,
  bias: 3,
  specials: "finite",
  spec: "Tilus float5_e3m1",
});

// binary: the sign of a number, -1 (code 0) or +1 (code 1); zero counts as +1.
//   b   the same values as bipolar1, which ties 0 to the even code, -1
import { defineCodebook } from "./define/codebook.ts";

export const binary = /* @__PURE__ */ defineCodebook({
  name: "binary",
  aliases: ["sign1"],
  values: [-1, 1],
  spec: "XNOR-Net (arXiv 1603.05279), BitNet: sign(x)",
  defaults: { rounding: "halfCeil" },
});

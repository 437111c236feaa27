// binary: the sign of a number, -1 (code 0) or +1 (code 1); zero counts as +1.
//   b   the same values as bipolar1, which ties 0 to the even code, -1
import { defineCodebook } from "./define/codebook.ts";

/**
 * XNOR-Net (arXiv 1603.05279), BitNet: sign(x): `i`, 1 bit; -1 .. 1, smallest positive 1; 2 finite; no zero.
 * @example binary.decode(0x1) // 1
 */
export const binary = /* @__PURE__ */ defineCodebook({
  name: "binary",
  aliases: ["sign1"],
  values: [-1, 1],
  spec: "XNOR-Net (arXiv 1603.05279), BitNet: sign(x)",
  defaults: { rounding: "halfCeil" },
});

// nf3: NormalFloat3, the construction of nf4 for 3 bits (quantiles of a normal distribution, scaled to -1..1, with an
// exact zero), in float32.
//   iii   offset = 1 - (1/2)(1/16 + 1/14); positives at the quantiles offset..1/2 in 4 steps, negatives in 3.
//   bitsandbytes has no 3-bit table.
import { defineCodebook } from "./define/codebook.ts";

/**
 * the rule of QLoRA's NF4 for k = 3: `iii`, 3 bits; -1 .. 1, smallest positive 0.1833374798297882; 8 finite.
 * @example nf3.decode(0x5) // 0.38199394941329956
 */
export const nf3 = /* @__PURE__ */ defineCodebook({
  name: "nf3",
  aliases: ["normalfloat3"],
  // prettier-ignore
  values: [-1, -0.5350227355957031, -0.24693143367767334, 0, 0.1833374798297882, 0.38199394941329956, 0.6229857206344604, 1],
  spec: "the rule of QLoRA's NF4 for k = 3",
});

// bnb_fp4: the "FP4" of bitsandbytes. Not OCP E2M1, and the codes are not in the order of the values: {0, 0.0625, 8,
// 12, 4, 6, 2, 3} / 12.
//   siii   thresholds on |x| are the float32 constants of its kernels (strict >: ties toward zero)
import { defineCodebook } from "./define/codebook.ts";

/**
 * bitsandbytes FP4 (csrc/kernels.cu): `iiii`, 4 bits; -1 .. 1, smallest positive 0.0052083334885537624; 15 finite; -0.
 * @example bnb_fp4.decode(0x4) // 0.3333333432674408
 */
export const bnb_fp4 = /* @__PURE__ */ defineCodebook({
  name: "bnb_fp4",
  aliases: ["fp4_bnb"],
  // prettier-ignore
  values: [0, 0.0052083334885537624, 0.6666666865348816, 1, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25, -0, -0.0052083334885537624, -0.6666666865348816, -1, -0.3333333432674408, -0.5, -0.1666666716337204, -0.25],
  // prettier-ignore
  thresholds: [-0.8333333134651184, -0.5833330154418945, -0.4166666865348816, -0.2916666567325592, -0.2083333283662796, -0.0859375, -0.0026041700039058924, 0.0026041700039058924, 0.0859375, 0.2083333283662796, 0.2916666567325592, 0.4166666865348816, 0.5833330154418945, 0.8333333134651184],
  spec: "bitsandbytes FP4 (csrc/kernels.cu)",
  defaults: { rounding: "halfTrunc" },
});

// iq4_nl: the 16 int8 values of ggml's IQ4_NL blocks. There is no zero; a block's scale multiplies them.
//   iiii   a value halfway between two goes to the upper one, as in ggml
import { defineCodebook } from "./define/codebook.ts";

/**
 * ggml IQ4_NL (ggml-common.h): `iiii`, 4 bits; -127 .. 113, smallest positive 1; 16 finite; no zero.
 * @example iq4_nl.decode(0x8) // 1
 */
export const iq4_nl = /* @__PURE__ */ defineCodebook({
  name: "iq4_nl",
  aliases: ["kvalues_iq4nl"],
  values: [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
  spec: "ggml IQ4_NL (ggml-common.h)",
  defaults: { rounding: "halfCeil" },
});

// ternary: -1, 0, 1 as 2-bit two's complement (BitNet b1.58, TriLM). Code 2 (-2) decodes and is never produced.
//   si   thresholds -1/2 and 1/2: of a scaled weight, half the scale; a weight exactly there becomes 0
import { defineInt } from "./define/int.ts";

/**
 * BitNet b1.58 (arXiv 2402.17764): -1, 0, 1: `ii`, 2 bits; -1 .. 1, smallest positive 1; 3 finite.
 * @example ternary.decode(0x1) // 1
 */
export const ternary = /* @__PURE__ */ defineInt({
  name: "ternary",
  aliases: ["b1.58", "trit"],
  bits: 2,
  signed: true,
  narrow: true,
  spec: "BitNet b1.58 (arXiv 2402.17764): -1, 0, 1",
});

// bipolar5: 5-bit bipolar integer, every bit -1 or +1: the odd integers -31..31, no zero.
//   bbbbb   value 2 u - 31
import { defineBipolarInt } from "./define/bipolar.ts";

/**
 * Bipolar-INT, arXiv 2409.17870: `iiiii`, 5 bits; -31 .. 31, smallest positive 1; 32 finite; no zero.
 * @example bipolar5.decode(0x10) // 1
 */
export const bipolar5 = /* @__PURE__ */ defineBipolarInt({ bits: 5 });

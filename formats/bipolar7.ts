// bipolar7: 7-bit bipolar integer, every bit -1 or +1: the odd integers -127..127, no zero.
//   bbbbbbb   value 2 u - 127
import { defineBipolarInt } from "./define/bipolar.ts";

/**
 * Bipolar-INT, arXiv 2409.17870: `iiiiiii`, 7 bits; -127 .. 127, smallest positive 1; 128 finite; no zero.
 * @example bipolar7.decode(0x40) // 1
 */
export const bipolar7 = /* @__PURE__ */ defineBipolarInt({ bits: 7 });

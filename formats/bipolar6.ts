// bipolar6: 6-bit bipolar integer, every bit -1 or +1: the odd integers -63..63, no zero.
//   bbbbbb   value 2 u - 63
import { defineBipolarInt } from "./define/bipolar.ts";

/**
 * Bipolar-INT, arXiv 2409.17870: `iiiiii`, 6 bits; -63 .. 63, smallest positive 1; 64 finite; no zero.
 * @example bipolar6.decode(0x20) // 1
 */
export const bipolar6 = /* @__PURE__ */ defineBipolarInt({ bits: 6 });

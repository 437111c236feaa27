// bipolar3: 3-bit bipolar integer, every bit -1 or +1: the odd integers -7..7, no zero.
//   bbb   value 2 u - 7
import { defineBipolarInt } from "./define/bipolar.ts";

/**
 * Bipolar-INT, arXiv 2409.17870: `iii`, 3 bits; -7 .. 7, smallest positive 1; 8 finite; no zero.
 * @example bipolar3.decode(0x4) // 1
 */
export const bipolar3 = /* @__PURE__ */ defineBipolarInt({ bits: 3 });

// bipolar4: 4-bit bipolar integer, every bit -1 or +1: the odd integers -15..15, no zero.
//   bbbb   value 2 u - 15
import { defineBipolarInt } from "./define/bipolar.ts";

/**
 * Bipolar-INT, arXiv 2409.17870: `iiii`, 4 bits; -15 .. 15, smallest positive 1; 16 finite; no zero.
 * @example bipolar4.decode(0x8) // 1
 */
export const bipolar4 = /* @__PURE__ */ defineBipolarInt({ bits: 4 });

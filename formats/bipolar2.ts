// bipolar2: 2-bit bipolar integer, every bit -1 or +1: the odd integers -3..3, no zero.
//   bb   value 2 u - 3
import { defineBipolarInt } from "./define/bipolar.ts";

/**
 * Bipolar-INT, arXiv 2409.17870: `ii`, 2 bits; -3 .. 3, smallest positive 1; 4 finite; no zero.
 * @example bipolar2.decode(0x2) // 1
 */
export const bipolar2 = /* @__PURE__ */ defineBipolarInt({ bits: 2 });

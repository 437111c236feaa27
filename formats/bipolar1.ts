// bipolar1: 1-bit bipolar integer, every bit -1 or +1: the odd integers -1..1, no zero.
//   b   value 2 u - 1
import { defineBipolarInt } from "./define/bipolar.ts";

/**
 * Bipolar-INT, arXiv 2409.17870: `i`, 1 bit; -1 .. 1, smallest positive 1; 2 finite; no zero.
 * @example bipolar1.decode(0x1) // 1
 */
export const bipolar1 = /* @__PURE__ */ defineBipolarInt({ bits: 1 });

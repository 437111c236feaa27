// bipolar8: 8-bit bipolar integer, every bit -1 or +1: the odd integers -255..255, no zero.
//   bbbbbbbb   value 2 u - 255
import { defineBipolarInt } from "./define/bipolar.ts";

/**
 * Bipolar-INT, arXiv 2409.17870: `iiiiiiii`, 8 bits; -255 .. 255, smallest positive 1; 256 finite; no zero.
 * @example bipolar8.decode(0x80) // 1
 */
export const bipolar8 = /* @__PURE__ */ defineBipolarInt({ bits: 8 });

// lns8_f3: a sign and a logarithm with 3 fraction bits: 8 steps per octave, 2^-7.875 to 2^7.875.
//   s iiii.fff   zero = 1000000 after the sign
import { defineLns } from "./define/lns.ts";

/**
 * sign and base-2 logarithm in fixed point: `s eeeeeee`, 8 bits; -234.75303506039583 .. 234.75303506039583, smallest
 * positive 0.004259795830723663; 255 finite; -0.
 * @example lns8_f3.decode(0x72) // 0.29730177875068026
 */
export const lns8_f3 = /* @__PURE__ */ defineLns({ bits: 8, fraction: 3 });

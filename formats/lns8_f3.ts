// lns8_f3: a sign and a logarithm with 3 fraction bits: 8 steps per octave, 2^-7.875 to 2^7.875.
//   s iiii.fff   zero = 1000000 after the sign
import { defineLns } from "./define/lns.ts";

export const lns8_f3 = /* @__PURE__ */ defineLns({ bits: 8, fraction: 3 });

// bipolar7: 7-bit bipolar integer, every bit -1 or +1: the odd integers -127..127, no zero.
//   bbbbbbb   value 2 u - 127
import { defineBipolarInt } from "./define/bipolar.ts";

export const bipolar7 = /* @__PURE__ */ defineBipolarInt({ bits: 7 });

// bipolar3: 3-bit bipolar integer, every bit -1 or +1: the odd integers -7..7, no zero.
//   bbb   value 2 u - 7
import { defineBipolarInt } from "./define/bipolar.ts";

export const bipolar3 = /* @__PURE__ */ defineBipolarInt({ bits: 3 });

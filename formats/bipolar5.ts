// bipolar5: 5-bit bipolar integer, every bit -1 or +1: the odd integers -31..31, no zero.
//   bbbbb   value 2 u - 31
import { defineBipolarInt } from "./define/bipolar.ts";

export const bipolar5 = /* @__PURE__ */ defineBipolarInt({ bits: 5 });

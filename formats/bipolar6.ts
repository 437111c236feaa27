// bipolar6: 6-bit bipolar integer, every bit -1 or +1: the odd integers -63..63, no zero.
//   bbbbbb   value 2 u - 63
import { defineBipolarInt } from "./define/bipolar.ts";

export const bipolar6 = /* @__PURE__ */ defineBipolarInt({ bits: 6 });

// bipolar4: 4-bit bipolar integer, every bit -1 or +1: the odd integers -15..15, no zero.
//   bbbb   value 2 u - 15
import { defineBipolarInt } from "./define/bipolar.ts";

export const bipolar4 = /* @__PURE__ */ defineBipolarInt({ bits: 4 });

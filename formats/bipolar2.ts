// bipolar2: 2-bit bipolar integer, every bit -1 or +1: the odd integers -3..3, no zero.
//   bb   value 2 u - 3
import { defineBipolarInt } from "./define/bipolar.ts";

export const bipolar2 = /* @__PURE__ */ defineBipolarInt({ bits: 2 });

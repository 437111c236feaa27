// bipolar1: 1-bit bipolar integer, every bit -1 or +1: the odd integers -1..1, no zero.
//   b   value 2 u - 1
import { defineBipolarInt } from "./define/bipolar.ts";

export const bipolar1 = /* @__PURE__ */ defineBipolarInt({ bits: 1 });

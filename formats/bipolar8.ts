// bipolar8: 8-bit bipolar integer, every bit -1 or +1: the odd integers -255..255, no zero.
//   bbbbbbbb   value 2 u - 255
import { defineBipolarInt } from "./define/bipolar.ts";

export const bipolar8 = /* @__PURE__ */ defineBipolarInt({ bits: 8 });

// uint5: 5-bit unsigned integer, 0..31.
//   iiiii
import { defineInt } from "./define/int.ts";

export const uint5 = /* @__PURE__ */ defineInt({ bits: 5, signed: false });

// uint6: 6-bit unsigned integer, 0..63.
//   iiiiii
import { defineInt } from "./define/int.ts";

export const uint6 = /* @__PURE__ */ defineInt({ bits: 6, signed: false });

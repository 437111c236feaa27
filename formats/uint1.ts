// uint1: 1-bit unsigned integer, 0..1.
//   i
import { defineInt } from "./define/int.ts";

export const uint1 = /* @__PURE__ */ defineInt({ bits: 1, signed: false });

// uint3: 3-bit unsigned integer, 0..7.
//   iii
import { defineInt } from "./define/int.ts";

export const uint3 = /* @__PURE__ */ defineInt({ bits: 3, signed: false });

// uint7: 7-bit unsigned integer, 0..127.
//   iiiiiii
import { defineInt } from "./define/int.ts";

export const uint7 = /* @__PURE__ */ defineInt({ bits: 7, signed: false });

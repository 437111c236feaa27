// int5: 5-bit two's complement, -16..15.
//   siiii
import { defineInt } from "./define/int.ts";

export const int5 = /* @__PURE__ */ defineInt({ bits: 5, signed: true });

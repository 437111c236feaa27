// int1: 1-bit two's complement, -1..0.
//   s
import { defineInt } from "./define/int.ts";

export const int1 = /* @__PURE__ */ defineInt({ bits: 1, signed: true });

// int7: 7-bit two's complement, -64..63.
//   siiiiii
import { defineInt } from "./define/int.ts";

export const int7 = /* @__PURE__ */ defineInt({ bits: 7, signed: true });

// int6: 6-bit two's complement, -32..31.
//   siiiii
import { defineInt } from "./define/int.ts";

export const int6 = /* @__PURE__ */ defineInt({ bits: 6, signed: true });

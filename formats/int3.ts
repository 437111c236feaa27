// int3: 3-bit two's complement, -4..3.
//   sii
import { defineInt } from "./define/int.ts";

export const int3 = /* @__PURE__ */ defineInt({ bits: 3, signed: true });

// int4: 4-bit two's complement, -8..7.
//   siii
import { defineInt } from "./define/int.ts";

export const int4 = /* @__PURE__ */ defineInt({ bits: 4, signed: true, onnx: 22 });

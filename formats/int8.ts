// int8: 8-bit two's complement, -128..127.
//   siiiiiii
import { defineInt } from "./define/int.ts";

export const int8 = /* @__PURE__ */ defineInt({ bits: 8, signed: true, onnx: 3 });

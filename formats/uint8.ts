// uint8: 8-bit unsigned integer, 0..255.
//   iiiiiiii
import { defineInt } from "./define/int.ts";

export const uint8 = /* @__PURE__ */ defineInt({ bits: 8, signed: false, onnx: 2 });

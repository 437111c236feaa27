// uint4: 4-bit unsigned integer, 0..15.
//   iiii
import { defineInt } from "./define/int.ts";

export const uint4 = /* @__PURE__ */ defineInt({ bits: 4, signed: false, onnx: 21 });

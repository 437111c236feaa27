// uint2: 2-bit unsigned integer, 0..3.
//   ii
import { defineInt } from "./define/int.ts";

export const uint2 = /* @__PURE__ */ defineInt({ bits: 2, signed: false, onnx: 25 });

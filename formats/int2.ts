// int2: 2-bit two's complement, -2..1.
//   si
import { defineInt } from "./define/int.ts";

export const int2 = /* @__PURE__ */ defineInt({ bits: 2, signed: true, onnx: 26 });

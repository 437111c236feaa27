// uint2: 2-bit unsigned integer, 0..3.
//   ii
import { defineInt } from "./define/int.ts";

/**
 * unsigned integer: `ii`, 2 bits; 0 .. 3, smallest positive 1; 4 finite.
 * @example uint2.decode(0x3) // 3
 */
export const uint2 = /* @__PURE__ */ defineInt({ bits: 2, signed: false, onnx: 25 });

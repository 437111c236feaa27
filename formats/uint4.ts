// uint4: 4-bit unsigned integer, 0..15.
//   iiii
import { defineInt } from "./define/int.ts";

/**
 * unsigned integer: `iiii`, 4 bits; 0 .. 15, smallest positive 1; 16 finite.
 * @example uint4.decode(0x3) // 3
 */
export const uint4 = /* @__PURE__ */ defineInt({ bits: 4, signed: false, onnx: 21 });

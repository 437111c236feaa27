// uint8: 8-bit unsigned integer, 0..255.
//   iiiiiiii
import { defineInt } from "./define/int.ts";

/**
 * unsigned integer: `iiiiiiii`, 8 bits; 0 .. 255, smallest positive 1; 256 finite.
 * @example uint8.decode(0x03) // 3
 */
export const uint8 = /* @__PURE__ */ defineInt({ bits: 8, signed: false, onnx: 2 });

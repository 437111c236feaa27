// int8: 8-bit two's complement, -128..127.
//   siiiiiii
import { defineInt } from "./define/int.ts";

/**
 * two's complement integer: `iiiiiiii`, 8 bits; -128 .. 127, smallest positive 1; 256 finite.
 * @example int8.decode(0x03) // 3
 */
export const int8 = /* @__PURE__ */ defineInt({ bits: 8, signed: true, onnx: 3 });

// int2: 2-bit two's complement, -2..1.
//   si
import { defineInt } from "./define/int.ts";

/**
 * two's complement integer: `ii`, 2 bits; -2 .. 1, smallest positive 1; 4 finite.
 * @example int2.decode(0x1) // 1
 */
export const int2 = /* @__PURE__ */ defineInt({ bits: 2, signed: true, onnx: 26 });

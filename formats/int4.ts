// int4: 4-bit two's complement, -8..7.
//   siii
import { defineInt } from "./define/int.ts";

/**
 * two's complement integer: `iiii`, 4 bits; -8 .. 7, smallest positive 1; 16 finite.
 * @example int4.decode(0x3) // 3
 */
export const int4 = /* @__PURE__ */ defineInt({ bits: 4, signed: true, onnx: 22 });

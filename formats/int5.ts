// int5: 5-bit two's complement, -16..15.
//   siiii
import { defineInt } from "./define/int.ts";

/**
 * two's complement integer: `iiiii`, 5 bits; -16 .. 15, smallest positive 1; 32 finite.
 * @example int5.decode(0x03) // 3
 */
export const int5 = /* @__PURE__ */ defineInt({ bits: 5, signed: true });

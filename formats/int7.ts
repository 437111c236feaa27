// int7: 7-bit two's complement, -64..63.
//   siiiiii
import { defineInt } from "./define/int.ts";

/**
 * two's complement integer: `iiiiiii`, 7 bits; -64 .. 63, smallest positive 1; 128 finite.
 * @example int7.decode(0x03) // 3
 */
export const int7 = /* @__PURE__ */ defineInt({ bits: 7, signed: true });

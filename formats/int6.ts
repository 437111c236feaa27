// int6: 6-bit two's complement, -32..31.
//   siiiii
import { defineInt } from "./define/int.ts";

/**
 * two's complement integer: `iiiiii`, 6 bits; -32 .. 31, smallest positive 1; 64 finite.
 * @example int6.decode(0x03) // 3
 */
export const int6 = /* @__PURE__ */ defineInt({ bits: 6, signed: true });

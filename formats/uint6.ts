// uint6: 6-bit unsigned integer, 0..63.
//   iiiiii
import { defineInt } from "./define/int.ts";

/**
 * unsigned integer: `iiiiii`, 6 bits; 0 .. 63, smallest positive 1; 64 finite.
 * @example uint6.decode(0x03) // 3
 */
export const uint6 = /* @__PURE__ */ defineInt({ bits: 6, signed: false });

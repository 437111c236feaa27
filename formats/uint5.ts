// uint5: 5-bit unsigned integer, 0..31.
//   iiiii
import { defineInt } from "./define/int.ts";

/**
 * unsigned integer: `iiiii`, 5 bits; 0 .. 31, smallest positive 1; 32 finite.
 * @example uint5.decode(0x03) // 3
 */
export const uint5 = /* @__PURE__ */ defineInt({ bits: 5, signed: false });

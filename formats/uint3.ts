// uint3: 3-bit unsigned integer, 0..7.
//   iii
import { defineInt } from "./define/int.ts";

/**
 * unsigned integer: `iii`, 3 bits; 0 .. 7, smallest positive 1; 8 finite.
 * @example uint3.decode(0x3) // 3
 */
export const uint3 = /* @__PURE__ */ defineInt({ bits: 3, signed: false });

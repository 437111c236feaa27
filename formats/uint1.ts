// uint1: 1-bit unsigned integer, 0..1.
//   i
import { defineInt } from "./define/int.ts";

/**
 * unsigned integer: `i`, 1 bit; 0 .. 1, smallest positive 1; 2 finite.
 * @example uint1.decode(0x1) // 1
 */
export const uint1 = /* @__PURE__ */ defineInt({ bits: 1, signed: false });

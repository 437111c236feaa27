// uint7: 7-bit unsigned integer, 0..127.
//   iiiiiii
import { defineInt } from "./define/int.ts";

/**
 * unsigned integer: `iiiiiii`, 7 bits; 0 .. 127, smallest positive 1; 128 finite.
 * @example uint7.decode(0x03) // 3
 */
export const uint7 = /* @__PURE__ */ defineInt({ bits: 7, signed: false });

// int1: 1-bit two's complement, -1..0.
//   s
import { defineInt } from "./define/int.ts";

/**
 * two's complement integer: `i`, 1 bit; -1 .. 0; 2 finite.
 * @example int1.decode(0x1) // -1
 */
export const int1 = /* @__PURE__ */ defineInt({ bits: 1, signed: true });

// int3: 3-bit two's complement, -4..3.
//   sii
import { defineInt } from "./define/int.ts";

/**
 * two's complement integer: `iii`, 3 bits; -4 .. 3, smallest positive 1; 8 finite.
 * @example int3.decode(0x3) // 3
 */
export const int3 = /* @__PURE__ */ defineInt({ bits: 3, signed: true });

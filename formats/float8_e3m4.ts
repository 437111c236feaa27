// float8_e3m4: E3M4 with the special values of IEEE 754.
//   s eee mmmm   bias 3, max 15.5 = 1.9375 * 2^3, infinity 0x70, NaN 0x71..0x7f
import { defineFloat } from "./define/float.ts";

/**
 * ml_dtypes float8_e3m4 (IEEE 754 conventions): `s eee mmmm`, 8 bits; -15.5 .. 15.5, smallest positive 0.015625,
 * smallest normal 0.25; 223 finite; -0, infinities, NaN.
 * @example float8_e3m4.decode(0x13) // 0.296875
 */
export const float8_e3m4 = /* @__PURE__ */ defineFloat({
  name: "float8_e3m4",
  aliases: ["e3m4"],
  exponentBits: 3,
  mantissaBits: 4,
  bias: 3,
  specials: "ieee",
  spec: "ml_dtypes float8_e3m4 (IEEE 754 conventions)",
});

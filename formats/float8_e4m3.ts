// float8_e4m3: E4M3 with the special values of IEEE 754. Not the OCP format, which is float8_e4m3fn.
//   s eeee mmm   bias 7, max 240 = 1.875 * 2^7, infinity 0x78, NaN 0x79..0x7f
import { defineFloat } from "./define/float.ts";

/**
 * ml_dtypes float8_e4m3 (IEEE 754 conventions): `s eeee mmm`, 8 bits; -240 .. 240, smallest positive 0.001953125,
 * smallest normal 0.015625; 239 finite; -0, infinities, NaN.
 * @example float8_e4m3.decode(0x2a) // 0.3125
 */
export const float8_e4m3 = /* @__PURE__ */ defineFloat({
  name: "float8_e4m3",
  aliases: ["e4m3", "f8_e4m3_ieee"],
  exponentBits: 4,
  mantissaBits: 3,
  bias: 7,
  specials: "ieee",
  spec: "ml_dtypes float8_e4m3 (IEEE 754 conventions)",
});

// float8_e4m3b11fnuz: E4M3 with bias 11.
//   s eeee mmm   bias 11, max 30 = 1.875 * 2^4, NaN = 0x80, no infinity, no -0
import { defineFloat } from "./define/float.ts";

/**
 * ml_dtypes float8_e4m3b11fnuz: `s eeee mmm`, 8 bits; -30 .. 30, smallest positive 2^-13, smallest normal
 * 0.0009765625; 255 finite; NaN.
 * @example float8_e4m3b11fnuz.decode(0x4a) // 0.3125
 */
export const float8_e4m3b11fnuz = /* @__PURE__ */ defineFloat({
  name: "float8_e4m3b11fnuz",
  aliases: ["e4m3b11fnuz", "e4m3b11"],
  exponentBits: 4,
  mantissaBits: 3,
  bias: 11,
  specials: "fnuz",
  spec: "ml_dtypes float8_e4m3b11fnuz",
});

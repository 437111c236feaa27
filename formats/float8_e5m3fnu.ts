// float8_e5m3fnu: an unsigned float for scales, one exponent bit more than the e4m3 of NVFP4.
//   eeeee mmm   bias 15, max 114688 = 2^16 * 1.75, smallest 2^-17, NaN = 0xff
import { defineFloat } from "./define/float.ts";

/**
 * unsigned e5m3, a scale format of accelerators: `eeeee mmm`, 8 bits; 0 .. 114688, smallest positive 2^-17, smallest
 * normal 2^-14; 255 finite; NaN.
 * @example float8_e5m3fnu.decode(0x6a) // 0.3125
 */
export const float8_e5m3fnu = /* @__PURE__ */ defineFloat({
  name: "float8_e5m3fnu",
  aliases: ["ue5m3"],
  exponentBits: 5,
  mantissaBits: 3,
  specials: "fn",
  signed: false,
  spec: "unsigned e5m3, a scale format of accelerators",
});

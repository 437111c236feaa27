// float7_e4m3fnu: unsigned E4M3, the block scale of NVFP4.
//   eeee mmm   bias 7, max 448 = 1.75 * 2^8, NaN = 0x7f; usually stored in a byte whose top bit is 0
import { defineFloat } from "./define/float.ts";

/**
 * NVFP4 block scale UE4M3: float8_e4m3fn without its sign: `eeee mmm`, 7 bits; 0 .. 448, smallest positive
 * 0.001953125, smallest normal 0.015625; 127 finite; NaN.
 * @example float7_e4m3fnu.decode(0x2a) // 0.3125
 */
export const float7_e4m3fnu = /* @__PURE__ */ defineFloat({
  name: "float7_e4m3fnu",
  aliases: ["ue4m3", "float_ue4m3", "e4m3fnu"],
  exponentBits: 4,
  mantissaBits: 3,
  bias: 7,
  specials: "fn",
  spec: "NVFP4 block scale UE4M3: float8_e4m3fn without its sign",
  signed: false,
});

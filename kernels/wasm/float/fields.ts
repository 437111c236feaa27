// Fields of floats of few bits as those of float32, by shifts: sign, exponent and significand are moved into place.
// What comes out is too small by 2^(127 - bias), for the caller to make up; infinities and NaN come out as numbers.
import type { Emit, FunctionBuilder, Operand } from "../engine/asm.ts";

/**
 * Floats of at most 8 bits as bfloat16 in i16 lanes: the sign at bit 15, the exponent's lowest bit at 7. The field is
 * in the highest bits of the lanes of `top`.
 */
export function placeFields(f: FunctionBuilder, bits: number, mantissaBits: number, top: Operand): Emit {
  const mask = f.constant16(-32768 | (((1 << (bits - 1)) - 1) << (7 - mantissaBits)));
  return f.op("v128.and", f.op("i16x8.shr_s", top, f.i32(9 - bits + mantissaBits)), mask);
}

/** The lower or the upper half of i32 lanes, bfloat16 (7) or float16 (10 bits), as float32. */
export function halfWords(f: FunctionBuilder, words: Operand, half: "lower" | "upper", mantissaBits: 7 | 10): Emit {
  const upper = f.constant32(-65536);
  const high = half === "lower" ? f.op("i32x4.shl", words, f.i32(16)) : f.op("v128.and", words, upper);
  if (mantissaBits === 7) return high;
  return f.op("v128.and", f.op("i32x4.shr_s", high, f.i32(3)), f.constant32(0x8fffe000));
}

// What becomes of int32 sums: they stay integers, or become float32 (times a scale, plus a bias, within bounds), or
// codes again (times a scale, rounded half to even, plus a zero point, within bounds), in this order of float32 steps:
// onnxruntime's. Shared by convolutions (scales by row of sums) and matrix products (by column).
import type { Emit, FunctionBuilder, Local, Operand } from "../engine/asm.ts";

/** Type of a result. */
export type Finish = "int32" | "float32" | "int8" | "uint8";

export const finishBytes = (to: Finish): 1 | 4 => (to === "int32" || to === "float32" ? 4 : 1);

/** 1.5 * 2^23: a float32 of this size holds integers only. */
export const ROUND = 12582912;

/** Vectors that hold for a whole job: bounds, and of codes what `zeroTerm` makes of the zero point. */
export interface FinishTerms {
  readonly low: Operand;
  readonly high: Operand;
  readonly zero: Operand;
}

/**
 * v (sums, i32x4) as what `to` says, four lanes of 32 bits: int32, float32, or codes. Bounds of codes are those of
 * values before the zero point is added. NaN becomes the lower bound. Without terms: float32 within no bounds.
 */
export function finishVector(
  f: FunctionBuilder,
  to: Finish,
  v: Local,
  scale: Operand,
  bias: Operand | null,
  terms: FinishTerms | null,
): void {
  if (to === "int32") return;
  f.set(v, f.op("f32x4.mul", f.op("f32x4.convert_i32x4_s", v), scale));
  if (bias !== null) f.set(v, f.op("f32x4.add", v, bias));
  if (terms === null) return;
  bounded(f, v, terms.low, terms.high);
  if (to !== "float32") toCodes(f, v, terms.zero);
}

/** Between low and high; NaN is low. */
export function bounded(f: FunctionBuilder, v: Local, low: Operand, high: Operand): void {
  f.set(v, f.op("f32x4.pmax", low, v));
  f.set(v, f.op("f32x4.pmin", high, v));
}

/** A zero point (i32x4) less the bits that rounding leaves in a code. */
export const zeroTerm = (f: FunctionBuilder, zero: Operand): Emit => f.op("i32x4.sub", zero, f.constantF32(ROUND));

/** Bounded float32 as integers, half to even, plus a zero point (`zeroTerm`). */
export function toCodes(f: FunctionBuilder, v: Local, zero: Operand): void {
  f.set(v, f.op("i32x4.add", f.op("f32x4.add", v, f.constantF32(ROUND)), zero));
}

/** 16 codes as bytes. */
export function narrowCodes(f: FunctionBuilder, to: "int8" | "uint8", [a, b, c, d]: readonly Local[]): Emit {
  return f.op(
    to === "int8" ? "i8x16.narrow_i16x8_s" : "i8x16.narrow_i16x8_u",
    f.op("i16x8.narrow_i32x4_s", a, b),
    f.op("i16x8.narrow_i32x4_s", c, d),
  );
}

/** Copies `bytes` (a local, less than 64, overwritten with 0) from one address to another, both moved. */
export function moveSome(f: FunctionBuilder, from: Local, to: Local, bytes: Local): void {
  f.while(f.op("i32.ge_u", bytes, f.i32(4)), () => {
    f.store("i32.store", to, 0, f.load("i32.load", from));
    f.bump(from, 4);
    f.bump(to, 4);
    f.bump(bytes, -4);
  });
  f.while(bytes, () => {
    f.store("i32.store8", to, 0, f.load("i32.load8_u", from));
    f.bump(from, 1);
    f.bump(to, 1);
    f.bump(bytes, -1);
  });
}

// The rules by which zero points, addends and the bias of a grid enter packed weights: one spelling for every family,
// WebAssembly and WGSL.
import type { OffsetRole, WeightSource } from "./weight.ts";

/** What a packed group carries beside its scale: an integer zero point, an addend. */
export interface OffsetTerms {
  readonly zeroPoint: boolean;
  readonly add: boolean;
}

/**
 * Zero points stay integers where they are integers on the grid of the operands: `exact`, all operands are values of
 * the grid, which has no bias. Every other offset, and a bias, is an addend.
 */
export function offsetTerms(
  { role, integerZeros }: Pick<WeightSource, "role" | "integerZeros">,
  { exact, bias }: { readonly exact: boolean; readonly bias: number },
): OffsetTerms {
  const zeroPoint = role === "zeroPoint" && integerZeros && exact && bias === 0;
  return { zeroPoint, add: (role !== "none" && !zeroPoint) || bias !== 0 };
}

/** The addend of a group: its offset in units of the result, where that is no zero point, and the bias of the grid. */
export function addendOf(role: OffsetRole, zeroPoint: boolean, scale: number, offset: number, bias: number): number {
  const own = role === "add" ? offset : role === "zeroPoint" && !zeroPoint ? -offset * scale : 0;
  return own + bias * scale;
}

/** Unit and shift of a lattice whose operands stand for 2 u - shift, as of one whose operands stand for u - shift. */
export const undoubled = (lattice: {
  readonly unit: number;
  readonly shift: number;
  readonly doubled: boolean;
}): { readonly unit: number; readonly shift: number } =>
  lattice.doubled ? { unit: 2 * lattice.unit, shift: lattice.shift / 2 } : { unit: lattice.unit, shift: lattice.shift };

// Scales of rows for elements of so few values that the largest number of a row is no guide: with it most values of a
// ternary row would be zero.
import type { NumberFormat } from "../../formats/core/types.ts";

/** At most three values, symmetric about zero. */
export const isCoarse = ({ limits }: NumberFormat): boolean => limits.finiteValues <= 3 && limits.symmetric;

/**
 * One scale a row from the mean magnitude: that mean for two values (least squares), 1.53 times for three (least
 * squares for normal numbers: threshold 0.61 sigma, value 1.22). Values that are not finite give a scale that is not,
 * and are refused by `quantize`.
 */
export function coarseScales(x: Float32Array, dims: number, { limits }: NumberFormat): Float32Array {
  const factor = (limits.finiteValues === 2 ? 1 : 1.53) / limits.max;
  return Float32Array.from({ length: x.length / dims }, (_, r) => {
    let sum = 0;
    for (let i = r * dims; i < (r + 1) * dims; i++) sum += Math.abs(x[i]);
    const scale = (sum / dims) * factor;
    return scale > 0 ? scale : 1;
  });
}

// Integer dot products of dynamic fixed point (arXiv 1802.00930): 16-bit integers whose sums neither overflow nor
// round.
import { LowbitError } from "../../formats/core/errors.ts";

/** 2^53: below it every integer is a double. */
const EXACT = 2 ** 53;

/**
 * The exact dot product of two vectors of 16-bit integers. Products reach 2^30, so two of them already fill an int32:
 * they are summed in int32 in runs as short as the magnitudes demand, the runs in binary64. The value of a dfp16
 * product is this times both shared scales.
 * @throws LowbitError E_SHAPE if the lengths differ; RangeError beyond 2^23 elements of full size, where a double no
 * longer holds the sum
 * @example dotInt16(Int16Array.of(-32768, 3), Int16Array.of(-32768, 5)) // 1073741839
 */
export function dotInt16(a: Int16Array, b: Int16Array): number {
  if (!(a instanceof Int16Array && b instanceof Int16Array)) throw new TypeError("dotInt16: expected two Int16Arrays.");
  if (a.length !== b.length)
    throw new LowbitError("E_SHAPE", `dotInt16: expected equal lengths, got ${a.length} and ${b.length}. Cut or pad one of them.`);
  let [ma, mb] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    ma = Math.max(ma, Math.abs(a[i]));
    mb = Math.max(mb, Math.abs(b[i]));
  }
  const largest = ma * mb;
  if (largest * a.length > EXACT)
    throw new RangeError(`dotInt16: expected a sum below 2^53, got up to ${largest * a.length}. Split the vectors and add with BigInt.`);
  const run = Math.max(1, Math.min(a.length, Math.floor((2 ** 31 - 1) / Math.max(1, largest))));
  let total = 0;
  for (let i = 0; i < a.length; i += run) {
    const end = Math.min(a.length, i + run);
    let sum = 0;
    for (let j = i; j < end; j++) sum = (sum + Math.imul(a[j], b[j])) | 0;
    total += sum;
  }
  return total;
}

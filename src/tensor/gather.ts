// Rows of a packed matrix by index, decoded: the lookup of a packed embedding.
import { LowbitError } from "../../formats/core/errors.ts";
import { dequantizeRows } from "../../formats/core/packed.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import { tensor, type Tensor } from "./tensor.ts";

/**
 * Rows w[ids[i]] as float32, [ids.length, k]. Only the rows asked for are decoded.
 * @param out receives the rows, ids.length * k
 * @throws LowbitError E_SHAPE for no index, an index outside 0..rows-1 or an `out` of another size
 * @example gatherRows(packed, [5, 0, 5]).shape // [3, 256]: rows of an embedding
 */
export function gatherRows(w: PackedTensor, ids: ArrayLike<number>, out?: Float32Array): Tensor<Float32Array> {
  const { rows, k } = w;
  if (ids.length === 0) throw new LowbitError("E_SHAPE", "gatherRows ids: expected at least one row index, got none.");
  const data = out ?? new Float32Array(ids.length * k);
  if (data.length !== ids.length * k)
    throw new LowbitError("E_SHAPE", `gatherRows out: expected ${ids.length} x ${k} = ${ids.length * k}, got ${data.length}.`);
  for (let i = 0; i < ids.length; i++)
    if (!Number.isInteger(ids[i]) || ids[i] < 0 || ids[i] >= rows)
      throw new LowbitError("E_SHAPE", `gatherRows ids[${i}]: expected an integer from 0 to ${rows - 1}, got ${ids[i]}.`);
  for (let i = 0; i < ids.length;) {
    // neighbours in the matrix are decoded together: scales are read once
    let count = 1;
    while (i + count < ids.length && ids[i + count] === ids[i] + count) count++;
    dequantizeRows(w, ids[i], count, data.subarray(i * k, (i + count) * k));
    i += count;
  }
  return tensor(data, [ids.length, k]);
}

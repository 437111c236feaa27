// Values of a runtime's tensor as numbers.
import { halfTable } from "../file/half.ts";
import type { OutputTensor } from "./runtimes.ts";

/** Float16 decoded, 64-bit integers as doubles; other arrays as they are. Not for strings. */
export function numbers(tensor: OutputTensor): ArrayLike<number> {
  const { data } = tensor;
  // Some runtimes return Float16Array (values), others codes.
  if (tensor.type === "float16" && data instanceof Uint16Array) {
    const table = halfTable();
    return Float32Array.from(data, (code) => table[code]);
  }
  if (data instanceof BigInt64Array || data instanceof BigUint64Array)
    return Float64Array.from(data as ArrayLike<bigint> & Iterable<bigint>, Number);
  return data as ArrayLike<number>;
}

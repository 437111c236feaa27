// Values of stored float weights.
import { decodeArray } from "../../../formats/core/bulk.ts";
import { isLowbitError, LowbitError } from "../../../formats/core/errors.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import { float16 } from "../../../formats/float16.ts";
import { fromBytes } from "../../tensor/container.ts";
import { sizeOf, type StoredWeight } from "./manifest.ts";

/** A copy that starts at a multiple of four bytes. */
const aligned = (bytes: Uint8Array): ArrayBuffer => bytes.slice().buffer as ArrayBuffer;

/** The packed tensor of a weight stored as `lowbit`. @throws LowbitError E_CONTAINER */
export function packedWeight({ entry, bytes }: StoredWeight): PackedTensor {
  let w: PackedTensor;
  try {
    w = fromBytes(bytes);
  } catch (cause) {
    if (!isLowbitError(cause)) throw cause;
    throw new LowbitError("E_CONTAINER", `weight ${entry.name.slice(0, 60)}: ${cause.message}`, { cause });
  }
  const { shape } = entry;
  const rows = entry.quantization!.rows!;
  if (shape.length !== 2 || w.rows !== shape[rows] || w.k !== shape[1 - rows])
    throw new LowbitError(
      "E_CONTAINER",
      `weight ${entry.name.slice(0, 60)}: expected a packed [${shape[rows]}, ${shape[1 - rows]}], got [${w.rows}, ${w.k}].`,
    );
  return w;
}

/** Values of a float32 weight that is not packed, as tfjs decodes them. */
export function floatValues({ entry, bytes }: StoredWeight): Float32Array {
  const { quantization } = entry;
  if (quantization === undefined) return new Float32Array(aligned(bytes));
  if (quantization.dtype === "float16") {
    const out = new Float64Array(sizeOf(entry.shape));
    decodeArray(float16, new Uint16Array(aligned(bytes)), out);
    return Float32Array.from(out);
  }
  const codes = quantization.dtype === "uint8" ? bytes : new Uint16Array(aligned(bytes));
  return Float32Array.from(codes, (code) => code * quantization.scale! + quantization.min!);
}

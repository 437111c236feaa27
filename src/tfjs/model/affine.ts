// The quantization of tensorflowjs_converter (--quantize_uint8, --quantize_uint16, --quantize_float16), from its rule:
// one range for each weight, nudged so that zero is a code where the range has zero. Binary64 throughout, as NumPy 2
// computes it; NumPy 1 took float32, which differs by a code where a value lies within 1e-7 of a tie.
import { encodeArray } from "../../../formats/core/bulk.ts";
import { LowbitError } from "../../../formats/core/errors.ts";
import { float16 } from "../../../formats/float16.ts";
import type { StoredQuantization } from "./manifest.ts";

export type ConverterDtype = "uint8" | "uint16" | "float16";

const MAGIC = 6755399441055744; // 1.5 * 2^52: adding and taking it away rounds half to even

/** A weight as the converter stores it. @throws LowbitError E_VALUE for NaN and infinities with integers */
export function converterQuantize(
  name: string,
  values: Float32Array,
  dtype: ConverterDtype,
): { bytes: Uint8Array; quantization: StoredQuantization } {
  if (dtype === "float16") {
    const codes = encodeArray(float16, values, new Uint16Array(values.length), { overflow: "inf" });
    return { bytes: new Uint8Array(codes.buffer), quantization: { dtype, original_dtype: "float32" } };
  }
  let [min, max] = [Infinity, -Infinity];
  for (const v of values) {
    if (!Number.isFinite(v))
      throw new LowbitError("E_VALUE", `weight ${name}: expected finite numbers for ${dtype}, got ${v}. Use float16, or leave it out.`);
    if (v < min) min = v;
    if (v > max) max = v;
  }
  const codes = dtype === "uint8" ? new Uint8Array(values.length) : new Uint16Array(values.length);
  let scale = 1;
  if (min !== max) {
    const top = 2 ** (8 * codes.BYTES_PER_ELEMENT) - 1;
    scale = (max - min) / top;
    if (min <= 0 && max >= 0) {
      min = -((0 - min) / scale + MAGIC - MAGIC) * scale;
      max = top * scale + min;
    }
    for (let i = 0; i < codes.length; i++) codes[i] = (Math.min(max, Math.max(min, values[i])) - min) / scale + MAGIC - MAGIC;
  }
  // the order of keys is the converter's
  return { bytes: new Uint8Array(codes.buffer), quantization: { dtype, min: min + 0, scale, original_dtype: "float32" } };
}

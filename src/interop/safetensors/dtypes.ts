// The element types of safetensors. Spec: huggingface/safetensors, safetensors/src/tensor.rs.
import { decodeArray } from "../../../formats/core/bulk.ts";
import { unpackCodes } from "../../../formats/core/pack.ts";
import type { NumberFormat } from "../../../formats/core/types.ts";
import { format } from "../../../formats/registry.ts";

/** Name, bits of an element, and its number format where it has one. */
export interface SafeDtype {
  readonly name: string;
  readonly bits: number;
  readonly format?: string;
}

export const SAFE_DTYPES: ReadonlyMap<string, SafeDtype> = new Map(
  (
    [
      ["BOOL", 8], ["F4", 4, "e2m1fn"], ["F6_E2M3", 6, "e2m3fn"], ["F6_E3M2", 6, "e3m2fn"], ["U8", 8, "uint8"], ["I8", 8, "int8"], ["F8_E5M2", 8, "f8_e5m2"],
      ["F8_E4M3", 8, "f8_e4m3"], ["F8_E8M0", 8, "f8_e8m0"], ["F8_E4M3FNUZ", 8, "f8_e4m3fnuz"], ["F8_E5M2FNUZ", 8, "f8_e5m2fnuz"], ["I16", 16], ["U16", 16],
      ["F16", 16, "float16"], ["BF16", 16, "bfloat16"], ["I32", 32], ["U32", 32], ["F32", 32, "float32"], ["C64", 64], ["F64", 64], ["I64", 64], ["U64", 64],
    ] as const
  ).map(([name, bits, f]) => [name, { name, bits, ...(f === undefined ? {} : { format: f }) }]),
); // prettier-ignore

/** The number format of a dtype; undefined for wide integers, F64 and complex numbers. */
export const formatOfDtype = (dtype: SafeDtype): NumberFormat | undefined =>
  dtype.format === undefined ? undefined : (format(dtype.format) as NumberFormat);

type Numbers = Float32Array | Float64Array | Int16Array | Uint16Array | Int32Array | Uint32Array | BigInt64Array | BigUint64Array;
const ARRAYS: ReadonlyMap<string, new (buffer: ArrayBuffer) => Numbers> = new Map<string, new (buffer: ArrayBuffer) => Numbers>([
  ["F32", Float32Array],
  ["F64", Float64Array],
  ["C64", Float32Array],
  ["I16", Int16Array],
  ["U16", Uint16Array],
  ["I32", Int32Array],
  ["U32", Uint32Array],
  ["I64", BigInt64Array],
  ["U64", BigUint64Array],
]);

/**
 * Elements as numbers of their own kind: float16 and smaller floats as codes; two floats for a complex number. A copy,
 * aligned.
 */
export function typedElements(dtype: SafeDtype, bytes: Uint8Array): Numbers | Uint8Array | Int8Array {
  const own = bytes.slice().buffer;
  const Wide = ARRAYS.get(dtype.name);
  if (Wide !== undefined) return new Wide(own);
  if (dtype.bits === 16) return new Uint16Array(own);
  return dtype.name === "I8" ? new Int8Array(own) : new Uint8Array(own);
}

/**
 * Elements as float32, rounded where they are wider; booleans 0 and 1; complex numbers as pairs. Sub-byte floats lie
 * low bits first.
 */
export function floatElements(dtype: SafeDtype, bytes: Uint8Array): Float32Array {
  const f = formatOfDtype(dtype);
  if (dtype.name === "F32" || dtype.name === "C64") return new Float32Array(bytes.slice().buffer);
  if (f === undefined) return Float32Array.from(typedElements(dtype, bytes) as ArrayLike<number | bigint> as ArrayLike<number>, Number);
  const count = (bytes.length * 8) / dtype.bits;
  const codes = unpackCodes(bytes, dtype.bits, count);
  return decodeArray(f, codes, new Float32Array(count));
}

// NumPy's .npy and .npz, and safetensors, as tensors that a runtime is fed with; src/interop reads them.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { FeedTensor } from "../verify/feeds.ts";
import { contiguous, parseNpy as readArray, readNpy, type NpyArray } from "../../interop/npy/npy.ts";
import { parseNpz as readArchive } from "../../interop/npy/npz.ts";
import { readSafetensors } from "../../interop/safetensors/read.ts";
import type { ByteSource } from "../../interop/source.ts";

/** Element types of runtimes by the name that safetensors has. Float16 are codes; bfloat16 is refused. */
const SAFETENSORS: ReadonlyMap<string, string> = new Map([
  ["F32", "float32"],
  ["F64", "float64"],
  ["F16", "float16"],
  ["I64", "int64"],
  ["I32", "int32"],
  ["I16", "int16"],
  ["I8", "int8"],
  ["U64", "uint64"],
  ["U32", "uint32"],
  ["U16", "uint16"],
  ["U8", "uint8"],
  ["BOOL", "bool"],
]);

/** As runtimes take it: in C order. @throws LowbitError E_CONTAINER for complex numbers, which no runtime takes */
function feedTensor(array: NpyArray, label: string): FeedTensor {
  if (array.dtype.startsWith("complex"))
    throw new LowbitError(
      "E_CONTAINER",
      `${label}: expected real numbers, got ${array.dtype}. Write real and imaginary parts as two arrays.`,
    );
  return { type: array.dtype, data: contiguous(array), dims: array.shape };
}

/** A tensor from the bytes of a .npy file. @throws LowbitError E_CONTAINER */
export const parseNpy = (bytes: Uint8Array, label: string): FeedTensor => feedTensor(readArray(bytes, label), label);

/** A tensor of a .npy file. @throws LowbitError E_CONTAINER, E_IO */
export async function readNpyTensor(path: string): Promise<FeedTensor> {
  return feedTensor(await readNpy(path), path);
}

/** The arrays of a .npz file by name. @throws LowbitError E_CONTAINER */
export const parseNpz = (bytes: Uint8Array, label: string): Map<string, FeedTensor> =>
  new Map([...readArchive(bytes, label)].map(([name, array]) => [name, feedTensor(array, `${label}: ${name}`)]));

/** The tensors of a safetensors file by name. @throws LowbitError E_CONTAINER, E_IO */
export async function readSafetensorsFeeds(source: ByteSource, label: string): Promise<Map<string, FeedTensor>> {
  const file = await readSafetensors(source);
  try {
    const out = new Map<string, FeedTensor>();
    for (const [name, tensor] of file.tensors) {
      const type = SAFETENSORS.get(tensor.dtype);
      if (type === undefined)
        throw new LowbitError(
          "E_CONTAINER",
          `${label}: expected one of ${[...SAFETENSORS.keys()].join(" ")} for ${name}, got ${tensor.dtype}. Write it as F32.`,
        );
      out.set(name, { type, data: (await tensor.elements()) as FeedTensor["data"], dims: tensor.shape });
    }
    return out;
  } finally {
    await file.close();
  }
}

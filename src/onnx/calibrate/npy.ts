// NumPy's .npy and .npz (read by src/interop/npy), and plain safetensors, as tensors that a runtime is fed with.
// Format: huggingface/safetensors. bfloat16 is refused.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { FeedTensor } from "../verify/feeds.ts";
import { contiguous, parseNpy as readArray, readNpy, type NpyArray } from "../../interop/npy/npy.ts";
import { parseNpz as readArchive } from "../../interop/npy/npz.ts";

type NumberArray = new (buffer: ArrayBuffer) => FeedTensor["data"];
type Row = readonly [type: string, bytes: number, array: NumberArray];

/** Element types by the name that safetensors has. Float16 are codes. */
const SAFETENSORS: ReadonlyMap<string, Row> = new Map<string, Row>([
  ["F32", ["float32", 4, Float32Array]],
  ["F64", ["float64", 8, Float64Array]],
  ["F16", ["float16", 2, Uint16Array]],
  ["I64", ["int64", 8, BigInt64Array]],
  ["I32", ["int32", 4, Int32Array]],
  ["I16", ["int16", 2, Int16Array]],
  ["I8", ["int8", 1, Int8Array]],
  ["U64", ["uint64", 8, BigUint64Array]],
  ["U32", ["uint32", 4, Uint32Array]],
  ["U16", ["uint16", 2, Uint16Array]],
  ["U8", ["uint8", 1, Uint8Array]],
  ["BOOL", ["bool", 1, Uint8Array]],
]);

/** A copy, own and aligned: a Buffer from a file may be a view of a pool. */
const typed = ([type, , Data]: Row, bytes: Uint8Array, dims: readonly number[]): FeedTensor => ({
  type,
  data: new Data(new Uint8Array(bytes).buffer),
  dims,
});

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

/** The tensors of a safetensors file by name. @throws LowbitError E_CONTAINER */
export function parseSafetensors(bytes: Uint8Array, label: string): Map<string, FeedTensor> {
  const bad = (expected: string, got: string, cause?: unknown): LowbitError =>
    new LowbitError("E_CONTAINER", `${label}: expected ${expected}, got ${got}. Write it with safetensors.`, { cause });
  if (bytes.length < 10) throw bad("a safetensors file", `${bytes.length} bytes`);
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true));
  if (length > Math.min(100_000_000, bytes.length - 8)) throw bad("a header inside the file", `one of ${length} bytes`);
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, 8 + length)));
  } catch (cause) {
    throw bad("a header of JSON", (cause as Error).message, cause);
  }
  const data = bytes.subarray(8 + length);
  const out = new Map<string, FeedTensor>();
  for (const [name, entry] of Object.entries((header ?? {}) as Record<string, unknown>)) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets: offsets } = (entry ?? {}) as { dtype?: string; shape?: number[]; data_offsets?: number[] };
    const row = SAFETENSORS.get(String(dtype));
    if (row === undefined) throw bad(`one of ${[...SAFETENSORS.keys()].join(" ")} for ${name}`, String(dtype));
    const whole = (list: unknown): list is number[] => Array.isArray(list) && list.every((v) => Number.isSafeInteger(v) && v >= 0);
    if (!whole(shape) || !whole(offsets) || offsets.length !== 2) throw bad(`shape and data_offsets of ${name}`, JSON.stringify(entry));
    const size = shape.reduce((a, b) => a * b, 1) * row[1];
    if (offsets[1] > data.length || offsets[1] - offsets[0] !== size)
      throw bad(`${size} bytes of ${name}`, `offsets ${offsets.join(" to ")}`);
    out.set(name, typed(row, data.subarray(offsets[0], offsets[1]), shape));
  }
  return out;
}

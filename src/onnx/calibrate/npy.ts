// NumPy's .npy (versions 1 to 3, little-endian, C order) and .npz (a zip of them, stored or deflated), and plain
// safetensors, as tensors. Formats: numpy/lib/format.py (NEP 1); PKWARE APPNOTE 4.3; huggingface/safetensors. Object
// arrays, big-endian data and bfloat16 are refused.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { FeedTensor } from "../verify/feeds.ts";
import { nodeZlib } from "./node.ts";

type NumberArray = new (buffer: ArrayBuffer) => FeedTensor["data"];
type Row = readonly [type: string, bytes: number, array: NumberArray];

/** Element types by NumPy's descriptor. Float16 are codes. */
const NUMPY: ReadonlyMap<string, Row> = new Map<string, Row>([
  ["<f4", ["float32", 4, Float32Array]],
  ["<f8", ["float64", 8, Float64Array]],
  ["<f2", ["float16", 2, Uint16Array]],
  ["<i8", ["int64", 8, BigInt64Array]],
  ["<i4", ["int32", 4, Int32Array]],
  ["<i2", ["int16", 2, Int16Array]],
  ["|i1", ["int8", 1, Int8Array]],
  ["<u8", ["uint64", 8, BigUint64Array]],
  ["<u4", ["uint32", 4, Uint32Array]],
  ["<u2", ["uint16", 2, Uint16Array]],
  ["|u1", ["uint8", 1, Uint8Array]],
  ["|b1", ["bool", 1, Uint8Array]],
]);
/** The same by the name that safetensors has. */
const SAFETENSORS: ReadonlyMap<string, Row> = new Map(
  Object.entries({
    F32: "<f4",
    F64: "<f8",
    F16: "<f2",
    I64: "<i8",
    I32: "<i4",
    I16: "<i2",
    I8: "|i1",
    U64: "<u8",
    U32: "<u4",
    U16: "<u2",
    U8: "|u1",
    BOOL: "|b1",
  }).map(([name, descr]) => [name, NUMPY.get(descr)!]),
);

/** A copy, own and aligned: a Buffer from a file may be a view of a pool. */
const typed = ([type, , Data]: Row, bytes: Uint8Array, dims: readonly number[]): FeedTensor => ({
  type,
  data: new Data(new Uint8Array(bytes).buffer),
  dims,
});

/** A tensor from the bytes of a .npy file. @throws LowbitError E_CONTAINER */
export function parseNpy(bytes: Uint8Array, label: string): FeedTensor {
  const bad = (expected: string, got: string): LowbitError =>
    new LowbitError("E_CONTAINER", `${label}: expected ${expected}, got ${got}. Write it with numpy.save.`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const magic = String.fromCharCode(...bytes.subarray(0, 6));
  if (magic !== "\x93NUMPY") throw bad("a .npy file", "another file type");
  const major = bytes.length >= 12 ? bytes[6] : 0;
  if (major < 1 || major > 3) throw bad(".npy version 1 to 3", major === 0 ? "a truncated file" : `version ${major}`);
  const start = major === 1 ? 10 : 12;
  const end = start + (major === 1 ? view.getUint16(8, true) : view.getUint32(8, true));
  if (end > bytes.length) throw bad(`a header of ${end} bytes`, `a file of ${bytes.length}`);
  const header = new TextDecoder().decode(bytes.subarray(start, end));
  const descr = /'descr':\s*'([^']*)'/.exec(header)?.[1];
  const order = /'fortran_order':\s*(True|False)/.exec(header)?.[1];
  const dimsText = /'shape':\s*\(([\d,\s]*)\)/.exec(header)?.[1];
  if (descr === undefined || order === undefined || dimsText === undefined)
    throw bad("descr, fortran_order and shape", JSON.stringify(header.slice(0, 80)));
  const row = NUMPY.get(descr);
  if (row === undefined) throw bad(`one of ${[...NUMPY.keys()].join(" ")}`, descr);
  if (order === "True") throw bad("C order", "Fortran order");
  const dims = dimsText
    .split(",")
    .filter((part) => part.trim() !== "")
    .map(Number);
  const length = dims.reduce((a, b) => a * b, 1) * row[1];
  if (bytes.length - end !== length) throw bad(`${length} bytes of data for shape (${dims.join(", ")})`, `${bytes.length - end}`);
  return typed(row, bytes.subarray(end), dims);
}

/** Files of a .npz may not say that they are larger than this: an archive of a few bytes could ask for any memory. */
const ENTRY_MAX = 2 ** 31 - 1;

/** The arrays of a .npz file by name. @throws LowbitError E_CONTAINER */
export function parseNpz(bytes: Uint8Array, label: string): Map<string, FeedTensor> {
  const bad = (expected: string, got: string, cause?: unknown): LowbitError =>
    new LowbitError("E_CONTAINER", `${label}: expected ${expected}, got ${got}. Write it with numpy.savez.`, { cause });
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  // The end record has a comment of up to 64 KiB behind it.
  let end = bytes.length - 22;
  while (end >= 0 && end >= bytes.length - 22 - 65535 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0 || view.getUint32(end, true) !== 0x06054b50) throw bad("a .npz file (zip)", "no zip directory");
  const count = view.getUint16(end + 10, true);
  let at = view.getUint32(end + 16, true);
  const out = new Map<string, FeedTensor>();
  for (let i = 0; i < count; i++) {
    if (at + 46 > bytes.length || view.getUint32(at, true) !== 0x02014b50) throw bad(`${count} entries`, `${i} whole ones`);
    const method = view.getUint16(at + 10, true);
    let [packed, size] = [view.getUint32(at + 20, true), view.getUint32(at + 24, true)];
    const [nameLength, extraLength, commentLength] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    let local = view.getUint32(at + 42, true);
    const next = at + 46 + nameLength + extraLength + commentLength;
    if (next > bytes.length) throw bad(`${count} entries`, `a directory that ends in entry ${i + 1}`);
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + nameLength));
    // Sizes of 64 bits, which numpy writes for every entry, stand in an extra field.
    for (let extra = at + 46 + nameLength; extra + 4 <= at + 46 + nameLength + extraLength; extra += 4 + view.getUint16(extra + 2, true)) {
      if (view.getUint16(extra, true) !== 1) continue;
      let field = extra + 4;
      const wide = (value: number): number => {
        if (value !== 0xffffffff || field + 8 > bytes.length) return value;
        field += 8;
        return Number(view.getBigUint64(field - 8, true));
      };
      size = wide(size);
      packed = wide(packed);
      local = wide(local);
    }
    at = next;
    if (!name.endsWith(".npy")) continue;
    if (local + 30 > bytes.length || size > ENTRY_MAX) throw bad(`room for ${name}`, "a damaged directory");
    const from = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const raw = bytes.subarray(from, from + packed);
    let data = raw;
    if (method === 8) {
      try {
        data = nodeZlib().inflateRawSync(raw, { maxOutputLength: Math.max(1, size) });
      } catch (cause) {
        throw bad(`${size} bytes of ${name}`, (cause as Error).message, cause);
      }
    } else if (method !== 0) throw bad("stored or deflated arrays", `compression method ${method}`);
    if (data.length !== size) throw bad(`${size} bytes of ${name}`, `${data.length}`);
    out.set(name.slice(0, -4), parseNpy(data, `${label}: ${name}`));
  }
  return out;
}

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

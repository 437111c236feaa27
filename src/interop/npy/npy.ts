// NumPy's .npy, versions 1 to 3, in and out: every numeric type, either byte order, C and Fortran order (a matter of
// strides). Format: numpy/lib/format.py (NEP 1). Not here: objects, strings, records, dates, long doubles.
import { LowbitError } from "../../../formats/core/errors.ts";
import { openSource, writeFileWhole, type ByteSource } from "../source.ts";

/** What arrays hold. Float16 are codes; complex numbers are pairs, real part first. */
export type NpyData =
  | Float32Array
  | Float64Array
  | BigInt64Array
  | BigUint64Array
  | Int32Array
  | Uint32Array
  | Int16Array
  | Uint16Array
  | Int8Array
  | Uint8Array;

/** An array: element [i, j, ...] is data[offset + i * stride[0] + ...], as of an ndarray. */
export interface NpyArray<T extends NpyData = NpyData> {
  /** float64, float32, float16, int64, ..., uint8, bool, complex64, complex128. */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** In elements; in pairs for complex numbers. */
  readonly stride: readonly number[];
  readonly offset: number;
  readonly data: T;
}

/** What is written: a view, or data in C order with its shape. */
export interface NpyInput {
  readonly data: NpyData;
  readonly shape: readonly number[];
  /** Default: C order. */
  readonly stride?: readonly number[];
  readonly offset?: number;
  /** Default: that of the data; float16 (of Uint16Array), bool (of Uint8Array) and complex types must be said. */
  readonly dtype?: string;
}

interface Row {
  readonly dtype: string;
  /** Letter and bytes of NumPy's descriptor. */
  readonly descr: string;
  readonly bytes: number;
  /** Numbers in one element. */
  readonly parts: number;
  readonly array: new (buffer: ArrayBuffer) => NpyData;
}

const row = (dtype: string, descr: string, array: Row["array"] & { readonly BYTES_PER_ELEMENT: number }, parts = 1): Row => ({
  ...{ dtype, descr, array, parts },
  bytes: array.BYTES_PER_ELEMENT * parts,
});
const ROWS: readonly Row[] = [
  row("float32", "f4", Float32Array),
  row("float64", "f8", Float64Array),
  row("float16", "f2", Uint16Array),
  row("int64", "i8", BigInt64Array),
  row("int32", "i4", Int32Array),
  row("int16", "i2", Int16Array),
  row("int8", "i1", Int8Array),
  row("uint64", "u8", BigUint64Array),
  row("uint32", "u4", Uint32Array),
  row("uint16", "u2", Uint16Array),
  row("uint8", "u1", Uint8Array),
  row("bool", "b1", Uint8Array),
  row("complex64", "c8", Float32Array, 2),
  row("complex128", "c16", Float64Array, 2),
];
const BY_DESCR: ReadonlyMap<string, Row> = new Map(ROWS.map((r) => [r.descr, r]));
const BY_DTYPE: ReadonlyMap<string, Row> = new Map(ROWS.map((r) => [r.dtype, r]));
const DESCRIPTORS = ROWS.map(({ descr, bytes }) => `${bytes === 1 ? "|" : "<"}${descr}`).join(" ");

/** Strides of a shape in C order. */
export function inRows(shape: readonly number[]): number[] {
  const stride = new Array<number>(shape.length);
  for (let i = shape.length - 1, s = 1; i >= 0; i--) {
    stride[i] = s;
    s *= shape[i];
  }
  return stride;
}

/** Turns the bytes of every number around, in place. */
function swap(bytes: Uint8Array, size: number): void {
  for (let at = 0; at < bytes.length; at += size)
    for (let lo = at, hi = at + size - 1; lo < hi; lo++, hi--) [bytes[lo], bytes[hi]] = [bytes[hi], bytes[lo]];
}

/**
 * An array from the bytes of a .npy file, in memory of its own. @throws LowbitError E_CONTAINER
 * @example const { data, shape } = parseNpy(await readFile("vectors.npy"));
 */
export function parseNpy(bytes: Uint8Array, label = "npy file"): NpyArray {
  const bad = (expected: string, got: string): LowbitError =>
    new LowbitError("E_CONTAINER", `${label}: expected ${expected}, got ${got}. Write it with numpy.save.`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (String.fromCharCode(...bytes.subarray(0, 6)) !== "\x93NUMPY") throw bad("a .npy file", "another file type");
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
  const found = /^[<>|=]/.test(descr) ? BY_DESCR.get(descr.slice(1)) : undefined;
  if (found === undefined || (descr[0] === "|") !== (found.bytes === 1)) throw bad(`one of ${DESCRIPTORS}`, descr);
  const shape = dimsText
    .split(",")
    .filter((part) => part.trim() !== "")
    .map(Number);
  const length = shape.reduce((a, b) => a * b, 1) * found.bytes;
  if (bytes.length - end !== length) throw bad(`${length} bytes of data for shape (${shape.join(", ")})`, `${bytes.length - end}`);
  // a copy, own and aligned: a Buffer from a file may be a view of a pool
  const own = new Uint8Array(bytes.subarray(end));
  if (descr[0] === ">") swap(own, found.bytes / found.parts);
  const stride = order === "True" ? inRows([...shape].reverse()).reverse() : inRows(shape);
  return { dtype: found.dtype, shape, stride, offset: 0, data: new found.array(own.buffer) };
}

/** The elements of a view in C order; its own data where they are so. */
export function contiguous<T extends NpyData>({ dtype, shape, stride, offset, data }: NpyArray<T>): T {
  const parts = BY_DTYPE.get(dtype)?.parts ?? 1;
  const count = shape.reduce((n, d) => n * d, 1);
  const natural = inRows(shape);
  if (offset === 0 && data.length === count * parts && shape.every((d, i) => d === 1 || stride[i] === natural[i])) return data;
  const out = data.slice(0, 0).constructor as new (length: number) => T;
  const made = new out(count * parts);
  const index = new Array<number>(shape.length).fill(0);
  for (let i = 0, from = offset; i < count; i++) {
    for (let p = 0; p < parts; p++) made[i * parts + p] = data[from * parts + p];
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      from += stride[axis];
      if (++index[axis] < shape[axis]) break;
      from -= shape[axis] * stride[axis];
      index[axis] = 0;
    }
  }
  return made;
}

/** The row of what is written. @throws TypeError */
function rowOf({ data, dtype }: NpyInput): Row {
  const natural = ROWS.find(({ array, parts }) => parts === 1 && data instanceof array && array !== Uint16Array) ?? BY_DTYPE.get("uint16")!;
  const wanted = dtype === undefined ? natural : BY_DTYPE.get(dtype);
  if (!ArrayBuffer.isView(data) || wanted === undefined || !(data instanceof wanted.array))
    throw new TypeError(
      `npy: expected numbers in a typed array and a dtype that fits (${ROWS.map((r) => r.dtype).join(", ")}), got ${String(dtype)} of ${(data as object | undefined)?.constructor?.name ?? typeof data}.`,
    );
  return wanted;
}

/**
 * The bytes of a .npy file: version 1, or 2 where the header asks for it, C order or, for a view that is so, Fortran
 * order.
 * @throws TypeError, LowbitError E_SHAPE
 * @example parseNpy(npyBytes({ data: Float32Array.of(1, 2, 3, 4), shape: [2, 2] })).shape // [2, 2]
 */
export function npyBytes(input: NpyInput): Uint8Array<ArrayBuffer> {
  const found = rowOf(input);
  const { data, shape, stride = inRows(shape), offset = 0 } = input;
  const count = shape.reduce((n, d) => n * d, 1);
  const reach = shape.reduce(
    ([lo, hi], d, i) => (stride[i] < 0 ? [lo + (d - 1) * stride[i], hi] : [lo, hi + (d - 1) * stride[i]]),
    [offset, offset],
  );
  const numbers = data.length / found.parts;
  const bad =
    shape.some((d) => !Number.isSafeInteger(d) || d < 0) ||
    stride.length !== shape.length ||
    (count > 0 && (reach[0] < 0 || reach[1] >= numbers));
  if (bad || (input.stride === undefined && count !== numbers))
    throw new LowbitError(
      "E_SHAPE",
      `npy: expected a shape and strides of the ${numbers} elements of data, got [${shape.join(", ")}] by [${stride.join(", ")}].`,
    );
  const [rows, fortran] = [inRows(shape), inRows([...shape].reverse()).reverse()];
  const isFortran =
    shape.length > 1 &&
    offset === 0 &&
    count === numbers &&
    shape.every((d, i) => d === 1 || stride[i] === fortran[i]) &&
    !shape.every((d, i) => d === 1 || stride[i] === rows[i]);
  const values = isFortran ? data : contiguous({ dtype: found.dtype, shape, stride, offset, data });
  const text = `{'descr': '${found.bytes === 1 ? "|" : "<"}${found.descr}', 'fortran_order': ${isFortran ? "True" : "False"}, 'shape': (${shape.join(", ")}${shape.length === 1 ? "," : ""}), }`;
  // data begin at a multiple of 64, as NumPy's own do
  const wide = text.length + 75 > 65535;
  const start = wide ? 12 : 10;
  const length = Math.ceil((start + text.length + 1) / 64) * 64 - start;
  const payload = new Uint8Array(values.buffer, values.byteOffset, count * found.bytes);
  const out = new Uint8Array(start + length + payload.length);
  const view = new DataView(out.buffer);
  out.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, wide ? 2 : 1, 0]);
  if (wide) view.setUint32(8, length, true);
  else view.setUint16(8, length, true);
  out.set(new TextEncoder().encode(text.padEnd(length - 1) + "\n"), start);
  out.set(payload, start + length);
  return out;
}

/**
 * Reads a .npy file. @throws LowbitError E_CONTAINER, E_IO
 * @example const { data, shape, stride } = await readNpy("vectors.npy");
 */
export async function readNpy(source: ByteSource): Promise<NpyArray> {
  const input = await openSource(source, "npy file");
  try {
    return parseNpy(await input.read(0, input.size), input.label);
  } finally {
    await input.close();
  }
}

/**
 * Writes a .npy file (Node). @throws LowbitError E_IO, E_EXISTS, E_SHAPE; TypeError
 * @example await writeNpy("scales.npy", { data: Float32Array.of(0.5, 0.25), shape: [2, 1] });
 */
export async function writeNpy(path: string, input: NpyInput, options: { readonly force?: boolean } = {}): Promise<void> {
  await writeFileWhole(path, [npyBytes(input)], options.force ?? false);
}

// Values of the runtime: a typed array with its element type and sizes, the plain form of an onnxruntime-common Tensor.
import { LowbitError } from "../../formats/core/errors.ts";
import type { TensorProto } from "../onnx/file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../onnx/file/gen/onnx_pb.ts";
import type { OnnxModel } from "../onnx/file/model.ts";
import { tensorDims, tensorPayload } from "../onnx/file/model.ts";
import { RAW_DATA } from "../onnx/file/source.ts";
import { encodeHalf, halfTable } from "../onnx/file/half.ts";
import { dataTypeName } from "../onnx/file/types.ts";
import { ARRAY_MAX, isFloatType, readFloats, readRaw } from "../onnx/file/values.ts";

export type NumberArray = Float32Array | Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array;
export type ValueData = NumberArray | BigInt64Array;

/** Element types that the runtime computes with. `bool` is kept in a Uint8Array of 0 and 1, as onnxruntime has it. */
export type ElementType = "float32" | "int8" | "uint8" | "int16" | "uint16" | "int32" | "uint32" | "int64" | "bool";

/** Types of inputs and outputs: float16 is computed in float32, and rounded where it leaves. */
export type BoundaryType = ElementType | "float16";

/** A tensor as `run` takes it: onnxruntime-common's Tensor fits, and so does a plain object. */
export interface RuntimeTensor {
  readonly type: string;
  readonly dims: readonly number[];
  readonly data: unknown;
}

/** Type and shape of an input or output, as onnxruntime has them. */
export interface ValueMetadata {
  readonly name: string;
  readonly isTensor: true;
  /** Types beside those of the runtime are of models in onnxruntime. */
  readonly type: BoundaryType | "string" | "float64" | "uint64";
  /** Numbers, and names of sizes that are open; "" where an open size has no name. */
  readonly shape: readonly (number | string)[];
}

/** A tensor: row-major data with sizes. */
export interface Value {
  readonly type: ElementType;
  readonly dims: readonly number[];
  readonly data: ValueData;
  /** Codes that the model stores in fewer bits than their array has. */
  readonly bits?: number;
}

interface TypeRow {
  readonly onnx: T;
  readonly make: new (length: number) => ValueData;
  readonly view: new (buffer: ArrayBuffer) => ValueData;
}

const row = (onnx: T, array: unknown): TypeRow => ({ onnx, make: array as TypeRow["make"], view: array as TypeRow["view"] });

const TYPES: ReadonlyMap<ElementType, TypeRow> = new Map([
  ["float32", row(T.FLOAT, Float32Array)],
  ["int8", row(T.INT8, Int8Array)],
  ["uint8", row(T.UINT8, Uint8Array)],
  ["int16", row(T.INT16, Int16Array)],
  ["uint16", row(T.UINT16, Uint16Array)],
  ["int32", row(T.INT32, Int32Array)],
  ["uint32", row(T.UINT32, Uint32Array)],
  ["int64", row(T.INT64, BigInt64Array)],
  ["bool", row(T.BOOL, Uint8Array)],
]);

/** What values of other ONNX types are kept as: floats of 16 bits are widened once, codes of 4 bits unpacked. */
const WIDENED: ReadonlyMap<number, ElementType> = new Map([
  [T.FLOAT16, "float32"],
  [T.BFLOAT16, "float32"],
  [T.INT4, "int8"],
  [T.UINT4, "uint8"],
]);

/** The element type that values of an ONNX data type are computed in; undefined where the runtime has none. */
export function elementType(onnx: number): ElementType | undefined {
  for (const [name, type] of TYPES) if (type.onnx === (onnx as T)) return name;
  return WIDENED.get(onnx);
}

/** The type of an input or output; undefined where the runtime has none. */
export const boundaryType = (onnx: number): BoundaryType | undefined =>
  onnx === T.FLOAT16 ? "float16" : WIDENED.has(onnx) ? undefined : elementType(onnx);

/** The type of an input or output as onnxruntime names it; float32 where the model says nothing. */
export const metadataType = (onnx: number): ValueMetadata["type"] =>
  boundaryType(onnx) ?? (onnx === T.STRING ? "string" : onnx === T.DOUBLE ? "float64" : onnx === T.UINT64 ? "uint64" : "float32");

type HalfArray = new (length: number) => Uint16Array;
/** Engines that have it take and give float16 in it, as onnxruntime does. */
const Float16: HalfArray | undefined = (globalThis as unknown as { Float16Array?: HalfArray }).Float16Array;

export const isHalfArray = (data: unknown): boolean => data instanceof Uint16Array || (Float16 !== undefined && data instanceof Float16);

/** float16 codes (or a Float16Array) as float32. */
export function widen(data: ArrayBufferView & { readonly length: number }): Float32Array {
  const table = halfTable();
  return Float32Array.from(new Uint16Array(data.buffer, data.byteOffset, data.length), (code) => table[code]);
}

/** float32 as float16 codes, in a Float16Array where the engine has one. */
export function narrow(data: Float32Array): Uint16Array {
  const codes = Uint16Array.from(data, encodeHalf);
  if (Float16 === undefined) return codes;
  const out = new Float16(codes.length);
  new Uint16Array(out.buffer).set(codes);
  return out;
}

/** Rounds float32 values to those of float16, or cuts them to bfloat16 (half to even). */
export function roundTo(data: Float32Array, onnx: number): Float32Array {
  const table = halfTable();
  if (onnx === T.FLOAT16) return data.map((v) => table[encodeHalf(v)]);
  if (onnx !== T.BFLOAT16) return data;
  const out = data.slice();
  const bits = new Uint32Array(out.buffer);
  for (let i = 0; i < bits.length; i++) if (!Number.isNaN(out[i])) bits[i] = ((bits[i] + 0x7fff + ((bits[i] >>> 16) & 1)) >>> 16) << 16;
  return out;
}

/** Elements of a shape. @throws LowbitError E_SHAPE where no array holds as many */
export function sizeOf(dims: readonly number[], what = "shape"): number {
  let size = 1;
  for (const d of dims) {
    if (!Number.isSafeInteger(d) || d < 0)
      throw new LowbitError("E_SHAPE", `${what}: expected sizes from 0, got [${dims.join(", ")}]. Check the feeds' shapes.`);
    size *= d;
  }
  if (size > ARRAY_MAX / 8)
    throw new LowbitError(
      "E_SHAPE",
      `${what}: expected at most ${Math.floor(ARRAY_MAX / 8)} elements, got [${dims.join(", ")}]. Feed smaller inputs.`,
    );
  return size;
}

export const isArrayOf = (type: ElementType, data: unknown): boolean => data instanceof TYPES.get(type)!.make;

export const isElementType = (type: string): type is ElementType => TYPES.has(type as ElementType);

/** A value of zeros. */
export function empty(type: ElementType, dims: readonly number[]): Value {
  return { type, dims, data: new (TYPES.get(type)!.make)(sizeOf(dims)) };
}

/** A float32 value of zeros, with its data typed. */
export function floats(dims: readonly number[]): Value & { readonly data: Float32Array } {
  return { type: "float32", dims, data: new Float32Array(sizeOf(dims)) };
}

/** The data of a float32 value. @throws LowbitError E_UNSUPPORTED */
export function floatData(value: Value | undefined, what: string): Float32Array {
  if (value?.data instanceof Float32Array) return value.data;
  throw new LowbitError(
    "E_UNSUPPORTED",
    `${what}: expected float32, got ${value?.type ?? "nothing"}. Run the model with onnxruntime itself.`,
  );
}

/** Small integers (shapes, axes, indices) as numbers. */
export function integers(value: Value): number[] {
  return Array.from(value.data as ArrayLike<number | bigint>, Number);
}

export function int64(values: readonly (number | bigint)[], dims: readonly number[] = [values.length]): Value {
  return { type: "int64", dims, data: BigInt64Array.from(values, BigInt) };
}

/**
 * An initializer as a value.
 * @throws LowbitError E_UNSUPPORTED for element types that the runtime does not compute with
 */
export function readValue(model: OnnxModel, tensor: TensorProto): Value {
  const type = elementType(tensor.dataType);
  const dims = tensorDims(tensor);
  if (type === undefined)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `tensor ${JSON.stringify(tensor.name)}: expected one of ${[...TYPES.keys()].join(", ")}, got ${dataTypeName(tensor.dataType)}. Run the model with onnxruntime itself.`,
    );
  if (isFloatType(tensor.dataType)) return { type, dims, data: ownData(model, readFloats(model, tensor)) };
  const raw = readRaw(model, tensor);
  if (tensor.dataType === T.INT4 || tensor.dataType === T.UINT4) return { type, dims, data: unpacked(raw, sizeOf(dims), type), bits: 4 };
  return { type, dims, data: new (TYPES.get(type)!.view)(ownData(model, raw).buffer as ArrayBuffer) };
}

/**
 * What was read from a file for it alone as it is, else a copy: a view of the model's bytes would keep all of them in
 * memory.
 */
const ownData = <A extends Float32Array | Uint8Array>({ path }: OnnxModel, data: A): A =>
  path !== undefined && data.byteLength === data.buffer.byteLength ? data : (data.slice() as A);

/** Memory that is used again and again; what lies in it is good until the next use. */
export interface Scratch {
  bytes: Uint8Array<ArrayBuffer>;
}

/** `length` bytes of scratch memory. */
export function scratchBytes(scratch: Scratch, length: number): Uint8Array<ArrayBuffer> {
  if (scratch.bytes.length < length) scratch.bytes = new Uint8Array(length);
  return scratch.bytes.subarray(0, length);
}

/**
 * The bytes of a tensor where they need not be kept: read into scratch memory, or a view of the model's. Do not write
 * to them.
 */
export function borrowBytes(model: OnnxModel, tensor: TensorProto, scratch: Scratch): Uint8Array {
  const payload = tensorPayload(model, tensor);
  if (payload?.field !== RAW_DATA) return readRaw(model, tensor);
  return payload.source.read(payload.offset, payload.length, scratchBytes(scratch, payload.length));
}

/** The bytes of a tensor, read in parts while the model is open. */
export interface TensorParts {
  readonly size: number;
  /** Reads from byte `offset` on as much as `into` holds. */
  read(offset: number, into: Uint8Array): void;
}

/** Undefined where the bytes do not lie in the file as they are. */
export function tensorParts(model: OnnxModel, tensor: TensorProto): TensorParts | undefined {
  const payload = tensorPayload(model, tensor);
  if (payload?.field !== RAW_DATA) return undefined;
  return {
    size: payload.length,
    read(offset, into) {
      const bytes = payload.source.read(payload.offset + offset, into.length, into);
      if (bytes.buffer !== into.buffer) into.set(bytes);
    },
  };
}

/** Codes of 4 bits, low nibble first, one an element. */
function unpacked(raw: Uint8Array, count: number, type: ElementType): ValueData {
  const out = new Uint8Array(count);
  for (let i = 0; i < count; i++) out[i] = (raw[i >> 1] >> (4 * (i & 1))) & 15;
  return type === "int8" ? Int8Array.from(out, (code) => (code ^ 8) - 8) : out;
}

/** The tensor of an attribute. @throws LowbitError E_UNSUPPORTED for types that the runtime does not compute with */
export function smallTensor(tensor: TensorProto): Value {
  const type = elementType(tensor.dataType);
  if (type === undefined)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `attribute: expected a type of the runtime, got ${dataTypeName(tensor.dataType)}. Run the model with onnxruntime itself.`,
    );
  const dims = tensorDims(tensor);
  const raw = tensor.rawData;
  if (raw !== undefined && raw.length > 0 && !WIDENED.has(tensor.dataType))
    return { type, dims, data: new (TYPES.get(type)!.view)(raw.slice().buffer) };
  if (WIDENED.has(tensor.dataType))
    return {
      type,
      dims,
      data: widen(raw !== undefined && raw.length > 0 ? new Uint16Array(raw.slice().buffer) : Uint16Array.from(tensor.int32Data)),
    };
  if (type === "int64") return { type, dims, data: BigInt64Array.from(tensor.int64Data) };
  const values = type === "float32" ? tensor.floatData : tensor.int32Data;
  const out = empty(type, dims);
  (out.data as NumberArray).set(values);
  return out;
}

// Values of the runtime: a typed array with its element type and sizes, the plain form of an onnxruntime-common Tensor.
import { LowbitError } from "../../formats/core/errors.ts";
import type { TensorProto } from "../onnx/file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../onnx/file/gen/onnx_pb.ts";
import type { OnnxModel } from "../onnx/file/model.ts";
import { tensorDims } from "../onnx/file/model.ts";
import { dataTypeName } from "../onnx/file/types.ts";
import { ARRAY_MAX, isFloatType, readFloats, readRaw } from "../onnx/file/values.ts";

export type NumberArray = Float32Array | Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array;
export type ValueData = NumberArray | BigInt64Array;

/** Element types that the runtime computes with. `bool` is kept in a Uint8Array of 0 and 1, as onnxruntime has it. */
export type ElementType = "float32" | "int8" | "uint8" | "int16" | "uint16" | "int32" | "uint32" | "int64" | "bool";

/** A tensor: row-major data with sizes. */
export interface Value {
  readonly type: ElementType;
  readonly dims: readonly number[];
  readonly data: ValueData;
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

/** The element type of an ONNX data type; undefined where the runtime has none. */
export function elementType(onnx: number): ElementType | undefined {
  for (const [name, type] of TYPES) if (type.onnx === (onnx as T)) return name;
  return undefined;
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
  throw new LowbitError("E_UNSUPPORTED", `${what}: expected float32, got ${value?.type ?? "nothing"}. Use { fallback: "onnxruntime" }.`);
}

/** Small integers (shapes, axes, indices) as numbers. */
export function integers(value: Value): number[] {
  return Array.from(value.data as ArrayLike<number | bigint>, Number);
}

export function int64(values: readonly (number | bigint)[], dims: readonly number[] = [values.length]): Value {
  return { type: "int64", dims, data: BigInt64Array.from(values, BigInt) };
}

/** An initializer as a value. @throws LowbitError E_UNSUPPORTED for element types that the runtime does not compute with */
export function readValue(model: OnnxModel, tensor: TensorProto): Value {
  const type = elementType(tensor.dataType);
  const dims = tensorDims(tensor);
  if (type === undefined)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `tensor ${JSON.stringify(tensor.name)}: expected one of ${[...TYPES.keys()].join(", ")}, got ${dataTypeName(tensor.dataType)}. Use { fallback: "onnxruntime" }.`,
    );
  // Copies: a view of the file's bytes would keep all of them in memory.
  if (isFloatType(tensor.dataType)) return { type, dims, data: readFloats(model, tensor).slice() };
  const bytes = readRaw(model, tensor).slice();
  return { type, dims, data: new (TYPES.get(type)!.view)(bytes.buffer) };
}

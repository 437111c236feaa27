// Values of a tensor as numbers, from every storage: raw_data, typed fields, external data. Byte order is little-endian
// (ONNX's, and every engine's that this package runs on). Tensors of 2 GiB or more are never read as one array: the
// caller asks `tensorBytes` first.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { TensorProto } from "./gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "./gen/onnx_pb.ts";
import { halfTable } from "./half.ts";
import type { OnnxModel } from "./model.ts";
import { tensorDims, tensorPayload } from "./model.ts";
import type { Payload } from "./source.ts";
import { RAW_DATA } from "./source.ts";
import { DATA_TYPES, dataTypeName } from "./types.ts";

/** No array of this package holds more. */
export const ARRAY_MAX = 2 ** 31 - 1;

export const elementCount = (tensor: TensorProto): number => tensorDims(tensor).reduce((a, b) => a * b, 1);

/** Bytes of the tensor as raw_data, however it is stored. */
export const tensorBytes = (tensor: TensorProto): number =>
  Math.ceil((elementCount(tensor) * (DATA_TYPES[tensor.dataType]?.bits ?? 0)) / 8);

const readPayload = (payload: Payload, scratch?: Scratch): Uint8Array => {
  if (scratch !== undefined && scratch.bytes.length < payload.length) scratch.bytes = new Uint8Array(payload.length);
  return payload.source.read(payload.offset, payload.length, scratch?.bytes);
};

/** Memory that one weight after the other is read into. */
export interface Scratch {
  bytes: Uint8Array;
}

/** A typed array over bytes, copied where they are not aligned. */
function aligned<A>(bytes: Uint8Array, size: number, make: (buffer: ArrayBufferLike, offset: number, length: number) => A): A {
  const whole = bytes.byteOffset % size === 0 ? bytes : new Uint8Array(bytes);
  return make(whole.buffer, whole.byteOffset, whole.length / size);
}

/** Plain bytes of raw_data or external data, or undefined where the typed fields hold the values. */
function rawBytes(model: OnnxModel, tensor: TensorProto): Uint8Array | undefined {
  const payload = tensorPayload(model, tensor);
  if (payload !== undefined) return payload.field === RAW_DATA ? readPayload(payload) : undefined;
  return tensor.rawData !== undefined && tensor.rawData.length > 0 ? tensor.rawData : undefined;
}

/** The bytes of a tensor as raw_data has them. @throws LowbitError E_ONNX where typed fields hold the values */
export function readBytes(model: OnnxModel, tensor: TensorProto): Uint8Array {
  const bytes = rawBytes(model, tensor);
  if (bytes !== undefined || elementCount(tensor) === 0) return bytes ?? new Uint8Array(0);
  throw new LowbitError("E_ONNX", `tensor ${JSON.stringify(tensor.name)}: expected raw data, got typed fields. Store it as raw_data.`);
}

/**
 * An elided packed field of varints, as signed 32-bit numbers (int32_data: int32 and everything narrower, float16 and
 * bfloat16 codes).
 */
function packedInts(payload: Payload, count: number): Int32Array {
  const bytes = readPayload(payload);
  const out = new Int32Array(count);
  let at = 0;
  for (let i = 0; i < count; i++) {
    let value = 0;
    let shift = 0;
    let byte: number;
    do {
      byte = bytes[at++];
      if (shift < 32) value |= (byte & 127) << shift;
      shift += 7;
    } while (byte >= 128);
    out[i] = value;
  }
  return out;
}

function int32Data(model: OnnxModel, tensor: TensorProto): Int32Array {
  const payload = model.payloads.get(tensor.rawData);
  return payload === undefined
    ? Int32Array.from(tensor.int32Data)
    : packedInts(payload, DATA_TYPES[tensor.dataType].typedCount(elementCount(tensor)));
}

/** 16-bit codes of a float16 or bfloat16 tensor. */
export function readCodes16(model: OnnxModel, tensor: TensorProto): Uint16Array {
  const raw = rawBytes(model, tensor);
  return raw === undefined
    ? Uint16Array.from(int32Data(model, tensor))
    : aligned(raw, 2, (buffer, offset, length) => new Uint16Array(buffer, offset, length));
}

/** Data types that `readFloats` takes. */
export const isFloatType = (dataType: number): boolean =>
  dataType === T.FLOAT || dataType === T.FLOAT16 || dataType === T.BFLOAT16 || dataType === T.DOUBLE;

/**
 * The values of a float tensor as float32 (doubles are rounded). The array may be a view of the model's bytes, or of
 * `scratch`: do not write to it, and be done with it before the next read with the same scratch.
 */
export function readFloats(model: OnnxModel, tensor: TensorProto, scratch?: Scratch): Float32Array {
  if (tensor.dataType === T.FLOAT16) {
    const table = halfTable();
    return Float32Array.from(readCodes16(model, tensor), (code) => table[code]);
  }
  if (tensor.dataType === T.BFLOAT16) {
    const wide = Uint32Array.from(readCodes16(model, tensor), (code) => code << 16);
    return new Float32Array(wide.buffer);
  }
  if (tensor.dataType !== T.FLOAT && tensor.dataType !== T.DOUBLE) {
    throw new LowbitError(
      "E_ONNX",
      `tensor ${JSON.stringify(tensor.name)}: expected float data, got ${dataTypeName(tensor.dataType)}. This is no weight.`,
    );
  }
  const payload = tensorPayload(model, tensor);
  const bytes =
    payload !== undefined
      ? readPayload(payload, scratch)
      : tensor.rawData !== undefined && tensor.rawData.length > 0
        ? tensor.rawData
        : undefined;
  if (tensor.dataType === T.FLOAT) {
    return bytes === undefined ? Float32Array.from(tensor.floatData) : aligned(bytes, 4, (b, o, n) => new Float32Array(b, o, n));
  }
  return Float32Array.from(bytes === undefined ? tensor.doubleData : aligned(bytes, 8, (b, o, n) => new Float64Array(b, o, n)));
}

/** The values of a small integer tensor (shapes, axes, bounds). @throws LowbitError on other types */
export function readInts(model: OnnxModel, tensor: TensorProto): number[] {
  const raw = rawBytes(model, tensor);
  if (tensor.dataType === T.INT64) {
    if (raw !== undefined)
      return Array.from(
        aligned(raw, 8, (b, o, n) => new BigInt64Array(b, o, n)),
        Number,
      );
    const payload = model.payloads.get(tensor.rawData);
    return (payload === undefined ? tensor.int64Data : Array.from(packedBigInts(payload, elementCount(tensor)))).map(Number);
  }
  if (tensor.dataType === T.INT32) {
    return Array.from(raw === undefined ? int32Data(model, tensor) : aligned(raw, 4, (b, o, n) => new Int32Array(b, o, n)));
  }
  throw new LowbitError(
    "E_ONNX",
    `tensor ${JSON.stringify(tensor.name)}: expected int32 or int64, got ${dataTypeName(tensor.dataType)}. The model is damaged.`,
  );
}

/**
 * Bytes of an element by the number typed field that holds it: int32_data for everything up to 32 bits, packed types
 * byte by byte.
 */
const typedWidth = (bits: number): number => (bits < 8 ? 1 : bits / 8);

/**
 * The bytes of a tensor of integers or narrow floats as raw_data has them, whatever its storage. Do not write to them.
 */
export function readRaw(model: OnnxModel, tensor: TensorProto): Uint8Array {
  const raw = rawBytes(model, tensor);
  if (raw !== undefined) return raw;
  const { bits, typedCount } = DATA_TYPES[tensor.dataType];
  const payload = model.payloads.get(tensor.rawData);
  if (bits === 64) {
    const wide = tensor.dataType === T.INT64 ? tensor.int64Data : tensor.uint64Data;
    const numbers = payload === undefined ? wide : packedBigInts(payload, typedCount(elementCount(tensor)));
    return new Uint8Array(BigUint64Array.from(numbers, (value) => BigInt.asUintN(64, value)).buffer);
  }
  const numbers =
    tensor.dataType === T.UINT32
      ? Int32Array.from(payload === undefined ? tensor.uint64Data : packedBigInts(payload, elementCount(tensor)), (v) =>
          Number(BigInt.asIntN(32, v)),
        )
      : int32Data(model, tensor);
  const width = typedWidth(bits);
  if (width === 4) return new Uint8Array(numbers.buffer);
  return width === 2 ? new Uint8Array(Int16Array.from(numbers).buffer) : Uint8Array.from(numbers);
}

/** An elided packed field of varints (int64_data, uint64_data) with all its bits. */
function packedBigInts(payload: Payload, count: number): BigInt64Array {
  const bytes = readPayload(payload);
  const out = new BigInt64Array(count);
  let at = 0;
  for (let i = 0; i < count; i++) {
    let value = 0n;
    let shift = 0n;
    let byte: number;
    do {
      byte = bytes[at++];
      value |= BigInt(byte & 127) << shift;
      shift += 7n;
    } while (byte >= 128);
    out[i] = BigInt.asIntN(64, value);
  }
  return out;
}

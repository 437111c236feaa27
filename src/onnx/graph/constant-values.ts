// The numbers of constants: read from the stored tensor, with the conversions that lie between it and the reader.
import { bfloat16 } from "../../../formats/bfloat16.ts";
import type { NumberFormat } from "../../../formats/core/types.ts";
import { float4_e2m1fn } from "../../../formats/float4_e2m1fn.ts";
import { float8_e4m3fn } from "../../../formats/float8_e4m3fn.ts";
import { float8_e4m3fnuz } from "../../../formats/float8_e4m3fnuz.ts";
import { float8_e5m2 } from "../../../formats/float8_e5m2.ts";
import { float8_e5m2fnuz } from "../../../formats/float8_e5m2fnuz.ts";
import { float8_e8m0fnu } from "../../../formats/float8_e8m0fnu.ts";
import { int2 } from "../../../formats/int2.ts";
import { int4 } from "../../../formats/int4.ts";
import { uint2 } from "../../../formats/uint2.ts";
import { uint4 } from "../../../formats/uint4.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import type { SparseTensorProto, TensorProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { encodeHalf, halfTable } from "../file/half.ts";
import type { OnnxModel } from "../file/model.ts";
import type { Scratch } from "../file/values.ts";
import { elementCount, isFloatType, readFloats, readInts, readRaw } from "../file/values.ts";
import type { ConstantSource, ConstantView } from "./constant-types.ts";
import type { Layout } from "./views.ts";
import { contiguous, count, isContiguous } from "./views.ts";

/**
 * The values of a constant as float32, row-major. The array may be a view of the model's bytes or of `scratch`: do not
 * write to it, and be done with it before the next read with the same scratch.
 */
export function readConstant(model: OnnxModel, constant: ConstantView, scratch?: Scratch): Float32Array {
  const data = readSource(model, constant.source, scratch);
  const total = count(constant.shape);
  if (isContiguous(constant)) return data.subarray(constant.offset, constant.offset + total);
  return gather(data, constant);
}

/** A constant as a strided view of its stored numbers: nothing is moved. Zero-copy as far as `readConstant` is. */
export function constantView(model: OnnxModel, constant: ConstantView, scratch?: Scratch): Tensor<Float32Array> {
  const { shape, strides, offset } = constant;
  return { data: readSource(model, constant.source, scratch), shape, stride: strides, offset };
}

/** The numbers of a source in its own order. Sources are nested a bounded number of times (`ConstantView.depth`). */
function readSource(model: OnnxModel, source: ConstantSource, scratch?: Scratch): Float32Array {
  switch (source.kind) {
    case "stored":
      return isFloatType(source.tensor.dataType) ? readFloats(model, source.tensor, scratch) : readNumbers(model, source.tensor);
    case "cast":
      return rounded(readSource(model, source.from, scratch), source.to);
    case "copy":
      return readConstant(model, source.from);
    case "dequantize":
      return dequantize(model, source);
    case "sparse":
      return dense(model, source.tensor, source.dims);
  }
}

/** Rounds to another float type; float32 holds the results. */
function rounded(values: Float32Array, to: number): Float32Array {
  if (to === T.FLOAT16) {
    const table = halfTable();
    return values.map((value) => table[encodeHalf(value)]);
  }
  return to === T.BFLOAT16 ? values.map((value) => bfloat16.decode(bfloat16.encode(value))) : values;
}

/** Elements of a strided view, row-major. */
function gather(data: Float32Array, { shape, strides, offset }: Layout): Float32Array {
  const out = new Float32Array(count(shape));
  const rank = shape.length;
  const last = rank === 0 ? 1 : shape[rank - 1];
  const step = rank === 0 ? 0 : strides[rank - 1];
  const index = new Array<number>(rank).fill(0);
  let at = offset;
  for (let i = 0; i < out.length; i += last) {
    for (let j = 0; j < last; j++) out[i + j] = data[at + j * step];
    // The next row: an odometer over the outer dimensions.
    for (let d = rank - 2; d >= 0; d--) {
      at += strides[d];
      if (++index[d] < shape[d]) break;
      at -= shape[d] * strides[d];
      index[d] = 0;
    }
  }
  return out;
}

/** Formats of the narrow element types; those of less than eight bits are packed, the first element in the low bits. */
const NARROW: ReadonlyMap<number, NumberFormat> = new Map([
  [T.INT4, int4],
  [T.UINT4, uint4],
  [T.INT2, int2],
  [T.UINT2, uint2],
  [T.FLOAT4E2M1, float4_e2m1fn],
  [T.FLOAT8E4M3FN, float8_e4m3fn],
  [T.FLOAT8E4M3FNUZ, float8_e4m3fnuz],
  [T.FLOAT8E5M2, float8_e5m2],
  [T.FLOAT8E5M2FNUZ, float8_e5m2fnuz],
  [T.FLOAT8E8M0, float8_e8m0fnu],
]);

/** The numbers of a tensor that is not of floats, rounded to float32. */
function readNumbers(model: OnnxModel, tensor: TensorProto): Float32Array {
  const bytes = readRaw(model, tensor);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const format = NARROW.get(tensor.dataType);
  const length = elementCount(tensor);
  if (format !== undefined) {
    const table = Float32Array.from({ length: 2 ** format.bits }, (_, code) => format.decode(code));
    const perByte = 8 / format.bits;
    const mask = 2 ** format.bits - 1;
    return Float32Array.from({ length }, (_, i) => table[(bytes[Math.floor(i / perByte)] >> ((i % perByte) * format.bits)) & mask]);
  }
  const from = (read: (i: number) => number): Float32Array => Float32Array.from({ length }, (_, i) => read(i));
  switch (tensor.dataType) {
    case T.INT8:
      return from((i) => view.getInt8(i));
    case T.INT16:
      return from((i) => view.getInt16(2 * i, true));
    case T.UINT16:
      return from((i) => view.getUint16(2 * i, true));
    case T.INT32:
      return from((i) => view.getInt32(4 * i, true));
    case T.UINT32:
      return from((i) => view.getUint32(4 * i, true));
    case T.INT64:
      return from((i) => Number(view.getBigInt64(8 * i, true)));
    case T.UINT64:
      return from((i) => Number(view.getBigUint64(8 * i, true)));
    default: // uint8, bool
      return from((i) => bytes[i]);
  }
}

/** y = (x - zero point) * scale in float32, as onnxruntime has it; rounded to the type of the scales. */
function dequantize(model: OnnxModel, source: ConstantSource & { kind: "dequantize" }): Float32Array {
  const { codes, axis, block } = source;
  const values = readConstant(model, codes);
  const scales = readConstant(model, source.scales);
  const zeroPoints = source.zeroPoints === null ? null : readConstant(model, source.zeroPoints);
  const size = codes.shape[axis] ?? 1;
  const inner = count(codes.shape.slice(axis + 1));
  const blocks = Math.ceil(size / (block || 1));
  const out = new Float32Array(values.length);
  for (let i = 0; i < out.length; i++) {
    const along = Math.floor(i / inner) % size;
    const at =
      scales.length === 1
        ? 0
        : block === 0
          ? along
          : (Math.floor(i / (inner * size)) * blocks + Math.floor(along / block)) * inner + (i % inner);
    out[i] = Math.fround(values[i] - (zeroPoints === null ? 0 : zeroPoints[at])) * scales[at];
  }
  return rounded(out, source.scales.dataType);
}

/** A sparse tensor with its zeros. Indices are positions in the row-major tensor, or rows of coordinates. */
function dense(model: OnnxModel, sparse: SparseTensorProto, dims: readonly number[]): Float32Array {
  const values = sparse.values!;
  const numbers = isFloatType(values.dataType) ? readFloats(model, values) : readNumbers(model, values);
  const indices = readInts(model, sparse.indices!);
  const out = new Float32Array(count(dims));
  const { strides } = contiguous(dims);
  const coordinates = sparse.indices!.dims.length === 2 ? dims.length : 1;
  for (let i = 0; i < numbers.length; i++) {
    let at = 0;
    for (let d = 0; d < coordinates; d++) at += indices[i * coordinates + d] * (coordinates === 1 ? 1 : strides[d]);
    out[at] = numbers[i];
  }
  return out;
}

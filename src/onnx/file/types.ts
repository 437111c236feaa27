// TensorProto data types: name, bits of an element in raw_data, and how many numbers the typed fields (float_data,
// int32_data, ...) hold.
// Source: onnx.proto, TensorProto.DataType and the comments of the typed fields.
import { TensorProto_DataType as T } from "./gen/onnx_pb.ts";

export interface DataTypeInfo {
  /** Lower-case ONNX spelling. */
  readonly name: string;
  /** Bits of an element in raw_data; 0: not storable there (strings). */
  readonly bits: number;
  /** Numbers in the typed field for that many elements. */
  readonly typedCount: (elements: number) => number;
}

const one = (elements: number): number => elements;

const type = (name: string, bits: number, typedCount: (elements: number) => number = one): DataTypeInfo => ({ name, bits, typedCount });

export const DATA_TYPES: Readonly<Record<number, DataTypeInfo>> = {
  [T.FLOAT]: type("float", 32),
  [T.UINT8]: type("uint8", 8),
  [T.INT8]: type("int8", 8),
  [T.UINT16]: type("uint16", 16),
  [T.INT16]: type("int16", 16),
  [T.INT32]: type("int32", 32),
  [T.INT64]: type("int64", 64),
  [T.STRING]: type("string", 0),
  [T.BOOL]: type("bool", 8),
  [T.FLOAT16]: type("float16", 16),
  [T.DOUBLE]: type("double", 64),
  [T.UINT32]: type("uint32", 32),
  [T.UINT64]: type("uint64", 64),
  [T.COMPLEX64]: type("complex64", 64, (n) => 2 * n),
  [T.COMPLEX128]: type("complex128", 128, (n) => 2 * n),
  [T.BFLOAT16]: type("bfloat16", 16),
  [T.FLOAT8E4M3FN]: type("float8e4m3fn", 8),
  [T.FLOAT8E4M3FNUZ]: type("float8e4m3fnuz", 8),
  [T.FLOAT8E5M2]: type("float8e5m2", 8),
  [T.FLOAT8E5M2FNUZ]: type("float8e5m2fnuz", 8),
  [T.UINT4]: type("uint4", 4, (n) => Math.ceil(n / 2)),
  [T.INT4]: type("int4", 4, (n) => Math.ceil(n / 2)),
  [T.FLOAT4E2M1]: type("float4e2m1", 4, (n) => Math.ceil(n / 2)),
  [T.FLOAT8E8M0]: type("float8e8m0", 8),
  [T.UINT2]: type("uint2", 2, (n) => Math.ceil(n / 4)),
  [T.INT2]: type("int2", 2, (n) => Math.ceil(n / 4)),
  [T.FLOAT6E2M3]: type("float6e2m3", 6),
  [T.FLOAT6E3M2]: type("float6e3m2", 6),
};

export const dataTypeName = (dataType: number): string => DATA_TYPES[dataType]?.name ?? `type ${dataType}`;

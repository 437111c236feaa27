// Small ONNX models for tests, built field by field with protobuf-es: every storage of a tensor, graphs, subgraphs.
import { create, toBinary } from "@bufbuild/protobuf";
import type { AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import {
  AttributeProtoSchema,
  AttributeProto_AttributeType as A,
  GraphProtoSchema,
  ModelProtoSchema,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  StringStringEntryProtoSchema,
  TensorProtoSchema,
  TensorProto_DataLocation,
  TensorProto_DataType as T,
  TensorShapeProtoSchema,
  TensorShapeProto_DimensionSchema,
  TypeProtoSchema,
  TypeProto_TensorSchema,
  ValueInfoProtoSchema,
} from "../../src/onnx/file/gen/onnx_pb.ts";

export { A, T };

/** Repeatable numbers, roughly normal. */
export function weights(count: number, seed = 1): Float32Array {
  const out = new Float32Array(count);
  let state = seed >>> 0;
  const next = (): number => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  for (let i = 0; i < count; i++) out[i] = (next() + next() + next() - 1.5) * 0.2;
  return out;
}

const bytesOf = (data: ArrayBufferView): Uint8Array => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

export const raw = (name: string, dims: number[], data: ArrayBufferView, dataType = T.FLOAT): TensorProto =>
  create(TensorProtoSchema, { name, dataType, dims: dims.map(BigInt), rawData: bytesOf(data) });

export const typed = (name: string, dims: number[], data: Float32Array): TensorProto =>
  create(TensorProtoSchema, { name, dataType: T.FLOAT, dims: dims.map(BigInt), floatData: Array.from(data) });

export const external = (name: string, dims: number[], entries: Record<string, string>): TensorProto =>
  create(TensorProtoSchema, {
    name,
    dataType: T.FLOAT,
    dims: dims.map(BigInt),
    dataLocation: TensorProto_DataLocation.EXTERNAL,
    externalData: Object.entries(entries).map(([key, value]) => create(StringStringEntryProtoSchema, { key, value })),
  });

export type AttributeValue =
  number | bigint | string | TensorProto | GraphProto | { ints: number[] } | { floats: number[] } | { strings: string[] };

export function attribute(name: string, value: AttributeValue): AttributeProto {
  const make = (init: Partial<AttributeProto>): AttributeProto => create(AttributeProtoSchema, { name, ...init } as never);
  if (typeof value === "bigint") return make({ i: value, type: A.INT });
  if (typeof value === "number") return make({ f: value, type: A.FLOAT });
  if (typeof value === "string") return make({ s: new TextEncoder().encode(value), type: A.STRING });
  if ("strings" in value) return make({ strings: value.strings.map((v) => new TextEncoder().encode(v)), type: A.STRINGS });
  if ("ints" in value) return make({ ints: value.ints.map(BigInt), type: A.INTS });
  if (!("$typeName" in value)) return make({ floats: value.floats, type: A.FLOATS });
  return value.$typeName === "onnx.TensorProto" ? make({ t: value, type: A.TENSOR }) : make({ g: value, type: A.GRAPH });
}

export function node(
  opType: string,
  input: string[],
  output: string[],
  attributes: Record<string, AttributeValue> = {},
  name = "",
): NodeProto {
  return create(NodeProtoSchema, {
    opType,
    input,
    output,
    name,
    attribute: Object.entries(attributes).map(([key, value]) => attribute(key, value)),
  });
}

export function value(name: string, elemType: number, dims: (number | string)[]): ValueInfoProto {
  const shape = create(TensorShapeProtoSchema, {
    dim: dims.map((dim) =>
      create(TensorShapeProto_DimensionSchema, {
        value: typeof dim === "number" ? { case: "dimValue", value: BigInt(dim) } : { case: "dimParam", value: dim },
      }),
    ),
  });
  return create(ValueInfoProtoSchema, {
    name,
    type: create(TypeProtoSchema, { value: { case: "tensorType", value: create(TypeProto_TensorSchema, { elemType, shape }) } }),
  });
}

export interface GraphInit {
  name?: string;
  input?: ValueInfoProto[];
  output?: ValueInfoProto[];
  initializer?: TensorProto[];
  node: NodeProto[];
}

export const graph = (init: GraphInit): GraphProto => create(GraphProtoSchema, { name: "g", ...init });

export const model = (main: GraphProto, options: { opset?: number; ir?: number } = {}): ModelProto =>
  create(ModelProtoSchema, {
    irVersion: BigInt(options.ir ?? 8),
    producerName: "test",
    opsetImport: [create(OperatorSetIdProtoSchema, { domain: "", version: BigInt(options.opset ?? 17) })],
    graph: main,
  });

export const encode = (proto: ModelProto): Uint8Array => toBinary(ModelProtoSchema, proto);

/** x [N, k] -> MatMul -> y [N, n]. */
export const matmulModel = (weight: TensorProto, k: number, n: number, options: { opset?: number; ir?: number } = {}): ModelProto =>
  model(
    graph({
      input: [value("x", T.FLOAT, ["batch", k])],
      output: [value("y", T.FLOAT, ["batch", n])],
      initializer: [weight],
      node: [node("MatMul", ["x", weight.name], ["y"], {}, "mm")],
    }),
    options,
  );

// Builds nodes and attributes, and gives new values names that are free.
import { create } from "@bufbuild/protobuf";
import type { AttributeProto, NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import {
  AttributeProtoSchema,
  AttributeProto_AttributeType as A,
  NodeProtoSchema,
  TensorProtoSchema,
  TensorProto_DataType as T,
} from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import type { Scope } from "./scopes.ts";

/** Unique names: `take("x")` gives "x", or "x_1" where that is in use anywhere in the model. */
export interface Names {
  take(base: string): string;
}

export function collectNames(scopes: readonly Scope[]): Names {
  const used = new Set<string>();
  // The last number that was tried for a base: names are never given back, so the search goes on from there.
  const numbers = new Map<string, number>();
  for (const { graph } of scopes) {
    for (const value of [...graph.input, ...graph.output, ...graph.initializer]) used.add(value.name);
    for (const sparse of graph.sparseInitializer) used.add(sparse.values?.name ?? "");
    for (const node of graph.node) {
      used.add(node.name);
      for (const name of node.input) used.add(name);
      for (const name of node.output) used.add(name);
    }
  }
  return {
    take(base) {
      let name = base;
      let number = numbers.get(base) ?? 0;
      while (used.has(name)) name = `${base}_${++number}`;
      numbers.set(base, number);
      used.add(name);
      return name;
    },
  };
}

export const intAttribute = (name: string, value: number): AttributeProto =>
  create(AttributeProtoSchema, { name, i: BigInt(value), type: A.INT });

export const intsAttribute = (name: string, values: readonly number[]): AttributeProto =>
  create(AttributeProtoSchema, { name, ints: values.map(BigInt), type: A.INTS });

export const floatAttribute = (name: string, value: number): AttributeProto =>
  create(AttributeProtoSchema, { name, f: value, type: A.FLOAT });

export const attributeOf = (node: NodeProto, name: string): AttributeProto | undefined =>
  node.attribute.find((attribute) => attribute.name === name);

/** Those of the attributes that a node has. */
export const attributesOf = (node: NodeProto, names: readonly string[]): AttributeProto[] =>
  names.map((name) => attributeOf(node, name)).filter((attribute) => attribute !== undefined);

/** The attributes of Conv, which its quantized forms have too. */
export const CONV_ATTRIBUTES: readonly string[] = ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];

export const attributeInt = (node: NodeProto, name: string, fallback: number): number => {
  const attribute = attributeOf(node, name);
  return attribute === undefined ? fallback : Number(attribute.i);
};

export const attributeFloat = (node: NodeProto, name: string, fallback: number): number => attributeOf(node, name)?.f ?? fallback;

/** The tensor that a Constant node holds, whatever attribute it has it in; undefined for sparse and for strings. */
export function constantTensor(node: NodeProto): TensorProto | undefined {
  const [attribute] = node.attribute;
  if (attribute === undefined) return undefined;
  const init = { name: node.output[0] ?? "" };
  switch (attribute.name) {
    case "value":
      return attribute.t;
    case "value_float":
      return create(TensorProtoSchema, { ...init, dataType: T.FLOAT, floatData: [attribute.f] });
    case "value_floats":
      return create(TensorProtoSchema, {
        ...init,
        dataType: T.FLOAT,
        dims: [BigInt(attribute.floats.length)],
        floatData: attribute.floats,
      });
    case "value_int":
      return create(TensorProtoSchema, { ...init, dataType: T.INT64, int64Data: [attribute.i] });
    case "value_ints":
      return create(TensorProtoSchema, { ...init, dataType: T.INT64, dims: [BigInt(attribute.ints.length)], int64Data: attribute.ints });
    default:
      return undefined;
  }
}

export interface NodeInit {
  readonly name: string;
  readonly domain?: string;
  readonly attributes?: readonly AttributeProto[];
}

export function makeNode(opType: string, input: readonly string[], output: readonly string[], init: NodeInit): NodeProto {
  const node = create(NodeProtoSchema, {
    opType,
    input: [...input],
    output: [...output],
    name: init.name,
    attribute: [...(init.attributes ?? [])],
  });
  if (init.domain !== undefined) node.domain = init.domain;
  return node;
}

/** The version of the default opset. */
export const opsetVersion = (model: OnnxModel): number =>
  Number(model.proto.opsetImport.find((entry) => entry.domain === "" || entry.domain === "ai.onnx")?.version ?? 0n);

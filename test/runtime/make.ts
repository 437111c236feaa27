// What tests of operators are made of: random values, and a model of one node.
import { create } from "@bufbuild/protobuf";
import type { TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { OperatorSetIdProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import type { AttributeValue } from "../onnx/build.ts";
import { encode, graph, model, node, T, value } from "../onnx/build.ts";
import type { Feeds } from "./judge.ts";

export interface Case {
  readonly feeds: Feeds;
  readonly initializer?: TensorProto[];
  /** Order of all inputs; default feeds, then initializers. */
  readonly order?: string[];
  readonly outputs?: string[];
  /** Outputs of the model; default all of the node. */
  readonly results?: string[];
  readonly attributes?: Record<string, AttributeValue>;
  readonly opset?: number;
}

export const TYPES: Record<string, number> = {
  int8: T.INT8,
  float32: T.FLOAT,
  int64: T.INT64,
  int32: T.INT32,
  bool: T.BOOL,
  uint8: T.UINT8,
};
export const size = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);

export function numbers(seed: number, count: number, low = -2, high = 2): Float32Array {
  let state = (seed * 2654435761) >>> 0;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return low + ((high - low) * state) / 2 ** 32;
  });
}
export const f32 = (seed: number, dims: number[], low = -2, high = 2) => ({
  type: "float32",
  dims,
  data: numbers(seed, size(dims), low, high),
});
export const i64 = (dims: number[], values: number[]) => ({ type: "int64", dims, data: BigInt64Array.from(values, BigInt) });
export const ids = (seed: number, dims: number[], most: number) =>
  i64(dims, [...numbers(seed, size(dims), 0, most - 0.001)].map(Math.floor));
export const bools = (seed: number, dims: number[]) => ({
  type: "bool",
  dims,
  data: Uint8Array.from(numbers(seed, size(dims)), (v) => (v > 0 ? 1 : 0)),
});
export const ints = (...values: number[]) => ({ ints: values });

/** A model of one node. `before`: an operator that its first input goes through. */
export function bytesOf(name: string, one: Case, before?: string): Uint8Array {
  const [domain, opType] = name.startsWith("com.microsoft.") ? ["com.microsoft", name.slice(14)] : ["", name];
  const outputs = one.outputs ?? ["y"];
  const initializer = one.initializer ?? [];
  const order = one.order ?? [...Object.keys(one.feeds), ...initializer.map((t) => t.name)];
  const given = before === undefined ? order : ["before", ...order.slice(1)];
  const made = node(opType, given, outputs, one.attributes);
  made.domain = domain;
  const proto = model(
    graph({
      input: Object.entries(one.feeds).map(([key, f]) => value(key, TYPES[f.type], [...f.dims])),
      output: (one.results ?? outputs).filter((o) => o !== "").map((o) => value(o, 0, [])),
      initializer,
      node: [...(before === undefined ? [] : [node(before, [order[0]], ["before"])]), made],
    }),
    { opset: one.opset ?? 17, ir: 10 },
  );
  // the type of an output is onnxruntime's to infer
  for (const output of proto.graph!.output) output.type = undefined;
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return encode(proto);
}

export type Make = (seed: number, a: number, b: number, c: number) => Case;

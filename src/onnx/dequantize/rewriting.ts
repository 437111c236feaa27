// What a rewrite of one quantized operator sees of its graph, and the nodes that it makes.
import type { AttributeProto, NodeProto } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import { floatTensor } from "../edit.ts";
import { makeNode, type Names, type Scope } from "../graph/graph.ts";
import type { Numbers } from "./codes.ts";

export interface Rewriting {
  readonly model: OnnxModel;
  readonly scope: Scope;
  readonly names: Names;
  /** The numbers of a constant; null where the value is computed. */
  numbers(name: string): Numbers | null;
  /** The node of this graph that makes a value. */
  maker(name: string): NodeProto | undefined;
  /** The one node that reads a value, where only one does. */
  onlyReader(name: string): NodeProto | undefined;
}

/** The float form of an operator: `nodes` stand in the place of `at`, the nodes `instead` go. */
export interface FloatForm {
  readonly at: NodeProto;
  readonly nodes: NodeProto[];
  readonly instead: readonly NodeProto[];
}

/** Names that this library's and onnxruntime's tools give: the operator's own name comes back. */
export const plainName = (name: string): string => name.replace(/_(Q2|Q4|Q8|Bnb4|quant|quant_cast|quant_output_scale_mul)$/, "");

/** A float constant for a weight. */
export function addFloats(
  { model, scope, names }: Rewriting,
  base: string,
  dims: readonly number[],
  values: ArrayLike<number>,
  type: number,
): string {
  const plain = base.replace(/_(Q2|Q4|Q8|Bnb4|quantized)$/, "");
  const tensor = floatTensor(model, names.take(plain === base ? `${base}_float` : plain), dims, values, type);
  scope.graph.initializer.push(tensor);
  scope.initializers.set(tensor.name, tensor);
  return tensor.name;
}

export const newNode = (
  { names }: Rewriting,
  op: string,
  inputs: readonly string[],
  output: string,
  name: string,
  attributes: readonly AttributeProto[] = [],
): NodeProto => makeNode(op, inputs, [output], { name: names.take(name), attributes });

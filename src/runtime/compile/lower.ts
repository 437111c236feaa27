// Nodes whose meaning depends on the opset or on their readers, written as nodes that mean the same everywhere.
import { create } from "@bufbuild/protobuf";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { NodeProtoSchema, TensorProto_DataType as T } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeInt, constantTensor, intAttribute } from "../../onnx/graph/nodes.ts";
import { operatorName } from "../../onnx/graph/scopes.ts";
import { elementType, type ElementType } from "../value.ts";
import type { FlatNode } from "./flat.ts";
import { unfolded } from "./qoperator.ts";

/** Softmax before opset 13: rows are all axes from `axis` (default 1) on, as one. */
function flatRows(node: NodeProto): NodeProto[] {
  const [x] = node.input;
  const [y] = node.output;
  const part = (opType: string, input: string[], output: string, attribute: NodeProto["attribute"]): NodeProto =>
    create(NodeProtoSchema, { opType, name: `${node.name}/${opType}`, input, output: [output], attribute });
  return [
    part("Shape", [x], `${y}/shape`, []),
    part("Flatten", [x], `${y}/rows`, [intAttribute("axis", attributeInt(node, "axis", 1))]),
    part(node.opType, [`${y}/rows`], `${y}/of rows`, [intAttribute("axis", -1)]),
    part("Reshape", [`${y}/of rows`, `${y}/shape`], y, [intAttribute("allowzero", 1)]),
  ];
}

const isHalfCast = (node: NodeProto): boolean => operatorName(node) === "Cast" && attributeInt(node, "to", 0) === Number(T.FLOAT16);

/**
 * The nodes of a graph as those of the newest opset. A Cast to float16 rounds only where another Cast reads it: float16
 * is computed in float32, as onnxruntime does on processors, and what is beyond float16 between two operators is as far
 * beyond it there.
 */
export function lower(nodes: readonly FlatNode[], opset: number): FlatNode[] {
  const recast = new Set(nodes.filter(({ node }) => operatorName(node) === "Cast").map(({ node }) => node.input[0]));
  return nodes.flatMap(({ node, guards }) => {
    const name = operatorName(node);
    if (isHalfCast(node) && !recast.has(node.output[0])) {
      const { input, output } = node;
      const attribute = [intAttribute("to", T.FLOAT)];
      return [{ node: create(NodeProtoSchema, { opType: "Cast", name: node.name, input, output, attribute }), guards }];
    }
    const parts = unfolded(node);
    if (parts !== null) return parts.map((part) => ({ node: part, guards }));
    if (opset < 13 && (name === "Softmax" || name === "LogSoftmax")) return flatRows(node).map((part) => ({ node: part, guards }));
    return [{ node, guards }];
  });
}

/** Operators whose results have the type of their first input. */
const KEEPS: ReadonlySet<string> = new Set(
  [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Sqrt",
    "Neg",
    "Abs",
    "Exp",
    "Erf",
    "Tanh",
    "Sigmoid",
    "Reciprocal",
    "Relu",
    "Clip",
    "Cos",
    "Sin",
  ].concat(
    [
      "Softmax",
      "LayerNormalization",
      "SimplifiedLayerNormalization",
      "RMSNormalization",
      "ReduceMean",
      "ReduceSum",
      "MatMul",
      "Gemm",
      "Conv",
    ],
    ["Reshape", "Transpose", "Slice", "Concat", "Split", "Unsqueeze", "Squeeze", "Expand", "Flatten", "Identity", "Gather", "Gelu"],
    ["com.microsoft.MatMulNBits", "com.microsoft.GroupQueryAttention", "com.microsoft.RotaryEmbedding", "com.microsoft.FastGelu"],
    ["com.microsoft.SkipSimplifiedLayerNormalization", "com.microsoft.SkipLayerNormalization", "com.microsoft.QuickGelu"],
  ),
);

/**
 * The nodes without Casts of float32 to itself, as graphs of float16 have them around norms (float16 is float32 here):
 * nothing is to lie between the nodes of a pattern. `types`: of inputs and initializers.
 */
export function dropCasts(nodes: readonly FlatNode[], types: ReadonlyMap<string, ElementType>, outputs: readonly string[]): FlatNode[] {
  const known = new Map(types);
  const same = new Map<string, string>();
  const kept = new Set(outputs);
  const out: FlatNode[] = [];
  for (const flat of nodes) {
    let { node } = flat;
    if (node.input.some((name) => same.has(name))) {
      const { opType, domain, name, attribute, output } = node;
      node = create(NodeProtoSchema, { opType, domain, name, attribute, output, input: node.input.map((of) => same.get(of) ?? of) });
    }
    const operator = operatorName(node);
    const to = operator === "Cast" ? attributeInt(node, "to", 0) : undefined;
    const [from] = node.input;
    if (to === Number(T.FLOAT) && known.get(from) === "float32" && !kept.has(node.output[0])) {
      same.set(node.output[0], from);
      continue;
    }
    const type = to !== undefined ? elementType(to) : operator === "Constant" ? constantType(node) : KEEPS.has(operator) ? known.get(from) : undefined; // prettier-ignore
    if (type !== undefined) for (const name of node.output) known.set(name, type);
    out.push({ node, guards: flat.guards.map((guard) => ({ ...guard, name: same.get(guard.name) ?? guard.name })) });
  }
  return out;
}

const constantType = (node: NodeProto): ElementType | undefined => elementType(constantTensor(node)?.dataType ?? 0);

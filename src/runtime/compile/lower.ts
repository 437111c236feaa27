// Nodes whose meaning depends on the opset or on their readers, written as nodes that mean the same everywhere.
import { create } from "@bufbuild/protobuf";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { NodeProtoSchema, TensorProto_DataType as T } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeInt, intAttribute } from "../../onnx/graph/nodes.ts";
import { operatorName } from "../../onnx/graph/scopes.ts";
import type { FlatNode } from "./flat.ts";

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
    if (opset < 13 && (name === "Softmax" || name === "LogSoftmax")) return flatRows(node).map((part) => ({ node: part, guards }));
    return [{ node, guards }];
  });
}

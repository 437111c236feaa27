// Raising the default opset beyond 11: attributes that became inputs (axes of Squeeze, Unsqueeze and reductions, sizes
// of Split), Softmax and its kin, which flattened before 13, and what cannot be said. Source: the operator schemas of
// onnx 1.23 with history, versions 12 to 25.
import { create } from "@bufbuild/protobuf";
import {
  AttributeProto_AttributeType as A,
  AttributeProtoSchema,
  TensorProto_DataType as T,
  TensorProtoSchema,
  type NodeProto,
} from "../file/gen/onnx_pb.ts";
import { attributeInt, attributeOf, intAttribute, makeNode, type Names } from "./nodes.ts";
import type { Scope } from "./scopes.ts";
import { nodeName } from "./scopes.ts";

interface Step {
  readonly names: Names;
  readonly from: number;
  readonly to: number;
}

/** Operators whose attribute became input 1: since which version, and the attribute. */
const AXES_INPUT: ReadonlyMap<string, { readonly since: number; readonly attribute: string }> = new Map([
  ["Squeeze", { since: 13, attribute: "axes" }],
  ["Unsqueeze", { since: 13, attribute: "axes" }],
  ["ReduceSum", { since: 13, attribute: "axes" }],
  ["Split", { since: 13, attribute: "split" }],
  ...["Max", "Min", "Mean", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"].map(
    (kind): [string, { since: number; attribute: string }] => [`Reduce${kind}`, { since: 18, attribute: "axes" }],
  ),
]);

const FLATTENED: ReadonlySet<string> = new Set(["Softmax", "LogSoftmax", "Hardmax"]);

const crosses = ({ from, to }: Step, version: number): boolean => from < version && to >= version;

/** Why a node cannot be raised; undefined where it can or need not change. */
export function lateObstacle(step: Step, node: NodeProto): string | undefined {
  const name = nodeName(node);
  const mode = new TextDecoder().decode(attributeOf(node, "coordinate_transformation_mode")?.s ?? new Uint8Array(0));
  if (node.opType === "Resize" && crosses(step, 13) && mode === "tf_half_pixel_for_nn")
    return `Resize with tf_half_pixel_for_nn (${name}) is gone`;
  if (node.opType === "BatchNormalization" && crosses(step, 14) && node.output.filter((o) => o !== "").length > 1)
    return `BatchNormalization in training (${name}) has other outputs`;
  if (node.opType === "GroupNormalization" && crosses(step, 21)) return `GroupNormalization (${name}) has another meaning`;
  return undefined;
}

/** The nodes that stand for a node in the newer opset. */
export function lateRewrite(step: Step, scope: Scope, node: NodeProto): NodeProto[] {
  const input = AXES_INPUT.get(node.opType);
  if (input !== undefined && crosses(step, input.since)) axesInput(step, scope, node, input.attribute);
  if (node.opType === "Split" && crosses(step, 18) && (node.input[1] ?? "") === "")
    node.attribute.push(intAttribute("num_outputs", node.output.length));
  if (node.opType === "Dropout" && crosses(step, 12)) node.attribute = node.attribute.filter(({ name }) => name !== "ratio");
  return FLATTENED.has(node.opType) && crosses(step, 13) ? unflattened(step, node) : [node];
}

function axesInput(step: Step, scope: Scope, node: NodeProto, attribute: string): void {
  const values = attributeOf(node, attribute)?.ints;
  node.attribute = node.attribute.filter(({ name }) => name !== attribute);
  if (values === undefined) return;
  const name = step.names.take(`${nodeName(node)}_${attribute}`);
  const rawData = new Uint8Array(BigInt64Array.from(values).buffer);
  const tensor = create(TensorProtoSchema, { name, dataType: T.INT64, dims: [BigInt(values.length)], rawData });
  scope.graph.initializer.push(tensor);
  scope.initializers.set(name, tensor);
  node.input[1] = name;
}

/** Before 13 the input is a matrix, cut before `axis`, whose rows are normalized; since then `axis` alone is. */
function unflattened({ names }: Step, node: NodeProto): NodeProto[] {
  const axis = attributeInt(node, "axis", 1);
  node.attribute = node.attribute.filter(({ name }) => name !== "axis");
  const last = create(AttributeProtoSchema, { name: "axis", i: -1n, type: A.INT });
  if (axis === -1) {
    node.attribute.push(last);
    return [node];
  }
  const name = nodeName(node);
  const [shape, matrix, rows] = ["shape", "matrix", "rows"].map((what) => names.take(`${name}_${what}`));
  return [
    makeNode("Shape", [node.input[0]], [shape], { name: names.take(`${name}_shape_of`) }),
    makeNode("Flatten", [node.input[0]], [matrix], { name: names.take(`${name}_flatten`), attributes: [intAttribute("axis", axis)] }),
    makeNode(node.opType, [matrix], [rows], { name: node.name, attributes: [last] }),
    makeNode("Reshape", [rows, shape], [node.output[0]], { name: names.take(`${name}_reshape`) }),
  ];
}

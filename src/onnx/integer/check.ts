// Proves that a model is one of integers: no operator between its inputs and outputs reads or makes a float.
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import { attributeInt, constantTensor, nodeName, operatorName } from "../graph/graph.ts";

/** Whether a model computes in integers only: see `floatOperators`. */
export interface IntegerCheck {
  /** Operators on floats, by name: none in an integer-only model. */
  readonly floats: readonly string[];
  /** The operators that turn float inputs into codes, and codes into float outputs. */
  readonly boundary: readonly string[];
  readonly operators: ReadonlyMap<string, number>;
}

const INTEGERS: ReadonlySet<number> = new Set([
  T.UINT8,
  T.INT8,
  T.UINT16,
  T.INT16,
  T.INT32,
  T.INT64,
  T.UINT32,
  T.UINT64,
  T.BOOL,
  T.INT4,
  T.UINT4,
]);

/** Operators that give integers of integers, whatever their attributes. */
const CLOSED: ReadonlySet<string> = new Set(
  (
    "Abs Add And ArgMax ArgMin BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Clip Compress Concat ConvInteger CumSum Div Equal Expand Flatten Gather " +
    "GatherElements GatherND Greater GreaterOrEqual Identity Less LessOrEqual MatMulInteger Max MaxPool Min Mod Mul Neg NonZero Not Or Pad Range ReduceMax ReduceMin " +
    "ReduceSum Reshape ScatterElements ScatterND Shape Sign Size Slice Split Squeeze Sub Tile TopK Transpose Trilu Unsqueeze Where Xor"
  ).split(" "),
);

/**
 * Walks the nodes of the graph and of the functions that it calls.
 * @example floatOperators(model).floats.length > 0 // true: not integer-only
 */
export function floatOperators({ proto }: OnnxModel): IntegerCheck {
  const graph = proto.graph!;
  const functions = new Map(proto.functions.map((own) => [`${own.domain}.${own.name}`, own]));
  const floatInputs = new Set(
    graph.input.filter(({ type }) => type?.value.case === "tensorType" && !INTEGERS.has(type.value.value.elemType)).map(({ name }) => name),
  );
  const outputs = new Set(graph.output.map(({ name }) => name));
  const constants = new Map(graph.initializer.map(({ name, dataType }) => [name, INTEGERS.has(dataType)]));
  const floats: string[] = [];
  const boundary: string[] = [];
  const operators = new Map<string, number>();
  const isInteger = (node: NodeProto): boolean => {
    const operator = operatorName(node);
    if (functions.has(operator)) return true;
    if (operator === "Constant") return INTEGERS.has(constantTensor(node)?.dataType ?? 0);
    if (operator === "ConstantOfShape") return node.attribute.some(({ t }) => t !== undefined && INTEGERS.has(t.dataType));
    if (operator === "Cast") return INTEGERS.has(attributeInt(node, "to", 0));
    return CLOSED.has(operator);
  };
  const visit = (nodes: readonly NodeProto[], where: string): void => {
    for (const node of nodes) if (!isInteger(node)) floats.push(`${operatorName(node)} (${nodeName(node)}${where})`);
  };
  const called = new Set<string>();
  for (const node of graph.node) {
    const operator = operatorName(node);
    operators.set(operator, (operators.get(operator) ?? 0) + 1);
    if (functions.has(operator)) called.add(operator);
    const isEntry = operator === "QuantizeLinear" && floatInputs.has(node.input[0]);
    const isExit =
      operator === "DequantizeLinear" && node.output.every((name) => outputs.has(name)) && constants.get(node.input[1]) === false;
    if (isEntry || isExit) boundary.push(nodeName(node));
    else if (!isInteger(node) || node.input.some((name) => floatInputs.has(name) || constants.get(name) === false))
      floats.push(`${operator} (${nodeName(node)})`);
  }
  // functions of functions: each body once
  for (const name of called) {
    const body = functions.get(name)!;
    visit(body.node, ` in ${name}`);
    for (const node of body.node) if (functions.has(operatorName(node))) called.add(operatorName(node));
  }
  return { floats, boundary, operators };
}

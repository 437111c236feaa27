// Operators on codes of onnxruntime's domain (QOperator form) as nodes that the runtime has: the operator on
// dequantized values, whose result is quantized again; QGemm is QLinearMatMul with an int32 bias as a ninth input.
import type { AttributeProto, NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeFloat, attributeInt, floatAttribute, intsAttribute, makeNode } from "../../onnx/graph/nodes.ts";
import { operatorName } from "../../onnx/graph/scopes.ts";

/** Operands, each with its scale and zero point; Infinity: scale and zero point of the result are first. */
const OPERANDS: ReadonlyMap<string, number> = new Map([
  ["Add", 2],
  ["Mul", 2],
  ["Sigmoid", 1],
  ["LeakyRelu", 1],
  ["AveragePool", 1],
  ["GlobalAveragePool", 1],
  ["Concat", Infinity],
]);

const PREFIX = "com.microsoft.QLinear";
const GEMM = "com.microsoft.QGemm";

/** What `unfolded` knows, by name. */
export const UNFOLDED: readonly string[] = [...[...OPERANDS.keys()].map((name) => PREFIX + name), GEMM];

type Make = (opType: string, input: readonly string[], attributes?: readonly AttributeProto[], output?: string) => string;

function gemm(node: NodeProto, make: Make): boolean {
  const [a, aScale, aZero, b, bScale, bZero, bias = "", yScale = "", yZero = ""] = node.input;
  if (yScale === "" || yZero === "") return false;
  const turned = (name: string, attribute: string): string =>
    attributeInt(node, attribute, 0) === 0 ? name : make("Transpose", [name], [intsAttribute("perm", [1, 0])]);
  const alpha = attributeFloat(node, "alpha", 1);
  const scale = alpha === 1 ? aScale : make("Mul", [aScale, make("Constant", [], [floatAttribute("value_float", alpha)])]);
  const input = [turned(a, "transA"), scale, aZero, turned(b, "transB"), bScale, bZero, yScale, yZero];
  make("QLinearMatMul", bias === "" ? input : [...input, bias], [], node.output[0]);
  return true;
}

/** The nodes that a node is; null for others, and for forms that are not known. */
export function unfolded(node: NodeProto): NodeProto[] | null {
  const name = operatorName(node);
  const made: NodeProto[] = [];
  const make: Make = (opType, input, attributes = [], output = `${node.output[0]}/${made.length}`) => {
    made.push(makeNode(opType, input, [output], { name: node.name, attributes }));
    return output;
  };
  if (name === GEMM) return gemm(node, make) ? made : null;
  const opType = name.startsWith(PREFIX) ? name.slice(PREFIX.length) : "";
  const operands = OPERANDS.get(opType);
  if (operands === undefined || attributeInt(node, "channels_last", 0) !== 0) return null;
  const isList = operands === Infinity;
  const count = isList ? Math.floor((node.input.length - 2) / 3) : operands;
  const at = isList ? 2 : 0;
  // without a zero point the type of the codes is that of the operands, which a node does not say
  if ((node.input[isList ? 1 : 3 * count + 1] ?? "") === "") return null;
  const values = Array.from({ length: count }, (_, i) => make("DequantizeLinear", node.input.slice(at + 3 * i, at + 3 * i + 3)));
  const value = make(opType, values, node.attribute);
  make("QuantizeLinear", [value, ...node.input.slice(isList ? 0 : 3 * count, isList ? 2 : 3 * count + 2)], [], node.output[0]);
  return made;
}

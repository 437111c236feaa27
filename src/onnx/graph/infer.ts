// Element types of values, as far as fp16 conversion needs them: what the file says (inputs, value_info), else a rule per operator, else the
// type of the first input. Shapes are not inferred.
import type { NodeProto, TypeProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import type { Scope } from "./graph.ts";
import { attributeInt, attributeOf, definingScope } from "./graph.ts";
import { attributeGraphs } from "../file/model.ts";

/** Element type by value name, for each graph; 0 where it is unknown. */
export type ElementTypes = Map<Scope, Map<string, number>>;

export const tensorElementType = (type: TypeProto | undefined): number =>
  type?.value.case === "tensorType" ? type.value.value.elemType : 0;

const INT64_OPS = new Set(["Shape", "Size", "ArgMax", "ArgMin", "NonZero", "NonMaxSuppression"]);
const BOOL_OPS = new Set(["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor", "Not", "IsNaN", "IsInf"]);
/** Operators whose outputs after the first are int64 (indices, counts) or bool (masks). */
const SECOND_INT64 = new Set(["TopK", "MaxPool", "Unique"]);

function outputTypes(node: NodeProto, input: (index: number) => number): number[] {
  const count = node.output.length;
  const all = (type: number): number[] => Array<number>(count).fill(type);
  const op = node.opType;
  if (INT64_OPS.has(op)) return all(T.INT64);
  if (BOOL_OPS.has(op)) return all(T.BOOL);
  if (SECOND_INT64.has(op)) return all(T.INT64).with(0, input(0));
  switch (op) {
    case "Cast":
      return all(attributeInt(node, "to", 0));
    case "CastLike":
      return all(input(1));
    case "Where":
      return all(input(1));
    case "OneHot":
      return all(input(2));
    case "Dropout":
      return all(T.BOOL).with(0, input(0));
    case "Constant": {
      const [attribute] = node.attribute;
      if (attribute?.name === "value") return all(attribute.t?.dataType ?? 0);
      return all(attribute?.name.startsWith("value_float") ? T.FLOAT : attribute?.name.startsWith("value_int") ? T.INT64 : T.STRING);
    }
    case "ConstantOfShape":
      return all(attributeOf(node, "value")?.t?.dataType ?? T.FLOAT);
    case "RandomNormal":
    case "RandomUniform":
    case "TfIdfVectorizer":
      return all(attributeInt(node, "dtype", T.FLOAT));
    case "RandomNormalLike":
    case "RandomUniformLike":
    case "EyeLike":
    case "Bernoulli":
      return all(attributeInt(node, "dtype", input(0)));
    case "Multinomial":
      return all(attributeInt(node, "dtype", T.INT32));
    case "QuantizeLinear":
      return all(input(2) || attributeInt(node, "output_dtype", T.UINT8));
    case "DequantizeLinear":
      return all(input(1));
    case "DynamicQuantizeLinear":
      return all(T.UINT8).with(Math.min(1, count - 1), T.FLOAT);
    case "MatMulInteger":
    case "ConvInteger":
      return all(T.INT32);
    case "QLinearMatMul":
    case "QLinearConv":
      return all(input(7));
    default:
      return all(input(0));
  }
}

export function inferTypes(scopes: readonly Scope[]): ElementTypes {
  const types: ElementTypes = new Map(scopes.map((scope) => [scope, new Map<string, number>()]));
  const byGraph = new Map(scopes.map((scope) => [scope.graph, scope]));
  const typeOf = (scope: Scope, name: string): number => {
    const owner = name === "" ? null : definingScope(scope, name);
    return owner === null ? 0 : (types.get(owner)!.get(name) ?? 0);
  };

  const visit = (scope: Scope, bound: readonly number[]): void => {
    const own = types.get(scope)!;
    const { graph } = scope;
    for (const value of graph.valueInfo) own.set(value.name, tensorElementType(value.type));
    graph.input.forEach((value, i) => own.set(value.name, tensorElementType(value.type) || (bound[i] ?? 0)));
    for (const tensor of graph.initializer) own.set(tensor.name, tensor.dataType);
    for (const node of graph.node) {
      const input = (index: number): number => typeOf(scope, node.input[index] ?? "");
      const inputs = node.input.map((_, i) => input(i));
      let outputs: number[] | undefined;
      for (const attribute of node.attribute) {
        for (const inner of attributeGraphs(attribute)) {
          const child = byGraph.get(inner)!;
          visit(child, node.opType === "Loop" ? [T.INT64, T.BOOL, ...inputs.slice(2)] : inputs);
          const results = inner.output.map((value) => typeOf(child, value.name) || tensorElementType(value.type));
          outputs ??= node.opType === "Loop" ? results.slice(1) : results;
        }
      }
      outputs ??= outputTypes(node, input);
      node.output.forEach((name, i) => {
        if (name !== "" && !own.get(name)) own.set(name, outputs[i] ?? 0);
      });
    }
    for (const value of graph.output)
      if (scope.producers.has(value.name) && !own.get(value.name)) own.set(value.name, tensorElementType(value.type));
  };
  if (scopes.length > 0) visit(scopes[0], []);
  return types;
}

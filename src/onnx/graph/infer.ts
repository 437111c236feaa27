// Element types of values: what the file says (inputs, value_info, initializers), else what the operator's schema
// gives. Shapes are not inferred. A type that neither tells is 0: nothing is guessed.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { GraphProto, NodeProto, TypeProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { attributeGraphs } from "../file/model.ts";
import { outputTypes, SEQUENCE } from "./schemas.ts";
import type { Scope } from "./scopes.ts";
import { definingScope } from "./scopes.ts";

/** Element type by value name, for each graph; 0 where it is unknown. Sequences have `SEQUENCE` added. */
export type ElementTypes = Map<Scope, Map<string, number>>;

/** The element type of a tensor type; 0 for others. */
export const tensorElementType = (type: TypeProto | undefined): number =>
  type?.value.case === "tensorType" ? type.value.value.elemType : 0;

/**
 * The element type of tensors, and of sequences and optionals of them. Nested containers are walked, not recursed into.
 */
function elementType(type: TypeProto | undefined): number {
  let at = type;
  let container = 0;
  for (; at !== undefined; container = SEQUENCE) {
    const { value }: TypeProto = at;
    if (value.case === "tensorType") return value.value.elemType === 0 ? 0 : value.value.elemType | container;
    if (value.case === "sequenceType" || value.case === "optionalType") at = value.value.elemType;
    else return value.case === "mapType" ? SEQUENCE : 0;
  }
  return 0;
}

/** A graph at work: the next node, and what its inputs are bound to. */
interface Frame {
  readonly scope: Scope;
  readonly holder: NodeProto | null;
  next: number;
  /** Subgraphs of the node at `next` that are still to come. */
  waiting: GraphProto[] | null;
  /** Result types of that node's subgraphs. */
  results: number[] | null;
}

export function inferTypes(scopes: readonly Scope[], opset: number): ElementTypes {
  const types: ElementTypes = new Map(scopes.map((scope) => [scope, new Map<string, number>()]));
  const byGraph = new Map(scopes.map((scope) => [scope.graph, scope]));
  const typeOf = (scope: Scope, name: string): number => {
    const owner = definingScope(scope, name);
    return owner === null ? 0 : (types.get(owner)!.get(name) ?? 0);
  };

  const enter = (scope: Scope, holder: NodeProto | null, bound: readonly number[]): Frame => {
    const own = types.get(scope)!;
    const { graph } = scope;
    for (const value of graph.valueInfo) own.set(value.name, elementType(value.type));
    graph.input.forEach((value, i) => own.set(value.name, elementType(value.type) || (bound[i] ?? 0)));
    for (const [name, tensor] of scope.initializers) own.set(name, tensor.dataType);
    for (const [name, sparse] of scope.sparse) own.set(name, sparse.values?.dataType ?? 0);
    return { scope, holder, next: 0, waiting: null, results: null };
  };
  /** Types of a subgraph's inputs, as far as the node that holds it tells. */
  const bindings = (node: NodeProto, inputs: readonly number[]): number[] =>
    node.opType === "Loop"
      ? [T.INT64, T.BOOL, ...inputs.slice(2)]
      : node.opType === "SequenceMap"
        ? inputs.map((type) => type & ~SEQUENCE)
        : [...inputs];
  const leave = (frame: Frame): void => {
    const { scope, holder } = frame;
    const own = types.get(scope)!;
    for (const value of scope.graph.output)
      if (scope.producers.has(value.name) && !own.get(value.name)) own.set(value.name, elementType(value.type));
    const above = stack.at(-1);
    if (above === undefined || holder === null) return;
    let results = scope.graph.output.map((value) => typeOf(scope, value.name) || elementType(value.type));
    if (holder.opType === "Loop") results = results.slice(1);
    else if (holder.opType === "SequenceMap") results = results.map((type) => (type === 0 ? 0 : type | SEQUENCE));
    // Branches of an If agree: what one does not tell, the other may.
    above.results = results.map((type, i) => type || (above.results?.[i] ?? 0));
  };

  const stack: Frame[] = scopes.length > 0 ? [enter(scopes[0], null, [])] : [];
  for (let frame = stack.at(-1); frame !== undefined; frame = stack.at(-1)) {
    const { scope } = frame;
    const node = scope.graph.node[frame.next];
    if (node === undefined) {
      stack.pop();
      leave(frame);
      continue;
    }
    const inputs = node.input.map((name) => typeOf(scope, name));
    frame.waiting ??= node.attribute.flatMap(attributeGraphs);
    const inner = frame.waiting.shift();
    if (inner !== undefined) {
      const child = byGraph.get(inner);
      if (child === undefined)
        throw new LowbitError("E_ONNX", `node ${node.name}: expected a graph that was read with the model, got another.`);
      stack.push(enter(child, node, bindings(node, inputs)));
      continue;
    }
    const outputs = frame.results ?? outputTypes({ node, input: (index) => inputs[index] ?? 0, opset });
    const own = types.get(scope)!;
    node.output.forEach((name, i) => {
      if (name !== "" && !own.get(name)) own.set(name, outputs[i] ?? 0);
    });
    frame.next++;
    frame.waiting = null;
    frame.results = null;
  }
  return types;
}

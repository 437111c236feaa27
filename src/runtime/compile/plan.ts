// A model as a plan: the nodes that outputs need, in order, constants folded, weights prepared, and after which step each value is let go.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { Backend, SyncLayer } from "../../backends/types.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { OnnxModel } from "../../onnx/file/model.ts";
import { constantTensor, opsetVersion } from "../../onnx/graph/nodes.ts";
import { sortNodes } from "../../onnx/graph/order.ts";
import { buildScopes, nodeName, operatorName } from "../../onnx/graph/scopes.ts";
import { operators } from "../ops/index.ts";
import type { Operator, Run } from "../ops/operator.ts";
import type { Value } from "../value.ts";
import { elementType, readValue } from "../value.ts";

export interface Step {
  readonly node: NodeProto;
  readonly operator: string;
  readonly run: Run;
  /** The kernel of a prepared layer, or "loops". */
  readonly kernel: string;
  /** Values that nothing reads after this step. */
  readonly frees: readonly string[];
}

export interface Plan {
  readonly steps: readonly Step[];
  readonly constants: ReadonlyMap<string, Value>;
  readonly layers: readonly SyncLayer[];
  /** Nodes computed while loading, and nodes that no output needs. */
  readonly folded: number;
  readonly dead: number;
}

/** Folded constants are kept only up to this many elements: a huge Expand of constants is computed at run. */
const FOLD_MAX = 1 << 20;

const operatorOf = (node: NodeProto): Operator | undefined =>
  operators.get(operatorName(node)) ?? (node.opType === "SimplifiedLayerNormalization" ? operators.get(node.opType) : undefined);

/** Operators, and forms of them, that the runtime does not have: sorted, each once. */
export function missingOperators(model: OnnxModel): string[] {
  const found = new Set<string>();
  const graph = model.proto.graph!;
  const opset = opsetVersion(model);
  if (graph.sparseInitializer.length > 0) found.add("sparse initializers");
  for (const node of liveNodes(model).nodes) {
    if (operatorName(node) === "Constant") {
      const tensor = constantTensor(node);
      if (tensor === undefined || elementType(tensor.dataType) === undefined) found.add("Constant of another element type");
      continue;
    }
    const operator = operatorOf(node);
    if (operator === undefined) found.add(operatorName(node));
    const why = operator?.missing?.(node, opset);
    if (why !== undefined) found.add(`${operatorName(node)} ${why}`);
  }
  for (const { name, dataType } of graph.initializer)
    if (elementType(dataType) === undefined) found.add(`element type of initializer ${JSON.stringify(name)}`);
  for (const { name, type } of graph.input) {
    const kind = type?.value;
    if (kind?.case !== "tensorType" || elementType(kind.value.elemType) === undefined)
      found.add(`element type of input ${JSON.stringify(name)}`);
  }
  return [...found].sort();
}

/** The nodes that outputs need, in order. Works on the main graph; nodes with graphs of their own are no operators of the runtime. */
function liveNodes(model: OnnxModel): { nodes: NodeProto[]; dead: number } {
  const graph = model.proto.graph;
  if (graph === undefined) throw new LowbitError("E_ONNX", "model: expected a graph, got none. The file is damaged.");
  sortNodes(buildScopes(model));
  const wanted = new Set(graph.output.map(({ name }) => name));
  const nodes: NodeProto[] = [];
  for (const node of [...graph.node].reverse()) {
    if (!node.output.some((name) => name !== "" && wanted.has(name))) continue;
    for (const name of node.input) wanted.add(name);
    nodes.push(node);
  }
  return { nodes: nodes.reverse(), dead: graph.node.length - nodes.length };
}

type Unfreed = Omit<Step, "frees">;

const asList = (result: Value | readonly (Value | undefined)[]): readonly (Value | undefined)[] =>
  Array.isArray(result) ? result : [result as Value];

/** Runs one node. @returns its outputs in order */
export const runNode = (run: Run, node: NodeProto, values: (name: string) => Value | undefined): readonly (Value | undefined)[] =>
  asList(
    run(
      node.input.map((name) => (name === "" ? undefined : values(name))),
      node,
    ),
  );

/** @throws LowbitError E_ONNX, E_SHAPE, E_UNSUPPORTED */
export function makePlan(model: OnnxModel, backend: Backend<SyncLayer>): Plan {
  const { nodes, dead } = liveNodes(model);
  const graph = model.proto.graph!;
  const opset = opsetVersion(model);
  const feeds = new Set(graph.input.map(({ name }) => name));
  const tensors = new Map(graph.initializer.map((tensor) => [tensor.name, tensor]));
  const constants = new Map<string, Value>();
  const constant = (name: string): Value | undefined => {
    const known = constants.get(name);
    const tensor = tensors.get(name);
    // an initializer that is an input too may be fed another value
    if (known !== undefined || tensor === undefined || feeds.has(name)) return known;
    const value = readValue(model, tensor);
    constants.set(name, value);
    return value;
  };
  const layers: SyncLayer[] = [];
  const steps: Unfreed[] = [];
  const dropped = new Map<NodeProto, ReadonlySet<number>>();
  let folded = 0;
  try {
    for (const node of nodes) {
      const operator = operatorName(node);
      if (operator === "Constant") {
        constants.set(node.output[0], readValue(model, constantTensor(node)!));
        folded++;
        continue;
      }
      const row = operatorOf(node)!;
      const prepared = row.prepare?.(node, {
        backend,
        opset,
        constant: (i) => constant(node.input[i] ?? ""),
        keep: (l) => (layers.push(l), l),
      });
      if (prepared === undefined && node.input.every((name) => name === "" || constant(name) !== undefined)) {
        const results = runNode(row.run, node, constant);
        if (results.every((v) => v === undefined || v.data.length <= FOLD_MAX)) {
          node.output.forEach((name, i) => results[i] !== undefined && constants.set(name, results[i]));
          folded++;
          continue;
        }
      }
      if (prepared !== undefined) dropped.set(node, new Set(prepared.drops));
      steps.push({ node, operator, run: prepared?.run ?? row.run, kernel: prepared?.kernel ?? "loops" });
    }
  } catch (error) {
    for (const layer of layers) layer.dispose();
    throw error;
  }
  // Weights that only prepared layers read are let go: their bytes are in the layers.
  const read = new Set(graph.output.map(({ name }) => name));
  for (const { node } of steps) node.input.forEach((name, i) => dropped.get(node)?.has(i) || read.add(name));
  for (const name of [...tensors.keys(), ...constants.keys()]) if (read.has(name)) constant(name);
  for (const name of [...constants.keys()]) if (!read.has(name)) constants.delete(name);
  for (const name of feeds) if (tensors.has(name)) constants.set(name, readValue(model, tensors.get(name)!));
  return {
    steps: withLifetimes(
      steps,
      graph.output.map(({ name }) => name),
    ),
    constants,
    layers,
    folded,
    dead,
  };
}

function withLifetimes(steps: readonly Unfreed[], outputs: readonly string[]): Step[] {
  const kept = new Set(outputs);
  const seen = new Set<string>();
  const made = new Set(steps.flatMap(({ node }) => node.output));
  const out: Step[] = [];
  for (const step of [...steps].reverse()) {
    const frees: string[] = [];
    for (const name of [...step.node.input, ...step.node.output]) {
      if (name === "" || seen.has(name) || kept.has(name) || !made.has(name)) continue;
      seen.add(name);
      frees.push(name);
    }
    out.push({ ...step, frees });
  }
  return out.reverse();
}

/** " (node n, operator)" for errors of a step. */
export const stepName = ({ node, operator }: Step): string => `node ${nodeName(node)} (${operator})`;

// dequantizeWeights: operators that hold quantized weights become the float operators that they stand for, with the
// dequantized weights, so that a model can be quantized again. Activations that are quantized statically stay so
// (QuantizeLinear, DequantizeLinear); those that are quantized at run time are float again. What has no float form here
// (attention) stays, and is said. Weights behind DequantizeLinear need nothing: they are read as they are.
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import { buildScopes, collectNames, constantResolver, operatorName, readConstant, removeUnused, type Scope } from "../graph/graph.ts";
import { FORMS, ORDINARY } from "./forms.ts";
import type { Rewriting } from "./rewriting.ts";

/** Operators with quantized weights for which there is no float form here. */
const STAY: ReadonlySet<string> = new Set(
  ["QAttention", "QEmbedLayerNormalization", "QOrderedMatMul", "MatMulFpQ4"].map((name) => `com.microsoft.${name}`),
);

/**
 * Gives a quantized model float weights again, in place: the values that its codes stand for.
 * @returns what was changed and what could not be, as notes
 * @example
 * using model = readModel("quantized.onnx");
 * dequantizeWeights(model);
 * await writeModel(model, "model_float.onnx");
 */
export function dequantizeWeights(model: OnnxModel): string[] {
  const scopes = buildScopes(model);
  const names = collectNames(scopes);
  const resolve = constantResolver(model);
  const done = new Map<string, number>();
  const left = new Map<string, number>();
  const freed = new Set<string>();
  for (const scope of scopes) {
    const outputs = new Set(scope.graph.output.map(({ name }) => name));
    const readers = readersIn(scope);
    const gone = new Set<NodeProto>();
    const replaced = new Map<NodeProto, NodeProto[]>();
    const work: Rewriting = {
      model,
      scope,
      names,
      numbers(name) {
        const constant = resolve(scope, name);
        // a copy: the reader may give a view of the file's bytes
        return constant === null
          ? null
          : { data: readConstant(model, constant).slice(), shape: constant.shape, dataType: constant.dataType };
      },
      maker: (name) => scope.producers.get(name),
      onlyReader: (name) => (outputs.has(name) ? undefined : readers.get(name)?.length === 1 ? readers.get(name)![0] : undefined),
    };
    for (const node of scope.graph.node) {
      const name = operatorName(node);
      const form = FORMS.get(name);
      const made = form?.(node, work) ?? null;
      if (made === null) {
        if ((form !== undefined && !ORDINARY.has(name)) || STAY.has(name)) left.set(name, (left.get(name) ?? 0) + 1);
        continue;
      }
      const what = ORDINARY.has(name) ? "Gather of codes" : name;
      done.set(what, (done.get(what) ?? 0) + 1);
      replaced.set(made.at, made.nodes);
      for (const other of made.instead) {
        gone.add(other);
        for (const input of other.input) freed.add(input);
      }
    }
    scope.graph.node = scope.graph.node.flatMap((node) => replaced.get(node) ?? (gone.has(node) ? [] : [node]));
    dropUnread(scope, freed);
  }
  removeUnused(buildScopes(model), freed);
  const words = (counts: ReadonlyMap<string, number>): string => [...counts].map(([name, n]) => `${n} ${name}`).join(", ");
  return [
    ...(done.size > 0 ? [`weights dequantized: ${words(done)}`] : []),
    ...(left.size > 0 ? [`stay as they are, without a float form here: ${words(left)}`] : []),
  ];
}

/** Nodes of a graph by what they read; what graphs inside a node read counts as read twice. */
function readersIn(scope: Scope): Map<string, NodeProto[]> {
  const readers = new Map<string, NodeProto[]>();
  const add = (name: string, node: NodeProto): void => void (readers.get(name) ?? readers.set(name, []).get(name)!).push(node);
  for (const node of scope.graph.node) {
    for (const name of node.input) if (name !== "") add(name, node);
    if (node.attribute.some((attribute) => attribute.g !== undefined || attribute.graphs.length > 0))
      for (const name of scope.producers.keys()) add(name, node);
  }
  return readers;
}

/** DynamicQuantizeLinear and products of scales that nothing reads any more, from the back. */
function dropUnread(scope: Scope, freed: Set<string>): void {
  const { node: nodes, output } = scope.graph;
  if (nodes.some(({ attribute }) => attribute.some(({ g, graphs }) => g !== undefined || graphs.length > 0))) return;
  const reads = new Map(output.map(({ name }) => [name, 1]));
  for (const { input } of nodes) for (const name of input) reads.set(name, (reads.get(name) ?? 0) + 1);
  const kept: NodeProto[] = [];
  for (const node of nodes.toReversed()) {
    const loose = node.opType === "DynamicQuantizeLinear" || (node.opType === "Mul" && node.output.some((name) => freed.has(name)));
    if (!loose || node.output.some((name) => (reads.get(name) ?? 0) > 0)) {
      kept.push(node);
      continue;
    }
    for (const name of node.input) {
      freed.add(name);
      reads.set(name, reads.get(name)! - 1);
    }
  }
  scope.graph.node = kept.reverse();
}

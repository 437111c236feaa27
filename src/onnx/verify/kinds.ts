// What an output is, as far as graph, name and values tell: it decides which figure judges it, and what is usual for
// it.
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { buildScopes, isDefaultDomain } from "../graph/graph.ts";
import type { Scope } from "../graph/graph.ts";
import type { OnnxModel } from "../file/model.ts";

/**
 * probabilities sum to 1 along the last axis; scores are in [0, 1] each for itself; labels are integers, bools or
 * strings.
 */
export type OutputKind = "logits" | "probabilities" | "scores" | "embedding" | "labels" | "values";

const THROUGH = new Set([
  "Identity",
  "Cast",
  "Reshape",
  "Squeeze",
  "Unsqueeze",
  "Flatten",
  "Transpose",
  "Slice",
  "Clip",
  "Dropout",
  "Concat",
]);
const BY_OPERATOR: ReadonlyMap<string, OutputKind> = new Map([
  ["Softmax", "probabilities"],
  ["Sigmoid", "scores"],
  ["HardSigmoid", "scores"],
  ["LogSoftmax", "logits"],
  ["LpNormalization", "embedding"],
]);
const EMBEDDING = /embed|hidden_state|pooler|pooled|feature|sentence|vector/i;
const LOGITS = /logit|score|class|cls|prob|pred/i;

/**
 * Kinds that the graph itself tells: the operator that makes an output, through reshapes, casts and the branches of If.
 */
export function kindsByGraph(model: OnnxModel): Map<string, OutputKind> {
  const scopes = buildScopes(model);
  const scopeOf = new Map(scopes.map((scope) => [scope.graph, scope] as const));
  const kinds = new Map<string, OutputKind>();
  for (const output of scopes[0].graph.output) {
    const kind = follow(scopes[0], output.name, scopeOf);
    if (kind !== undefined) kinds.set(output.name, kind);
  }
  return kinds;
}

function follow(start: Scope, name: string, scopeOf: ReadonlyMap<Scope["graph"], Scope>): OutputKind | undefined {
  let scope = start;
  const seen = new Set<NodeProto>();
  for (;;) {
    const node = scope.producers.get(name);
    if (node === undefined || seen.has(node) || !isDefaultDomain(node)) return undefined;
    seen.add(node);
    const found = BY_OPERATOR.get(node.opType);
    if (found !== undefined) return found;
    const branch = node.opType === "If" ? node.attribute.find((attribute) => attribute.name === "then_branch")?.g : undefined;
    const inner = branch && scopeOf.get(branch);
    if (inner !== undefined) {
      name = inner.graph.output[node.output.indexOf(name)]?.name ?? "";
      scope = inner;
    } else if (THROUGH.has(node.opType)) name = node.input[0];
    else return undefined;
  }
}

/** What is known of an output's values in the reference. */
export interface ValueTraits {
  readonly name: string;
  readonly type: string;
  readonly dims: readonly number[];
  readonly least: number;
  readonly most: number;
  /** Every row along the last axis sums to 1. */
  readonly sumsToOne: boolean;
  /** Every row along the last axis has length 1. */
  readonly unitLength: boolean;
}

/** The kind of an output: by graph, else by its type, values and name. */
export function kindOf(traits: ValueTraits, byGraph: OutputKind | undefined): OutputKind {
  if (!/^(float|bfloat|double)/.test(traits.type)) return "labels";
  const wide = (traits.dims.at(-1) ?? 1) > 1;
  if (byGraph === "probabilities" && !wide) return "scores";
  if (byGraph !== undefined) return byGraph;
  if (wide && traits.unitLength) return "embedding";
  if (wide && traits.least >= 0 && traits.sumsToOne) return "probabilities";
  if (wide && EMBEDDING.test(traits.name)) return "embedding";
  if (wide && LOGITS.test(traits.name)) return "logits";
  return "values";
}

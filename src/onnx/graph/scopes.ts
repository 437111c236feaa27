// The graph as nested scopes: who makes a value and which values are constant. Graphs of If, Loop and Scan see the
// names of the graphs around them. Nothing here recurses: the depth of a file's graphs is the file's choice.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { GraphProto, NodeProto, SparseTensorProto, TensorProto } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import { attributeGraphs } from "../file/model.ts";

/** One graph and the names it defines. */
export interface Scope {
  readonly graph: GraphProto;
  readonly parent: Scope | null;
  /** The node of the outer graph that holds this one; null for the main graph. */
  readonly holder: NodeProto | null;
  /** "" for the main graph, else the node and attribute that hold it: "If_3.then_branch". */
  readonly path: string;
  readonly producers: Map<string, NodeProto>;
  readonly initializers: Map<string, TensorProto>;
  readonly sparse: Map<string, SparseTensorProto>;
  readonly inputs: Set<string>;
}

export const isDefaultDomain = (node: NodeProto): boolean => node.domain === "" || node.domain === "ai.onnx";

/** The operator with its domain, where that is not ONNX's own: "MatMul", "com.microsoft.MatMulNBits". */
export const operatorName = (node: NodeProto): string => (isDefaultDomain(node) ? node.opType : `${node.domain}.${node.opType}`);

/** The name that reports and patterns use: the node's own, or its first output where it has none. */
export const nodeName = (node: NodeProto): string => node.name || (node.output.find((name) => name !== "") ?? node.opType);

/** " in If_3.then_branch" for messages; "" in the main graph. */
export const inScope = (scope: Scope): string => (scope.path === "" ? "" : ` in ${scope.path}`);

function scopeOf(graph: GraphProto, parent: Scope | null, path: string, holder: NodeProto | null = null): Scope {
  const scope: Scope = { graph, parent, holder, path, producers: new Map(), initializers: new Map(), sparse: new Map(), inputs: new Set() };
  const twice = (name: string, what: string): never => {
    // Bytes that are no UTF-8 all decode to U+FFFD: two names may have become one.
    const remedy = name.includes("\uFFFD")
      ? "Names in the file are not UTF-8, as protobuf wants them, and can no longer be told apart: rename the values."
      : "The model is damaged.";
    throw new LowbitError("E_ONNX", `value ${JSON.stringify(name)}${inScope(scope)}: expected one definition, got ${what}. ${remedy}`);
  };
  for (const input of graph.input) {
    if (scope.inputs.has(input.name)) twice(input.name, "two graph inputs of that name");
    scope.inputs.add(input.name);
  }
  for (const tensor of graph.initializer) {
    if (scope.initializers.has(tensor.name)) twice(tensor.name, "two initializers of that name");
    scope.initializers.set(tensor.name, tensor);
  }
  for (const sparse of graph.sparseInitializer) {
    const name = sparse.values?.name ?? "";
    if (name === "") continue;
    if (scope.sparse.has(name) || scope.initializers.has(name)) twice(name, "two initializers of that name");
    scope.sparse.set(name, sparse);
  }
  for (const node of graph.node) {
    for (const output of node.output) {
      if (output === "") continue;
      const other = scope.producers.get(output);
      if (other !== undefined) twice(output, `two nodes that make it (${nodeName(other)} and ${nodeName(node)})`);
      if (scope.initializers.has(output) || scope.inputs.has(output) || scope.sparse.has(output))
        twice(output, `node ${nodeName(node)} and an initializer or input`);
      scope.producers.set(output, node);
    }
  }
  return scope;
}

interface Pending {
  readonly graph: GraphProto;
  readonly parent: Scope | null;
  readonly path: string;
  readonly holder: NodeProto | null;
}

/**
 * All scopes of a model's main graph, outer before inner.
 * @throws LowbitError E_ONNX where a value has two definitions
 */
export function buildScopes(model: OnnxModel): Scope[] {
  const scopes: Scope[] = [];
  const pending: Pending[] = [{ graph: model.proto.graph!, parent: null, path: "", holder: null }];
  for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
    const { path } = next;
    const scope = scopeOf(next.graph, next.parent, path, next.holder);
    scopes.push(scope);
    const inner: typeof pending = [];
    for (const node of scope.graph.node) {
      for (const attribute of node.attribute) {
        attributeGraphs(attribute).forEach((graph, i, all) =>
          inner.push({
            graph,
            parent: scope,
            holder: node,
            path: `${path === "" ? "" : `${path}/`}${nodeName(node)}.${attribute.name}${all.length > 1 ? i : ""}`,
          }),
        );
      }
    }
    // Last in, first out: the first graph of the first node comes next.
    for (const graph of inner.reverse()) pending.push(graph);
  }
  return scopes;
}

const defines = (scope: Scope, name: string): boolean =>
  scope.initializers.has(name) || scope.producers.has(name) || scope.inputs.has(name) || scope.sparse.has(name);

/** The scope that defines `name` as seen from `scope`; null of "", which is an input that is left out. */
export function definingScope(scope: Scope, name: string): Scope | null {
  for (let s: Scope | null = name === "" ? null : scope; s !== null; s = s.parent) if (defines(s, name)) return s;
  return null;
}

/**
 * Names that a node reads: its inputs, and what its subgraphs take from outside. For all nodes of a model see
 * `readsOf`.
 */
export function nodeReads(node: NodeProto): Set<string> {
  const reads = new Set<string>(node.input.filter((name) => name !== ""));
  const graphs = node.attribute.flatMap(attributeGraphs);
  const pending = graphs.map((graph) => scopeOf(graph, null, ""));
  for (let scope = pending.pop(); scope !== undefined; scope = pending.pop()) {
    const outside = (name: string): boolean => name !== "" && definingScope(scope!, name) === null;
    for (const { name } of scope.graph.output) if (outside(name)) reads.add(name);
    for (const inner of scope.graph.node) {
      for (const name of inner.input) if (outside(name)) reads.add(name);
      for (const graph of inner.attribute.flatMap(attributeGraphs)) pending.push(scopeOf(graph, scope, ""));
    }
  }
  return reads;
}

/** `nodeReads` of every node of a model, with what inner graphs take from outside worked out once. */
export function readsOf(scopes: readonly Scope[]): (node: NodeProto) => ReadonlySet<string> {
  const captured = new Map<GraphProto, ReadonlySet<string>>();
  const reads = (node: NodeProto): ReadonlySet<string> => {
    const names = new Set<string>(node.input.filter((name) => name !== ""));
    for (const attribute of node.attribute) {
      for (const graph of attributeGraphs(attribute)) for (const name of captured.get(graph) ?? []) names.add(name);
    }
    return names;
  };
  for (const scope of [...scopes].reverse()) {
    if (scope.parent === null) continue;
    const outside = new Set<string>();
    for (const node of scope.graph.node) for (const name of reads(node)) if (!defines(scope, name)) outside.add(name);
    for (const { name } of scope.graph.output) if (!defines(scope, name)) outside.add(name);
    captured.set(scope.graph, outside);
  }
  return reads;
}

// The graph as nested scopes: who makes a value, who uses it, which values are constant. Graphs of If, Loop and Scan see the names of the
// graphs around them. Checks what the ONNX IR demands (one producer per value, no cycle, sorted nodes) and builds nodes and attributes.
import { create } from "@bufbuild/protobuf";
import { LowbitError } from "../../../formats/core/errors.ts";
import type { AttributeProto, GraphProto, NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import { AttributeProtoSchema, AttributeProto_AttributeType as A, NodeProtoSchema } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import { attributeGraphs } from "../file/model.ts";

/** One graph and the names it defines. */
export interface Scope {
  readonly graph: GraphProto;
  readonly parent: Scope | null;
  /** "" for the main graph, else the node and attribute that hold it: "If_3.then_branch". */
  readonly path: string;
  readonly producers: Map<string, NodeProto>;
  readonly initializers: Map<string, TensorProto>;
  readonly inputs: Set<string>;
}

/** A constant: its tensor, and where it is defined. */
export interface Constant {
  readonly tensor: TensorProto;
  readonly scope: Scope;
  /** The name under which `scope` defines it. */
  readonly name: string;
  /** The Constant node that holds it; undefined for an initializer. */
  readonly node?: NodeProto;
}

export const isDefaultDomain = (node: NodeProto): boolean => node.domain === "" || node.domain === "ai.onnx";

/** The name that reports and patterns use: the node's own, or its first output where it has none. */
export const nodeName = (node: NodeProto): string => node.name || (node.output.find((name) => name !== "") ?? node.opType);

const at = (scope: Scope): string => (scope.path === "" ? "" : ` in ${scope.path}`);

/** All scopes of a model's main graph, outer before inner. @throws LowbitError E_ONNX where a value has two definitions */
export function buildScopes(model: OnnxModel): Scope[] {
  const scopes: Scope[] = [];
  const visit = (graph: GraphProto, parent: Scope | null, path: string): void => {
    const scope: Scope = { graph, parent, path, producers: new Map(), initializers: new Map(), inputs: new Set() };
    scopes.push(scope);
    const twice = (name: string, what: string): never => {
      throw new LowbitError(
        "E_ONNX",
        `value ${JSON.stringify(name)}${at(scope)}: expected one definition, got ${what}. The model is damaged.`,
      );
    };
    for (const input of graph.input) {
      if (scope.inputs.has(input.name)) twice(input.name, "two graph inputs of that name");
      scope.inputs.add(input.name);
    }
    for (const tensor of graph.initializer) {
      if (scope.initializers.has(tensor.name)) twice(tensor.name, "two initializers of that name");
      scope.initializers.set(tensor.name, tensor);
    }
    for (const node of graph.node) {
      for (const output of node.output) {
        if (output === "") continue;
        if (scope.producers.has(output))
          twice(output, `two nodes that make it (${nodeName(scope.producers.get(output)!)} and ${nodeName(node)})`);
        if (scope.initializers.has(output) || scope.inputs.has(output)) twice(output, `node ${nodeName(node)} and an initializer or input`);
        scope.producers.set(output, node);
      }
    }
    for (const node of graph.node) {
      for (const attribute of node.attribute) {
        attributeGraphs(attribute).forEach((inner, i, all) =>
          visit(inner, scope, `${path === "" ? "" : `${path}/`}${nodeName(node)}.${attribute.name}${all.length > 1 ? i : ""}`),
        );
      }
    }
  };
  visit(model.proto.graph!, null, "");
  return scopes;
}

/** Names that a node reads: its inputs, and what its subgraphs take from outside. */
export function nodeReads(node: NodeProto): Set<string> {
  const reads = new Set<string>(node.input.filter((name) => name !== ""));
  for (const attribute of node.attribute) {
    for (const graph of attributeGraphs(attribute)) for (const name of capturedNames(graph)) reads.add(name);
  }
  return reads;
}

function capturedNames(graph: GraphProto): Set<string> {
  const own = new Set<string>();
  for (const input of graph.input) own.add(input.name);
  for (const tensor of graph.initializer) own.add(tensor.name);
  for (const sparse of graph.sparseInitializer) own.add(sparse.values?.name ?? "");
  for (const node of graph.node) for (const output of node.output) own.add(output);
  const captured = new Set<string>();
  for (const node of graph.node) for (const name of nodeReads(node)) if (!own.has(name)) captured.add(name);
  for (const output of graph.output) if (!own.has(output.name)) captured.add(output.name);
  return captured;
}

/**
 * Checks the order of nodes in every graph: ONNX demands that a value is made before it is used. With `sort` an unsorted graph is sorted
 * (stable: nodes keep their order where they can). @throws LowbitError E_ONNX on a cycle, an unsorted graph, or a value that nothing makes
 */
export function checkOrder(scopes: readonly Scope[], sort: boolean): boolean {
  let sorted = false;
  for (const scope of scopes) {
    const nodes = scope.graph.node;
    const position = new Map<NodeProto, number>(nodes.map((node, i) => [node, i]));
    const missing = nodes.map(() => 0);
    const users: number[][] = nodes.map(() => []);
    let inOrder = true;
    nodes.forEach((node, i) => {
      for (const name of nodeReads(node)) {
        const producer = scope.producers.get(name);
        if (producer === undefined) {
          if (!definedOutside(scope, name)) {
            throw new LowbitError(
              "E_ONNX",
              `node ${nodeName(node)}${at(scope)}: expected a value ${JSON.stringify(name)}, got no node, initializer or input that makes it. The model is damaged.`,
            );
          }
          continue;
        }
        const from = position.get(producer)!;
        users[from].push(i);
        missing[i]++;
        if (from >= i) inOrder = false;
      }
    });
    if (inOrder) continue;
    const order = stableOrder(missing, users);
    if (order.length < nodes.length) {
      const stuck = nodes.find((_, i) => missing[i] > 0)!;
      throw new LowbitError(
        "E_ONNX",
        `node ${nodeName(stuck)}${at(scope)}: expected an acyclic graph, got a cycle through it. The model is damaged.`,
      );
    }
    if (!sort) {
      const late = nodes.find((node, i) =>
        [...nodeReads(node)].some((name) => scope.producers.has(name) && position.get(scope.producers.get(name)!)! >= i),
      )!;
      throw new LowbitError(
        "E_ONNX",
        `node ${nodeName(late)}${at(scope)}: expected nodes in topological order, got a node that reads a value made later. Pass sort (--sort) to put them in order.`,
      );
    }
    scope.graph.node = order.map((i) => nodes[i]);
    sorted = true;
  }
  return sorted;
}

/** Kahn's algorithm with a binary heap: always the earliest node that is ready. Counts in `missing` go to zero for ordered nodes. */
function stableOrder(missing: number[], users: readonly (readonly number[])[]): number[] {
  const heap: number[] = [];
  const push = (value: number): void => {
    let i = heap.push(value) - 1;
    while (i > 0 && heap[(i - 1) >> 1] > value) {
      heap[i] = heap[(i - 1) >> 1];
      i = (i - 1) >> 1;
    }
    heap[i] = value;
  };
  const pop = (): number => {
    const top = heap[0];
    const last = heap.pop()!;
    let i = 0;
    for (let child = 1; child < heap.length; child = 2 * i + 1) {
      if (child + 1 < heap.length && heap[child + 1] < heap[child]) child++;
      if (heap[child] >= last) break;
      heap[i] = heap[child];
      i = child;
    }
    if (heap.length > 0) heap[i] = last;
    return top;
  };
  missing.forEach((count, i) => count === 0 && push(i));
  const order: number[] = [];
  while (heap.length > 0) {
    const i = pop();
    order.push(i);
    for (const user of users[i]) if (--missing[user] === 0) push(user);
  }
  return order;
}

function definedOutside(scope: Scope, name: string): boolean {
  for (let s: Scope | null = scope; s !== null; s = s.parent) {
    if (s.initializers.has(name) || s.inputs.has(name) || s.producers.has(name)) return true;
    if (s.graph.sparseInitializer.some((sparse) => sparse.values?.name === name)) return true;
  }
  return false;
}

/** The scope that defines `name` as seen from `scope`. */
export function definingScope(scope: Scope, name: string): Scope | null {
  for (let s: Scope | null = scope; s !== null; s = s.parent) {
    if (s.initializers.has(name) || s.producers.has(name) || s.inputs.has(name)) return s;
  }
  return null;
}

/** The constant that `name` is, through Identity nodes; null where it is computed or an input. */
export function resolveConstant(scope: Scope, name: string): Constant | null {
  if (name === "") return null;
  const owner = definingScope(scope, name);
  if (owner === null) return null;
  const tensor = owner.initializers.get(name);
  if (tensor !== undefined) return { tensor, scope: owner, name };
  const node = owner.producers.get(name);
  if (node === undefined || !isDefaultDomain(node)) return null;
  if (node.opType === "Identity") return resolveConstant(owner, node.input[0] ?? "");
  if (node.opType !== "Constant") return null;
  const value = node.attribute.find((attribute) => attribute.name === "value")?.t;
  return value === undefined ? null : { tensor: value, scope: owner, name, node };
}

// ---- building --------------------------------------------------------------------------------------------------------------------

/** Unique names: `take("x")` gives "x", or "x_1" where that is in use anywhere in the model. */
export interface Names {
  take(base: string): string;
}

export function collectNames(scopes: readonly Scope[]): Names {
  const used = new Set<string>();
  for (const { graph } of scopes) {
    for (const value of [...graph.input, ...graph.output, ...graph.initializer]) used.add(value.name);
    for (const node of graph.node) {
      used.add(node.name);
      for (const name of node.input) used.add(name);
      for (const name of node.output) used.add(name);
    }
  }
  return {
    take(base) {
      let name = base;
      for (let i = 1; used.has(name); i++) name = `${base}_${i}`;
      used.add(name);
      return name;
    },
  };
}

export const intAttribute = (name: string, value: number): AttributeProto =>
  create(AttributeProtoSchema, { name, i: BigInt(value), type: A.INT });

export const attributeOf = (node: NodeProto, name: string): AttributeProto | undefined =>
  node.attribute.find((attribute) => attribute.name === name);

export const attributeInt = (node: NodeProto, name: string, fallback: number): number => {
  const attribute = attributeOf(node, name);
  return attribute === undefined ? fallback : Number(attribute.i);
};

export const attributeFloat = (node: NodeProto, name: string, fallback: number): number => attributeOf(node, name)?.f ?? fallback;

export interface NodeInit {
  readonly name: string;
  readonly domain?: string;
  readonly attributes?: readonly AttributeProto[];
}

export function makeNode(opType: string, input: readonly string[], output: readonly string[], init: NodeInit): NodeProto {
  const node = create(NodeProtoSchema, {
    opType,
    input: [...input],
    output: [...output],
    name: init.name,
    attribute: [...(init.attributes ?? [])],
  });
  if (init.domain !== undefined) node.domain = init.domain;
  return node;
}

/**
 * Removes constants that nothing reads any more (of `candidates` only), and Identity nodes that led to them. Returns the graph inputs that
 * went with them: an initializer may be an input too, whose value callers could replace.
 */
export function removeUnused(scopes: readonly Scope[], candidates: ReadonlySet<string>): string[] {
  const inputs: string[] = [];
  const wanted = new Set(candidates);
  for (;;) {
    const read = new Set<string>();
    for (const { graph } of scopes) {
      for (const node of graph.node) for (const name of node.input) read.add(name);
      for (const output of graph.output) read.add(output.name);
    }
    let removed = 0;
    for (const scope of scopes) {
      const { graph } = scope;
      const keepNode = (node: NodeProto): boolean => {
        const output = node.output[0] ?? "";
        const identity = node.opType === "Identity" && wanted.has(node.input[0] ?? "") && isDefaultDomain(node);
        if (read.has(output) || !((node.opType === "Constant" && wanted.has(output)) || identity)) return true;
        if (identity) wanted.add(output);
        return false;
      };
      const keepTensor = (tensor: TensorProto): boolean => read.has(tensor.name) || !wanted.has(tensor.name);
      const nodes = graph.node.filter(keepNode);
      const tensors = graph.initializer.filter(keepTensor);
      removed += graph.node.length - nodes.length + graph.initializer.length - tensors.length;
      const gone = new Set(graph.initializer.filter((tensor) => !keepTensor(tensor)).map((tensor) => tensor.name));
      graph.node = nodes;
      graph.initializer = tensors;
      if (gone.size === 0) continue;
      for (const input of graph.input) if (gone.has(input.name)) inputs.push(input.name);
      graph.input = graph.input.filter((input) => !gone.has(input.name));
    }
    if (removed === 0) return inputs;
  }
}

/** The version of the default opset. */
export const opsetVersion = (model: OnnxModel): number =>
  Number(model.proto.opsetImport.find((entry) => entry.domain === "" || entry.domain === "ai.onnx")?.version ?? 0n);

// Removes what nothing reads any more after weights were replaced: the old constants, and the nodes that only led from
// them to their reader.
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { leadsFromConstants } from "./constants.ts";
import type { Scope } from "./scopes.ts";

/** A value by the graph that defines it. */
interface Value {
  readonly scope: Scope;
  readonly name: string;
}

/** What a graph defines as it is now: a scope says what it defined when it was built. */
interface Definitions {
  readonly producers: ReadonlyMap<string, NodeProto>;
  readonly constants: ReadonlySet<string>;
  readonly inputs: ReadonlySet<string>;
  /** Nodes and graph results that read each value, subgraphs included. */
  readonly readers: Map<string, number>;
}

type Current = ReadonlyMap<Scope, Definitions>;

/**
 * Removes the constants among `candidates` that nothing reads any more, the nodes that led from them to a reader
 * (Identity, Transpose, Reshape, Cast, ...; any number in a row), and what only those nodes read. Near-linear in the
 * nodes. Returns the graph inputs that went with them: an initializer may be an input too, whose value callers could
 * replace.
 */
export function removeUnused(scopes: readonly Scope[], candidates: ReadonlySet<string>): string[] {
  const current: Current = new Map(scopes.map((scope) => [scope, definitions(scope)]));
  countReaders(current);
  const removed = sweep(startOf(current, candidates), current);
  const inputs: string[] = [];
  for (const [{ graph }, { names, nodes }] of removed) {
    graph.node = graph.node.filter((node) => !nodes.has(node));
    graph.initializer = graph.initializer.filter((tensor) => !names.has(tensor.name));
    graph.sparseInitializer = graph.sparseInitializer.filter((sparse) => !names.has(sparse.values?.name ?? ""));
    graph.valueInfo = graph.valueInfo.filter((value) => !names.has(value.name));
    for (const input of graph.input) if (names.has(input.name)) inputs.push(input.name);
    graph.input = graph.input.filter((input) => !names.has(input.name));
  }
  return inputs;
}

function definitions({ graph }: Scope): Definitions {
  const producers = new Map<string, NodeProto>();
  for (const node of graph.node) for (const name of node.output) if (name !== "") producers.set(name, node);
  const constants = new Set(graph.initializer.map((tensor) => tensor.name));
  for (const sparse of graph.sparseInitializer) constants.add(sparse.values?.name ?? "");
  return { producers, constants, inputs: new Set(graph.input.map((input) => input.name)), readers: new Map() };
}

function ownerOf(current: Current, scope: Scope, name: string): Scope | null {
  if (name === "") return null;
  for (let s: Scope | null = scope; s !== null; s = s.parent) {
    const { producers, constants, inputs } = current.get(s)!;
    if (producers.has(name) || constants.has(name) || inputs.has(name)) return s;
  }
  return null;
}

function countReaders(current: Current): void {
  for (const [scope] of current) {
    const read = (name: string): void => {
      const owner = ownerOf(current, scope, name);
      if (owner === null) return;
      const { readers } = current.get(owner)!;
      readers.set(name, (readers.get(name) ?? 0) + 1);
    };
    for (const node of scope.graph.node) node.input.forEach(read);
    for (const output of scope.graph.output) read(output.name);
  }
}

/** The candidates, and every value that nodes make of them without changing what they are. */
function startOf(current: Current, candidates: ReadonlySet<string>): Value[] {
  const values: Value[] = [];
  const reached = new Set(candidates);
  for (const [scope, { constants }] of current) {
    // Nodes are in order: what a node reads has been looked at.
    for (const node of scope.graph.node) {
      if (leadsFromConstants(node) && node.input.some((name) => name !== "" && reached.has(name)))
        for (const name of node.output) reached.add(name);
      for (const name of node.output) if (name !== "" && reached.has(name)) values.push({ scope, name });
    }
    for (const name of constants) if (reached.has(name)) values.push({ scope, name });
  }
  return values;
}

interface Removed {
  readonly nodes: Set<NodeProto>;
  readonly names: Set<string>;
}

/** Removes what `pending` holds and nobody reads; what a removed node read may be next. */
function sweep(pending: Value[], current: Current): Map<Scope, Removed> {
  const removed = new Map<Scope, Removed>();
  for (let value = pending.pop(); value !== undefined; value = pending.pop()) {
    const { scope, name } = value;
    const { producers, constants, readers } = current.get(scope)!;
    const gone = removed.get(scope) ?? { nodes: new Set(), names: new Set() };
    const unread = (output: string): boolean => output === "" || (readers.get(output) ?? 0) === 0;
    if (!unread(name) || gone.names.has(name)) continue;
    const node = producers.get(name);
    if (node === undefined ? !constants.has(name) : !(leadsFromConstants(node) || node.opType === "Constant")) continue;
    if (node !== undefined && !node.output.every(unread)) continue;
    removed.set(scope, gone);
    for (const output of node?.output ?? [name]) gone.names.add(output);
    if (node === undefined) continue;
    gone.nodes.add(node);
    for (const input of node.input) {
      const owner = ownerOf(current, scope, input);
      if (owner === null) continue;
      const counts = current.get(owner)!.readers;
      counts.set(input, counts.get(input)! - 1);
      pending.push({ scope: owner, name: input });
    }
  }
  return removed;
}

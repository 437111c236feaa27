// A model's graph as one list of nodes: branches of `If` are written out in place. Where the condition is a constant
// only its branch remains; else the nodes of both carry guards (which condition must be true or false for them to run),
// and a `lowbit.Pick` takes the results of the branch that ran. Works off a stack: the depth of graphs is the file's
// choice.
import { create } from "@bufbuild/protobuf";
import { LowbitError } from "../../../formats/core/errors.ts";
import type { GraphProto, NodeProto, TensorProto } from "../../onnx/file/gen/onnx_pb.ts";
import { NodeProtoSchema } from "../../onnx/file/gen/onnx_pb.ts";
import type { OnnxModel } from "../../onnx/file/model.ts";
import { readRaw } from "../../onnx/file/values.ts";
import { attributeOf, constantTensor } from "../../onnx/graph/nodes.ts";
import { sortNodes } from "../../onnx/graph/order.ts";
import { buildScopes, nodeName, nodeReads, operatorName } from "../../onnx/graph/scopes.ts";

/** The condition that a node waits for: the name of a bool, and its value. */
export interface Guard {
  readonly name: string;
  readonly is: boolean;
}

export interface FlatNode {
  readonly node: NodeProto;
  readonly guards: readonly Guard[];
  /** The node of the main graph that it is, or that holds it. */
  readonly top?: NodeProto;
}

/** A node or a step, and what it waits for. */
type Guarded = Pick<FlatNode, "node" | "guards">;

/** Whether two wait for the same conditions. */
export const tied = (a: Guarded, b: Guarded): boolean => JSON.stringify(a.guards) === JSON.stringify(b.guards);

export interface Links<T> {
  readonly makers: ReadonlyMap<string, T>;
  /** Once for each input and condition. */
  readonly readers: ReadonlyMap<string, readonly T[]>;
  readonly outputs: ReadonlySet<string>;
  /** The one that reads a value, once; undefined where the model gives it. */
  only(name: string): T | undefined;
}

/** What makes each value, and what reads it. */
export function linksOf<T extends Guarded>(parts: readonly T[], outputNames: readonly string[]): Links<T> {
  const makers = new Map<string, T>();
  const readers = new Map<string, T[]>();
  const outputs = new Set(outputNames);
  for (const part of parts) {
    for (const name of part.node.output) makers.set(name, part);
    for (const name of [...part.node.input, ...part.guards.map((guard) => guard.name)]) {
      if (!readers.has(name)) readers.set(name, []);
      readers.get(name)!.push(part);
    }
  }
  const only = (name: string): T | undefined => {
    const all = readers.get(name);
    return all?.length === 1 && !outputs.has(name) ? all[0] : undefined;
  };
  return { makers, readers, outputs, only };
}

export interface FlatGraph {
  readonly nodes: readonly FlatNode[];
  readonly tensors: ReadonlyMap<string, TensorProto>;
  /** Nodes that no output needs. */
  readonly dead: number;
}

/** The operator that takes the result of the branch that ran: condition, then, else. */
export const PICK = "lowbit.Pick";

/** Nodes of a graph to be written out: names that it defines are renamed, so that branches cannot collide. */
interface Pending extends Required<FlatNode> {
  readonly names: ReadonlyMap<string, string>;
}

/** More nodes than this are no model but an attack: nested branches can multiply. */
const NODES_MAX = 1 << 20;

const rename = (names: ReadonlyMap<string, string>, list: readonly string[]): string[] => list.map((name) => names.get(name) ?? name);

/** The value of a bool tensor of one element. */
const truth = (model: OnnxModel, tensor: TensorProto): boolean => readRaw(model, tensor)[0] !== 0;

/**
 * The main graph with branches written out, in order, and the nodes that outputs need.
 * @param stops values that are made without their nodes
 */
export function flatten(model: OnnxModel, stops: { has(name: string): boolean }): FlatGraph {
  const graph = model.proto.graph;
  if (graph === undefined) throw new LowbitError("E_ONNX", "model: expected a graph, got none. The file is damaged.");
  sortNodes(buildScopes(model));
  const tensors = new Map(graph.initializer.map((tensor) => [tensor.name, tensor]));
  const fed = new Set(graph.input.map(({ name }) => name));
  const conditions = new Map<string, TensorProto>([...tensors].filter(([name]) => !fed.has(name)));
  const out: FlatNode[] = [];
  let serial = 0;
  const none: ReadonlyMap<string, string> = new Map();
  const stack: Pending[] = graph.node.map((node) => ({ node, guards: [], names: none, top: node })).reverse();
  for (let next = stack.pop(); next !== undefined; next = stack.pop()) {
    const { guards, names, top } = next;
    const input = rename(names, next.node.input);
    const output = rename(names, next.node.output);
    const { opType, domain, name, attribute } = next.node;
    const node = names === none ? next.node : create(NodeProtoSchema, { opType, domain, name, attribute, input, output });
    if (out.length > NODES_MAX)
      throw new LowbitError("E_ONNX", `model: expected at most ${NODES_MAX} nodes with all branches, got more. It is damaged.`);
    if (operatorName(node) === "Constant") {
      const tensor = constantTensor(node);
      if (tensor !== undefined) conditions.set(output[0], tensor);
    }
    if (operatorName(node) !== "If") {
      out.push({ node, guards, top });
      continue;
    }
    const condition = conditions.get(input[0]);
    const known = condition === undefined ? undefined : truth(model, condition);
    const results: string[][] = [];
    for (const [is, attribute] of [
      [true, "then_branch"],
      [false, "else_branch"],
    ] as const) {
      const branch = attributeOf(node, attribute)?.g;
      if (branch === undefined) throw new LowbitError("E_ONNX", `node ${nodeName(node)} (If): expected ${attribute}, got none.`);
      const inner = branchNames(branch, names, `${nodeName(node)}.${attribute}.${serial++}`);
      results.push(
        rename(
          inner,
          branch.output.map(({ name }) => name),
        ),
      );
      if (known !== undefined && known !== is) continue;
      for (const tensor of branch.initializer) tensors.set(inner.get(tensor.name)!, tensor);
      for (const tensor of branch.initializer) conditions.set(inner.get(tensor.name)!, tensor);
      const own = known === undefined ? [...guards, { name: input[0], is }] : guards;
      results.at(-1)!.forEach((name, i) => {
        if (known !== undefined) stack.push({ node: bind("Identity", "", [name], output[i]), guards, names: none, top });
      });
      for (const node of [...branch.node].reverse()) stack.push({ node, guards: own, names: inner, top });
    }
    if (known === undefined) {
      const picks = output.map((name, i) => ({
        node: bind("Pick", "lowbit", [input[0], results[0][i], results[1][i]], name),
        guards,
        names: none,
        top,
      }));
      // below both branches, which lie on top of the stack
      const count = (attributeOf(node, "then_branch")!.g!.node.length ?? 0) + (attributeOf(node, "else_branch")!.g!.node.length ?? 0);
      stack.splice(stack.length - count, 0, ...picks);
    }
  }
  const live = liveNodes(
    out,
    graph.output.map(({ name }) => name),
    stops,
  );
  return { nodes: live, tensors, dead: out.length - live.length };
}

const bind = (opType: string, domain: string, input: string[], output: string): NodeProto =>
  create(NodeProtoSchema, { opType, domain, input, output: [output], name: output });

/** New names for what a branch defines; other names are those of the graphs around it. */
function branchNames(branch: GraphProto, outer: ReadonlyMap<string, string>, path: string): Map<string, string> {
  const names = new Map(outer);
  const define = (name: string): void => void (name !== "" && names.set(name, `${path}/${name}`));
  for (const { name } of branch.initializer) define(name);
  for (const node of branch.node) node.output.forEach(define);
  return names;
}

/** The nodes that `outputs` need, guards included. */
function liveNodes(nodes: readonly FlatNode[], outputs: readonly string[], stops: { has(name: string): boolean }): FlatNode[] {
  const wanted = new Set(outputs);
  const live: FlatNode[] = [];
  for (const flat of [...nodes].reverse()) {
    if (!flat.node.output.some((name) => name !== "" && wanted.has(name) && !stops.has(name))) continue;
    // graphs of operators that are missing take values from outside
    for (const name of flat.node.attribute.length > 0 ? nodeReads(flat.node) : flat.node.input) wanted.add(name);
    for (const { name } of flat.guards) wanted.add(name);
    live.push(flat);
  }
  return live.reverse();
}

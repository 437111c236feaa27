// A model with operators that the runtime lacks, in parts that follow each other: here and in onnxruntime by turns. A
// part is a model of its own, with the constants that it reads; between parts go tensors of types that both have, all
// else (sequences, strings, float64) stays within one part.
import { create } from "@bufbuild/protobuf";
import type { NodeProto, TensorProto, ValueInfoProto } from "../../onnx/file/gen/onnx_pb.ts";
import { GraphProtoSchema, ModelProtoSchema, ValueInfoProtoSchema } from "../../onnx/file/gen/onnx_pb.ts";
import { tensorDims, type OnnxModel } from "../../onnx/file/model.ts";
import { DATA_TYPES } from "../../onnx/file/types.ts";
import { inferTypes } from "../../onnx/graph/infer.ts";
import { attributeInt, opsetVersion } from "../../onnx/graph/nodes.ts";
import { buildScopes, operatorName, readsOf } from "../../onnx/graph/scopes.ts";
import { readStored } from "../../onnx/targets/record.ts";
import { presentOf } from "../machine/sequence.ts";
import { boundaryType } from "../value.ts";
import { flatten } from "./flat.ts";
import { missingOf } from "./plan.ts";

export interface Part {
  readonly model: OnnxModel;
  /** Whether it is onnxruntime's. */
  readonly foreign: boolean;
  readonly operators: readonly string[];
}

/** How much of the work of a model's products one part, and all parts that run here, must have. */
const SHARES: readonly [each: number, all: number] = [1 / 8, 1 / 2];

/** Operators whose work is that of their weights. */
const PRODUCTS = /MatMul|Gemm|Conv|LSTM|GRU|RNN|MoE|Attention|Linear/;
/** Those of them that keep codes in bytes and say how many bits they have, 4 by default. */
const PACKED = /NBits|Bnb4|QMoE/;

/** The main graph as the partition sees it. */
interface Graph {
  /** Nodes that outputs need and that do not follow from constants alone, in order. */
  readonly placed: readonly NodeProto[];
  readonly reads: ReadonlyMap<NodeProto, readonly string[]>;
  readonly readers: ReadonlyMap<NodeProto, readonly NodeProto[]>;
  readonly producers: ReadonlyMap<string, NodeProto>;
  /** Whether a value is of a type that does not go from part to part. */
  readonly isOdd: (name: string) => boolean;
  /** Work of a node's products, and of it what is worth to run here. */
  readonly workOf: (node: NodeProto) => { readonly all: number; readonly here: number };
}

/**
 * The level of each node: even ones run here, odd ones in onnxruntime. Null where too little would run here.
 * @param lacking nodes that cannot run here
 */
function levels(graph: Graph, lacking: ReadonlySet<NodeProto>, [each, all]: readonly [number, number]): Map<NodeProto, number> | null {
  const { placed, reads, producers, isOdd } = graph;
  const readersOf = (node: NodeProto): readonly NodeProto[] => graph.readers.get(node) ?? [];
  const foreign = new Set<NodeProto>();
  let moved = true;
  /** Gives a node to onnxruntime, and those that share a value with it which no other part can have. */
  const move = (first: NodeProto): void => {
    const stack = [first];
    for (let node = stack.pop(); node !== undefined; node = stack.pop()) {
      if (foreign.has(node)) continue;
      foreign.add(node);
      moved = true;
      for (const name of reads.get(node)!.filter(isOdd)) if (producers.has(name)) stack.push(producers.get(name)!);
      for (const reader of readersOf(node))
        if (reads.get(reader)!.some((name) => isOdd(name) && producers.get(name) === node)) stack.push(reader);
    }
  };
  for (const node of placed) if (lacking.has(node) || reads.get(node)!.some((name) => isOdd(name) && !producers.has(name))) move(node);

  const work = new Map(placed.map((node) => [node, graph.workOf(node)]));
  const total = placed.reduce((sum, node) => sum + work.get(node)!.all, 0) || 1;
  const level = new Map<NodeProto, number>();
  const here = new Map<number, number>();
  const between = (a: NodeProto, b: NodeProto): number => (foreign.has(a) === foreign.has(b) ? 0 : 1);
  while (moved) {
    moved = false;
    for (const node of placed) level.set(node, foreign.has(node) ? 1 : 0);
    for (const node of placed)
      for (const reader of readersOf(node)) level.set(reader, Math.max(level.get(reader)!, level.get(node)! + between(node, reader)));
    // as late as readers allow, so that what they alone need is beside them
    for (const node of [...placed].reverse()) {
      const latest = readersOf(node).map((reader) => level.get(reader)! - between(node, reader));
      if (latest.length > 0) level.set(node, Math.min(...latest));
    }
    const spanned = new Set<number>();
    for (const node of placed)
      for (const name of reads.get(node)!.filter(isOdd)) {
        const from = level.get(producers.get(name)!) ?? level.get(node)!;
        if (!foreign.has(node) && from < level.get(node)!) move(node);
        for (let at = from + 1; at < level.get(node)!; at++) spanned.add(at);
      }
    here.clear();
    for (const node of placed) if (!foreign.has(node)) here.set(level.get(node)!, (here.get(level.get(node)!) ?? 0) + work.get(node)!.here);
    for (const node of placed) if (spanned.has(level.get(node)!) || (here.get(level.get(node)!) ?? Infinity) < each * total) move(node);
  }
  const sum = [...here.values()].reduce((a, b) => a + b, 0);
  return here.size === 0 || sum < all * total ? null : level;
}

/**
 * The parts of a model in order; null where too little of it would run here.
 * @param native whether onnxruntime's kernels are native: they are faster but for tokens one by one by weights of few
 * bits, and weights of a stored format, which it decodes
 */
export function partition(model: OnnxModel, native: boolean, shares = SHARES): Part[] | null {
  const graph = model.proto.graph!;
  const stored = readStored(model);
  const { nodes: flat, tensors } = flatten(model, stored);
  const scopes = buildScopes(model);
  const { initializers, sparse, producers } = scopes[0];
  const inputs = new Map(graph.input.map((info) => [info.name, info]));
  const outputs = new Map(graph.output.map((info) => [info.name, info]));
  const types = inferTypes(scopes, opsetVersion(model)).get(scopes[0])!;
  const readsIn = readsOf(scopes);
  const reads = new Map(graph.node.map((node) => [node, [...readsIn(node)]]));
  const lacking = new Set<NodeProto>();
  for (const { node, top } of flat)
    if (missingOf(model, node, tensors).length > 0 || node.input.some((name) => sparse.has(name))) lacking.add(top!);

  // What follows from constants alone goes to each part that reads it. Inputs with a default are constants: sessions of
  // either runtime do not take another value.
  const constants = new Set<NodeProto>();
  const isConstant = (name: string): boolean => initializers.has(name) || sparse.has(name) || constants.has(producers.get(name)!);
  for (const node of graph.node) if (!lacking.has(node) && reads.get(node)!.every(isConstant)) constants.add(node);
  const wanted = new Set(outputs.keys());
  const placed: NodeProto[] = [];
  const readers = new Map<NodeProto, NodeProto[]>();
  for (const node of [...graph.node].reverse()) {
    if (constants.has(node) || !node.output.some((name) => name !== "" && wanted.has(name))) continue;
    placed.push(node);
    for (const name of reads.get(node)!) {
      wanted.add(name);
      const from = producers.get(name);
      if (from === undefined) continue;
      if (!readers.has(from)) readers.set(from, []);
      readers.get(from)!.push(node);
    }
  }
  placed.reverse();

  /** Weights in the graphs that a node holds. */
  const held = new Map<NodeProto, TensorProto[]>();
  for (const scope of scopes.slice(1)) {
    let top = scope;
    while (top.parent!.parent !== null) top = top.parent!;
    held.set(top.holder!, [...(held.get(top.holder!) ?? []), ...scope.initializers.values()]);
  }
  const hasCaches = graph.input.some(({ name }) => presentOf(name, wanted) !== undefined);
  const workOf: Graph["workOf"] = (node) => {
    if (!held.has(node) && !PRODUCTS.test(node.opType)) return { all: 0, here: 0 };
    const bits = PACKED.test(node.opType) ? attributeInt(node, "bits", 4) : 8;
    let isLow = bits < 8;
    let isStored = false;
    let sum = 0;
    const count = (tensor: TensorProto): void => {
      sum += tensorDims(tensor).reduce((a, b) => a * b, 8 / bits);
      isLow ||= (DATA_TYPES[tensor.dataType]?.bits || 8) < 8;
    };
    held.get(node)?.forEach(count);
    const names = new Set(reads.get(node)!.filter(isConstant));
    // a set gives what is added while it is walked
    for (const name of names) {
      isStored ||= stored.has(name);
      if (initializers.has(name)) count(initializers.get(name)!);
      else for (const other of reads.get(producers.get(name)!) ?? []) names.add(other);
    }
    return { all: sum, here: !native || isStored || (isLow && hasCaches) ? sum : 0 };
  };
  const isOdd = (name: string): boolean => !isConstant(name) && boundaryType(types.get(name) ?? 0) === undefined;
  const level = levels({ placed, reads, readers, producers, isOdd, workOf }, lacking, shares);
  if (level === null) return null;

  /** A value between parts has its type; its sizes are those of a run. */
  const infoOf = (name: string): ValueInfoProto =>
    inputs.get(name) ??
    outputs.get(name) ??
    create(ValueInfoProtoSchema, { name, type: { value: { case: "tensorType", value: { elemType: types.get(name)! } } } });
  const partOf = (at: number, constantOutputs: readonly string[]): Part => {
    const own = placed.filter((node) => level.get(node) === at);
    const nodes = new Set(own);
    const made = new Set(own.flatMap((node) => node.output.filter((name) => name !== "")));
    const names = new Set([...own.flatMap((node) => reads.get(node)!), ...constantOutputs]);
    for (const name of names) {
      const maker = producers.get(name)!;
      if (!constants.has(maker)) continue;
      nodes.add(maker);
      for (const other of reads.get(maker)!) names.add(other);
    }
    const isRead = (name: string): boolean =>
      outputs.has(name) || (readers.get(producers.get(name)!) ?? []).some((node) => !nodes.has(node) && reads.get(node)!.includes(name));
    const { irVersion, opsetImport, functions, metadataProps } = model.proto;
    const part = create(GraphProtoSchema, {
      name: graph.name,
      node: graph.node.filter((node) => nodes.has(node)),
      input: [...names].filter((name) => !made.has(name) && !isConstant(name)).map(infoOf),
      output: [...[...made].filter(isRead), ...constantOutputs].map(infoOf),
      initializer: [...names].flatMap((name) => initializers.get(name) ?? []),
      sparseInitializer: [...names].flatMap((name) => sparse.get(name) ?? []),
    });
    const proto = create(ModelProtoSchema, { irVersion, opsetImport, functions, metadataProps, graph: part });
    return { model: { ...model, proto }, foreign: at % 2 === 1, operators: [...new Set(own.map(operatorName))] };
  };
  const all = [...new Set(level.values())].sort((a, b) => a - b);
  return all.map((at, i) => partOf(at, i === 0 ? [...outputs.keys()].filter(isConstant) : []));
}

// The residual stream of a pre-norm transformer: all values that an orthogonal matrix can turn together, who writes
// them, who reads them, and where they meet something that must see them as they were.
import { isFloatType, readInts } from "../file/values.ts";
import { tensorDims } from "../file/model.ts";
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { attributeInt, attributeOf, isDefaultDomain, nodeName, resolveConstant, type Scope } from "../graph/graph.ts";
import type { Reader } from "../edit.ts";
import { gathersRows } from "../layers.ts";
import type { ModelLayer } from "../primitives.ts";
import { destinations, isLastAxis, isProduct, passesLastAxis, scalarOf, type Norm } from "./norms.ts";
import type { PassContext } from "./types.ts";

export interface Stream {
  readonly scope: Scope;
  readonly size: number;
  readonly values: Set<string>;
  /** Products whose outputs are in the stream. */
  readonly writers: Set<ModelLayer>;
  /** Constants in it: embeddings, positions, biases. */
  readonly tables: Map<string, { readonly node: NodeProto; readonly input: number }>;
  /** Norms of it whose outputs only products read. */
  readonly norms: Set<Norm>;
  /** Products that read it, directly or behind a norm. */
  readonly readers: Set<ModelLayer>;
  /** Values that something else makes, and readers that need the values as they were; with the reason. */
  readonly foreignValues: Map<string, string>;
  readonly foreignReaders: { readonly value: string; readonly reader: Reader; readonly norm: Norm | null; readonly reason: string }[];
}

/** Whether a norm can be turned with its input: its gain is gone, and products alone read it. */
function turns(context: PassContext, norm: Norm, folded: (norm: Norm) => boolean): string | undefined {
  const { products, others } = destinations(context, norm.scope, norm.output, norm.size);
  if (others.length > 0) return others[0].node === null ? "its output is an output of the graph" : `${nodeName(others[0].node)} reads it`;
  if (products.length === 0) return "nothing reads it";
  return norm.gain !== null && !folded(norm) ? "it has a gain of its own" : undefined;
}

interface Walk {
  readonly context: PassContext;
  readonly stream: Stream;
  readonly queue: string[];
  readonly normOf: ReadonlyMap<NodeProto, Norm>;
  readonly folded: (norm: Norm) => boolean;
}

/** A value joins the stream: a constant as a table, anything else to be looked at. */
function join(walk: Walk, node: NodeProto, input: number): void {
  const { stream, queue } = walk;
  const name = node.input[input] ?? "";
  const constant = resolveConstant(stream.scope, name);
  if (constant === null) {
    queue.push(name);
    return;
  }
  const dims = tensorDims(constant.tensor);
  if (isFloatType(constant.tensor.dataType) && dims.at(-1) === stream.size)
    stream.tables.set(`${nodeName(node)}:${input}`, { node, input });
  else stream.foreignValues.set(name, `it is a constant of [${dims.join(", ")}]`);
}

/** Axes of a Slice; undefined where they are computed. */
function slicedAxes(context: PassContext, scope: Scope, node: NodeProto): number[] | undefined {
  const ints = (name: string, input: number): number[] | undefined => {
    const constant = resolveConstant(scope, node.input[input] ?? "");
    return constant === null ? attributeOf(node, name)?.ints.map(Number) : readInts(context.model, constant.tensor);
  };
  return ints("axes", 3) ?? ((node.input[3] ?? "") === "" ? ints("starts", 1)?.map((_, axis) => axis) : undefined);
}

/**
 * Operators that put values of the stream together or take parts of them along other axes: all these inputs are in it
 * when the output is.
 */
function partners(walk: Walk, node: NodeProto): number[] | null {
  if (!isDefaultDomain(node)) return null;
  const { context, stream } = walk;
  const { scope } = stream;
  switch (node.opType) {
    case "Add":
    case "Sum":
      return [...node.input.keys()];
    case "Concat": {
      const axis = attributeInt(node, "axis", 0);
      // all of one rank: that of one says it
      const isLast = [...node.input, node.output[0]].map((name) => isLastAxis(scope, name, axis)).find((known) => known !== undefined);
      return isLast === false ? [...node.input.keys()] : null;
    }
    case "Slice":
      return slicedAxes(context, scope, node)?.every((axis) => isLastAxis(scope, node.input[0], axis) === false) ? [0] : null;
    case "Expand":
      return [0];
    case "Mul":
    case "Div": {
      // A factor for all channels.
      const scalar = node.input.findIndex((name) => scalarOf(context, scope, name) !== undefined);
      return scalar < 0 || (node.opType === "Div" && scalar === 0) ? null : [1 - scalar];
    }
    default:
      return passesLastAxis({ scope, node, input: 0 }) ? [0] : null;
  }
}

function lookAtMaker(walk: Walk, name: string): void {
  const { context, stream, normOf } = walk;
  const node = stream.scope.producers.get(name);
  if (node === undefined) {
    stream.foreignValues.set(name, stream.scope.inputs.has(name) ? "it is an input of the graph" : "it comes from outside this graph");
    return;
  }
  const norm = normOf.get(node);
  const layer = context.layerOf.get(node);
  if (norm !== undefined && norm.sum === name) norm.inputs.forEach((_, i) => join(walk, node, i));
  else if (isProduct(layer) && layer.rows === stream.size) stream.writers.add(layer);
  else if (layer?.opType === "Gather" && layer.shape.at(-1) === stream.size && gathersRows(layer)) join(walk, node, 0);
  else {
    const inputs = partners(walk, node);
    if (inputs === null) stream.foreignValues.set(name, `${nodeName(node)} (${node.opType}) makes it`);
    else for (const input of inputs) join(walk, node, input);
  }
}

function lookAtReader(walk: Walk, value: string, reader: Reader): void {
  const { context, stream, normOf, queue, folded } = walk;
  const { node } = reader;
  const foreign = (reason: string, norm: Norm | null = null): void => void stream.foreignReaders.push({ value, reader, norm, reason });
  if (node === null) return foreign("it is an output of the graph");
  if (reader.input < 0 || reader.scope !== stream.scope) return foreign(`a graph inside ${nodeName(node)} reads it`);
  const norm = normOf.get(node);
  if (norm !== undefined && norm.inputs.includes(value)) {
    const reason = norm.size !== stream.size && norm.size !== 0 ? "it has another size" : turns(context, norm, folded);
    if (norm.sum !== "" || norm.inputs.length > 1) {
      norm.inputs.forEach((_, i) => join(walk, norm.fused!, i));
      if (norm.sum !== "") queue.push(norm.sum);
    }
    if (reason !== undefined) return foreign(`norm ${norm.output}: ${reason}`, norm);
    stream.norms.add(norm);
    for (const layer of destinations(context, norm.scope, norm.output, stream.size).products) stream.readers.add(layer);
    return;
  }
  const layer = context.layerOf.get(node);
  if (reader.input === 0 && isProduct(layer) && layer.k === stream.size) return void stream.readers.add(layer);
  if (node.opType === "Shape" || node.opType === "Size") return;
  const inputs = partners(walk, node);
  if (inputs === null || !inputs.includes(reader.input)) return foreign(`${nodeName(node)} (${node.opType}) reads it`);
  queue.push(node.output[0]);
  for (const input of inputs) join(walk, node, input);
}

/** Follows the stream from the input of one norm, in both directions. */
export function findStream(context: PassContext, start: Norm, norms: readonly Norm[], folded: (norm: Norm) => boolean): Stream {
  const normOf = new Map<NodeProto, Norm>();
  for (const norm of norms) for (const node of norm.core) if (norm.inputs.some((name) => node.input.includes(name))) normOf.set(node, norm);
  const stream: Stream = {
    scope: start.scope,
    size: start.size,
    values: new Set(),
    writers: new Set(),
    tables: new Map(),
    norms: new Set(),
    readers: new Set(),
    foreignValues: new Map(),
    foreignReaders: [],
  };
  const walk: Walk = { context, stream, queue: [...start.inputs], normOf, folded };
  for (let name = walk.queue.pop(); name !== undefined; name = walk.queue.pop()) {
    if (name === "" || stream.values.has(name)) continue;
    stream.values.add(name);
    lookAtMaker(walk, name);
    const seen = new Set<NodeProto | null>();
    for (const reader of context.readers(stream.scope, name)) {
      const norm = reader.node === null ? undefined : normOf.get(reader.node);
      // A spelled-out norm reads its input more than once.
      const key = norm?.core[0] ?? reader.node;
      if (norm !== undefined && seen.has(key)) continue;
      seen.add(key);
      lookAtReader(walk, name, reader);
    }
  }
  return stream;
}

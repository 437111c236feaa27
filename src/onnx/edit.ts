// Changes of a graph in place that keep its scopes true: constants written or added, nodes put in and taken out, and
// who reads a value.
import { LowbitError } from "../../formats/core/errors.ts";
import type { NodeProto, TensorProto } from "./file/gen/onnx_pb.ts";
import { TensorProto_DataLocation, TensorProto_DataType as T } from "./file/gen/onnx_pb.ts";
import { encodeHalf } from "./file/half.ts";
import type { OnnxModel } from "./file/model.ts";
import { makeTensor } from "./file/model.ts";
import { dataTypeName } from "./file/types.ts";
import type { Scope } from "./graph/graph.ts";
import {
  buildScopes,
  collectNames,
  definingScope,
  nodeName,
  nodeReads,
  removeUnused,
  constantResolver,
  resolveConstant,
} from "./graph/graph.ts";

const bytesOf = (data: ArrayBufferView): Uint8Array => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** Nearest bfloat16 code, ties to even; NaN stays NaN. */
function encodeBfloat16(values: ArrayLike<number>): Uint16Array {
  const bits = new Uint32Array(Float32Array.from(values).buffer);
  return Uint16Array.from(bits, (x) => ((x & 0x7fffffff) > 0x7f800000 ? (x >>> 16) | 64 : (x + 0x7fff + ((x >>> 16) & 1)) >>> 16));
}

/** Little-endian bytes of numbers in a float type, rounded to nearest. */
function encodeFloats(values: ArrayLike<number>, dataType: number): Uint8Array {
  if (dataType === T.FLOAT) return bytesOf(values instanceof Float32Array ? values : Float32Array.from(values));
  if (dataType === T.DOUBLE) return bytesOf(Float64Array.from(values));
  if (dataType === T.FLOAT16) return bytesOf(Uint16Array.from(values, encodeHalf));
  if (dataType === T.BFLOAT16) return bytesOf(encodeBfloat16(values));
  throw new LowbitError("E_ONNX", `weight: expected a float type, got ${dataTypeName(dataType)}. Only floats can be written.`);
}

/** A float tensor with these values, rounded to `dataType`. */
export const floatTensor = (
  model: OnnxModel,
  name: string,
  dims: readonly number[],
  values: ArrayLike<number>,
  dataType: number = T.FLOAT,
): TensorProto => makeTensor(model, name, dataType, dims, encodeFloats(values, dataType));

/** Replaces the data of a float tensor, and its dims where they are given; its name and type stay. */
export function setFloats(model: OnnxModel, tensor: TensorProto, values: ArrayLike<number>, dims?: readonly number[]): void {
  const made = floatTensor(model, tensor.name, dims ?? tensor.dims.map(Number), values, tensor.dataType);
  tensor.dims = made.dims;
  tensor.rawData = made.rawData;
  tensor.floatData = [];
  tensor.int32Data = [];
  tensor.doubleData = [];
  tensor.externalData = [];
  tensor.dataLocation = TensorProto_DataLocation.DEFAULT;
}

/** Adds an initializer to a scope's graph, under a name that nothing has yet. Returns the name. */
export function addInitializer(scope: Scope, tensor: TensorProto, root: OnnxModel): string {
  tensor.name = freshName(root, tensor.name);
  scope.graph.initializer.push(tensor);
  scope.initializers.set(tensor.name, tensor);
  return tensor.name;
}

/** `base`, or `base_1` ... where that is in use. */
export const freshName = (model: OnnxModel, base: string): string => collectNames(buildScopes(model)).take(base);

/** Puts nodes before `anchor`, in this order. */
export function insertBefore(scope: Scope, anchor: NodeProto, nodes: readonly NodeProto[]): void {
  scope.graph.node.splice(scope.graph.node.indexOf(anchor), 0, ...nodes);
  for (const node of nodes) for (const output of node.output) if (output !== "") scope.producers.set(output, node);
}

/** Puts nodes behind `anchor`, in this order. */
export function insertAfter(scope: Scope, anchor: NodeProto, nodes: readonly NodeProto[]): void {
  scope.graph.node.splice(scope.graph.node.indexOf(anchor) + 1, 0, ...nodes);
  for (const node of nodes) for (const output of node.output) if (output !== "") scope.producers.set(output, node);
}

/** Takes a node out; nothing may read its outputs any more. */
export function removeNode(scope: Scope, node: NodeProto): void {
  const at = scope.graph.node.indexOf(node);
  if (at >= 0) scope.graph.node.splice(at, 1);
  for (const output of node.output) if (scope.producers.get(output) === node) scope.producers.delete(output);
}

/** Gives output `index` of a node another name. */
export function renameOutput(scope: Scope, node: NodeProto, index: number, name: string): void {
  if (scope.producers.get(node.output[index]) === node) scope.producers.delete(node.output[index]);
  node.output[index] = name;
  scope.producers.set(name, node);
}

/**
 * One place that reads a value: an input of a node, or an output of a graph (node null, which counts as read by someone
 * outside).
 */
export interface Reader {
  readonly scope: Scope;
  readonly node: NodeProto | null;
  /** Index of the input; -1 where a graph inside the node reads it. */
  readonly input: number;
}

/** Readers of every value that a scope defines, by name. */
export type Readers = ReadonlyMap<string, readonly Reader[]>;

/** Who reads what, for each scope: graphs inside a node count as readers of what they take from outside. */
export function findReaders(scopes: readonly Scope[]): Map<Scope, Readers> {
  const all = new Map(scopes.map((scope) => [scope, new Map<string, Reader[]>()]));
  const add = (scope: Scope, name: string, reader: Reader): void => {
    const owner = definingScope(scope, name);
    const readers = owner === null ? undefined : all.get(owner);
    if (readers === undefined) return;
    const list = readers.get(name);
    if (list === undefined) readers.set(name, [reader]);
    else list.push(reader);
  };
  for (const scope of scopes) {
    for (const node of scope.graph.node) {
      node.input.forEach((name, input) => name !== "" && add(scope, name, { scope, node, input }));
      if (node.attribute.some((attribute) => attribute.g !== undefined || attribute.graphs.length > 0)) {
        const direct = new Set(node.input);
        for (const name of nodeReads(node)) if (!direct.has(name)) add(scope, name, { scope, node, input: -1 });
      }
    }
    for (const output of scope.graph.output) add(scope, output.name, { scope, node: null, input: 0 });
  }
  return all;
}

/** Whether something besides input `input` of `node` reads the constant there, by whatever name. */
export function isSharedConstant(model: OnnxModel, scope: Scope, node: NodeProto, input: number): boolean {
  const wanted = resolveConstant(scope, node.input[input])?.tensor;
  const names = new Set<string>();
  // The constant's own name, and those of Identity nodes that lead from it to this input.
  for (let at: string | undefined = node.input[input]; at !== undefined && !names.has(at);) {
    names.add(at);
    const maker: NodeProto | undefined = definingScope(scope, at)?.producers.get(at);
    at = maker?.opType === "Identity" ? maker.input[0] : undefined;
  }
  for (const other of buildScopes(model)) {
    for (const output of other.graph.output) if (names.has(output.name)) return true;
    for (const reader of other.graph.node) {
      for (const [i, name] of reader.input.entries()) {
        if (!names.has(name) || (reader === node && i === input)) continue;
        if (reader.opType === "Identity" && names.has(reader.output[0])) continue;
        if (resolveConstant(other, name)?.tensor === wanted) return true;
      }
    }
  }
  return false;
}

/**
 * Writes the constant at an input of a node: in place where nothing else reads it, else as a constant of its own, so
 * that nothing else changes.
 * @param dims default: as they are
 * @param dataType of a new constant where the old one was stored in another type or order; default: as it was read
 */
export function writeConstant(
  model: OnnxModel,
  scope: Scope,
  node: NodeProto,
  input: number,
  values: ArrayLike<number>,
  dims?: readonly number[],
  dataType?: number,
): void {
  const read = node.input[input] ?? "";
  const constant = resolveConstant(scope, read);
  const view = constant === null ? constantResolver(model)(scope, read) : null;
  if (view !== null) {
    // stored otherwise than it is read: the node gets a constant of its own
    const own = floatTensor(model, `${view.name}_${nodeName(node)}`, dims ?? view.shape, values, dataType ?? view.dataType);
    node.input[input] = addInitializer(scope, own, model);
    removeUnused(buildScopes(model), new Set([view.name]));
    return;
  }
  if (constant === null)
    throw new LowbitError("E_ONNX", `node ${nodeName(node)}: expected a constant as input ${input}, got a computed value.`);
  if (!isSharedConstant(model, scope, node, input)) return setFloats(model, constant.tensor, values, dims);
  const { tensor } = constant;
  const own = floatTensor(model, `${constant.name}_${nodeName(node)}`, dims ?? tensor.dims.map(Number), values, tensor.dataType);
  node.input[input] = addInitializer(scope, own, model);
  // Identity nodes that led here alone would count as readers for ever.
  removeUnused(buildScopes(model), new Set([constant.name]));
}

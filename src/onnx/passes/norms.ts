// Finds normalizations over the last axis: the operators LayerNormalization, SimplifiedLayerNormalization,
// RMSNormalization and the Skip forms of onnxruntime, and what exporters spell out of Pow, ReduceMean, Add, Sqrt, Div
// and Mul. And the products that read their outputs.
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { isFloatType, readFloats, readInts } from "../file/values.ts";
import { tensorDims } from "../file/model.ts";
import type { Scope } from "../graph/graph.ts";
import { attributeFloat, attributeInt, attributeOf, isDefaultDomain, resolveConstant } from "../graph/graph.ts";
import type { Reader } from "../edit.ts";
import type { ModelLayer } from "../primitives.ts";
import type { PassContext } from "./types.ts";

/** A constant vector at an input of a node. */
export interface VectorInput {
  readonly node: NodeProto;
  readonly input: number;
}

export interface Norm {
  readonly kind: "rms" | "layer";
  readonly scope: Scope;
  /** What is normalized: x, or the two that a Skip form adds up. */
  readonly inputs: readonly string[];
  /** Sum that a Skip form gives besides. */
  readonly sum: string;
  /** The operator, where it is one; else the nodes from x to the normalized value. */
  readonly fused: NodeProto | null;
  readonly core: readonly NodeProto[];
  /** Normalized, before gain and bias; "" for an operator, which applies them itself. */
  readonly normalized: string;
  readonly gain: VectorInput | null;
  readonly bias: VectorInput | null;
  readonly output: string;
  readonly size: number;
  readonly epsilon: number;
  /** Subtractions of the mean, in a spelled-out LayerNorm. */
  readonly centering: readonly NodeProto[];
}

/** Operators by kind: index of gain and bias among the inputs, and of the sum among the outputs. */
const FUSED: ReadonlyMap<string, { kind: Norm["kind"]; inputs: number; gain: number; bias: number; sum: number }> = new Map([
  ["LayerNormalization", { kind: "layer", inputs: 1, gain: 1, bias: 2, sum: -1 }],
  ["SimplifiedLayerNormalization", { kind: "rms", inputs: 1, gain: 1, bias: -1, sum: -1 }],
  ["RMSNormalization", { kind: "rms", inputs: 1, gain: 1, bias: -1, sum: -1 }],
  ["SkipLayerNormalization", { kind: "layer", inputs: 2, gain: 2, bias: 3, sum: 3 }],
  ["SkipSimplifiedLayerNormalization", { kind: "rms", inputs: 2, gain: 2, bias: -1, sum: 3 }],
]);

/** The length of a constant float vector ([d], or [1, ..., d]); 0 where it is none. */
export function vectorSize(scope: Scope, name: string): number {
  const constant = resolveConstant(scope, name ?? "");
  if (constant === null || !isFloatType(constant.tensor.dataType)) return 0;
  const dims = tensorDims(constant.tensor);
  return dims.length > 0 && dims.slice(0, -1).every((size) => size === 1) ? dims[dims.length - 1] : 0;
}

/** The value of a constant with one element; undefined where there is none. */
export function scalarOf(context: PassContext, scope: Scope, name: string): number | undefined {
  const constant = resolveConstant(scope, name ?? "");
  if (constant === null || !isFloatType(constant.tensor.dataType) || tensorDims(constant.tensor).some((size) => size !== 1))
    return undefined;
  return readFloats(context.model, constant.tensor)[0];
}

function fusedNorm(scope: Scope, node: NodeProto): Norm | null {
  const form = FUSED.get(node.opType);
  if (form === undefined || node.input[form.gain] === undefined) return null;
  const size = vectorSize(scope, node.input[form.gain]);
  const axis = attributeInt(node, "axis", -1);
  // A gain of one dimension says that only the last axis is normalized, whatever number the axis has.
  const gain = resolveConstant(scope, node.input[form.gain]);
  if (size === 0 || (axis !== -1 && gain!.tensor.dims.length !== 1)) return null;
  // A bias of the skip sum (input 4) is added before the norm: as good as an input.
  if (form.inputs === 2 && (node.input[4] ?? "") !== "") return null;
  const bias = form.bias > 0 && (node.input[form.bias] ?? "") !== "" ? { node, input: form.bias } : null;
  if (bias !== null && vectorSize(scope, node.input[bias.input]) !== size) return null;
  return {
    kind: form.kind,
    scope,
    inputs: node.input.slice(0, form.inputs),
    sum: form.sum < 0 ? "" : (node.output[form.sum] ?? ""),
    fused: node,
    core: [node],
    normalized: "",
    gain: { node, input: form.gain },
    bias,
    output: node.output[0],
    size,
    epsilon: attributeFloat(node, "epsilon", 1e-5),
    centering: [],
  };
}

const only = (context: PassContext, scope: Scope, name: string): NodeProto | null => {
  const readers = context.readers(scope, name);
  return readers.length === 1 && readers[0].node !== null && readers[0].scope === scope && readers[0].input >= 0 ? readers[0].node : null;
};

/** x, where `name` is x * x or x ^ 2. */
function squareOf(context: PassContext, scope: Scope, name: string): { node: NodeProto; x: string } | null {
  const node = scope.producers.get(name);
  if (node === undefined || !isDefaultDomain(node)) return null;
  if (node.opType === "Mul" && node.input[0] === node.input[1]) return { node, x: node.input[0] };
  if (node.opType === "Pow" && scalarOf(context, scope, node.input[1]) === 2) return { node, x: node.input[0] };
  return null;
}

/** Whether a ReduceMean goes over the last axis and keeps it. */
function overLastAxis(context: PassContext, scope: Scope, node: NodeProto): boolean {
  if (node.opType !== "ReduceMean" || !isDefaultDomain(node) || attributeInt(node, "keepdims", 1) !== 1) return false;
  const given = resolveConstant(scope, node.input[1] ?? "");
  const axes = attributeOf(node, "axes")?.ints.map(Number) ?? (given === null ? [] : readInts(context.model, given.tensor));
  return axes.length === 1 && isLastAxis(scope, node.input[0], axes[0]) === true;
}

/** Whether an axis is the last one of a value; undefined where it is counted from the first and no rank is known. */
export function isLastAxis(scope: Scope, name: string, axis: number): boolean | undefined {
  if (axis < 0) return axis === -1;
  const rank = knownRank(scope, name);
  if (rank !== undefined) return rank === axis + 1;
  return exceeds(scope, name, axis + 1) ? false : undefined;
}

/** The rank of a constant, or of a value whose shape the file has. */
function knownRank(scope: Scope, name: string): number | undefined {
  const info = [...scope.graph.valueInfo, ...scope.graph.input].find((value) => value.name === name)?.type?.value;
  return info?.case === "tensorType" ? info.value.shape?.dim.length : resolveConstant(scope, name)?.tensor.dims.length;
}

/** Operators whose result has the rank of each input at least. */
const KEEPS_RANK: ReadonlySet<string> = new Set(["Add", "Sum", "Mul", "Concat", "Slice", "Cast", "Identity", ...FUSED.keys()]);

/** Whether a value surely has more dimensions than `rank`, by what is written of values that it is made from. */
function exceeds(scope: Scope, name: string, rank: number): boolean {
  const made = new Set([name]);
  for (const at of made) {
    const node = scope.producers.get(at);
    const known = knownRank(scope, at) ?? 0;
    if (known > rank) return true;
    if (known > 0 || node === undefined) continue;
    const { opType, input } = node;
    const [first, second] = input.map((of) => knownRank(scope, of) ?? NaN);
    if (opType === "Transpose" && (attributeOf(node, "perm")?.ints.length ?? 0) > rank) return true;
    if (opType === "Gather" && first + second - 1 > rank) return true;
    if (opType === "MatMul" && second === 2) made.add(input[0]);
    else if (KEEPS_RANK.has(opType)) for (const of of input) made.add(of);
  }
  return false;
}

/** z and the Sub node, where `name` is z - mean(z). */
function centeredOf(context: PassContext, scope: Scope, name: string): { node: NodeProto; mean: NodeProto; z: string } | null {
  const node = scope.producers.get(name);
  if (node?.opType !== "Sub" || !isDefaultDomain(node)) return null;
  const mean = scope.producers.get(node.input[1]);
  return mean !== undefined && overLastAxis(context, scope, mean) && mean.input[0] === node.input[0]
    ? { node, mean, z: node.input[0] }
    : null;
}

/** From the mean of squares on: + epsilon, square root, division. Returns the normalized value and the dividend. */
function divisionBehind(
  context: PassContext,
  scope: Scope,
  mean: NodeProto,
): { nodes: NodeProto[]; normalized: NodeProto; dividend: string; epsilon: number } | null {
  const add = only(context, scope, mean.output[0]);
  if (add?.opType !== "Add") return null;
  const epsilon = scalarOf(context, scope, add.input[add.input[0] === mean.output[0] ? 1 : 0]);
  const root = only(context, scope, add.output[0]);
  if (epsilon === undefined || root === null) return null;
  const inverse = root.opType === "Pow" && scalarOf(context, scope, root.input[1]) === -0.5;
  if (root.opType !== "Sqrt" && !inverse) return null;
  const next = only(context, scope, root.output[0]);
  if (next === null) return null;
  const nodes = [mean, add, root];
  if (!inverse && next.opType === "Div" && next.input[1] === root.output[0] && scalarOf(context, scope, next.input[0]) === undefined)
    return { nodes: [...nodes, next], normalized: next, dividend: next.input[0], epsilon };
  const divides = next.opType === "Div" && scalarOf(context, scope, next.input[0]) === 1;
  const reciprocal = inverse ? root : next.opType === "Reciprocal" || divides ? next : null;
  if (reciprocal === null) return null;
  const times = inverse ? next : only(context, scope, next.output[0]);
  if (times?.opType !== "Mul") return null;
  const dividend = times.input[times.input[0] === reciprocal.output[0] ? 1 : 0];
  return { nodes: [...nodes, ...(inverse ? [] : [next]), times], normalized: times, dividend, epsilon };
}

function spelledNorm(context: PassContext, scope: Scope, mean: NodeProto): Norm | null {
  if (!overLastAxis(context, scope, mean)) return null;
  const square = squareOf(context, scope, mean.input[0]);
  if (square === null) return null;
  const division = divisionBehind(context, scope, mean);
  if (division === null) return null;
  const centered = centeredOf(context, scope, square.x);
  const again = centeredOf(context, scope, division.dividend);
  if (division.dividend !== square.x && (centered === null || again?.z !== centered.z)) return null;
  // Through a Cast of the mixed-precision exporters, to the gain.
  let value = division.normalized.output[0];
  const core = [square.node, ...division.nodes, ...[centered, again].flatMap((c) => (c === null ? [] : [c.node, c.mean]))];
  const cast = only(context, scope, value);
  if (cast?.opType === "Cast" && isDefaultDomain(cast)) value = cast.output[0];
  const gain = vectorBehind(context, scope, value, "Mul");
  const bias = gain === null ? null : vectorBehind(context, scope, gain.node.output[0], "Add");
  const size = gain === null ? 0 : vectorSize(scope, gain.node.input[gain.input]);
  return {
    kind: centered === null ? "rms" : "layer",
    scope,
    inputs: [centered === null ? square.x : centered.z],
    sum: "",
    fused: null,
    core: [...new Set(core)],
    normalized: value,
    gain,
    bias: bias !== null && vectorSize(scope, bias.node.input[bias.input]) === size ? bias : null,
    output: (bias ?? gain)?.node.output[0] ?? value,
    size,
    epsilon: division.epsilon,
    centering: [...new Set([centered?.node, again?.node].filter((node) => node !== undefined))],
  };
}

/** The one node that reads `name`, where it is `opType` with a constant vector. */
function vectorBehind(context: PassContext, scope: Scope, name: string, opType: string): VectorInput | null {
  const node = only(context, scope, name);
  if (node?.opType !== opType || !isDefaultDomain(node)) return null;
  const input = node.input[0] === name ? 1 : 0;
  return vectorSize(scope, node.input[input]) > 1 ? { node, input } : null;
}

/** The normalizations over the last axis of all graphs. */
export function findNorms(context: PassContext): Norm[] {
  const norms: Norm[] = [];
  for (const scope of context.scopes) {
    for (const node of scope.graph.node) {
      const norm = FUSED.has(node.opType)
        ? fusedNorm(scope, node)
        : node.opType === "ReduceMean"
          ? spelledNorm(context, scope, node)
          : null;
      if (norm !== null) norms.push(norm);
    }
  }
  return norms;
}

/**
 * Operators that leave the last axis alone, given that what reads the result finds vectors of the same length there.
 */
const PASSES_LAST_AXIS: ReadonlySet<string> = new Set(["Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze"]);

/** Whether a reader hands the vectors of the last axis on, whole and in their order. */
export function passesLastAxis(reader: Reader): boolean {
  const { scope, node, input } = reader;
  if (node === null || input !== 0 || !isDefaultDomain(node)) return false;
  if (PASSES_LAST_AXIS.has(node.opType)) return true;
  if (node.opType === "Gather") return isLastAxis(scope, node.input[0], attributeInt(node, "axis", 0)) === false;
  if (node.opType !== "Transpose") return false;
  const perm = attributeOf(node, "perm")?.ints.map(Number);
  return perm !== undefined && perm[perm.length - 1] === perm.length - 1;
}

/** Whether a layer multiplies vectors of length `k` of its first input by a matrix on the right. */
export const isProduct = (layer: ModelLayer | undefined): layer is ModelLayer =>
  layer !== undefined &&
  layer.input === 1 &&
  layer.shape.length === 2 &&
  isDefaultDomain(layer.node) &&
  (layer.opType === "MatMul" ||
    (layer.opType === "Gemm" && attributeInt(layer.node, "transA", 0) === 0 && attributeFloat(layer.node, "alpha", 1) === 1));

export interface Destinations {
  readonly products: readonly ModelLayer[];
  /** Readers that are no product of vectors of this length: what keeps the value as it is. */
  readonly others: readonly Reader[];
}

/**
 * Where a value goes, through nodes that leave the last axis alone: products over vectors of length `size`, and others.
 */
export function destinations(context: PassContext, scope: Scope, name: string, size: number): Destinations {
  const products: ModelLayer[] = [];
  const others: Reader[] = [];
  const seen = new Set<string>();
  const queue = [name];
  for (let value = queue.pop(); value !== undefined; value = queue.pop()) {
    if (seen.has(value)) continue;
    seen.add(value);
    for (const reader of context.readers(scope, value)) {
      const layer = context.layerOf.get(reader.node);
      if (reader.scope === scope && passesLastAxis(reader)) queue.push(reader.node!.output[0]);
      else if (reader.input === 0 && isProduct(layer) && layer.k === size && layer.scope === scope) products.push(layer);
      else others.push(reader);
    }
  }
  return { products: [...new Set(products)], others };
}

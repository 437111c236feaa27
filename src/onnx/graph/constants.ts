// What is constant in a graph, and where its numbers are stored: followed through operators that only rename, reshape
// or convert a constant. As long as no number changes its place, a constant is a strided view onto the stored tensor: a
// tied embedding that is read as it is and transposed is seen to be one tensor. Otherwise its numbers are worked out
// when they are read. Nothing here recurses along the graph.
import type { NodeProto, SparseTensorProto, TensorProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import { tensorDims } from "../file/model.ts";
import { isFloatType, readInts } from "../file/values.ts";
import { readConstant } from "./constant-values.ts";
import type { ConstantSource, ConstantView, Constant } from "./constant-types.ts";
import { attributeInt, attributeOf, constantTensor } from "./nodes.ts";
import type { Scope } from "./scopes.ts";
import { definingScope, isDefaultDomain } from "./scopes.ts";
import type { Layout } from "./views.ts";
import { contiguous, flattened, isContiguous, reshaped, resolveShape, squeezed, transposed, unsqueezed } from "./views.ts";

export type ConstantResolver = (scope: Scope, name: string) => ConstantView | null;

/** Operators that a constant is followed through, and which of their inputs must be constant for that. */
const FOLLOWED: ReadonlyMap<string, readonly number[]> = new Map([
  ["Identity", [0]],
  ["Cast", [0]],
  ["Transpose", [0]],
  ["Flatten", [0]],
  ["Reshape", [0, 1]],
  ["Squeeze", [0, 1]],
  ["Unsqueeze", [0, 1]],
  ["Dropout", [0, 2]],
  ["DequantizeLinear", [0, 1, 2]],
]);
/** Sources behind sources that a real model never reaches. */
const DEPTH_MAX = 32;

/** Is this a node that leaves a constant what it is, but for shape and element type? */
export const leadsFromConstants = (node: NodeProto): boolean =>
  FOLLOWED.has(node.opType) && (isDefaultDomain(node) || (node.opType === "DequantizeLinear" && node.domain === "com.microsoft"));

/** The nodes between the stored tensor and the value, in order. */
export function constantPath(constant: ConstantView): NodeProto[] {
  const path: NodeProto[] = [];
  for (let at = constant; at.via !== undefined; at = at.from!) path.push(at.via);
  return path.reverse();
}

/**
 * The resolver for a model. What it finds stays valid as long as the nodes and constants that it followed are not
 * changed.
 */
export function constantResolver(model: OnnxModel): ConstantResolver {
  /** What is known of a value; undefined while it waits for others. */
  type Known = Map<string, ConstantView | null | undefined>;
  const known = new Map<Scope | null, Known>();
  const nothing: Known = new Map();
  known.set(null, nothing);
  const sources = new Map<TensorProto | SparseTensorProto, ConstantSource>();
  const derived: SourceTable = { ids: new Map(), byKey: new Map() };

  const memo = (scope: Scope | null): Known => {
    let own = known.get(scope);
    if (own === undefined) known.set(scope, (own = new Map()));
    return own;
  };
  const stored = (tensor: TensorProto, scope: Scope, name: string, node?: NodeProto): ConstantView => {
    let source = sources.get(tensor);
    if (source === undefined) sources.set(tensor, (source = { kind: "stored", tensor }));
    const layout = contiguous(tensorDims(tensor));
    return { tensor, scope, name, ...(node === undefined ? {} : { node }), ...layout, dataType: tensor.dataType, source, depth: 0 };
  };
  /** A value that needs no other one; undefined where it is what a node makes of others. */
  const leaf = (scope: Scope, name: string): ConstantView | null | undefined => {
    const tensor = scope.initializers.get(name);
    if (tensor !== undefined) return stored(tensor, scope, name);
    const sparse = scope.sparse.get(name);
    if (sparse !== undefined) {
      const view = sparseView(sparse, scope, name);
      if (view !== null && !sources.has(sparse)) sources.set(sparse, view.source);
      return view === null ? null : { ...view, source: sources.get(sparse)! };
    }
    const node = scope.producers.get(name);
    if (node === undefined) return null;
    if (leadsFromConstants(node)) return node.output[0] === name ? undefined : null;
    const held = node.opType === "Constant" && isDefaultDomain(node) ? constantTensor(node) : undefined;
    return held === undefined ? null : stored(held, scope, name, node);
  };

  return (scope, name) => {
    const owner = definingScope(scope, name);
    if (owner === null) return null;
    const pending: { scope: Scope; name: string }[] = [{ scope: owner, name }];
    for (let at = pending.at(-1); at !== undefined; at = pending.at(-1)) {
      const own = memo(at.scope);
      if (own.get(at.name) !== undefined) {
        pending.pop();
        continue;
      }
      const found = leaf(at.scope, at.name);
      if (found !== undefined) {
        own.set(at.name, found);
        continue;
      }
      own.set(at.name, undefined);
      const node = at.scope.producers.get(at.name)!;
      const inputs = (FOLLOWED.get(node.opType) ?? []).map((i) => node.input[i] ?? "");
      const places = inputs.map((input) => memo(definingScope(at.scope, input)));
      const waiting = inputs.findIndex((input, i) => places[i] !== nothing && places[i].get(input) === undefined);
      if (waiting < 0) {
        const values = inputs.map((input, i) => places[i].get(input) ?? null);
        own.set(at.name, step(model, node, inputs, values, derived));
      } else if (places[waiting].has(inputs[waiting])) {
        own.set(at.name, null); // waits for something that waits for this: a circle
      } else pending.push({ scope: definingScope(at.scope, inputs[waiting])!, name: inputs[waiting] });
    }
    return memo(owner).get(name) ?? null;
  };
}

function sparseView(sparse: SparseTensorProto, scope: Scope, name: string): ConstantView | null {
  const tensor = sparse.values;
  const dims = sparse.dims.map(Number);
  if (tensor === undefined || sparse.indices === undefined || !dims.every((dim) => Number.isSafeInteger(dim) && dim >= 0)) return null;
  const source: ConstantSource = { kind: "sparse", tensor: sparse, dims };
  return { tensor, scope, name, ...contiguous(dims), dataType: tensor.dataType, source, depth: 1 };
}

/** Derived sources by what they are made of, so that two nodes that do the same share one. */
interface SourceTable {
  readonly ids: Map<ConstantSource, number>;
  readonly byKey: Map<string, ConstantSource>;
}

function shared(
  table: SourceTable,
  parts: readonly (ConstantView | ConstantSource | string | number | null)[],
  make: () => ConstantSource,
) {
  const id = (source: ConstantSource): number => {
    if (!table.ids.has(source)) table.ids.set(source, table.ids.size);
    return table.ids.get(source)!;
  };
  const key = parts
    .map((part) => {
      if (part === null || typeof part !== "object") return String(part);
      return "kind" in part ? id(part) : `${id(part.source)}@${part.offset}[${part.shape.join()}|${part.strides.join()}]`;
    })
    .join(" ");
  let source = table.byKey.get(key);
  if (source === undefined) table.byKey.set(key, (source = make()));
  return source;
}

/** One node further; null where the result is no constant, or none that is followed. */
function step(
  model: OnnxModel,
  node: NodeProto,
  names: readonly string[],
  values: readonly (ConstantView | null)[],
  table: SourceTable,
): ConstantView | null {
  const [value] = values;
  if (value === null || value === undefined || value.depth >= DEPTH_MAX) return null;
  const on = (layout: Layout | null): ConstantView | null =>
    layout === null ? null : { ...value, shape: layout.shape, strides: layout.strides, offset: layout.offset, from: value, via: node };
  /**
   * Whole numbers from an input, or from the attribute that older opsets have; undefined where there are neither, null
   * where not constant.
   */
  const axes = (index: number, attribute: string): number[] | undefined | null => {
    if ((names[index] ?? "") !== "") {
      const constant = values[index];
      return constant === null || constant === undefined ? null : constantInts(model, constant);
    }
    return attributeOf(node, attribute)?.ints.map(Number);
  };
  switch (node.opType) {
    case "Identity":
      return on(value);
    case "Dropout": {
      // Training mode drops values at random; it is off where the input is missing.
      const training = (names[1] ?? "") === "" ? false : values[1] ? readConstant(model, values[1])[0] !== 0 : true;
      return training ? null : on(value);
    }
    case "Transpose":
      return on(transposed(value, attributeOf(node, "perm")?.ints.map(Number)));
    case "Flatten": {
      const shape = flattened(value.shape, attributeInt(node, "axis", 1));
      return shape === null ? null : withShape(value, node, shape, table);
    }
    case "Reshape": {
      const wanted = axes(1, "shape");
      const shape = wanted ? resolveShape(value.shape, wanted, attributeInt(node, "allowzero", 0) !== 0) : null;
      return shape === null ? null : withShape(value, node, shape, table);
    }
    case "Squeeze": {
      const removed = axes(1, "axes");
      return removed === null ? null : on(squeezed(value, removed));
    }
    case "Unsqueeze": {
      const added = axes(1, "axes");
      return added ? on(unsqueezed(value, added)) : null;
    }
    case "Cast":
      return casted(value, node, table);
    default:
      return dequantized(value, names[2] !== "" && values[2] === null ? null : values, node, table);
  }
}

/** The same numbers in another shape: a view where strides can say it, else a copy. */
function withShape(value: ConstantView, node: NodeProto, shape: readonly number[], table: SourceTable): ConstantView {
  const layout = reshaped(value, shape);
  if (layout !== null) return { ...value, ...layout, from: value, via: node };
  const source = shared(table, ["copy", value], () => ({ kind: "copy", from: value }));
  return { ...value, ...contiguous(shape), source, depth: value.depth + 1, from: value, via: node };
}

/** Element types that hold every value of another. */
const WIDER: ReadonlyMap<number, readonly number[]> = new Map([
  [T.FLOAT16, [T.FLOAT, T.DOUBLE]],
  [T.BFLOAT16, [T.FLOAT, T.DOUBLE]],
  [T.FLOAT, [T.DOUBLE]],
]);

function casted(value: ConstantView, node: NodeProto, table: SourceTable): ConstantView | null {
  const attribute = attributeOf(node, "to");
  // Before opset 6 `to` is a string.
  const named = new Map(["FLOAT", "FLOAT16", "DOUBLE"].map((name) => [name, T[name as "FLOAT"] as number]));
  const to = attribute?.s?.length ? (named.get(new TextDecoder().decode(attribute.s).toUpperCase()) ?? 0) : Number(attribute?.i ?? 0n);
  const on = { ...value, dataType: to, from: value, via: node };
  if (to === value.dataType) return on;
  // Doubles are read as float32: what a Cast to float or double makes of floats is what is read anyway.
  if (WIDER.get(value.dataType)?.includes(to) || (value.dataType === T.DOUBLE && to === T.FLOAT)) return on;
  const number = value.dataType !== T.STRING && value.dataType !== T.COMPLEX64 && value.dataType !== T.COMPLEX128;
  if (!number || !isFloatType(to)) return null;
  const source = shared(table, ["cast", value.source, to], () => ({ kind: "cast", from: value.source, to }));
  return { ...on, source, depth: value.depth + 1 };
}

function dequantized(
  codes: ConstantView,
  values: readonly (ConstantView | null)[] | null,
  node: NodeProto,
  table: SourceTable,
): ConstantView | null {
  const scales = values?.[1] ?? null;
  const zeroPoints = values?.[2] ?? null;
  if (scales === null || isFloatType(codes.dataType)) return null;
  const rank = codes.shape.length;
  const block = attributeInt(node, "block_size", 0);
  let axis = attributeInt(node, "axis", 1);
  if (axis < 0) axis += rank;
  const count = scales.shape.reduce((a, b) => a * b, 1);
  if (scales.shape.length <= 1 && count === 1) axis = 0;
  else if (block > 0) {
    const fits = (dim: number, i: number): boolean => scales.shape[i] === (i === axis ? Math.ceil(dim / block) : dim);
    if (scales.shape.length !== rank || !codes.shape.every(fits)) return null;
  } else if (scales.shape.length !== 1 || axis >= rank || codes.shape[axis] !== count) return null;
  if (zeroPoints !== null && zeroPoints.shape.reduce((a, b) => a * b, 1) !== count) return null;
  const depth = 1 + Math.max(codes.depth, scales.depth, zeroPoints?.depth ?? 0);
  if (depth > DEPTH_MAX) return null;
  const source = shared(table, ["dequantize", codes, scales, zeroPoints, axis, block], () => ({
    kind: "dequantize",
    codes,
    scales,
    zeroPoints,
    axis,
    block,
  }));
  return { ...codes, ...contiguous(codes.shape), dataType: scales.dataType, source, depth, from: codes, via: node };
}

/**
 * The constant as it is stored that `name` is, through Identity nodes only; null where it is computed, converted or an
 * input.
 */
export function resolveConstant(scope: Scope, name: string): Constant | null {
  const seen = new Set<NodeProto>();
  for (let owner = definingScope(scope, name); owner !== null; owner = definingScope(owner, name)) {
    const tensor = owner.initializers.get(name);
    if (tensor !== undefined) return { tensor, scope: owner, name };
    const node = owner.producers.get(name);
    if (node === undefined || !isDefaultDomain(node) || seen.has(node)) return null;
    if (node.opType === "Constant") {
      const value = attributeOf(node, "value")?.t;
      return value === undefined ? null : { tensor: value, scope: owner, name, node };
    }
    if (node.opType !== "Identity") return null;
    seen.add(node);
    name = node.input[0] ?? "";
  }
  return null;
}

/** Whole numbers (shapes, axes) of a constant; null where it holds others, or stores them in another order. */
export function constantInts(model: OnnxModel, constant: ConstantView): number[] | null {
  const { source } = constant;
  if (source.kind !== "stored" || (source.tensor.dataType !== T.INT64 && source.tensor.dataType !== T.INT32)) return null;
  return isContiguous(constant) && constant.offset === 0 ? readInts(model, source.tensor) : null;
}

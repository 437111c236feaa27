// Operators that move values, reduce them or norm their rows, on WGSL kernels.
import {
  REDUCE_FIELDS,
  reduceShader,
  ROTARY_FIELDS,
  rotaryName,
  rotaryShader,
  COPY_RANK,
  type ReduceOp,
} from "../../../kernels/wgsl/nn/moves.ts";
import { NORM_FIELDS, normName, normShader, SOFTMAX_FIELDS, softmaxShader } from "../../../kernels/wgsl/nn/rows.ts";
import { itemGroups } from "../../../kernels/wgsl/nn/shader.ts";
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import { contiguous } from "../../onnx/graph/views.ts";
import { isWithin, type NormKind } from "../machine/fused.ts";
import { broadcastDims } from "../ops/elementwise.ts";
import { headOf, rotaryRows } from "../ops/attention.ts";
import type { Inputs, Run } from "../ops/operator.ts";
import { axisOf, product } from "../ops/operator.ts";
import { reducedAxes } from "../ops/reduce.ts";
import { partSizes, sliceView, transposeView, type Moved } from "../ops/shape.ts";
import { integers, type Value } from "../value.ts";
import { copyBetween, copyStrided, startOf, type Place } from "./copy.ts";
import { hollow, isDeviceType, isFull, isMovable, type DeviceEmit, type HeldInputs } from "./emit.ts";
import { countOf, isTensor, type Held, type Recorder, type Tensor } from "./recorder.ts";
import { TensorProto_DataType as T, type NodeProto } from "../../onnx/file/gen/onnx_pb.ts";

/** Inputs as loops take them, tensors of the device without their values. */
export const hollowInputs = (inputs: HeldInputs): Inputs => inputs.map((value) => value && hollow(value));

/** Whether all inputs but the first are in JavaScript: shapes, axes, indices. */
export const isPlain = (inputs: HeldInputs): boolean => inputs.slice(1).every((value) => !isTensor(value));

/** Another shape for the same values: the shape is what the operator's loops say of them. */
export const sameValues =
  (run: Run): DeviceEmit =>
  (r, inputs, node) => {
    const [x] = inputs;
    // of two results (Dropout's mask) the loops make both
    if (!isTensor(x) || !isPlain(inputs) || node.output.length > 1) return undefined;
    return [r.view(x, (run(hollowInputs(inputs), node) as Value).dims)];
  };

/** What only reads the shape of its input. */
export const ofShape =
  (run: Run): DeviceEmit =>
  (_, inputs, node) => [run(hollowInputs(inputs), node) as Value];

const moved =
  (view: (inputs: Inputs, node: NodeProto) => Moved): DeviceEmit =>
  (r, inputs, node) => {
    const [x] = inputs;
    if (!isMovable(x) || !isPlain(inputs)) return undefined;
    const of = view(hollowInputs(inputs), node);
    if (of.dims.length > COPY_RANK || of.dims.includes(0)) return undefined;
    return [copyStrided(r, r.place(x), of)];
  };

const expanded = (inputs: Inputs): Moved => {
  const [x, shape] = inputs as [Value, Value];
  const dims = broadcastDims(x.dims, integers(shape)) ?? [0];
  const lead = dims.length - x.dims.length;
  const { strides } = contiguous(x.dims);
  return { dims, strides: dims.map((d, i) => (i < lead || (x.dims[i - lead] === 1 && d !== 1) ? 0 : strides[i - lead])), start: 0 };
};

const concat: DeviceEmit = (r, inputs, node) => {
  const values = inputs.filter((value) => value !== undefined);
  const [first] = values;
  if (!isDeviceType(first) || values.some(({ type, dims }) => type !== first.type || dims.length !== first.dims.length)) return undefined;
  const axis = axisOf(attributeInt(node, "axis", 0), first.dims.length, node);
  if (values.some(({ dims }) => dims.some((d, i) => i !== axis && d !== first.dims[i]))) return undefined;
  const dims = first.dims.with(axis, values.reduce((sum, value) => sum + value.dims[axis], 0)); // prettier-ignore
  if (product(dims) === 0) return undefined;
  const [outer, inner] = [product(dims.slice(0, axis)), product(dims.slice(axis + 1))];
  const y = r.tensor(dims, first.type);
  let at = 0;
  for (const value of values) {
    const run = value.dims[axis] * inner;
    if (run > 0)
      copyBetween(
        r,
        [outer, run],
        { tensor: r.place(value), strides: [run, 1], start: 0 },
        { tensor: y, strides: [dims[axis] * inner, 1], start: at },
      );
    at += run;
  }
  return [y];
};

const split: DeviceEmit = (r, inputs, node) => {
  const [x] = inputs;
  if (!isMovable(x) || !isPlain(inputs)) return undefined;
  const axis = axisOf(attributeInt(node, "axis", 0), x.dims.length, node);
  const sizes = partSizes(hollowInputs(inputs), node);
  if (sizes.includes(0)) return undefined;
  const [outer, inner] = [product(x.dims.slice(0, axis)), product(x.dims.slice(axis + 1))];
  const from = r.place(x);
  let at = 0;
  return sizes.map((size) => {
    const start = at;
    at += size * inner;
    const part = copyStrided(r, from, { dims: [outer, size * inner], strides: [x.dims[axis] * inner, 1], start });
    const y = r.view(part, x.dims.with(axis, size));
    r.free(part);
    return y;
  });
};

/** Indices that are looked up by a copy each. */
const MOST_PICKED = 16;

/** Gather of a few slices of a computed value. */
const gather: DeviceEmit = (r, inputs, node) => {
  const [x, ids] = inputs;
  if (!isTensor(x) || ids === undefined || isTensor(ids) || ids.data.length > MOST_PICKED || ids.data.length === 0) return undefined;
  const axis = axisOf(attributeInt(node, "axis", 0), x.dims.length, node);
  const d = x.dims[axis];
  const list = integers(ids).map((id) => (id < 0 ? id + d : id));
  // what is wrong is the loops' to say
  if (list.some((id) => id < 0 || id >= d)) return undefined;
  const [outer, inner] = [product(x.dims.slice(0, axis)), product(x.dims.slice(axis + 1))];
  const y = r.tensor([...x.dims.slice(0, axis), ...ids.dims, ...x.dims.slice(axis + 1)], x.type);
  list.forEach((id, i) =>
    copyBetween(
      r,
      [outer, inner],
      { tensor: x, strides: [d * inner, 1], start: id * inner },
      { tensor: y, strides: [list.length * inner, 1], start: i * inner },
    ),
  );
  return [y];
};

/** x [outer, axis, inner] to a value of other dimensions. */
export function emitReduce(r: Recorder, op: ReduceOp, x: Held, axis: number, inner: number, dims: readonly number[]): Tensor {
  const from = r.place(x);
  const y = r.tensor(dims);
  r.dispatch(
    { family: "reduce", spec: { op }, name: `f32_reduce_${op}__wgsl`, code: () => reduceShader(op) },
    {
      fields: REDUCE_FIELDS,
      params: { count: y.size, axis, inner, ox: from.offset },
      bound: { x: from, y },
      groups: itemGroups(y.size),
    },
  );
  return y;
}

const reduction =
  (op: ReduceOp): DeviceEmit =>
  (r, inputs, node) => {
    const [x] = inputs;
    if (!isFull(x) || !isPlain(inputs)) return undefined;
    const [shape, given] = hollowInputs(inputs);
    const axes = reducedAxes(shape!, given, node);
    if (axes === null || axes.length === 0 || axes.at(-1)! - axes[0] !== axes.length - 1) return undefined;
    const inner = product(x.dims.slice(axes.at(-1)! + 1));
    const axis = product(axes.map((i) => x.dims[i]));
    const keep = attributeInt(node, "keepdims", 1) !== 0;
    const dims = keep ? x.dims.map((d, i) => (axes.includes(i) ? 1 : d)) : x.dims.filter((_, i) => !axes.includes(i));
    return [emitReduce(r, op, x, axis, inner, dims)];
  };

const softmax: DeviceEmit = (r, [x], node) => {
  if (!isFull(x) || axisOf(attributeInt(node, "axis", -1), x.dims.length, node) !== x.dims.length - 1) return undefined;
  const width = x.dims.at(-1)!;
  const from = r.place(x);
  const y = r.tensor(x.dims);
  const rows = from.size / width;
  r.dispatch(
    { family: "softmax", spec: {}, name: "f32_softmax__wgsl", code: softmaxShader },
    { fields: SOFTMAX_FIELDS, params: { rows, width, ox: from.offset }, bound: { x: from, y }, groups: rows },
  );
  return [y];
};

interface NormOf {
  readonly kind: NormKind;
  readonly x: Held;
  readonly skip?: Held | undefined;
  readonly addend?: Held | undefined;
  readonly scale: Held;
  readonly shift?: Held | undefined;
  readonly epsilon: number;
  readonly width: number;
}

/** Norm of rows; `keepSum`: x + skip + addend too. */
function emitNorm(r: Recorder, of: NormOf, keepSum: boolean): [Tensor, Tensor | undefined] | undefined {
  const { kind, x, skip, addend, scale, shift, epsilon, width } = of;
  const rowsOfOne = [addend, scale, shift].filter((value) => value !== undefined);
  if (![x, ...rowsOfOne].every(isFull) || rowsOfOne.some((value) => countOf(value) !== width)) return undefined;
  if (skip !== undefined && (!isFull(skip) || !isWithin(skip.dims, x.dims))) return undefined;
  const sums = keepSum && (skip !== undefined || addend !== undefined);
  const spec = { kind, skip: skip !== undefined, addend: addend !== undefined, shift: shift !== undefined, sum: sums };
  const placed = Object.fromEntries(
    Object.entries({ x, skip, addend, scale, shift }).flatMap(([name, value]) => (value === undefined ? [] : [[name, r.place(value)]])),
  );
  const y = r.tensor(x.dims);
  const sum = sums ? r.tensor(x.dims) : undefined;
  const rows = countOf(x) / width;
  const starts = Object.fromEntries(["x", "skip", "addend", "scale", "shift"].map((name) => [`o${name}`, placed[name]?.offset ?? 0]));
  r.dispatch(
    { family: "norm", spec, name: normName(spec), code: () => normShader(spec) },
    { fields: NORM_FIELDS, params: { rows, width, epsilon, ...starts }, bound: { ...placed, y, ...(sum && { sum }) }, groups: rows },
  );
  return [y, sum];
}

const plainNorm =
  (kind: NormKind): DeviceEmit =>
  (r, [x, scale, shift], node) => {
    if (x === undefined || scale === undefined || node.output.slice(1).some((name) => name !== "")) return undefined;
    const width = product(x.dims.slice(axisOf(attributeInt(node, "axis", -1), x.dims.length, node)));
    const epsilon = attributeFloat(node, "epsilon", 1e-5);
    const made = emitNorm(r, { kind, x, scale, shift: kind === "layer" ? shift : undefined, epsilon, width }, false);
    return made && [made[0]];
  };

const skipNorm =
  (kind: NormKind): DeviceEmit =>
  (r, inputs, node) => {
    const [x, skip, scale] = inputs;
    if (x === undefined || skip === undefined || scale === undefined) return undefined;
    const rest = { shift: kind === "layer" ? inputs[3] : undefined, addend: inputs[kind === "layer" ? 4 : 3] };
    const epsilon = attributeFloat(node, "epsilon", kind === "layer" ? 1e-12 : 1e-5);
    const made = emitNorm(r, { kind, x, skip, scale, ...rest, epsilon, width: x.dims.at(-1)! }, (node.output[3] ?? "") !== "");
    return made && [made[0], undefined, undefined, made[1]];
  };

/** The norm that a pattern put together: x, scale, shift, skip, addend. */
export const fusedNorm =
  (kind: NormKind): DeviceEmit =>
  (r, [x, scale, shift, skip, addend], node) => {
    if (x === undefined || scale === undefined) return undefined;
    const axis = attributeInt(node, "axis", -1);
    const width = x.dims.at(-1) ?? 0;
    const isRow = (value: Held | undefined): boolean => value === undefined || value.dims.at(-1) === width;
    if ((axis !== -1 && axis !== x.dims.length - 1) || x.dims.length === 0 || ![scale, shift, addend].every(isRow)) return undefined;
    const keep = (node.output[1] ?? "") !== "";
    const made = emitNorm(r, { kind, x, scale, shift, skip, addend, epsilon: attributeFloat(node, "epsilon", 1e-5), width }, keep);
    return made && (keep ? [made[0], made[1]] : [made[0]]);
  };

/** One side of a rotation, in elements. */
export interface Turned extends Place {
  readonly token: number;
  readonly head: number;
}

export interface Rotation {
  readonly cos: Tensor;
  readonly sin: Tensor;
  /** Values of a head that turn, and elements from row to row of the tables. */
  readonly rotated: number;
  readonly row: number;
  readonly interleaved: boolean;
  /** Rows of the tables: a list, or the first of those that follow each other. */
  readonly at: Tensor | (() => number);
}

/** Turns the heads of tokens of one sequence from x into y. */
export function turn(r: Recorder, of: Rotation, sizes: { tokens: number; heads: number; size: number }, x: Turned, y: Turned): void {
  const { cos, sin, rotated, row, interleaved, at } = of;
  const positions = typeof at === "function" ? undefined : at;
  const spec = { interleaved, positions: positions !== undefined };
  const half = rotated / 2;
  r.dispatch({ family: "rotary", spec, name: rotaryName(spec), code: () => rotaryShader(spec) }, () => ({
    fields: ROTARY_FIELDS,
    params: {
      ...{ ...sizes, half, row, xt: x.token, xh: x.head, yt: y.token, yh: y.head, ox: startOf(x), oy: startOf(y) },
      ...{ ocos: cos.offset, osin: sin.offset, opos: positions?.offset ?? 0, first: typeof at === "function" ? at() : 0 },
    },
    bound: { x: x.tensor, cos_table: cos, sin_table: sin, ...(positions && { positions }), y: y.tensor },
    groups: itemGroups(sizes.tokens * sizes.heads * (sizes.size - half)),
  }));
}

/**
 * com.microsoft.RotaryEmbedding of [B, S, heads * size]. `pasts`: tokens before those of each sequence, whatever
 * positions are fed.
 */
export function emitRotary(
  r: Recorder,
  [x, positions, cos, sin]: HeldInputs,
  node: NodeProto,
  pasts?: readonly (() => number)[],
): Tensor | undefined {
  if (!isFull(x) || !isFull(cos) || !isFull(sin) || x.dims.length !== 3) return undefined;
  const [batch, tokens, width] = x.dims;
  const row = cos.dims.at(-1)!;
  const size = headOf(x, node, 2 * row);
  if (size === undefined || 2 * row > size || countOf(sin) !== countOf(cos)) return undefined;
  let places: readonly (Tensor | (() => number))[];
  if (pasts !== undefined) {
    if (batch !== pasts.length) return undefined;
    places = pasts;
  } else {
    if (positions === undefined || isTensor(positions)) return undefined;
    const list = rotaryRows(positions, x.dims, cos.dims[0]);
    // what is wrong is the loops' to say
    if (list === undefined) return undefined;
    places = [r.upload(list, [list.length])];
  }
  const from = r.place(x);
  const y = r.tensor(x.dims);
  const interleaved = attributeInt(node, "interleaved", 0) !== 0;
  const count = (batch * tokens) / places.length;
  places.forEach((at, b) => {
    const side = (tensor: Tensor): Turned => ({ tensor, start: b * count * width, token: width, head: size });
    const of = { cos: r.place(cos), sin: r.place(sin), rotated: 2 * row, row, interleaved, at };
    turn(r, of, { tokens: count, heads: width / size, size }, side(from), side(y));
  });
  return y;
}

/** Cast to float32, which it is: float16 is float32 here, and codes are floats. */
const cast: DeviceEmit = (r, [x], node) =>
  isTensor(x) && attributeInt(node, "to", 0) === Number(T.FLOAT) ? [{ ...r.view(x, x.dims), type: "float32" }] : undefined;

export const MOVES: readonly (readonly [string, DeviceEmit])[] = [
  ["Cast", cast],
  ["Transpose", moved(transposeView)],
  ["Slice", moved(sliceView)],
  ["Expand", moved(expanded)],
  ["Concat", concat],
  ["Split", split],
  ["Gather", gather],
  ["ReduceSum", reduction("sum")],
  ["ReduceMean", reduction("mean")],
  ["ReduceMax", reduction("max")],
  ["ReduceMin", reduction("min")],
  ["Softmax", softmax],
  ["LayerNormalization", plainNorm("layer")],
  ["SimplifiedLayerNormalization", plainNorm("rms")],
  ["RMSNormalization", plainNorm("rms")],
  ["com.microsoft.SkipLayerNormalization", skipNorm("layer")],
  ["com.microsoft.SkipSimplifiedLayerNormalization", skipNorm("rms")],
  [
    "com.microsoft.RotaryEmbedding",
    (r, inputs, node) => {
      const y = emitRotary(r, inputs, node);
      return y && [y];
    },
  ],
];

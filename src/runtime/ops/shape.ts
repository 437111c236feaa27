// Operators that move values and compute shapes. int64 values stay BigInt throughout.
import { LowbitError } from "../../../formats/core/errors.ts";
import { dequantizeRows } from "../../../formats/core/packed.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import { attributeInt, attributeOf } from "../../onnx/graph/nodes.ts";
import { contiguous, flattened, resolveShape } from "../../onnx/graph/views.ts";
import type { Value, ValueData } from "../value.ts";
import { empty, floats, int64, integers, sizeOf, smallTensor } from "../value.ts";
import { broadcastDims, broadcastIndex } from "./elementwise.ts";
import type { Inputs, Operators, Prepared } from "./operator.ts";
import { axisOf, fail, ints, need, product } from "./operator.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";

/** out[i] = from[index(i)], element by element. */
function copyBy(x: Value, dims: readonly number[], strides: readonly number[], start: number): Value {
  const out = empty(x.type, dims);
  const position = dims.map(() => 0);
  let at = start;
  for (let i = 0; i < out.data.length; i++) {
    out.data[i] = x.data[at];
    for (let axis = dims.length - 1; axis >= 0; axis--) {
      at += strides[axis];
      if (++position[axis] < dims[axis]) break;
      at -= strides[axis] * dims[axis];
      position[axis] = 0;
    }
  }
  return out;
}

function view(x: Value, dims: readonly number[], node: NodeProto): Value {
  if (product(dims) !== sizeOf(x.dims)) throw fail(node, `${sizeOf(x.dims)} elements`, `[${dims.join(", ")}]`);
  return { type: x.type, dims, data: x.data };
}

function reshape(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const wanted = integers(need(inputs, 1, node));
  const dims = resolveShape(x.dims, wanted, attributeInt(node, "allowzero", 0) !== 0);
  if (dims === null) throw fail(node, `a shape for [${x.dims.join(", ")}]`, `[${wanted.join(", ")}]`);
  return view(x, dims, node);
}

const axesOf = (inputs: Inputs, node: NodeProto): number[] | undefined =>
  inputs[1] !== undefined ? integers(inputs[1]) : ints(node, "axes");

function unsqueeze(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const axes = axesOf(inputs, node) ?? [];
  const rank = x.dims.length + axes.length;
  const at = new Set(axes.map((a) => axisOf(a, rank, node)));
  if (at.size !== axes.length) throw fail(node, "axes that differ", `[${axes.join(", ")}]`);
  const dims: number[] = [];
  let next = 0;
  for (let i = 0; i < rank; i++) dims.push(at.has(i) ? 1 : x.dims[next++]);
  return view(x, dims, node);
}

function squeeze(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const axes = axesOf(inputs, node)?.map((a) => axisOf(a, x.dims.length, node));
  return view(
    x,
    x.dims.filter((d, i) => (axes === undefined ? d !== 1 : !axes.includes(i))),
    node,
  );
}

/** A view of a tensor: what element lies where, in elements of the tensor. */
export interface Moved {
  readonly dims: readonly number[];
  readonly strides: readonly number[];
  readonly start: number;
}

const moved =
  (view: (inputs: Inputs, node: NodeProto) => Moved) =>
  (inputs: Inputs, node: NodeProto): Value => {
    const { dims, strides, start } = view(inputs, node);
    return copyBy(need(inputs, 0, node), dims, strides, start);
  };

export function transposeView(inputs: Inputs, node: NodeProto): Moved {
  const x = need(inputs, 0, node);
  const perm = ints(node, "perm") ?? x.dims.map((_, i) => x.dims.length - 1 - i);
  const { strides } = contiguous(x.dims);
  if (perm.length !== x.dims.length || new Set(perm).size !== perm.length || perm.some((p) => strides[p] === undefined))
    throw fail(node, `a permutation of ${x.dims.length} axes`, `[${perm.join(", ")}]`);
  return { dims: perm.map((p) => x.dims[p]), strides: perm.map((p) => strides[p]), start: 0 };
}

export function sliceView(inputs: Inputs, node: NodeProto): Moved {
  const x = need(inputs, 0, node);
  const starts = inputs[1] === undefined ? ints(node, "starts")! : integers(inputs[1]);
  const ends = inputs[2] === undefined ? ints(node, "ends")! : integers(inputs[2]);
  const axes = (inputs[3] === undefined ? ints(node, "axes") : integers(inputs[3])) ?? starts.map((_, i) => i);
  const steps = inputs[4] === undefined ? starts.map(() => 1) : integers(inputs[4]);
  const dims = [...x.dims];
  const { strides: from } = contiguous(x.dims);
  const strides = [...from];
  let start = 0;
  axes.forEach((a, i) => {
    const axis = axisOf(a, x.dims.length, node);
    const d = x.dims[axis];
    const step = steps[i];
    if (step === 0) throw fail(node, "steps that are not 0", "0");
    const clamp = (v: number, low: number, high: number) => Math.min(Math.max(v < 0 ? v + d : v, low), high);
    const first = step > 0 ? clamp(starts[i], 0, d) : clamp(starts[i], 0, d - 1);
    const last = step > 0 ? clamp(ends[i], 0, d) : clamp(ends[i], -1, d - 1);
    dims[axis] = Math.max(0, Math.ceil((last - first) / step));
    start += first * from[axis];
    strides[axis] = from[axis] * step;
  });
  return { dims, strides, start };
}

/** Runs of `inner` contiguous elements: concat, split and gather move whole runs. */
const innerOf = (dims: readonly number[], axis: number): number => product(dims.slice(axis + 1));

const part = (data: ValueData, from: number, to: number): never => data.subarray(from, to) as never;

function concat(inputs: Inputs, node: NodeProto): Value {
  const values = inputs.map((_, i) => need(inputs, i, node));
  const axis = axisOf(attributeInt(node, "axis", 0), values[0].dims.length, node);
  const dims = [...values[0].dims];
  for (const v of values)
    if (v.type !== values[0].type || v.dims.length !== dims.length || v.dims.some((d, i) => i !== axis && d !== dims[i]))
      throw fail(node, `[${dims.join(", ")}] but for axis ${axis}`, `${v.type} [${v.dims.join(", ")}]`);
  dims[axis] = values.reduce((sum, v) => sum + v.dims[axis], 0);
  const out = empty(values[0].type, dims);
  const outer = product(dims.slice(0, axis));
  let at = 0;
  for (let o = 0; o < outer; o++)
    for (const v of values) {
      const run = v.data.length / outer;
      out.data.set(part(v.data, o * run, (o + 1) * run), at);
      at += run;
    }
  return out;
}

/** Sizes of the parts of Split along its axis. */
export function partSizes(inputs: Inputs, node: NodeProto): number[] {
  const x = need(inputs, 0, node);
  const axis = axisOf(attributeInt(node, "axis", 0), x.dims.length, node);
  const parts = node.output.length;
  const each = Math.ceil(x.dims[axis] / parts);
  const sizes =
    (inputs[1] === undefined ? ints(node, "split") : integers(inputs[1])) ??
    node.output.map((_, i) => Math.min(each, x.dims[axis] - i * each));
  if (sizes.length !== parts || sizes.reduce((a, b) => a + b, 0) !== x.dims[axis])
    throw fail(node, `${parts} parts of ${x.dims[axis]}`, `[${sizes.join(", ")}]`);
  return sizes;
}

function split(inputs: Inputs, node: NodeProto): Value[] {
  const x = need(inputs, 0, node);
  const axis = axisOf(attributeInt(node, "axis", 0), x.dims.length, node);
  const sizes = partSizes(inputs, node);
  const outer = product(x.dims.slice(0, axis));
  const inner = innerOf(x.dims, axis);
  let start = 0;
  return sizes.map((size) => {
    const out = empty(x.type, x.dims.with(axis, size));
    for (let o = 0; o < outer; o++) {
      const from = (o * x.dims[axis] + start) * inner;
      out.data.set(part(x.data, from, from + size * inner), o * size * inner);
    }
    start += size;
    return out;
  });
}

function gather(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const ids = need(inputs, 1, node);
  const axis = axisOf(attributeInt(node, "axis", 0), x.dims.length, node);
  const d = x.dims[axis];
  const rows = integers(ids).map((id) => {
    if (id < -d || id >= d)
      throw new LowbitError("E_VALUE", `node ${node.name} (Gather): expected indices from ${-d} to ${d - 1}, got ${id}. Check the feeds.`);
    return id < 0 ? id + d : id;
  });
  const inner = innerOf(x.dims, axis);
  const outer = product(x.dims.slice(0, axis));
  const out = empty(x.type, [...x.dims.slice(0, axis), ...ids.dims, ...x.dims.slice(axis + 1)]);
  let at = 0;
  for (let o = 0; o < outer; o++)
    for (const row of rows) {
      out.data.set(part(x.data, (o * d + row) * inner, (o * d + row + 1) * inner), at);
      at += inner;
    }
  return out;
}

function expand(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const wanted = integers(need(inputs, 1, node));
  const dims = broadcastDims(x.dims, wanted);
  if (dims === null) throw fail(node, `a shape that [${x.dims.join(", ")}] broadcasts to`, `[${wanted.join(", ")}]`);
  sizeOf(dims, "Expand");
  const index = broadcastIndex(x.dims, dims);
  const out = empty(x.type, dims);
  for (let i = 0; i < index.length; i++) out.data[i] = x.data[index[i]];
  return out;
}

function range(inputs: Inputs, node: NodeProto): Value {
  const [start, limit, delta] = [0, 1, 2].map((i) => need(inputs, i, node));
  const [a, b, d] = [start, limit, delta].map((v) => Number(v.data[0]));
  const count = Math.max(0, Math.ceil((b - a) / d));
  if (!Number.isFinite(count)) throw fail(node, "a step that is not 0", String(d));
  const out = empty(start.type, [count]);
  const big = out.data instanceof BigInt64Array;
  for (let i = 0; i < count; i++) out.data[i] = big ? BigInt(a) + BigInt(i) * BigInt(d) : a + i * d;
  return out;
}

function trilu(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const k = Number(inputs[1]?.data[0] ?? 0);
  const upper = attributeInt(node, "upper", 1) !== 0;
  const [rows, columns] = x.dims.slice(-2);
  const out = empty(x.type, x.dims);
  for (let i = 0; i < out.data.length; i++) {
    const distance = (i % columns) - (Math.floor(i / columns) % rows);
    if (upper ? distance >= k : distance <= k) out.data[i] = x.data[i];
  }
  return out;
}

function constantOfShape(inputs: Inputs, node: NodeProto): Value {
  const dims = integers(need(inputs, 0, node));
  const tensor = attributeOf(node, "value")?.t;
  const filled = tensor === undefined ? floats([1]) : smallTensor(tensor);
  sizeOf(dims, "ConstantOfShape");
  const out = empty(filled.type, dims);
  (out.data as unknown as { fill(v: number | bigint): void }).fill(filled.data[0]);
  return out;
}

function cumSum(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const axis = axisOf(Number(need(inputs, 1, node).data[0]), x.dims.length, node);
  const [d, inner] = [x.dims[axis], innerOf(x.dims, axis)];
  const reverse = attributeInt(node, "reverse", 0) !== 0;
  const exclusive = attributeInt(node, "exclusive", 0) !== 0;
  const out = empty(x.type, x.dims);
  const big = x.data instanceof BigInt64Array;
  for (let row = 0; row < x.data.length / Math.max(d, 1); row++) {
    const base = Math.floor(row / inner) * d * inner + (row % inner);
    let sum = (big ? 0n : 0) as number;
    for (let i = 0; i < d; i++) {
      const at = base + (reverse ? d - 1 - i : i) * inner;
      if (exclusive) out.data[at] = sum;
      sum += x.data[at] as number;
      if (!exclusive) out.data[at] = sum;
    }
  }
  return out;
}

function tile(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const repeats = integers(need(inputs, 1, node));
  if (repeats.length !== x.dims.length) throw fail(node, `${x.dims.length} repeats`, `[${repeats.join(", ")}]`);
  const dims = x.dims.map((d, i) => d * repeats[i]);
  sizeOf(dims, "Tile");
  // [1, d] broadcast to [repeat, d] for every axis, read as one
  const pairs = x.dims.flatMap((d) => [1, d]);
  const index = broadcastIndex(
    pairs,
    pairs.map((d, i) => (i % 2 === 0 ? repeats[i / 2] : d)),
  );
  const out = empty(x.type, dims);
  for (let i = 0; i < index.length; i++) out.data[i] = x.data[index[i]];
  return out;
}

/** The row that an index means, which may count from the end. @throws LowbitError E_VALUE */
export function rowOf(node: NodeProto, id: number, count: number): number {
  if (id >= -count && id < count) return id < 0 ? id + count : id;
  throw new LowbitError(
    "E_VALUE",
    `node ${node.name} (Gather): expected indices from ${-count} to ${count - 1}, got ${id}. Check the feeds.`,
  );
}

/** Rows of a table of codes, decoded as they are asked for. */
function packedRows(node: NodeProto, table: PackedTensor): Prepared | undefined {
  if (table.shape.length !== 2) return undefined;
  const { rows, k: width } = table;
  const read = (ids: readonly number[], out: Float32Array): void =>
    ids.forEach((id, i) => dequantizeRows(table, rowOf(node, id, rows), 1, out.subarray(i * width, (i + 1) * width)));
  return {
    run(inputs, of) {
      const ids = need(inputs, 1, of);
      const out = floats([...ids.dims, width]);
      read(integers(ids), out.data);
      return out;
    },
    kernel: "rows of a packed table",
    drops: [0],
    rows: { ids: 1, width, read },
  };
}

export const shape: Operators = {
  ConstantOfShape: { run: constantOfShape },
  CumSum: { run: cumSum },
  Tile: { run: tile },
  Size: { run: (inputs, node) => int64([need(inputs, 0, node).data.length], []) },
  Reshape: { run: reshape },
  Squeeze: { run: squeeze },
  Unsqueeze: { run: unsqueeze },
  Flatten: {
    run: (inputs, node) => {
      const x = need(inputs, 0, node);
      return view(x, flattened(x.dims, attributeInt(node, "axis", 1)) ?? x.dims, node);
    },
  },
  // the value of the branch that ran
  "lowbit.Pick": { run: (inputs, node) => need(inputs, inputs[0]?.data[0] ? 1 : 2, node) },
  Identity: { run: (inputs, node) => need(inputs, 0, node) },
  Transpose: { run: moved(transposeView) },
  Slice: { run: moved(sliceView) },
  Concat: { run: concat },
  Split: { run: split },
  Gather: {
    run: gather,
    prepare(node, context) {
      if (attributeInt(node, "axis", 0) !== 0 || context.constant(1) !== undefined) return undefined;
      const codes = context.weight(0);
      const packed = codes?.isRows === true ? packedRows(node, codes.packed()) : undefined;
      if (packed !== undefined) return packed;
      const table = context.constant(0);
      if (table?.dims.length !== 2 || !(table.data instanceof Float32Array)) return undefined;
      const [count, width] = table.dims;
      const values = table.data;
      const read = (ids: readonly number[], out: Float32Array): void =>
        ids.forEach((id, i) => {
          const row = rowOf(node, id, count);
          out.set(values.subarray(row * width, (row + 1) * width), i * width);
        });
      return { run: gather, kernel: "rows of a table", drops: [], rows: { ids: 1, width, read } };
    },
  },
  Expand: { run: expand },
  Range: { run: range },
  Trilu: { run: trilu },
  Shape: {
    run: (inputs, node) =>
      int64(
        need(inputs, 0, node).dims.slice(
          attributeInt(node, "start", 0),
          attributeOf(node, "end") === undefined ? undefined : attributeInt(node, "end", 0),
        ),
      ),
  },
};

// Operators that move values, reduce or multiply them, on kernels: transposes, slices, joins, expansion, reductions,
// products of two computed values, convolution and pooling.
import { copy, copyJob, type Strided } from "../../../kernels/wasm/nn/copy.ts";
import { matmul, matmulJob, matmulSpec } from "../../../kernels/wasm/nn/matmul.ts";
import { reduce, reduceJob, reduceSpec, type Reduction } from "../../../kernels/wasm/nn/reduce.ts";
import { convolution, pooling, type WindowPlan } from "../../backends/wasm/nn/convolution.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeInt } from "../../onnx/graph/nodes.ts";
import { contiguous } from "../../onnx/graph/views.ts";
import { outSize, windowShape } from "../ops/conv.ts";
import { broadcastDims } from "../ops/elementwise.ts";
import { reducedAxes } from "../ops/reduce.ts";
import type { Inputs, TableRows } from "../ops/operator.ts";
import { axisOf, product } from "../ops/operator.ts";
import { partSizes, rowOf, sliceView, transposeView, type Moved } from "../ops/shape.ts";
import type { Value } from "../value.ts";
import { integers } from "../value.ts";
import { elementsOf, isFloatSlot, isPlaceable, isSlot, slotBytes, type Emit, type Machine, type Slot } from "./machine.ts";

/** Dimensions that one copy takes. */
const MOST = 6;

/** Copies elements, floats but where it is said, between strided tensors. */
export function copyWords(m: Machine, sizes: readonly number[], from: Strided, to: Strided, bytes: 1 | 2 | 4 = 4): void {
  const { spec, items, args } = copyJob({ sizes, bytes, from, to }, m.memory.shared);
  m.job(m.memory.kernel(copy, spec), { items, args });
}

/** A moved view as a tensor of its own. */
function settle(m: Machine, x: Slot, { dims, strides, start }: Moved): Slot | undefined {
  if (dims.length > MOST) return undefined;
  const y = m.slot(dims, x.type);
  const size = slotBytes(x.type);
  const bytes = (steps: readonly number[]): number[] => steps.map((step) => size * step);
  copyWords(
    m,
    dims,
    { address: x.address + size * start, strides: bytes(strides) },
    { address: y.address, strides: bytes(contiguous(dims).strides) },
    size,
  );
  return y;
}

const moved =
  (view: (inputs: Inputs, node: NodeProto) => Moved): Emit =>
  (m, inputs, node) => {
    const [x] = inputs;
    if (!isSlot(x)) return undefined;
    const y = settle(m, x, view(inputs, node));
    return y && [y];
  };

const expand: Emit = (m, inputs) => {
  const [x, shape] = inputs;
  if (!isSlot(x) || shape === undefined) return undefined;
  const dims = broadcastDims(x.dims, integers(shape));
  if (dims === null) return undefined;
  const lead = dims.length - x.dims.length;
  const { strides } = contiguous(x.dims);
  const y = settle(m, x, {
    dims,
    strides: dims.map((d, i) => (i < lead || (x.dims[i - lead] === 1 && d !== 1) ? 0 : strides[i - lead])),
    start: 0,
  });
  return y && [y];
};

/** Runs of an axis and what lies inside it. */
const around = (dims: readonly number[], axis: number): { outer: number; inner: number } => ({
  outer: product(dims.slice(0, axis)),
  inner: product(dims.slice(axis + 1)),
});

const concat: Emit = (m, inputs, node) => {
  const values = inputs.filter((v) => v !== undefined);
  if (!values.some(isPlaceable) || values.some((v) => v.type !== "float32" || v.dims.length !== values[0].dims.length)) return undefined;
  const axis = axisOf(attributeInt(node, "axis", 0), values[0].dims.length, node);
  if (values.some((v) => v.dims.some((d, i) => i !== axis && d !== values[0].dims[i]))) return undefined;
  const dims = [...values[0].dims];
  dims[axis] = values.reduce((sum, v) => sum + v.dims[axis], 0);
  const { outer, inner } = around(dims, axis);
  const y = m.slot(dims);
  let at = y.address;
  for (const value of values) {
    const run = value.dims[axis] * inner;
    if (run > 0)
      copyWords(m, [outer, run], { address: m.place(value), strides: [4 * run, 4] }, { address: at, strides: [4 * dims[axis] * inner, 4] });
    at += 4 * run;
  }
  return [y];
};

const split: Emit = (m, inputs, node) => {
  const [x] = inputs;
  if (!isFloatSlot(x)) return undefined;
  const axis = axisOf(attributeInt(node, "axis", 0), x.dims.length, node);
  const { outer, inner } = around(x.dims, axis);
  let at = x.address;
  return partSizes(inputs, node).map((size) => {
    const y = m.slot(x.dims.with(axis, size));
    const run = size * inner;
    copyWords(m, [outer, run], { address: at, strides: [4 * x.dims[axis] * inner, 4] }, { address: y.address, strides: [4 * run, 4] });
    at += 4 * run;
    return y;
  });
};

const reduction =
  (op: Reduction): Emit =>
  (m, inputs, node) => {
    const [x] = inputs;
    if (!isPlaceable(x) || elementsOf(x) === 0) return undefined;
    const axes = reducedAxes(x, inputs[1], node);
    if (axes === null || axes.length === 0 || axes.at(-1)! - axes[0] !== axes.length - 1) return undefined;
    const outer = product(x.dims.slice(0, axes[0]));
    const inner = product(x.dims.slice(axes.at(-1)! + 1));
    const keep = attributeInt(node, "keepdims", 1) !== 0;
    const y = m.slot(keep ? x.dims.map((d, i) => (axes.includes(i) ? 1 : d)) : x.dims.filter((_, i) => !axes.includes(i)));
    const spec = reduceSpec(op, { inner }, m.memory.shared);
    m.job(
      m.memory.kernel(reduce, spec),
      reduceJob({ outer, axis: elementsOf(x) / outer / inner, inner, x: m.place(x), y: y.address }, spec),
    );
    return [y];
  };

/** Bytes from matrix to matrix along two batch dimensions; null for more of them. */
function batches(dims: readonly number[], batch: readonly number[], size: number): { outer: number; inner: number } | null {
  const own = [...new Array<number>(batch.length - dims.length).fill(1), ...dims];
  if (own.join() === batch.join()) {
    const inner = batch.at(-1) ?? 1;
    return { outer: 4 * size * inner, inner: 4 * size };
  }
  if (product(own) === 1) return { outer: 0, inner: 0 };
  if (batch.length > 2) return null;
  const [a, b] = [...new Array<number>(2 - own.length).fill(1), ...own];
  return { outer: a === 1 ? 0 : 4 * size * b, inner: b === 1 ? 0 : 4 * size };
}

/** MatMul of two values, neither of them packed. */
const multiply: Emit = (m, [a, b]) => {
  if (!(isPlaceable(a) || isPlaceable(b)) || a?.type !== "float32" || b?.type !== "float32" || a.dims.length < 2 || b.dims.length < 2)
    return undefined;
  const [rows, k] = a.dims.slice(-2);
  const [kb, n] = b.dims.slice(-2);
  const batch = broadcastDims(a.dims.slice(0, -2), b.dims.slice(0, -2));
  if (batch === null || k !== kb || rows * k * n * product(batch) === 0) return undefined;
  const [sa, sb] = [batches(a.dims.slice(0, -2), batch, rows * k), batches(b.dims.slice(0, -2), batch, k * n)];
  if (sa === null || sb === null) return undefined;
  const inner = batch.at(-1) ?? 1;
  const y = m.slot([...batch, rows, n]);
  const spec = matmulSpec({ m: rows }, { a: "rows", b: "rows" }, { relaxed: m.memory.features.relaxed, shared: m.memory.shared });
  const job = {
    ...{ m: rows, n, k, outer: product(batch) / inner, inner },
    a: { address: m.place(a), step: 4 * k, ...sa },
    b: { address: m.place(b), step: 4 * n, ...sb },
    c: { address: y.address, step: 4 * n, outer: 4 * rows * n * inner, inner: 4 * rows * n },
  };
  m.job(m.memory.kernel(matmul, spec), matmulJob(job, spec, m.memory.threads));
  return [y];
};

/** Runs a plan of windows over x. */
function windows(m: Machine, plan: WindowPlan, x: Value, dims: readonly number[], at: { w?: number; bias?: number }): Slot {
  const y = m.slot(dims);
  const table = m.slot([plan.table.length]);
  const scratch = m.slot([Math.ceil(plan.scratchBytes / 4)]);
  const from = m.place(x);
  m.call(() => new Int32Array(m.memory.buffer, table.address, plan.table.length).set(plan.table));
  for (const { kernel, items, args, panelBytes } of plan.jobs({
    ...at,
    x: from,
    y: y.address,
    table: table.address,
    scratch: scratch.address,
  }))
    m.job(kernel, { items, args, panelBytes });
  m.free(scratch);
  m.free(table);
  return y;
}

const conv: Emit = (m, [x, w, bias], node) => {
  if (!isPlaceable(x) || w?.type !== "float32" || (bias !== undefined && bias.type !== "float32") || elementsOf(x) === 0) return undefined;
  const shape = windowShape(x, node, w.dims.slice(2));
  // says what is wrong with the image
  outSize(shape, node);
  const groups = attributeInt(node, "group", 1);
  if (w.dims[1] * groups !== x.dims[1] || w.dims[0] % groups !== 0 || shape.pads.flat().some((p) => p < 0)) return undefined;
  const plan = convolution(m.memory, { ...shape, outputs: w.dims[0], groups });
  const sizes = x.dims.length === 3 ? [plan.output[1]] : plan.output;
  return [windows(m, plan, x, [x.dims[0], w.dims[0], ...sizes], { w: m.place(w), ...(bias === undefined ? {} : { bias: m.place(bias) }) })];
};

const pool =
  (kind: "max" | "average"): Emit =>
  (m, [x], node) => {
    if (!isPlaceable(x) || elementsOf(x) === 0) return undefined;
    const shape = windowShape(x, node, null);
    outSize(shape, node);
    if (shape.pads.flat().some((p) => p < 0)) return undefined;
    const plan = pooling(m.memory, { ...shape, kind, countPadding: attributeInt(node, "count_include_pad", 0) !== 0 });
    const sizes = x.dims.length === 3 ? [plan.output[1]] : plan.output;
    return [windows(m, plan, x, [x.dims[0], x.dims[1], ...sizes], {})];
  };

const globalAverage: Emit = (m, [x]) => {
  if (!isPlaceable(x) || elementsOf(x) === 0) return undefined;
  const [outer, axis] = [x.dims[0] * x.dims[1], product(x.dims.slice(2))];
  const y = m.slot([x.dims[0], x.dims[1], ...x.dims.slice(2).map(() => 1)]);
  const spec = reduceSpec("mean", { inner: 1 }, m.memory.shared);
  m.job(m.memory.kernel(reduce, spec), reduceJob({ outer, axis, inner: 1, x: m.place(x), y: y.address }, spec));
  return [y];
};

/**
 * Rows of a table outside of the arena: they are written where kernels read them. A recorded run would ask for the same
 * rows again; decoders look theirs up themselves.
 */
export const lookUp =
  ({ ids: input, width, read }: TableRows): Emit =>
  (m, inputs) => {
    const ids = inputs[input];
    if (m.isRecording || ids === undefined || elementsOf(ids) === 0) return undefined;
    const y = m.slot([...ids.dims, width]);
    m.call(() => read(integers(ids), m.memory.floats(y.address, elementsOf(y))));
    return [y];
  };

/** Gather of rows of codes; of floats: `lookUp`. */
const gatherCodes: Emit = (m, [table, ids], node) => {
  if (m.isRecording || table === undefined || ids === undefined || isSlot(table) || attributeInt(node, "axis", 0) !== 0) return undefined;
  if (table.type !== "int8" && table.type !== "uint8") return undefined;
  const row = table.dims.slice(1);
  const width = product(row);
  const y = m.slot([...ids.dims, ...row], table.type);
  const from = table.data as Int8Array;
  m.call(() => {
    const into = y.data as Int8Array;
    integers(ids).forEach((id, i) => {
      const at = width * rowOf(node, id, table.dims[0]);
      into.set(from.subarray(at, at + width), width * i);
    });
  });
  return [y];
};

export const MOVES: readonly (readonly [string, Emit])[] = [
  ["Gather", gatherCodes],
  ["Transpose", moved(transposeView)],
  ["Slice", moved(sliceView)],
  ["Expand", expand],
  ["Concat", concat],
  ["Split", split],
  ["ReduceSum", reduction("sum")],
  ["ReduceMean", reduction("mean")],
  ["ReduceMax", reduction("max")],
  ["ReduceMin", reduction("min")],
  ["MatMul", multiply],
  ["Conv", conv],
  ["MaxPool", pool("max")],
  ["AveragePool", pool("average")],
  ["GlobalAveragePool", globalAverage],
];

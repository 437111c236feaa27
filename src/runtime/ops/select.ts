// Operators that look for values or take them by index: gathers and scatters by element, arg-max, top-k, one-hot,
// non-zero places. Source: the ONNX operator specifications.
import { attributeInt } from "../../onnx/graph/nodes.ts";
import { contiguous } from "../../onnx/graph/views.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { Value, ValueData } from "../value.ts";
import { empty, integers, sizeOf } from "../value.ts";
import type { Inputs, Operators } from "./operator.ts";
import { axisOf, fail, need, product, text } from "./operator.ts";

/** An index that may count from the end. */
function place(id: number, d: number, node: NodeProto): number {
  if (!(id >= -d && id < d)) throw fail(node, `indices from ${-d} to ${d - 1}`, String(id));
  return id < 0 ? id + d : id;
}

const sub = (data: ValueData, from: number, to: number): never => data.subarray(from, to) as never;

/** Calls `visit` for every element of `ids` with its place in a tensor [dims], which `ids` gives along `axis`. */
function byElement(dims: readonly number[], ids: Value, axis: number, node: NodeProto, visit: (i: number, at: number) => void): void {
  if (ids.dims.length !== dims.length || ids.dims.some((d, a) => a !== axis && d > dims[a]))
    throw fail(node, `indices within [${dims.join(", ")}]`, `[${ids.dims.join(", ")}]`);
  const { strides } = contiguous(dims);
  const position = dims.map(() => 0);
  const list = integers(ids);
  for (let i = 0; i < list.length; i++) {
    let at = place(list[i], dims[axis], node) * strides[axis];
    for (let a = 0; a < dims.length; a++) if (a !== axis) at += position[a] * strides[a];
    visit(i, at);
    for (let a = dims.length - 1; a >= 0; a--) {
      if (++position[a] < ids.dims[a]) break;
      position[a] = 0;
    }
  }
}

function gatherElements(inputs: Inputs, node: NodeProto): Value {
  const [x, ids] = [0, 1].map((i) => need(inputs, i, node));
  const out = empty(x.type, ids.dims);
  byElement(x.dims, ids, axisOf(attributeInt(node, "axis", 0), x.dims.length, node), node, (i, at) => (out.data[i] = x.data[at]));
  return out;
}

type Combine = (a: number, b: number) => number;
const COMBINE: ReadonlyMap<string, Combine> = new Map<string, Combine>([
  ["none", (_, b) => b],
  ["add", (a, b) => a + b],
  ["mul", (a, b) => a * b],
  ["min", (a, b) => (b < a ? b : a)],
  ["max", (a, b) => (b > a ? b : a)],
]);

export const scatterMode = (node: NodeProto): Combine | undefined => COMBINE.get(text(node, "reduction", "none"));

function scatterElements(inputs: Inputs, node: NodeProto): Value {
  const [x, ids, updates] = [0, 1, 2].map((i) => need(inputs, i, node));
  if (updates.data.length !== ids.data.length) throw fail(node, `${ids.data.length} updates`, `[${updates.dims.join(", ")}]`);
  const out = { ...x, data: x.data.slice() };
  const combine = scatterMode(node)!;
  byElement(x.dims, ids, axisOf(attributeInt(node, "axis", 0), x.dims.length, node), node, (i, at) => {
    out.data[at] = combine(out.data[at] as number, updates.data[i] as number);
  });
  return out;
}

function gatherND(inputs: Inputs, node: NodeProto): Value {
  const [x, ids] = [0, 1].map((i) => need(inputs, i, node));
  const batch = attributeInt(node, "batch_dims", 0);
  const depth = ids.dims.at(-1) ?? 0;
  if (batch + depth > x.dims.length || ids.dims.length <= batch || batch < 0)
    throw fail(node, `indices of [${x.dims.join(", ")}]`, `[${ids.dims.join(", ")}]`);
  const inner = product(x.dims.slice(batch + depth));
  const outer = product(x.dims.slice(0, batch));
  const list = integers(ids);
  const rows = depth === 0 ? product(ids.dims.slice(0, -1)) : list.length / depth;
  const out = empty(x.type, [...ids.dims.slice(0, -1), ...x.dims.slice(batch + depth)]);
  for (let r = 0; r < rows; r++) {
    let at = Math.floor(r / (rows / outer));
    for (let a = 0; a < depth; a++) at = at * x.dims[batch + a] + place(list[r * depth + a], x.dims[batch + a], node);
    out.data.set(sub(x.data, at * inner, (at + 1) * inner), r * inner);
  }
  return out;
}

/** Slices of `updates` at the places that rows of indices give. */
function scatterND(inputs: Inputs, node: NodeProto): Value {
  const [x, indices, updates] = [0, 1, 2].map((i) => need(inputs, i, node));
  const depth = indices.dims.at(-1)!;
  const slice = product(x.dims.slice(depth));
  const out = { ...x, data: x.data.slice() };
  const ids = integers(indices);
  const combine = scatterMode(node)!;
  if (updates.data.length !== (ids.length / depth) * slice)
    throw fail(node, `${(ids.length / depth) * slice} updates`, `[${updates.dims.join(", ")}]`);
  for (let r = 0; r < ids.length / depth; r++) {
    let at = 0;
    for (let a = 0; a < depth; a++) at = at * x.dims[a] + place(ids[r * depth + a], x.dims[a], node);
    for (let i = 0; i < slice; i++)
      out.data[at * slice + i] = combine(out.data[at * slice + i] as number, updates.data[r * slice + i] as number);
  }
  return out;
}

/** Rows along an axis: where each begins, how many elements it has and how far apart they lie. */
function* rowsAlong(dims: readonly number[], axis: number): Generator<number> {
  const inner = product(dims.slice(axis + 1));
  const outer = product(dims.slice(0, axis));
  for (let o = 0; o < outer; o++) for (let i = 0; i < inner; i++) yield o * dims[axis] * inner + i;
}

const argument =
  (better: (a: number, b: number) => boolean) =>
  (inputs: Inputs, node: NodeProto): Value => {
    const x = need(inputs, 0, node);
    const axis = axisOf(attributeInt(node, "axis", 0), x.dims.length, node);
    const d = x.dims[axis];
    if (!(d > 0)) throw fail(node, "an axis with elements", `[${x.dims.join(", ")}]`);
    const inner = product(x.dims.slice(axis + 1));
    const last = attributeInt(node, "select_last_index", 0) !== 0;
    const dims = attributeInt(node, "keepdims", 1) !== 0 ? x.dims.with(axis, 1) : x.dims.filter((_, i) => i !== axis);
    const out = empty("int64", dims);
    let row = 0;
    for (const base of rowsAlong(x.dims, axis)) {
      let best = 0;
      for (let i = 1; i < d; i++) {
        const [a, b] = [x.data[base + i * inner] as number, x.data[base + best * inner] as number];
        if (better(a, b) || (last && a === b)) best = i;
      }
      out.data[row++] = BigInt(best);
    }
    return out;
  };

function topK(inputs: Inputs, node: NodeProto): Value[] {
  const x = need(inputs, 0, node);
  const k = inputs[1] === undefined ? attributeInt(node, "k", 1) : integers(inputs[1])[0];
  const axis = axisOf(attributeInt(node, "axis", -1), x.dims.length, node);
  const d = x.dims[axis];
  if (!(k >= 0 && k <= d)) throw fail(node, `a k of at most ${d}`, String(k));
  const inner = product(x.dims.slice(axis + 1));
  const largest = attributeInt(node, "largest", 1) !== 0;
  const out = empty(x.type, x.dims.with(axis, k));
  const ids = empty("int64", out.dims);
  const order = Array.from({ length: d }, (_, i) => i);
  let row = 0;
  for (const base of rowsAlong(x.dims, axis)) {
    const at = (i: number): number => x.data[base + i * inner] as number;
    // ties: the lower index first; NaN counts as the largest
    const sorted = order.toSorted((a, b) => {
      const [u, v] = largest ? [at(b), at(a)] : [at(a), at(b)];
      if (u < v) return -1;
      if (u > v) return 1;
      const [nu, nv] = [Number.isNaN(u), Number.isNaN(v)];
      return nu === nv ? a - b : nu ? 1 : -1;
    });
    const to = Math.floor(row / inner) * k * inner + (row % inner);
    for (let i = 0; i < k; i++) {
      out.data[to + i * inner] = at(sorted[i]);
      ids.data[to + i * inner] = BigInt(sorted[i]);
    }
    row++;
  }
  return [out, ids];
}

function oneHot(inputs: Inputs, node: NodeProto): Value {
  const [ids, depth, values] = [0, 1, 2].map((i) => need(inputs, i, node));
  const d = Number(depth.data[0]);
  const rank = ids.dims.length + 1;
  const axis = axisOf(attributeInt(node, "axis", -1), rank, node);
  if (!(d >= 1) || values.data.length !== 2) throw fail(node, "a depth from 1 and two values", `${d} and ${values.data.length}`);
  const dims = [...ids.dims.slice(0, axis), d, ...ids.dims.slice(axis)];
  sizeOf(dims, node.opType);
  const out = empty(values.type, dims);
  (out.data as unknown as { fill(v: number | bigint): void }).fill(values.data[0]);
  const inner = product(ids.dims.slice(axis));
  Array.from(ids.data as ArrayLike<number | bigint>, Number).forEach((id, i) => {
    const at = id < 0 ? id + d : id;
    if (at >= 0 && at < d) out.data[(Math.floor(i / inner) * d + at) * inner + (i % inner)] = values.data[1];
  });
  return out;
}

/** Of [rank, found]: the places of what is not 0, in order. */
function nonZero(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const found: number[] = [];
  for (let i = 0; i < x.data.length; i++) if (Number(x.data[i]) !== 0) found.push(i);
  const { strides } = contiguous(x.dims);
  const out = empty("int64", [x.dims.length, found.length]);
  x.dims.forEach((d, a) => found.forEach((at, i) => (out.data[a * found.length + i] = BigInt(Math.floor(at / strides[a]) % d))));
  return out;
}

const modes = (node: NodeProto): string | undefined =>
  scatterMode(node) === undefined ? `with reduction ${text(node, "reduction", "")}` : undefined;

export const select: Operators = {
  GatherElements: { run: gatherElements },
  GatherND: { run: gatherND },
  ScatterElements: { run: scatterElements, missing: modes },
  ScatterND: { run: scatterND, missing: modes },
  ArgMax: { run: argument((a, b) => a > b) },
  ArgMin: { run: argument((a, b) => a < b) },
  TopK: { run: topK },
  OneHot: { run: oneHot },
  NonZero: { run: nonZero },
};

// Operators on WGSL kernels: each takes values and records dispatches, or gives undefined where these values are none
// of its kernel (then the processor runs it, with copies). Here: what they share, element-wise chains, products.
import {
  chainKey,
  chainName,
  chainShader,
  chainShaderSpec,
  chainWordsOf,
  MOST_OPERANDS,
  type OperandKind,
} from "../../../kernels/wgsl/nn/chain.ts";
import { MATMUL_FIELDS, matmulGroups, matmulShader } from "../../../kernels/wgsl/nn/matmul.ts";
import { itemGroups } from "../../../kernels/wgsl/nn/shader.ts";
import { binary, constant, operand, select, type Value as Expression } from "../../../kernels/wasm/nn/values.ts";
import type { AsyncLayer } from "../../backends/types.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import { contiguous } from "../../onnx/graph/views.ts";
import { EXPRESSIONS } from "../machine/chains.ts";
import { broadcastDims } from "../ops/elementwise.ts";
import { product } from "../ops/operator.ts";
import { floats, type Value } from "../value.ts";
import { copyStrided } from "./copy.ts";
import { countOf, isCodes, isTensor, type Held, type Recorder, type Tensor } from "./recorder.ts";

export type HeldInputs = readonly (Held | undefined)[];

export type DeviceEmit = (r: Recorder, inputs: HeldInputs, node: NodeProto) => readonly (Held | undefined)[] | undefined;

export const isFloat = (value: Held | undefined): value is Held => value?.type === "float32";

/** Float32 values that are not empty. */
export const isFull = (value: Held | undefined): value is Held => isFloat(value) && countOf(value) > 0;

/** Values that a device holds. */
export const isDeviceType = (value: Held | undefined): value is Held & { readonly type: Tensor["type"] } =>
  isFloat(value) || isCodes(value);

/** Values that are not empty, or codes: for what only moves or compares them. */
export const isMovable = (value: Held | undefined): value is Held & { readonly type: Tensor["type"] } =>
  isDeviceType(value) && countOf(value) > 0;

let zeros = new Float32Array(0);

/** A value with the type and shape of another, and no values: for loops that look at shapes only. */
export function hollow(value: Held): Value {
  if (!isTensor(value)) return value;
  if (zeros.length < value.size) zeros = new Float32Array(value.size);
  return { type: value.type, dims: value.dims, data: zeros.subarray(0, value.size) };
}

/** Sizes and strides of operands with neighbouring dimensions that all read as one joined; undefined past four. */
function joined(dims: readonly number[], strides: readonly (readonly number[])[]) {
  const sizes: number[] = [];
  const steps: number[][] = strides.map(() => []);
  dims.forEach((d, axis) => {
    if (d === 1) return;
    const own = strides.map((list) => list[axis]);
    if (sizes.length > 0 && steps.every((list, i) => list.at(-1) === own[i] * d)) {
      sizes[sizes.length - 1] *= d;
      steps.forEach((list, i) => (list[list.length - 1] = own[i]));
    } else {
      sizes.push(d);
      steps.forEach((list, i) => list.push(own[i]));
    }
  });
  if (sizes.length > 4) return undefined;
  const missing = 4 - sizes.length;
  return {
    dims: [...new Array<number>(missing).fill(1), ...sizes],
    strides: steps.map((list) => [...new Array<number>(missing).fill(0), ...list]),
  };
}

/** Strides of a tensor of `own` sizes that broadcasts to `dims`. */
function broadcastStrides(own: readonly number[], dims: readonly number[]): number[] {
  const { strides } = contiguous(own);
  const lead = dims.length - own.length;
  return dims.map((_, i) => (i < lead || own[i - lead] === 1 ? 0 : strides[i - lead]));
}

/** Operands of a chain behind another kernel, its result among them, in the storage buffers of a stage. */
const MOST_AFTER = 5;

/** The expression over the operands; undefined where there are too many of them, or of dimensions. */
export function emitChain(
  r: Recorder,
  make: (args: readonly Expression[]) => Expression,
  values: readonly (Held | undefined)[],
): Tensor | undefined {
  if (values.length > MOST_OPERANDS || !values.every(isFull)) return undefined;
  let dims: readonly number[] | null = [];
  for (const value of values) if (dims !== null) dims = broadcastDims(dims, value.dims);
  if (dims === null) return undefined;
  const shape = joined(dims, values.map((value) => broadcastStrides(value.dims, dims))); // prettier-ignore
  if (shape === undefined) return undefined;
  const whole = contiguous(shape.dims).strides.map((step, axis) => (shape.dims[axis] === 1 ? 0 : step));
  const kinds = shape.strides.map((steps): OperandKind => {
    if (steps.every((step) => step === 0)) return "one";
    return steps.every((step, axis) => shape.dims[axis] === 1 || step === whole[axis]) ? "same" : "strided";
  });
  const spec = chainShaderSpec(make(values.map((_, i) => operand(i))), kinds);
  const placed = values.map((value) => r.place(value));
  const operands = placed.map(({ offset }, i) => ({ strides: shape.strides[i], offset }));
  const bound = Object.fromEntries(placed.map((tensor, i) => [`x${i}`, tensor]));
  const own = placed.findIndex((tensor) => r.isOpen(tensor));
  if (
    own >= 0 &&
    kinds[own] === "same" &&
    placed.length <= MOST_AFTER &&
    placed.every(({ buffer }, i) => i === own || buffer !== placed[own].buffer)
  ) {
    const { [`x${own}`]: made, ...others } = bound;
    r.amend({ spec, own, params: chainWordsOf(shape.dims, operands).params, bound: others });
    return r.view(made, dims);
  }
  const y = r.tensor(dims);
  r.dispatch(
    { family: "chain", spec: chainKey(spec), name: chainName(spec), code: () => chainShader(spec) },
    {
      ...chainWordsOf(shape.dims, operands),
      bound: { ...bound, y },
      groups: itemGroups(y.size),
    },
  );
  return y;
}

const nameOf = (node: NodeProto): string =>
  node.domain === "" || node.domain === "ai.onnx" ? node.opType : `${node.domain}.${node.opType}`;

/** An element-wise operator of its own. */
export const elementwise: DeviceEmit = (r, inputs, node) => {
  const build = EXPRESSIONS.get(nameOf(node))!;
  const y = emitChain(r, (args) => build(args, node), inputs.filter((value) => value !== undefined)); // prettier-ignore
  return y && [y];
};

/** Where, by a condition in JavaScript: masks are made there. */
export const where: DeviceEmit = (r, [condition, a, b]) => {
  if (condition === undefined || isTensor(condition)) return undefined;
  const keep: Value = { type: "float32", dims: condition.dims, data: Float32Array.from(condition.data as Uint8Array) };
  const y = emitChain(r, ([c, yes, no]) => select(binary("ne", c, constant(0)), yes, no), [keep, a, b]);
  return y && [y];
};

/** x [.., k] by a weight on the device, and a bias. `last`: of the last row only. */
export function emitLayer(r: Recorder, layer: AsyncLayer, x: Held | undefined, bias: Held | undefined, last = false): Held | undefined {
  if (!isFloat(x) || x.dims.at(-1) !== layer.k) return undefined;
  const outer = last ? x.dims.slice(0, -1).map(() => 1) : x.dims.slice(0, -1);
  const dims = [...outer, layer.n];
  if (countOf(x) === 0) return floats(dims);
  const rows = product(outer);
  const from = r.place(x);
  const tail = last ? r.view(from, [rows, layer.k], from.size - layer.k) : from;
  const flat = r.product(layer, tail, rows);
  if (tail !== from) r.free(tail);
  const y = r.view(flat, dims);
  r.free(flat);
  if (bias === undefined) return y;
  const sum = emitChain(r, ([a, b]) => binary("add", a, b), [y, bias]);
  r.free(y);
  return sum;
}

/** A layer of several products joined: its columns apart, with a bias for each where there are any. */
export function emitJoined(
  r: Recorder,
  layer: AsyncLayer,
  widths: readonly number[],
  [x, ...biases]: readonly (Held | undefined)[],
): Held[] | undefined {
  const y = emitLayer(r, layer, x, undefined);
  if (y === undefined) return undefined;
  const outer = y.dims.slice(0, -1);
  if (!isTensor(y)) return widths.map((width) => floats([...outer, width]));
  const rows = product(outer);
  let start = 0;
  const parts = widths.map((width, i) => {
    const from = r.view(y, [rows, width], start);
    start += width;
    // a product reads from the start of a buffer: parts are copies
    const part = copyStrided(r, from, { dims: [rows, width], strides: [layer.n, 1], start: 0 });
    r.free(from);
    const shaped = r.view(part, [...outer, width]);
    r.free(part);
    const bias = biases[i];
    if (bias === undefined) return shaped;
    const sum = emitChain(r, ([a, b]) => binary("add", a, b), [shaped, bias]);
    r.free(shaped);
    return sum!;
  });
  r.free(y);
  return parts;
}

/** Gemm: alpha * A B + beta * C. */
export const gemm =
  (layer: AsyncLayer): DeviceEmit =>
  (r, [x, , c], node) => {
    if (!isFull(x)) return undefined;
    let a = r.place(x);
    const flip = attributeInt(node, "transA", 0) !== 0;
    if (flip) a = copyStrided(r, a, { dims: [a.dims[1], a.dims[0]], strides: [1, a.dims[1]], start: 0 });
    const y = emitLayer(r, layer, a, undefined);
    if (flip) r.free(a);
    const [alpha, beta] = [attributeFloat(node, "alpha", 1), attributeFloat(node, "beta", 1)];
    if (y === undefined || (alpha === 1 && c === undefined)) return y && [y];
    const scaled = (v: Expression, by: number): Expression => (by === 1 ? v : binary("mul", v, constant(by)));
    const sum = emitChain(
      r,
      ([v, w]) => (w === undefined ? scaled(v, alpha) : binary("add", scaled(v, alpha), scaled(w, beta))),
      c === undefined ? [y] : [y, c],
    );
    if (isTensor(y)) r.free(y);
    return sum && [sum];
  };

/** Elements from matrix to matrix along two batch dimensions; null for more of them. */
function batches(dims: readonly number[], batch: readonly number[], size: number): { outer: number; inner: number } | null {
  const own = [...new Array<number>(batch.length - dims.length).fill(1), ...dims];
  if (own.join() === batch.join()) return { outer: size * (batch.at(-1) ?? 1), inner: size };
  if (product(own) === 1) return { outer: 0, inner: 0 };
  if (batch.length > 2) return null;
  const [a, b] = [...new Array<number>(2 - own.length).fill(1), ...own];
  return { outer: a === 1 ? 0 : size * b, inner: b === 1 ? 0 : size };
}

/** MatMul of two computed values. */
export const multiply: DeviceEmit = (r, [a, b]) => {
  if (!isFull(a) || !isFull(b) || a.dims.length < 2 || b.dims.length < 2) return undefined;
  const [m, k] = a.dims.slice(-2);
  const [kb, n] = b.dims.slice(-2);
  const [da, db] = [a.dims.slice(0, -2), b.dims.slice(0, -2)];
  const batch = broadcastDims(da, db);
  if (batch === null || k !== kb) return undefined;
  const [sa, sb] = [batches(da, batch, m * k), batches(db, batch, k * n)];
  if (sa === null || sb === null) return undefined;
  const [ta, tb] = [r.place(a), r.place(b)];
  const y = r.tensor([...batch, m, n]);
  const params = { m, n, k, batches: product(batch), inner: batch.at(-1) ?? 1, ao: sa.outer, ai: sa.inner, bo: sb.outer, bi: sb.inner, oa: ta.offset, ob: tb.offset }; // prettier-ignore
  r.dispatch(
    { family: "matmul", spec: {}, name: "f32_matmul__wgsl", code: matmulShader },
    { fields: MATMUL_FIELDS, params, bound: { a: ta, b: tb, y }, groups: matmulGroups(m, n, product(batch)) },
  );
  return [y];
};

// Reductions, softmax and norms. The loops over rows are where the kernels of norms and softmax take over.
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { Value } from "../value.ts";
import { empty, floatData, floats, integers } from "../value.ts";
import type { Inputs, Operator, Operators } from "./operator.ts";
import { axisOf, fail, ints, need, product } from "./operator.ts";

/** The axes of a reduction, ascending; null where nothing is reduced. */
export function reducedAxes(x: Value, axes: Value | undefined, node: NodeProto): number[] | null {
  const given = axes === undefined ? ints(node, "axes") : integers(axes);
  const none = given === undefined || given.length === 0;
  if (none && attributeInt(node, "noop_with_empty_axes", 0) !== 0) return null;
  const list = none ? x.dims.map((_, i) => i) : given.map((a) => axisOf(a, x.dims.length, node));
  return [...new Set(list)].sort((a, b) => a - b);
}

type Sum = number | bigint;

/** Reductions of floats that are a function of each value, a sum or product, and a function of that. */
function floatReduction(start: number, step: (sum: number, x: number) => number, end: (sum: number) => number = (v) => v): Operator {
  const core = reduction(start, step as (sum: Sum, x: Sum) => Sum, { end });
  return {
    run(inputs, node) {
      if (!(need(inputs, 0, node).data instanceof Float32Array)) throw fail(node, "float32", need(inputs, 0, node).type);
      return core.run(inputs, node);
    },
  };
}

/** log of a sum of exponentials, from the largest value down. */
const logSumExp: Operator = {
  run(inputs, node) {
    const x = need(inputs, 0, node);
    const data = floatData(x, node.opType);
    const top = data.reduce((a, v) => (v > a ? v : a), -Infinity);
    const shift = Number.isFinite(top) ? top : 0;
    const sums = floatReduction(0, (a, v) => a + Math.exp(v - shift), (v) => Math.log(v) + shift); // prettier-ignore
    return sums.run(inputs, node);
  },
};

const sumOf = (a: Sum, x: Sum): Sum => (a as number) + (x as number);

/**
 * Reductions along axes: `step` from `start`. Sums of floats are kept in float64, those of int64 wrap at 64 bits.
 * `isMean`: divided by the count, integers towards zero; `end`: what becomes of a sum of floats.
 */
function reduction(
  start: number,
  step: (sum: Sum, x: Sum) => Sum,
  { isMean = false, end }: { readonly isMean?: boolean; readonly end?: (sum: number) => number } = {},
): Operator {
  return {
    run(inputs, node) {
      const x = need(inputs, 0, node);
      const list = reducedAxes(x, inputs[1], node);
      if (list === null) return x;
      const rank = x.dims.length;
      const axes = new Set(list);
      const kept = x.dims.map((d, i) => (axes.has(i) ? 1 : d));
      const big = x.data instanceof BigInt64Array;
      // infinities are those of int64
      const first = big ? (start === -Infinity ? -(2n ** 63n) : start === Infinity ? 2n ** 63n - 1n : BigInt(start)) : start;
      const sums = (big ? new BigInt64Array(product(kept)) : new Float64Array(product(kept))) as unknown as Sum[];
      sums.fill(first);
      const strides = kept.map((d, i) => (axes.has(i) ? 0 : product(kept.slice(i + 1)) + 0 * d));
      const position = x.dims.map(() => 0);
      let at = 0;
      for (let i = 0; i < x.data.length; i++) {
        sums[at] = step(sums[at], x.data[i]);
        for (let axis = rank - 1; axis >= 0; axis--) {
          at += strides[axis];
          if (++position[axis] < x.dims[axis]) break;
          at -= strides[axis] * x.dims[axis];
          position[axis] = 0;
        }
      }
      const count = x.data.length / sums.length;
      const dims = attributeInt(node, "keepdims", 1) !== 0 ? kept : x.dims.filter((_, i) => !axes.has(i));
      const out = empty(x.type, dims);
      for (let i = 0; i < sums.length; i++) {
        const sum = sums[i];
        if (isMean) out.data[i] = typeof sum === "bigint" ? sum / BigInt(count) : sum / count;
        else out.data[i] = end === undefined ? sum : end(sum as number);
      }
      return out;
    },
  };
}

/** Softmax along an axis, or its logarithm. */
function softmax(inputs: Inputs, node: NodeProto, isLog: boolean): Value {
  const value = need(inputs, 0, node);
  const x = floatData(value, node.opType);
  const axis = axisOf(attributeInt(node, "axis", -1), value.dims.length, node);
  const d = value.dims[axis];
  const inner = product(value.dims.slice(axis + 1));
  const out = floats(value.dims);
  for (let row = 0; row < x.length / d; row++) {
    const base = Math.floor(row / inner) * d * inner + (row % inner);
    let top = -Infinity;
    for (let i = 0; i < d; i++) top = Math.max(top, x[base + i * inner]);
    let sum = 0;
    for (let i = 0; i < d; i++) sum += out.data[base + i * inner] = Math.exp(x[base + i * inner] - top);
    const log = Math.log(sum);
    if (isLog) for (let i = 0; i < d; i++) out.data[base + i * inner] = x[base + i * inner] - top - log;
    else for (let i = 0; i < d; i++) out.data[base + i * inner] /= sum;
  }
  return out;
}

interface Norm {
  readonly x: Value;
  readonly weight: Value;
  readonly bias: Value | undefined;
  readonly epsilon: number;
  /** Take the mean off. */
  readonly centred: boolean;
  readonly width: number;
}

function normalize({ x, weight, bias, epsilon, centred, width }: Norm, node: NodeProto): Value {
  const data = floatData(x, node.opType);
  const w = floatData(weight, node.opType);
  const b = bias === undefined ? null : floatData(bias, node.opType);
  if (w.length !== width || (b !== null && b.length !== width)) throw fail(node, `weights of ${width}`, `${w.length}`);
  const out = floats(x.dims);
  for (let at = 0; at < data.length; at += width) {
    let mean = 0;
    if (centred) for (let i = 0; i < width; i++) mean += data[at + i] / width;
    let sum = 0;
    for (let i = 0; i < width; i++) sum += (data[at + i] - mean) ** 2;
    const factor = 1 / Math.sqrt(sum / width + epsilon);
    for (let i = 0; i < width; i++) out.data[at + i] = (data[at + i] - mean) * factor * w[i] + (b === null ? 0 : b[i]);
  }
  return out;
}

const norm = (centred: boolean): Operator => ({
  missing: (node) => (node.output.slice(1).some((name) => name !== "") ? "with outputs of mean and deviation" : undefined),
  run(inputs, node) {
    const x = need(inputs, 0, node);
    const axis = axisOf(attributeInt(node, "axis", -1), x.dims.length, node);
    const width = product(x.dims.slice(axis));
    const epsilon = attributeFloat(node, "epsilon", 1e-5);
    return normalize({ x, weight: need(inputs, 1, node), bias: inputs[2], epsilon, centred, width }, node);
  },
});

/** s = x + skip (+ bias); outputs its norm, and s as output 3. */
const skipNorm = (centred: boolean): Operator => ({
  missing: (node) => (node.output.slice(1, 3).some((name) => name !== "") ? "with outputs of mean and deviation" : undefined),
  run(inputs, node) {
    const x = need(inputs, 0, node);
    const a = floatData(x, node.opType);
    const skip = floatData(need(inputs, 1, node), node.opType);
    const width = x.dims.at(-1)!;
    if (a.length % Math.max(skip.length, 1) !== 0) throw fail(node, `a skip of [${x.dims.join(", ")}]`, `${skip.length} elements`);
    const added = inputs[centred ? 4 : 3];
    const bias = added === undefined ? null : floatData(added, node.opType);
    const sum = floats(x.dims);
    for (let i = 0; i < a.length; i++) sum.data[i] = a[i] + skip[i % skip.length] + (bias === null ? 0 : bias[i % width]);
    const epsilon = attributeFloat(node, "epsilon", centred ? 1e-12 : 1e-5);
    const init = { x: sum, weight: need(inputs, 2, node), bias: centred ? inputs[3] : undefined, epsilon, centred, width };
    return [normalize(init, node), undefined, undefined, sum];
  },
});

export const reduce: Operators = {
  ReduceSum: reduction(0, sumOf),
  ReduceMean: reduction(0, sumOf, { isMean: true }),
  ReduceMax: reduction(-Infinity, (a, x) => (Number.isNaN(x) || x > a ? x : a)),
  ReduceMin: reduction(Infinity, (a, x) => (Number.isNaN(x) || x < a ? x : a)),
  ReduceProd: reduction(1, (a, x) => (a as number) * (x as number)),
  ReduceL1: floatReduction(0, (a, x) => a + Math.abs(x)),
  ReduceL2: floatReduction(0, (a, x) => a + x * x, Math.sqrt),
  ReduceSumSquare: floatReduction(0, (a, x) => a + x * x),
  ReduceLogSum: floatReduction(0, (a, x) => a + x, Math.log),
  ReduceLogSumExp: logSumExp,
  // before opset 13 these are over flattened rows: compile/lower.ts writes that out
  Softmax: { run: (inputs, node) => softmax(inputs, node, false) },
  LogSoftmax: { run: (inputs, node) => softmax(inputs, node, true) },
  LayerNormalization: norm(true),
  SimplifiedLayerNormalization: norm(false),
  RMSNormalization: norm(false),
  "com.microsoft.SkipLayerNormalization": skipNorm(true),
  "com.microsoft.SkipSimplifiedLayerNormalization": skipNorm(false),
};

// Convolution and pooling on WGSL kernels.
import { CONV_FIELDS, convFilters, convName, convShader, POOL_FIELDS, poolShader } from "../../../kernels/wgsl/nn/window.ts";
import { binary, constant, unary } from "../../../kernels/wasm/nn/values.ts";
import { itemGroups } from "../../../kernels/wgsl/nn/shader.ts";
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import { outSize, windowShape, type Window } from "../ops/conv.ts";
import { product } from "../ops/operator.ts";
import { emitChain, isFull, type DeviceEmit } from "./emit.ts";
import { emitReduce } from "./moves.ts";
import { countOf } from "./recorder.ts";

/** Sizes of a window as words of its shader. Padding that is negative wraps, as offsets do. */
const windowWords = ({ size, kernel, strides, dilations, pads }: Window, sizes: readonly number[]): Record<string, number> =>
  Object.fromEntries(
    Object.entries({ i: size, k: kernel, s: strides, d: dilations, p: [pads[0][0], pads[1][0]], y: sizes }).flatMap(([name, [h, w]]) => [
      [`${name}h`, h],
      [`${name}w`, w],
    ]),
  );

const conv: DeviceEmit = (r, [x, w, bias], node) => {
  if (!isFull(x) || !isFull(w) || (bias !== undefined && !isFull(bias)) || x.dims.length !== w.dims.length) return undefined;
  const groups = attributeInt(node, "group", 1);
  const [[batch, channels], [outputs, depth]] = [x.dims, w.dims];
  // what is wrong is the loops' to say
  if (depth * groups !== channels || outputs % groups !== 0) return undefined;
  const window = windowShape(x, node, w.dims.slice(2));
  const sizes = outSize(window, node);
  const filters = outputs / groups;
  const spec = { filters: convFilters(filters), bias: bias !== undefined };
  const [from, weights, added] = [r.place(x), r.place(w), bias && r.place(bias)];
  const y = r.tensor([batch, outputs, ...sizes.slice(4 - x.dims.length)]);
  const count = batch * groups * Math.ceil(filters / spec.filters) * product(sizes);
  r.dispatch(
    { family: "conv", spec, name: convName(spec), code: () => convShader(spec) },
    {
      fields: CONV_FIELDS,
      params: { count, groups, depth, filters, ...windowWords(window, sizes), ox: from.offset, ow: weights.offset, ob: added?.offset ?? 0 },
      bound: { x: from, w: weights, ...(added && { bias: added }), y },
      groups: itemGroups(count),
    },
  );
  return [y];
};

const pool =
  (op: "max" | "average"): DeviceEmit =>
  (r, [x], node) => {
    if (!isFull(x)) return undefined;
    const window = windowShape(x, node, null);
    const sizes = outSize(window, node);
    const from = r.place(x);
    const y = r.tensor([...x.dims.slice(0, 2), ...sizes.slice(4 - x.dims.length)]);
    const padding = attributeInt(node, "count_include_pad", 0);
    r.dispatch(
      { family: "pool", spec: { op }, name: `f32_pool_${op}__wgsl`, code: () => poolShader(op) },
      {
        fields: POOL_FIELDS,
        params: { count: y.size, ...windowWords(window, sizes), padding, ox: from.offset },
        bound: { x: from, y },
        groups: itemGroups(y.size),
      },
    );
    return [y];
  };

const globalPool =
  (op: "max" | "mean"): DeviceEmit =>
  (r, [x]) =>
    isFull(x) && x.dims.length > 2
      ? [emitReduce(r, op, x, product(x.dims.slice(2)), 1, x.dims.map((d, i) => (i < 2 ? d : 1)))] // prettier-ignore
      : undefined;

/** BatchNormalization in inference: its four vectors have a number for each channel. */
const batchNorm: DeviceEmit = (r, [x, ...vectors], node) => {
  if (!isFull(x) || vectors.length !== 4 || x.dims.length < 2) return undefined;
  const dims = [x.dims[1], ...x.dims.slice(2).map(() => 1)];
  if (!vectors.every((v) => isFull(v) && countOf(v) === dims[0])) return undefined;
  const epsilon = constant(attributeFloat(node, "epsilon", 1e-5));
  const y = emitChain(
    r,
    ([v, scale, shift, mean, variance]) =>
      binary("add", binary("mul", binary("div", binary("sub", v, mean), unary("sqrt", binary("add", variance, epsilon))), scale), shift),
    [x, ...vectors.map((v) => ({ ...v!, dims }))],
  );
  return y && [y];
};

export const WINDOWS: readonly (readonly [string, DeviceEmit])[] = [
  ["Conv", conv],
  ["MaxPool", pool("max")],
  ["AveragePool", pool("average")],
  ["GlobalAveragePool", globalPool("mean")],
  ["GlobalMaxPool", globalPool("max")],
  ["BatchNormalization", batchNorm],
];

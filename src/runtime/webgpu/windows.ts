// Convolution and pooling on WGSL kernels.
import {
  convFields,
  convFilters,
  convName,
  convShader,
  type ConvShader,
  OUTSIDE,
  POOL_FIELDS,
  poolShader,
  RESAMPLE_FIELDS,
  resampleShader,
} from "../../../kernels/wgsl/nn/window.ts";
import { binary, constant, unary } from "../../../kernels/wasm/nn/values.ts";
import { chainKey } from "../../../kernels/wgsl/nn/chain.ts";
import { itemGroups } from "../../../kernels/wgsl/nn/shader.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import { outSize, windowShape, type Window } from "../ops/conv.ts";
import { padding, transposedWindow } from "../ops/images.ts";
import { product, text } from "../ops/operator.ts";
import { resizing, type Taps } from "../ops/resize.ts";
import { emitChain, isFull, isMovable, type DeviceEmit } from "./emit.ts";
import { emitReduce, hollowInputs, isPlain } from "./moves.ts";
import { countOf, type After, type Held, type Recorder, type Tensor } from "./recorder.ts";

/** Sizes of a window as words of its shader. Padding that is negative wraps, as offsets do. */
const windowWords = ({ size, kernel, strides, dilations, pads }: Window, sizes: readonly number[]): Record<string, number> =>
  Object.fromEntries(
    Object.entries({ i: size, k: kernel, s: strides, d: dilations, p: [pads[0][0], pads[1][0]], y: sizes }).flatMap(([name, [h, w]]) => [
      [`${name}h`, h],
      [`${name}w`, w],
    ]),
  );

interface ConvOf {
  readonly window: Window;
  readonly sizes: readonly number[];
  readonly groups: number;
  /** Channels of a group, and its filters. */
  readonly depth: number;
  readonly filters: number;
  /** Offsets, and strides of what is one for all or one for each filter. */
  readonly offsets: Readonly<Record<string, number>>;
  readonly bound: Readonly<Record<string, Tensor>>;
}

/** Records the sums of a convolution, with a chain behind them. */
export function emitConv(r: Recorder, spec: ConvShader, of: ConvOf, after?: After): void {
  const { window, sizes, groups, depth, filters, offsets, bound } = of;
  const whole = { ...spec, ...(after && { after: { spec: after.spec, own: after.own } }) };
  const count = window.batch * groups * Math.ceil(filters / spec.filters) * product(sizes);
  r.dispatch(
    {
      family: "conv",
      spec: { ...spec, ...(after && { after: [chainKey(after.spec), after.own] }) },
      name: convName(whole),
      code: () => convShader(whole),
    },
    {
      fields: convFields(whole),
      params: { ...after?.params, count, groups, depth, filters, ...windowWords(window, sizes), ...offsets },
      bound: { ...bound, ...after?.bound },
      groups: itemGroups(count),
    },
  );
}

/** Offsets and strides that sums of floats have not, and a bias for each filter. */
const PLAIN = { oz: 0, oa: 0, sa: 0, sb: 1 };

const convWindow = (x: Held, w: Held, node: NodeProto): { readonly window: Window; readonly output: readonly number[] } => {
  const window = windowShape(x, node, w.dims.slice(2));
  return { window, output: outSize(window, node) };
};

/** Conv, or its transpose. */
const conv =
  (transposed: boolean): DeviceEmit =>
  (r, [x, w, bias], node) => {
    if (!isFull(x) || !isFull(w) || (bias !== undefined && !isFull(bias)) || x.dims.length !== w.dims.length) return undefined;
    const groups = attributeInt(node, "group", 1);
    const [batch, channels] = x.dims;
    const depth = channels / groups;
    const [outputs, inner] = transposed ? [w.dims[1] * groups, w.dims[0] / groups] : w.dims;
    // what is wrong is the loops' to say
    if (inner !== depth || outputs % groups !== 0) return undefined;
    const { window, output: sizes } = transposed ? transposedWindow(x, w, node) : convWindow(x, w, node);
    const filters = outputs / groups;
    const spec = { filters: convFilters(filters), bias: bias !== undefined, transposed };
    const [from, weights, added] = [r.place(x), r.place(w), bias && r.place(bias)];
    const y = r.tensor([batch, outputs, ...sizes.slice(4 - x.dims.length)]);
    const offsets = { ...PLAIN, ox: from.offset, ow: weights.offset, ob: added?.offset ?? 0 };
    const bound = { x: from, w: weights, ...(added && { bias: added }), y };
    const record = (after?: After): void => emitConv(r, spec, { window, sizes, groups, depth, filters, offsets, bound }, after);
    record();
    r.made(y, record);
    return [y];
  };

const pool =
  (op: "max" | "average"): DeviceEmit =>
  (r, [x], node) => {
    if (!isMovable(x) || (op !== "max" && !isFull(x))) return undefined;
    const window = windowShape(x, node, null);
    const sizes = outSize(window, node);
    const from = r.place(x);
    const y = r.tensor([...x.dims.slice(0, 2), ...sizes.slice(4 - x.dims.length)], from.type);
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

/** An axis of x by the taps of each of its places; null: `outside`. */
function resample(r: Recorder, x: Tensor, axis: number, places: readonly (Taps | null)[], outside: number): Tensor {
  const taps = Math.max(...places.map((place) => place?.at.length ?? 1));
  const table = new Uint32Array(2 * taps * places.length);
  const weights = new Float32Array(table.buffer);
  places.forEach((place, i) => {
    for (let t = 0; t < taps; t++) {
      const at = 2 * (i * taps + t);
      table[at] = place === null ? OUTSIDE : (place.at[t] ?? 0);
      if (place !== null) weights[at + 1] = place.weights[t] ?? 0;
    }
  });
  const y = r.tensor(x.dims.with(axis, places.length), x.type);
  r.dispatch(
    { family: "resample", spec: {}, name: "f32_resample__wgsl", code: resampleShader },
    {
      fields: RESAMPLE_FIELDS,
      params: {
        count: y.size,
        before: x.dims[axis],
        after: places.length,
        inner: product(x.dims.slice(axis + 1)),
        taps,
        ox: x.offset,
        outside,
      },
      bound: { x, table: r.upload(table, [table.length]), y },
      groups: itemGroups(y.size),
    },
  );
  return y;
}

/** One axis after the other. */
function resampled(
  r: Recorder,
  x: Held,
  steps: readonly { axis: number; taps: readonly (Taps | null)[] }[],
  outside: number,
): Tensor[] | undefined {
  if (steps.length === 0 || steps.some(({ taps }) => taps.length === 0)) return undefined;
  const whole = r.place(x);
  return [
    steps.reduce((of, { axis, taps }) => {
      const y = resample(r, of, axis, taps, outside);
      if (of !== whole) r.free(of);
      return y;
    }, whole),
  ];
}

const resize: DeviceEmit = (r, inputs, node) => {
  const [x] = inputs;
  if (!isMovable(x) || !isPlain(inputs) || (!isFull(x) && text(node, "mode", "nearest") !== "nearest")) return undefined;
  return resampled(r, x, resizing(x, hollowInputs(inputs), node), attributeFloat(node, "extrapolation_value", 0));
};

const pad: DeviceEmit = (r, inputs, node) => {
  const [x] = inputs;
  if (!isFull(x) || !isPlain(inputs)) return undefined;
  const { value, places } = padding(x, hollowInputs(inputs), node);
  const steps = places.flatMap((row, axis) =>
    row.length === x.dims[axis] && row.every((at, i) => at === i)
      ? []
      : [{ axis, taps: row.map((at): Taps | null => (at < 0 ? null : { at: [at], weights: [1] })) }],
  );
  return resampled(r, x, steps, Number(value));
};

export const WINDOWS: readonly (readonly [string, DeviceEmit])[] = [
  ["Conv", conv(false)],
  ["ConvTranspose", conv(true)],
  ["Resize", resize],
  ["Upsample", resize],
  ["Pad", pad],
  ["MaxPool", pool("max")],
  ["AveragePool", pool("average")],
  ["GlobalAveragePool", globalPool("mean")],
  ["GlobalMaxPool", globalPool("max")],
  ["BatchNormalization", batchNorm],
];

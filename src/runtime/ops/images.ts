// What convolutional networks have beside convolution: batch and instance norms, transposed convolution, padding, and
// what moves channels into space. Loops.
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import { contiguous } from "../../onnx/graph/views.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { Value } from "../value.ts";
import { empty, floatData, floats, integers, sizeOf } from "../value.ts";
import { windowShape, type Window } from "./conv.ts";
import type { Inputs, Operators } from "./operator.ts";
import { axisOf, fail, ints, need, product, text } from "./operator.ts";

type Shaped = Pick<Value, "dims">;

/** y = a[c] * x + b[c] over the planes of [N, C, ...]. */
function byChannel(x: Value, a: ArrayLike<number>, b: ArrayLike<number>): Value {
  const out = floats(x.dims);
  const from = x.data as Float32Array;
  const channels = x.dims[1] ?? 1;
  const plane = product(x.dims.slice(2));
  for (let p = 0, at = 0; at < from.length; p++) {
    const [scale, shift] = [a[p % channels], b[p % channels]];
    for (const end = at + plane; at < end; at++) out.data[at] = scale * from[at] + shift;
  }
  return out;
}

/** Scales and shifts of a batch norm in inference. */
export function batchFactors(inputs: Inputs, node: NodeProto): { readonly scale: Float32Array; readonly shift: Float32Array } {
  const [gamma, beta, mean, variance] = [1, 2, 3, 4].map((i) => floatData(need(inputs, i, node), node.opType));
  const epsilon = attributeFloat(node, "epsilon", 1e-5);
  const scale = gamma.map((g, c) => g / Math.sqrt(variance[c] + epsilon));
  return { scale, shift: beta.map((b, c) => b - mean[c] * scale[c]) };
}

function batchNorm(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  floatData(x, node.opType);
  const { scale, shift } = batchFactors(inputs, node);
  if (scale.length !== (x.dims[1] ?? 1)) throw fail(node, `${scale.length} channels`, `[${x.dims.join(", ")}]`);
  return byChannel(x, scale, shift);
}

/** Rows of `size` values with mean 0 and deviation 1, in place. */
function standardize(data: Float32Array, size: number, epsilon: number): void {
  for (let at = 0; at < data.length; at += size) {
    let sum = 0;
    for (let i = 0; i < size; i++) sum += data[at + i];
    const mean = sum / size;
    let square = 0;
    for (let i = 0; i < size; i++) square += (data[at + i] - mean) ** 2;
    const factor = 1 / Math.sqrt(square / size + epsilon);
    for (let i = 0; i < size; i++) data[at + i] = (data[at + i] - mean) * factor;
  }
}

function instanceNorm(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const data = floatData(x, node.opType).slice();
  const [scale, bias] = [1, 2].map((i) => floatData(need(inputs, i, node), node.opType));
  if (scale.length !== x.dims[1]) throw fail(node, `${scale.length} channels`, `[${x.dims.join(", ")}]`);
  standardize(data, product(x.dims.slice(2)), attributeFloat(node, "epsilon", 1e-5));
  return byChannel({ ...x, data }, scale, bias);
}

/** Norms of groups of channels; scale and bias by channel (opset 21) or by group (18). */
function groupNorm(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const data = floatData(x, node.opType).slice();
  const groups = attributeInt(node, "num_groups", 1);
  const channels = x.dims[1];
  if (channels % groups !== 0) throw fail(node, `channels in ${groups} groups`, `[${x.dims.join(", ")}]`);
  standardize(data, (channels / groups) * product(x.dims.slice(2)), attributeFloat(node, "epsilon", 1e-5));
  const [scale, bias] = [1, 2].map((i) => {
    const given = floatData(need(inputs, i, node), node.opType);
    if (given.length === channels) return given;
    if (given.length !== groups) throw fail(node, `${channels} or ${groups} scales`, String(given.length));
    return Float32Array.from({ length: channels }, (_, c) => given[Math.floor(c / (channels / groups))]);
  });
  return byChannel({ ...x, data }, scale, bias);
}

/** Padding before and after each axis of a transposed convolution, and its output sizes. */
function spread(x: Shaped, weight: Shaped, node: NodeProto): { readonly sizes: number[]; readonly before: number[] } {
  const spatial = x.dims.slice(2);
  const rank = spatial.length;
  const kernel = weight.dims.slice(2);
  const list = (name: string, other: number): number[] => ints(node, name) ?? new Array<number>(rank).fill(other);
  const [strides, dilations, extra] = [list("strides", 1), list("dilations", 1), list("output_padding", 0)];
  const pads = ints(node, "pads") ?? new Array<number>(2 * rank).fill(0);
  const auto = text(node, "auto_pad", "NOTSET");
  const wanted = ints(node, "output_shape")?.slice(-rank);
  const whole = spatial.map((d, i) => strides[i] * (d - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1);
  if (wanted === undefined && !auto.startsWith("SAME"))
    return {
      sizes: whole.map((d, i) => d - (auto === "VALID" ? 0 : pads[i] + pads[rank + i])),
      before: auto === "VALID" ? pads.map(() => 0) : pads,
    };
  const sizes = wanted ?? spatial.map((d, i) => d * strides[i]);
  const before = whole.map((d, i) => {
    const total = Math.max(0, d - sizes[i]);
    return auto === "SAME_UPPER" ? Math.floor(total / 2) : total - Math.floor(total / 2);
  });
  return { sizes, before };
}

/**
 * The window of a transposed convolution, its padding taken from the result; height and width of that.
 * @throws LowbitError E_SHAPE
 */
export function transposedWindow(
  x: Shaped,
  weight: Shaped,
  node: NodeProto,
): { readonly window: Window; readonly output: [number, number] } {
  const groups = attributeInt(node, "group", 1);
  const channels = x.dims[1];
  if (
    x.dims.length < 3 ||
    x.dims.length > 4 ||
    weight.dims.length !== x.dims.length ||
    weight.dims[0] !== channels ||
    channels % groups !== 0
  )
    throw fail(node, "an image [N, C, ...] and filters for it", `[${x.dims.join(", ")}] and [${weight.dims.join(", ")}]`);
  const window = windowShape(x, node, weight.dims.slice(2));
  const { sizes, before } = spread(x, weight, node);
  if (sizes.some((d) => d < 1)) throw fail(node, "an output with elements", `[${sizes.join(", ")}]`);
  const flat = sizes.length === 1;
  const [top, left] = flat ? [0, before[0]] : before;
  return { window: { ...window, pads: [[top, 0], [left, 0]] }, output: flat ? [1, sizes[0]] : [sizes[0], sizes[1]] }; // prettier-ignore
}

function convTranspose(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const weight = need(inputs, 1, node);
  const { window, output } = transposedWindow(x, weight, node);
  const { strides, dilations, size, kernel, pads } = window;
  const [oh, ow] = output;
  const [top, left] = [pads[0][0], pads[1][0]];
  const groups = attributeInt(node, "group", 1);
  const [batch, channels] = x.dims;
  const filters = weight.dims[1];
  const [data, w] = [floatData(x, node.opType), floatData(weight, node.opType)];
  const bias = inputs[2] === undefined ? null : floatData(inputs[2], node.opType);
  const out = floats([batch, filters * groups, ...output.slice(4 - x.dims.length)]);
  const sum = new Float64Array(oh * ow);
  const [plane, taps] = [size[0] * size[1], kernel[0] * kernel[1]];
  for (let b = 0; b < batch; b++)
    for (let f = 0; f < filters * groups; f++) {
      sum.fill(bias === null ? 0 : bias[f]);
      const group = Math.floor(f / filters);
      for (let c = (group * channels) / groups; c < ((group + 1) * channels) / groups; c++)
        for (let tap = 0; tap < taps; tap++) {
          const v = w[(c * filters + (f % filters)) * taps + tap];
          const dy = Math.floor(tap / kernel[1]) * dilations[0] - top;
          const dx = (tap % kernel[1]) * dilations[1] - left;
          for (let iy = 0; iy < size[0]; iy++) {
            const y = iy * strides[0] + dy;
            if (y < 0 || y >= oh) continue;
            const from = (b * channels + c) * plane + iy * size[1];
            for (let ix = 0; ix < size[1]; ix++) {
              const column = ix * strides[1] + dx;
              if (column >= 0 && column < ow) sum[y * ow + column] += v * data[from + ix];
            }
          }
        }
      out.data.set(sum, (b * filters * groups + f) * oh * ow);
    }
  return out;
}

/** Where the padded element at `i` (counted from the first real one) comes from; -1 for the constant. */
const SOURCES: ReadonlyMap<string, (i: number, d: number) => number> = new Map([
  ["constant", (i, d) => (i < 0 || i >= d ? -1 : i)],
  ["edge", (i, d) => Math.min(Math.max(i, 0), d - 1)],
  [
    "reflect",
    (i, d) => {
      if (d === 1) return 0;
      const round = 2 * (d - 1);
      const at = ((i % round) + round) % round;
      return at < d ? at : round - at;
    },
  ],
  ["wrap", (i, d) => ((i % d) + d) % d],
]);

/** Where elements along each axis of the padded value come from: -1 for the constant. @throws LowbitError E_SHAPE */
export function padding(x: Shaped, inputs: Inputs, node: NodeProto): { readonly value: number | bigint; readonly places: number[][] } {
  const rank = x.dims.length;
  const given = inputs[1] === undefined ? (ints(node, "pads") ?? []) : integers(inputs[1]);
  const axes = inputs[3] === undefined ? x.dims.map((_, i) => i) : integers(inputs[3]).map((a) => axisOf(a, rank, node));
  if (given.length !== 2 * axes.length) throw fail(node, `${2 * axes.length} pads`, `[${given.join(", ")}]`);
  const value = inputs[2] === undefined || inputs[2].data.length === 0 ? attributeFloat(node, "value", 0) : inputs[2].data[0];
  const source = SOURCES.get(text(node, "mode", "constant"))!;
  const before = new Array<number>(rank).fill(0);
  const dims = [...x.dims];
  axes.forEach((axis, i) => {
    before[axis] = given[i];
    dims[axis] += given[i] + given[axes.length + i];
  });
  sizeOf(dims, node.opType);
  if (product(x.dims) === 0 && text(node, "mode", "constant") !== "constant")
    throw fail(node, "values to pad with", `[${x.dims.join(", ")}]`);
  return { value, places: dims.map((d, axis) => Array.from({ length: d }, (_, i) => source(i - before[axis], x.dims[axis]))) };
}

function pad(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const rank = x.dims.length;
  const { value, places: rows } = padding(x, inputs, node);
  const dims = rows.map(({ length }) => length);
  const out = empty(x.type, dims);
  if (Number(value) !== 0)
    (out.data as unknown as { fill(v: number | bigint): void }).fill(x.data instanceof BigInt64Array ? BigInt(value) : value);
  // places along each axis, in elements of x
  const { strides } = contiguous(x.dims);
  const places = rows.map((row, axis) => Int32Array.from(row, (at) => (at < 0 ? -1 : at * strides[axis])));
  const position = dims.map(() => 0);
  for (let i = 0; i < out.data.length; i++) {
    let at = 0;
    for (let axis = 0; axis < rank; axis++) {
      const place = places[axis][position[axis]];
      if (place < 0) {
        at = -1;
        break;
      }
      at += place;
    }
    if (at >= 0) out.data[i] = x.data[at];
    for (let axis = rank - 1; axis >= 0; axis--) {
      if (++position[axis] < dims[axis]) break;
      position[axis] = 0;
    }
  }
  return out;
}

/** Blocks of space out of channels (`deep` false) or into them. */
const blocks =
  (toSpace: boolean) =>
  (inputs: Inputs, node: NodeProto): Value => {
    const x = need(inputs, 0, node);
    const s = attributeInt(node, "blocksize", 1);
    const [n, c, h, w] = x.dims;
    const fits = toSpace ? c % (s * s) === 0 : h % s === 0 && w % s === 0;
    if (x.dims.length !== 4 || s < 1 || !fits) throw fail(node, `an image [N, C, H, W] in blocks of ${s}`, `[${x.dims.join(", ")}]`);
    const [small, wide] = toSpace ? [c / (s * s), [h * s, w * s]] : [c, [h, w]];
    const out = empty(x.type, toSpace ? [n, small, h * s, w * s] : [n, c * s * s, h / s, w / s]);
    const crd = text(node, "mode", "DCR") === "CRD";
    const [by, bx] = [wide[0] / s, wide[1] / s];
    for (let b = 0; b < n; b++)
      for (let k = 0; k < small; k++)
        for (let y = 0; y < wide[0]; y++)
          for (let column = 0; column < wide[1]; column++) {
            const inner = (y % s) * s + (column % s);
            const channel = crd ? k * s * s + inner : inner * small + k;
            const deep = ((b * small * s * s + channel) * by + Math.floor(y / s)) * bx + Math.floor(column / s);
            const flat = ((b * small + k) * wide[0] + y) * wide[1] + column;
            out.data[toSpace ? flat : deep] = x.data[toSpace ? deep : flat];
          }
    return out;
  };

function globalMax(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const data = floatData(x, node.opType);
  const out = floats([x.dims[0], x.dims[1], ...x.dims.slice(2).map(() => 1)]);
  const plane = data.length / out.data.length;
  for (let i = 0; i < out.data.length; i++) {
    let top = -Infinity;
    for (let j = 0; j < plane; j++) top = Math.max(top, data[i * plane + j]);
    out.data[i] = top;
  }
  return out;
}

export const imageLayers: Operators = {
  BatchNormalization: {
    run: batchNorm,
    missing: (node) =>
      attributeInt(node, "training_mode", 0) !== 0 || node.output.slice(1).some((name) => name !== "") ? "in training" : undefined,
  },
  InstanceNormalization: { run: instanceNorm },
  GroupNormalization: { run: groupNorm },
  ConvTranspose: {
    run: convTranspose,
    missing: (node) => ((ints(node, "kernel_shape") ?? []).length > 2 ? "in three dimensions" : undefined),
  },
  Pad: { run: pad, missing: (node) => (SOURCES.has(text(node, "mode", "constant")) ? undefined : `in mode ${text(node, "mode", "")}`) },
  DepthToSpace: { run: blocks(true) },
  SpaceToDepth: { run: blocks(false) },
  GlobalMaxPool: { run: globalMax },
};

// Convolution and pooling in one and two dimensions, plain loops.
import { attributeInt } from "../../onnx/graph/nodes.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { NumberArray, Value } from "../value.ts";
import { empty, floatData, floats } from "../value.ts";
import type { Inputs, Operators } from "./operator.ts";
import { fail, ints, need, text } from "./operator.ts";

/** A window over an image of two dimensions; one of one dimension has a height of 1. */
export interface Window {
  readonly batch: number;
  readonly channels: number;
  /** Of the image. */
  readonly size: readonly [number, number];
  readonly kernel: readonly [number, number];
  readonly strides: readonly [number, number];
  readonly dilations: readonly [number, number];
  /** Before and after, by dimension. */
  readonly pads: readonly [readonly [number, number], readonly [number, number]];
}

/**
 * The window of a Conv or pooling node over x [N, C, W] or [N, C, H, W]. `kernel`: null for that of the attribute.
 * @throws LowbitError E_SHAPE
 */
export function windowShape(x: Pick<Value, "dims">, node: NodeProto, kernel: readonly number[] | null): Window {
  const spatial = x.dims.slice(2);
  const rank = spatial.length;
  const sizes = kernel ?? ints(node, "kernel_shape") ?? [];
  if (rank < 1 || rank > 2 || sizes.length !== rank)
    throw fail(node, "an image [N, C, W] or [N, C, H, W] and a window of its rank", `[${x.dims.join(", ")}]`);
  const given = (name: string, other: number): number[] => ints(node, name) ?? new Array<number>(rank).fill(other);
  const [strides, dilations] = [given("strides", 1), given("dilations", 1)];
  const auto = text(node, "auto_pad", "NOTSET");
  const flat = auto === "NOTSET" ? (ints(node, "pads") ?? new Array<number>(2 * rank).fill(0)) : new Array<number>(2 * rank).fill(0);
  if (auto.startsWith("SAME"))
    spatial.forEach((d, i) => {
      const total = Math.max(0, (Math.ceil(d / strides[i]) - 1) * strides[i] + dilations[i] * (sizes[i] - 1) + 1 - d);
      const less = Math.floor(total / 2);
      [flat[i], flat[rank + i]] = auto === "SAME_UPPER" ? [less, total - less] : [total - less, less];
    });
  const pair = (list: readonly number[], other: number): [number, number] => (rank === 1 ? [other, list[0]] : [list[0], list[1]]);
  const pads = spatial.map((_, i): [number, number] => [flat[i], flat[rank + i]]);
  if ([...strides, ...dilations].some((v) => v < 1))
    throw fail(node, "strides and dilations from 1", `${strides.join(", ")} and ${dilations.join(", ")}`);
  return {
    batch: x.dims[0],
    channels: x.dims[1],
    size: pair(spatial, 1),
    kernel: pair(sizes, 1),
    strides: pair(strides, 1),
    dilations: pair(dilations, 1),
    pads: rank === 1 ? [[0, 0], pads[0]] : [pads[0], pads[1]],
  };
}

/** Height and width of the result. @throws LowbitError E_SHAPE */
export function outSize({ size, kernel, strides, dilations, pads }: Window, node: NodeProto): [number, number] {
  const along = (a: number): number => {
    const reach = size[a] + pads[a][0] + pads[a][1] - dilations[a] * (kernel[a] - 1) - 1;
    if (reach < 0) throw fail(node, "an image at least as large as the window", `[${size.join(", ")}]`);
    return Math.floor(reach / strides[a]) + 1;
  };
  return [along(0), along(1)];
}

/** Calls `visit` with the place in the image of every tap of the window at output (oy, ox). */
function taps(w: Window, at: readonly [number, number], visit: (image: number, tap: number) => void): void {
  const [height, width] = w.size;
  for (let ky = 0; ky < w.kernel[0]; ky++) {
    const y = at[0] * w.strides[0] - w.pads[0][0] + ky * w.dilations[0];
    if (y < 0 || y >= height) continue;
    for (let kx = 0; kx < w.kernel[1]; kx++) {
      const column = at[1] * w.strides[1] - w.pads[1][0] + kx * w.dilations[1];
      if (column >= 0 && column < width) visit(y * width + column, ky * w.kernel[1] + kx);
    }
  }
}

export function conv(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const weight = need(inputs, 1, node);
  const group = attributeInt(node, "group", 1);
  const [n, channels] = x.dims;
  const [filters, depth] = weight.dims;
  if (x.dims.length !== weight.dims.length || depth * group !== channels || filters % group !== 0)
    throw fail(node, "an image [N, C, ...] and filters for it", `[${x.dims.join(", ")}] and [${weight.dims.join(", ")}]`);
  const window = windowShape(x, node, weight.dims.slice(2));
  const [kh, kw] = window.kernel;
  const [height, width] = window.size;
  const [oh, ow] = outSize(window, node);
  const data = floatData(x, "Conv");
  const w = floatData(weight, "Conv");
  const bias = inputs[2] === undefined ? null : floatData(inputs[2], "Conv");
  const out = floats([n, filters, ...(x.dims.length === 3 ? [ow] : [oh, ow])]);
  const plane = height * width;
  let at = 0;
  for (let b = 0; b < n; b++)
    for (let f = 0; f < filters; f++) {
      const first = Math.floor(f / (filters / group)) * depth;
      for (let oy = 0; oy < oh; oy++)
        for (let ox = 0; ox < ow; ox++) {
          let sum = bias === null ? 0 : bias[f];
          taps(window, [oy, ox], (image, tap) => {
            for (let c = 0; c < depth; c++) sum += data[(b * channels + first + c) * plane + image] * w[(f * depth + c) * kh * kw + tap];
          });
          out.data[at++] = sum;
        }
    }
  return out;
}

const pool = (average: boolean) => (inputs: Inputs, node: NodeProto) => {
  const x = need(inputs, 0, node);
  // a maximum is one of the codes too
  const isCodes = !average && (x.type === "int8" || x.type === "uint8");
  const data = isCodes ? (x.data as NumberArray) : floatData(x, node.opType);
  const window = windowShape(x, node, null);
  const [oh, ow] = outSize(window, node);
  const padded = attributeInt(node, "count_include_pad", 0) !== 0;
  const [n, channels] = x.dims;
  const [height, width] = window.size;
  const out = empty(isCodes ? x.type : "float32", [n, channels, ...(x.dims.length === 3 ? [ow] : [oh, ow])]);
  let at = 0;
  for (let p = 0; p < n * channels; p++)
    for (let oy = 0; oy < oh; oy++)
      for (let ox = 0; ox < ow; ox++) {
        let sum = average ? 0 : -Infinity;
        let count = 0;
        taps(window, [oy, ox], (image) => {
          const v = data[p * height * width + image];
          sum = average ? sum + v : Math.max(sum, v);
          count++;
        });
        out.data[at++] = average ? sum / (padded ? window.kernel[0] * window.kernel[1] : count) : sum;
      }
  return out;
};

export const plain = (node: NodeProto): string | undefined => {
  if (attributeInt(node, "ceil_mode", 0) !== 0) return "with ceil_mode";
  if ((ints(node, "kernel_shape") ?? [1, 1]).length > 2) return "in three dimensions";
  return node.output.length > 1 ? "with indices" : undefined;
};

const globalAverage = (inputs: Inputs, node: NodeProto): Value => {
  const x = need(inputs, 0, node);
  const data = floatData(x, node.opType);
  const out = floats([x.dims[0], x.dims[1], ...x.dims.slice(2).map(() => 1)]);
  const plane = data.length / out.data.length;
  for (let i = 0; i < out.data.length; i++) {
    let sum = 0;
    for (let j = 0; j < plane; j++) sum += data[i * plane + j];
    out.data[i] = sum / plane;
  }
  return out;
};

export const images: Operators = {
  Conv: { run: conv, missing: plain },
  MaxPool: { run: pool(false), missing: plain },
  AveragePool: { run: pool(true), missing: plain },
  GlobalAveragePool: { run: globalAverage },
};

// Convolution and pooling in two dimensions, plain loops.
import { attributeInt } from "../../onnx/graph/nodes.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { Value } from "../value.ts";
import { floatData, floats } from "../value.ts";
import type { Inputs, Operators } from "./operator.ts";
import { fail, ints, need, text } from "./operator.ts";

interface Window {
  readonly kernel: readonly number[];
  readonly strides: readonly number[];
  readonly dilations: readonly number[];
  readonly pads: readonly number[];
}

const windowOf = (node: NodeProto, kernel: readonly number[]): Window => ({
  kernel,
  strides: ints(node, "strides") ?? [1, 1],
  dilations: ints(node, "dilations") ?? [1, 1],
  pads: ints(node, "pads") ?? [0, 0, 0, 0],
});

function outSize(x: Value, { kernel, strides, dilations, pads }: Window, node: NodeProto): number[] {
  return [0, 1].map((a) => {
    const reach = x.dims[2 + a] + pads[a] + pads[2 + a] - dilations[a] * (kernel[a] - 1) - 1;
    if (reach < 0) throw fail(node, "an image at least as large as the window", `[${x.dims.join(", ")}]`);
    return Math.floor(reach / strides[a]) + 1;
  });
}

/** Calls `visit` with the place in the image of every tap of the window at output (oy, ox). */
function taps(x: Value, w: Window, at: readonly [number, number], visit: (image: number, tap: number) => void): void {
  const [height, width] = x.dims.slice(2);
  for (let ky = 0; ky < w.kernel[0]; ky++) {
    const y = at[0] * w.strides[0] - w.pads[0] + ky * w.dilations[0];
    if (y < 0 || y >= height) continue;
    for (let kx = 0; kx < w.kernel[1]; kx++) {
      const column = at[1] * w.strides[1] - w.pads[1] + kx * w.dilations[1];
      if (column >= 0 && column < width) visit(y * width + column, ky * w.kernel[1] + kx);
    }
  }
}

export function conv(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const weight = need(inputs, 1, node);
  const group = attributeInt(node, "group", 1);
  const [n, channels, height, width] = x.dims;
  const [filters, depth, kh, kw] = weight.dims;
  if (x.dims.length !== 4 || weight.dims.length !== 4 || depth * group !== channels || filters % group !== 0)
    throw fail(node, "an image [N, C, H, W] and filters for it", `[${x.dims.join(", ")}] and [${weight.dims.join(", ")}]`);
  const window = windowOf(node, [kh, kw]);
  const [oh, ow] = outSize(x, window, node);
  const data = floatData(x, "Conv");
  const w = floatData(weight, "Conv");
  const bias = inputs[2] === undefined ? null : floatData(inputs[2], "Conv");
  const out = floats([n, filters, oh, ow]);
  const plane = height * width;
  let at = 0;
  for (let b = 0; b < n; b++)
    for (let f = 0; f < filters; f++) {
      const first = Math.floor(f / (filters / group)) * depth;
      for (let oy = 0; oy < oh; oy++)
        for (let ox = 0; ox < ow; ox++) {
          let sum = bias === null ? 0 : bias[f];
          taps(x, window, [oy, ox], (image, tap) => {
            for (let c = 0; c < depth; c++) sum += data[(b * channels + first + c) * plane + image] * w[(f * depth + c) * kh * kw + tap];
          });
          out.data[at++] = sum;
        }
    }
  return out;
}

const pool = (average: boolean) => (inputs: Inputs, node: NodeProto) => {
  const x = need(inputs, 0, node);
  if (x.dims.length !== 4) throw fail(node, "an image [N, C, H, W]", `[${x.dims.join(", ")}]`);
  const data = floatData(x, node.opType);
  const window = windowOf(node, ints(node, "kernel_shape") ?? [1, 1]);
  const [oh, ow] = outSize(x, window, node);
  const padded = attributeInt(node, "count_include_pad", 0) !== 0;
  const [n, channels, height, width] = x.dims;
  const out = floats([n, channels, oh, ow]);
  let at = 0;
  for (let p = 0; p < n * channels; p++)
    for (let oy = 0; oy < oh; oy++)
      for (let ox = 0; ox < ow; ox++) {
        let sum = average ? 0 : -Infinity;
        let count = 0;
        taps(x, window, [oy, ox], (image) => {
          const v = data[p * height * width + image];
          sum = average ? sum + v : Math.max(sum, v);
          count++;
        });
        out.data[at++] = average ? sum / (padded ? window.kernel[0] * window.kernel[1] : count) : sum;
      }
  return out;
};

export const plain = (node: NodeProto): string | undefined => {
  if (!["NOTSET", "VALID"].includes(text(node, "auto_pad", "NOTSET"))) return "with auto_pad";
  if (attributeInt(node, "ceil_mode", 0) !== 0) return "with ceil_mode";
  if ((ints(node, "kernel_shape") ?? [1, 1]).length !== 2) return "in other than two dimensions";
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

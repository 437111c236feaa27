// packedConv2d: a 2-D convolution of a tfjs tensor by a packed filter, channels last, as a kernel of tfjs with a
// gradient to x. On the cpu and wasm backends our integer kernels compute, reading x and writing y where the backend
// keeps them; on others the filter is decoded and the backend convolves.
import * as tf from "@tensorflow/tfjs-core";
import { LowbitError } from "../../formats/core/errors.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import { prepareConv2d, type Conv2dLayer } from "../tensor/conv2d.ts";
import { inPlace, registered } from "./kernels.ts";
import { backend as ownBackend, checkWeight, keptOf, panels } from "./weights.ts";

/** Steps and padding of a convolution by packed filters in TensorFlow.js. */
export interface PackedConv2dOptions {
  /** Default 1. */
  strides?: number | [number, number];
  /** Default "valid". */
  pad?: "valid" | "same" | number;
  /** Default 1. Gradients need 1, as in tfjs. */
  dilations?: number | [number, number];
  /**
   * How x enters the products on tfjs's cpu and wasm backends. "uint8" (default): codes of its range, each off by at
   * most range / 510, exact sums. "float32": as it is; the filter is decoded and the backend convolves, as on others.
   */
  activations?: "uint8" | "float32";
}

interface Attributes {
  readonly w: PackedTensor;
  readonly strides: [number, number];
  readonly pad: "valid" | "same" | number;
  readonly dilations: [number, number];
  readonly activations: "uint8" | "float32";
}

type Sizes = [number, number, number, number];

/** The filter as tfjs has it: [height, width, in, out]. */
function filterTensor(w: PackedTensor): tf.Tensor4D {
  return tf.tidy(() => {
    const parts: tf.Tensor2D[] = [];
    panels(w, (_, count, values) => parts.push(tf.tensor2d(values.slice(), [count, w.k])));
    const rows = parts.length === 1 ? parts[0] : tf.concat(parts, 0);
    return tf.transpose(tf.reshape(rows, w.shape as Sizes), [1, 2, 3, 0]);
  });
}

const layerOf = ({ w, strides, dilations, pad }: Attributes): Conv2dLayer =>
  keptOf(w, `conv2d ${JSON.stringify([strides, dilations, pad])}`, () =>
    prepareConv2d(w, { strides, dilations, pads: pad, layout: "nhwc", backend: ownBackend() }),
  );

const NAME = "LowbitConv2D";
const ensure = registered(NAME, {
  save: ["x"],
  forward({ inputs, attrs, backend }) {
    const a = attrs as unknown as Attributes;
    const x = inputs.x as tf.Tensor4D;
    const place = a.activations === "uint8" ? inPlace(backend) : null;
    if (place === null) return tf.tidy(() => tf.conv2d(x, filterTensor(a.w), a.strides, a.pad, "NHWC", a.dilations));
    const layer = layerOf(a);
    // the output first: making it may move the backend's memory
    return place.make(layer.outputShape(x.shape), (out) => void layer.run(place.read(x), x.shape, out));
  },
  gradient(dy, [x], attrs) {
    const { w, strides, pad, dilations } = attrs as unknown as Attributes;
    if (dilations.some((d) => d !== 1))
      throw new LowbitError(
        "E_UNSUPPORTED",
        `packedConv2d gradient: expected dilations of 1, got ${dilations.join(", ")}. tfjs has no gradient of them either.`,
      );
    return { x: () => tf.conv2dTranspose(dy as tf.Tensor4D, filterTensor(w), x.shape as Sizes, strides, pad) };
  },
});

const pair = (value: number | [number, number] = 1): [number, number] => (typeof value === "number" ? [value, value] : value);

/**
 * conv2d(x, w) for x [batch, height, width, in] and a packed filter of shape [out, height, width, in] with one scale
 * for each output (`int8_row`, `int4_row`; any format with `activations: "float32"`). It has a gradient to x; w is a
 * constant.
 * @throws LowbitError E_SHAPE where the filter has another shape, or other channels than x; E_UNSUPPORTED
 * @example
 * const w = quantize(tensor(new Float32Array(4 * 27).fill(1), [4, 3, 3, 3]), format("int8_row"));
 * packedConv2d(tf.ones<tf.Rank.R4>([1, 8, 8, 3]), w, { pad: "same" }).shape // [1, 8, 8, 4]
 */
export function packedConv2d(x: tf.Tensor4D, w: PackedTensor, options: PackedConv2dOptions = {}): tf.Tensor4D {
  checkWeight("packedConv2d", w);
  if (w.shape.length !== 4)
    throw new LowbitError(
      "E_SHAPE",
      `packedConv2d w: expected a filter [out, height, width, in], got [${w.shape.join(", ")}]. Quantize it in that shape.`,
    );
  if (x.shape.length !== 4 || x.shape[3] !== w.shape[3])
    throw new LowbitError(
      "E_SHAPE",
      `packedConv2d x: expected [batch, height, width, ${w.shape[3]}], got [${x.shape.join(", ")}]. Transpose it to channels last.`,
    );
  const { activations = "uint8", pad = "valid" } = options;
  const attrs: Attributes = { w, activations, pad, strides: pair(options.strides), dilations: pair(options.dilations) };
  ensure();
  return tf.tidy(() => tf.engine().runKernel<tf.Tensor4D>(NAME, { x: tf.cast(x, "float32") }, attrs as unknown as tf.NamedAttrMap));
}

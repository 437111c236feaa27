// packedMatMul: x W^T of a tfjs tensor and a packed weight, as a kernel of tfjs with a gradient to x. On the cpu and
// wasm backends our kernels compute, reading x and writing y where the backend keeps them; on others W is decoded panel
// by panel and the backend multiplies.
import * as tf from "@tensorflow/tfjs-core";
import { LowbitError } from "../../formats/core/errors.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import type { Activations } from "../backends/types.ts";
import { inPlace, registered } from "./kernels.ts";
import { checkWeight, layerOf, panels } from "./weights.ts";

/** How activations enter a packed product in TensorFlow.js. */
export interface PackedOptions {
  /**
   * How x enters the product on tfjs's cpu and wasm backends. Default "int16": 16-bit integers per block of a row, an
   * error near 1e-5 of the result; "float32" as it is; "int8" the fastest, with an error near 4e-3.
   */
  activations?: Activations;
  /**
   * Keep the weight packed for the kernels beside `w`, which doubles its memory. Default true. False: nothing is kept,
   * panels are decoded for every product; right for training and large batches.
   */
  prepared?: boolean;
}

interface Attributes {
  readonly w: PackedTensor;
  readonly activations: Activations;
  readonly prepared: boolean;
}

/** y[m, n] of decoded panels and the backend's own products. */
function decodedProduct(x: tf.Tensor2D, w: PackedTensor): tf.Tensor2D {
  return tf.tidy(() => {
    const parts: tf.Tensor2D[] = [];
    panels(w, (_, count, values) => parts.push(tf.matMul(x, tf.tensor2d(values.slice(), [count, w.k]), false, true)));
    return parts.length === 1 ? parts[0] : tf.concat(parts, 1);
  });
}

const NAME = "LowbitMatMul";
const ensure = registered(NAME, {
  forward({ inputs, attrs, backend }) {
    const { w, activations, prepared } = attrs as unknown as Attributes;
    const x = inputs.x as tf.Tensor2D;
    const place = prepared ? inPlace(backend) : null;
    if (place === null) return decodedProduct(x, w);
    const [m] = x.shape;
    const layer = layerOf(w, activations);
    // the output first: making it may move the backend's memory
    return place.make([m, w.rows], (out) => void layer.run(place.read(x), m, out));
  },
  gradient: (dy, _, attrs) => {
    const { w } = attrs as unknown as Attributes;
    return { x: () => timesWeight(dy as tf.Tensor2D, w) };
  },
});

/** dy[m, n] W[n, k], in panels of rows of W. */
function timesWeight(dy: tf.Tensor2D, w: PackedTensor): tf.Tensor2D {
  let sum: tf.Tensor | undefined;
  const [m, n] = dy.shape;
  panels(w, (row, count, values) => {
    const panel = tf.tensor2d(values.slice(), [count, w.k]);
    const part = tf.matMul(count === n ? dy : tf.slice(dy, [0, row], [m, count]), panel);
    sum = sum === undefined ? part : tf.add(sum, part);
  });
  return sum as tf.Tensor2D;
}

/**
 * x[..., k] W^T for a packed weight W [n, k]: a tensor [..., n]. It has a gradient to x; W is a constant.
 * @throws LowbitError E_SHAPE where the last axis of x is not k
 * @example packedMatMul(tf.ones([2, 256]), packed).shape // [2, 64]
 */
export function packedMatMul(x: tf.Tensor, w: PackedTensor, options: PackedOptions = {}): tf.Tensor {
  checkWeight("packedMatMul", w);
  const { shape } = x;
  if (shape.at(-1) !== w.k)
    throw new LowbitError(
      "E_SHAPE",
      `packedMatMul x: expected a last axis of ${w.k} (the weight is [${w.rows}, ${w.k}]), got [${shape.join(", ")}].`,
    );
  const { activations = "int16", prepared = true } = options;
  ensure();
  const attrs = { w, activations, prepared } satisfies Attributes;
  const multiply = (rows: tf.Tensor): tf.Tensor => tf.engine().runKernel<tf.Tensor>(NAME, { x: rows }, attrs as unknown as tf.NamedAttrMap);
  // every operation of tfjs costs microseconds, a product of one row hundreds
  if (x.rank === 2 && x.dtype === "float32") return multiply(x);
  return tf.tidy(() => tf.reshape(multiply(tf.reshape(tf.cast(x, "float32"), [-1, w.k])), [...shape.slice(0, -1), w.rows]));
}

// Products x W^T of trained float tensors whose operands are quantized: shapes, and matrices as plain arrays.
import * as tf from "@tensorflow/tfjs-core";
import { isA } from "../../formats/core/check.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import { registered } from "./kernels.ts";

/** A row-major matrix. */
export interface Matrix {
  readonly data: Float32Array;
  readonly rows: number;
  readonly k: number;
}

export const matrixOf = (t: tf.Tensor): Matrix => ({ data: t.dataSync() as Float32Array, rows: t.shape[0], k: t.shape[1]! });

export function transposed({ data, rows, k }: Matrix): Matrix {
  const out = new Float32Array(data.length);
  for (let r = 0; r < rows; r++) for (let j = 0; j < k; j++) out[j * rows + r] = data[r * k + j];
  return { data: out, rows: k, k: rows };
}

/** Value and gradients of a product x[m, k] W[n, k]^T. */
export interface TrainedProduct {
  readonly value: tf.Tensor2D;
  dx(dy: Matrix): tf.Tensor2D;
  dw(dy: Matrix): tf.Tensor2D;
}

interface Attributes {
  multiply(x: Matrix, w: Matrix): TrainedProduct;
  made?: TrainedProduct;
}

// A kernel, not tf.customGrad: that computes both gradients where one is wanted.
const NAME = "LowbitTrainedMatMul";
const ensure = registered(NAME, {
  forward({ inputs, attrs }) {
    const own = attrs as unknown as Attributes;
    own.made = own.multiply(matrixOf(inputs.x as tf.Tensor), matrixOf(inputs.w as tf.Tensor));
    return own.made.value;
  },
  gradient(dy, _, attrs) {
    const { made } = attrs as unknown as Required<Attributes>;
    return { x: () => tf.tidy(() => made.dx(matrixOf(dy as tf.Tensor))), w: () => tf.tidy(() => made.dw(matrixOf(dy as tf.Tensor))) };
  },
});

/** The product of `multiply` as an operation with both gradients, for x [..., k]. */
export function trainedProduct(name: string, x: tf.Tensor, w: tf.Tensor, multiply: (x: Matrix, w: Matrix) => TrainedProduct): tf.Tensor {
  for (const [what, t] of [
    ["x", x],
    ["w", w],
  ] as const)
    if (!(t instanceof tf.Tensor)) throw new TypeError(`${name} ${what}: expected a tensor of tfjs, got ${isA(t)}.`);
  if (w.rank !== 2) throw new LowbitError("E_SHAPE", `${name} w: expected [outputs, inputs], got [${w.shape.join(", ")}].`);
  const [n, k] = w.shape as [number, number];
  if (x.rank < 1 || x.shape.at(-1) !== k)
    throw new LowbitError("E_SHAPE", `${name} x: expected a last axis of ${k} (the weight is [${n}, ${k}]), got [${x.shape.join(", ")}].`);
  ensure();
  return tf.tidy(() => {
    const rows = tf.reshape(tf.cast(x, "float32"), [-1, k]);
    const attrs: Attributes = { multiply };
    const inputs = { x: rows, w: tf.cast(w, "float32") };
    const y = tf.engine().runKernel<tf.Tensor>(NAME, inputs, attrs as unknown as tf.NamedAttrMap);
    return tf.reshape(y, [...x.shape.slice(0, -1), n]);
  });
}

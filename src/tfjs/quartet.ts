// Quartet: linear layers trained in MXFP4 (arXiv 2505.14669, algorithm 1). Forward: Hadamard in blocks of 32, QuEST's
// clip, nearest. Backward: randomly signed Hadamard, stochastic rounding that never saturates (4/3 in the scale), and
// QuEST's mask of what the clip cut. Operands are in MXFP4; the products of them are summed in float32.
import * as tf from "@tensorflow/tfjs-core";
import { mxfp4 } from "../../formats/mxfp4.ts";
import { mxfp4_fourthirds } from "../../formats/mxfp4_fourthirds.ts";
import { butterflies } from "../../kernels/reference/hadamard.ts";
import { dequantize } from "../tensor/dequantize.ts";
import { quantize } from "../tensor/quantize/index.ts";
import { tensor } from "../tensor/tensor.ts";
import { withinRange } from "./fake.ts";
import { trainedProduct, transposed, type Matrix } from "./operands.ts";
import { backend } from "./weights.ts";

/** How products of 4-bit training are rounded (Quartet). */
export interface QuartetOptions {
  /** Uniform numbers in [0, 1) for the backward pass; default Math.random. `seededRandom` makes runs repeatable. */
  readonly random?: () => number;
}

const BLOCK = 32;
const NORM = 1 / Math.sqrt(BLOCK);

/** x H along k in blocks of 32 after signs, orthonormal; k is filled up with zeros. */
function rotated({ data, rows, k }: Matrix, signs?: Float32Array): Matrix {
  const wide = Math.ceil(k / BLOCK) * BLOCK;
  const out = new Float32Array(rows * wide);
  for (let r = 0; r < rows; r++)
    for (let j = 0; j < k; j++) out[r * wide + j] = data[r * k + j] * NORM * (signs === undefined ? 1 : signs[j]);
  butterflies(out, BLOCK);
  return { data: out, rows, k: wide };
}

/** The first k columns after the inverse rotation: H is its own. */
function unrotated(t: Matrix, k: number): tf.Tensor2D {
  const { data, rows, k: wide } = rotated(t);
  return tf.slice(tf.tensor2d(data, [rows, wide]), [0, 0], [rows, k]);
}

/** QuEST's projection of a rotated operand, and where its clip cut nothing. */
function projected(t: Matrix): { values: Matrix; mask: Float32Array } {
  const w = quantize(tensor(t.data, [t.rows, t.k]), mxfp4, { scaleRule: "quest", backend: backend() });
  return { values: { ...t, data: dequantize(w, { backend: backend() }) }, mask: withinRange(w, t.data) };
}

function stochastic(t: Matrix, random: () => number): tf.Tensor2D {
  const w = quantize(tensor(t.data, [t.rows, t.k]), mxfp4_fourthirds, { rounding: "stochastic", random });
  return tf.tensor2d(dequantize(w, { backend: backend() }), [t.rows, t.k]);
}

/** a b^T of both operands rotated along their common k, rounded stochastically. */
function backwardProduct(a: Matrix, b: Matrix, random: () => number): Matrix {
  const signs = Float32Array.from({ length: a.k }, () => (random() < 0.5 ? -1 : 1));
  const [left, right] = [a, b].map((t) => stochastic(rotated(t, signs), random));
  const product = tf.matMul(left, right, false, true);
  const data = product.dataSync() as Float32Array; // tidy would look for tensors in every number of it
  tf.dispose([left, right, product]);
  return { data, rows: a.rows, k: b.rows };
}

const masked = (t: Matrix, mask: Float32Array): Matrix => ({ ...t, data: t.data.map((v, i) => v * mask[i]) });

/**
 * x[..., k] W[n, k]^T with every operand of the forward and of both backward products in MXFP4: a tensor [..., n] with
 * gradients to x and W, float tensors both (W is the master weight that an optimizer steps).
 * @throws LowbitError E_SHAPE where shapes disagree
 * @example
 * const weight = tf.ones<tf.Rank.R2>([32, 64]); // [outputs, inputs]
 * quartetMatMul(tf.ones<tf.Rank.R2>([8, 64]), weight, { random: seededRandom(1) }).shape // [8, 32]
 */
export function quartetMatMul(x: tf.Tensor, w: tf.Tensor, { random = Math.random }: QuartetOptions = {}): tf.Tensor {
  if (typeof random !== "function")
    throw new TypeError(`quartetMatMul random: expected a function that gives numbers in [0, 1), got ${typeof random}.`);
  return trainedProduct("quartetMatMul", x, w, (inputs, weight) => {
    const a = projected(rotated(inputs));
    const b = projected(rotated(weight));
    const [left, right] = [a, b].map(({ values }) => tf.tensor2d(values.data, [values.rows, values.k]));
    return {
      value: tf.matMul(left, right, false, true),
      dx: (dy) => unrotated(masked(backwardProduct(dy, transposed(b.values), random), a.mask), inputs.k),
      dw: (dy) => unrotated(masked(backwardProduct(transposed(dy), transposed(a.values), random), b.mask), weight.k),
    };
  });
}

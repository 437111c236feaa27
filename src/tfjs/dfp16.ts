// Training in integers: dynamic fixed point with 16-bit tensors (Das et al., arXiv 1802.00930). Each operand of the
// forward and of both backward products is a tensor of int16 under one shared exponent; the products are integer sums.
import * as tf from "@tensorflow/tfjs-core";
import { elementOf, rowScales } from "../../formats/core/packed.ts";
import type { BlockFormat } from "../../formats/core/types.ts";
import { unpackInto } from "../../formats/core/pack.ts";
import { dfp16 } from "../../formats/dfp16.ts";
import { quantize } from "../tensor/quantize/index.ts";
import { tensor } from "../tensor/tensor.ts";
import { trainedProduct, transposed, type Matrix } from "./operands.ts";
import { backend } from "./weights.ts";

/** Integers of a matrix (held in doubles, which the inner loop multiplies fastest) and what one of them is worth. */
interface Fixed {
  readonly integers: Float64Array;
  readonly rows: number;
  readonly k: number;
  readonly unit: number;
}

function fixed({ data, rows, k }: Matrix): Fixed {
  const w = quantize(tensor(data, [rows, k]), dfp16, { backend: backend() });
  const { bits } = elementOf(w)!;
  const codes = new Uint16Array(rows * k);
  for (let r = 0; r < rows; r++) unpackInto(w.codes, r * w.rowBytes, bits, codes, r * k, k);
  const levels = rowScales(w, w.format as BlockFormat);
  const unit = new Float64Array(levels.blocks);
  levels.fill(0, unit, new Float64Array(levels.blocks));
  return { integers: Float64Array.from(new Int16Array(codes.buffer)), rows, k, unit: unit[0] };
}

/**
 * a b^T: sums of products of 16-bit integers, exact for k up to 2^23 (each product is at most 2^30, doubles hold 2^53),
 * times both units, rounded once to float32.
 */
function integerProduct(a: Fixed, b: Fixed): tf.Tensor2D {
  const { k } = a;
  const out = new Float32Array(a.rows * b.rows);
  const unit = a.unit * b.unit;
  for (let i = 0; i < a.rows; i++)
    for (let j = 0; j < b.rows; j++) {
      let sum = 0;
      for (let p = i * k, q = j * k, end = p + k; p < end; p++, q++) sum += a.integers[p] * b.integers[q];
      out[i * b.rows + j] = sum * unit;
    }
  return tf.tensor2d(out, [a.rows, b.rows]);
}

function turned({ integers, rows, k, unit }: Fixed): Fixed {
  const out = new Float64Array(integers.length);
  for (let r = 0; r < rows; r++) for (let j = 0; j < k; j++) out[j * rows + r] = integers[r * k + j];
  return { integers: out, rows: k, k: rows, unit };
}

/**
 * x[..., k] W[n, k]^T in 16-bit dynamic fixed point: a tensor [..., n] with gradients to x and W, whose products are
 * integer ones too. W is the float32 master weight that an optimizer steps.
 * @throws LowbitError E_SHAPE where shapes disagree, E_VALUE for NaN and infinities
 * @example dfp16MatMul(tf.ones<tf.Rank.R2>([8, 64]), tf.ones<tf.Rank.R2>([32, 64])).shape // [8, 32]
 */
export function dfp16MatMul(x: tf.Tensor, w: tf.Tensor): tf.Tensor {
  return trainedProduct("dfp16MatMul", x, w, (inputs, weight) => {
    const [a, b] = [fixed(inputs), fixed(weight)];
    return {
      value: integerProduct(a, b),
      dx: (dy) => integerProduct(fixed(dy), turned(b)),
      dw: (dy) => integerProduct(fixed(transposed(dy)), turned(a)),
    };
  });
}

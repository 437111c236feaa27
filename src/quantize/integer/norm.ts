// Integer layer and RMS normalisation (I-LayerNorm of I-ViT, arXiv 2207.01405, section 3.5): mean, sum of squares, an
// integer square root by Newton's steps, and the gain and bias as dyadic numbers.
import type { CodeRange, DyadicVector } from "./dyadic.ts";
import { dyadicVector, multiplyShift } from "./dyadic.ts";

/** The reciprocal of the root has 31 bits; products with it drop these lowest ones. */
export const NORM_SHIFT = 8;
const RECIPROCAL = 2 ** 31 - 1;

/**
 * floor(sqrt(v)) of an integer below 2^53, by Newton's steps from a power of two above the root: at most 5 of them. (10
 * steps from 2^16, as published, are not enough for sums of squares below some 10^5.)
 * @throws RangeError for what is no such integer
 * @example integerSqrt(99) // 9
 */
export function integerSqrt(v: number): number {
  if (!Number.isSafeInteger(v) || v < 0) throw new RangeError(`integerSqrt: expected an integer from 0 to 2^53 - 1, got ${v}.`);
  if (v < 2) return v;
  let bits = 0;
  while (4 ** bits <= v) bits++;
  let root = 2 ** bits;
  for (;;) {
    const next = Math.floor((root + Math.floor(v / root)) / 2);
    if (next >= root) return root;
    root = next;
  }
}

/** A normalisation as integers: gain and bias over the scale of the results. */
export interface IntegerNorm {
  readonly kind: "layer" | "rms";
  /** epsilon of the sum of squares, in codes. */
  readonly epsilon: number;
  readonly gain: DyadicVector;
  /** Signs of the gains, where one is negative. */
  readonly signs: Int8Array | null;
  /** bias / output scale, in units of 2^(16 - shift). */
  readonly bias: Float64Array;
}

/** Gain, bias and scales of a normalization in integers. */
export interface IntegerNormInit {
  readonly kind?: "layer" | "rms";
  readonly gain: ArrayLike<number>;
  readonly bias?: ArrayLike<number>;
  /** Added to the mean of squares of values, as usual. */
  readonly epsilon: number;
  /** Value of an input's code, and of a result's. */
  readonly scale: number;
  readonly outputScale: number;
}

/**
 * The constants of an integer normalisation of rows as long as the gain.
 * @throws RangeError for an empty gain, another length of the bias, scales that are not positive or do not fit
 * @example
 * const norm = integerNorm({ kind: "rms", gain: [1, 2], epsilon: 1e-6, scale: 0.05, outputScale: 2 ** -5 });
 * norm.gain.multipliers.length // 2
 */
export function integerNorm({ kind = "layer", gain, bias, epsilon, scale, outputScale }: IntegerNormInit): IntegerNorm {
  const n = gain.length;
  if (n === 0 || (bias !== undefined && bias.length !== n))
    throw new RangeError(`integerNorm: expected gain and bias of one length, got ${n} and ${bias?.length ?? "none"}.`);
  if (!(scale > 0) || !(outputScale > 0)) throw new RangeError(`integerNorm: expected positive scales, got ${scale} and ${outputScale}.`);
  // y / sqrt(sum y^2 / n) * gain; the reciprocal carries 2^31, of which NORM_SHIFT bits are dropped
  const unit = Math.sqrt(n) / 2 ** (31 - NORM_SHIFT) / outputScale;
  const factors = dyadicVector(Float64Array.from(gain, (g) => Math.abs(g) * unit));
  const isNegative = Array.prototype.some.call(gain, (g: number) => g < 0);
  return {
    kind,
    epsilon: Math.min(2 ** 52, Math.round((n * epsilon) / scale ** 2)),
    gain: factors,
    signs: isNegative ? Int8Array.from(gain, (g) => (g < 0 ? -1 : 1)) : null,
    bias: Float64Array.from(gain, (_, j) => Math.round(((bias?.[j] ?? 0) / outputScale) * 2 ** (factors.shift - 16))),
  };
}

/**
 * Rows of codes normalised, as codes of the output scale. Codes are at most 2^17 in magnitude, rows at most 2^16 long.
 * @throws RangeError for codes that are no whole rows
 * @example
 * const norm = integerNorm({ gain: [1, 1, 1, 1], epsilon: 1e-5, scale: 0.1, outputScale: 2 ** -5 });
 * integerLayerNorm([10, -10, 10, -10], norm) // [32, -32, 32, -32]: 1 and -1
 */
export function integerLayerNorm(x: ArrayLike<number>, norm: IntegerNorm, range: CodeRange = {}): Int32Array {
  const { low = -(2 ** 31), high = 2 ** 31 - 1 } = range;
  const { multipliers, shift } = norm.gain;
  const n = multipliers.length;
  if (x.length % n !== 0) throw new RangeError(`integerLayerNorm: expected rows of ${n} codes, got ${x.length} codes.`);
  const out = new Int32Array(x.length);
  for (let start = 0; start < x.length; start += n) {
    let sum = 0;
    if (norm.kind === "layer") for (let j = 0; j < n; j++) sum += x[start + j];
    const mean = Math.floor((2 * sum + n) / (2 * n));
    let squares = norm.epsilon;
    for (let j = 0; j < n; j++) squares += (x[start + j] - mean) ** 2;
    const factor = Math.floor(RECIPROCAL / Math.max(1, integerSqrt(squares)));
    for (let j = 0; j < n; j++) {
      const z = Math.floor(((x[start + j] - mean) * factor) / 2 ** NORM_SHIFT) * (norm.signs?.[j] ?? 1);
      const code = multiplyShift(z, multipliers[j], shift, norm.bias[j]);
      out[start + j] = code < low ? low : code > high ? high : code;
    }
  }
  return out;
}

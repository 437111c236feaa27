// The exponent of SmoothQuant by search: per group of layers that read one input, the alpha with the least output error
// when weights and activations are quantized. The error comes in closed form from the statistics: that of the weights
// through the Hessian of the smoothed inputs, that of the activations as uniform noise of one step per tensor. Source:
// SmoothQuant, arXiv 2211.10438; its authors choose alpha per model by hand.
import { LowbitError } from "../../formats/core/errors.ts";
import { dequantize } from "../../formats/core/packed.ts";
import type { Format } from "../../formats/core/types.ts";
import { quantize } from "../tensor/quantize/index.ts";
import { channelAmax, scaleColumns, smoothFactors, type Linear } from "./equalize.ts";
import { hessianOf } from "./hessian.ts";
import type { AlgebraOptions } from "./simd.ts";
import { outputError, type LayerStatistics } from "./statistics.ts";
import { checkAborted, type RunOptions } from "./steps.ts";

/** What SmoothQuant's exponent is searched on: layers, formats, candidates. */
export interface SmoothSearch extends RunOptions, AlgebraOptions {
  /** Of the inputs that all layers read, with a Hessian. */
  readonly statistics: LayerStatistics;
  /** Format of the weights. */
  readonly format: Format;
  /** Bits of the activations, symmetric, one scale per tensor; default 8. */
  readonly activationBits?: number;
  /** Default 0.3, 0.35 ... 0.9. */
  readonly alphas?: readonly number[];
}

/** Factors that move ranges from activations to weights, and the errors that chose them. */
export interface Smoothing {
  /** null: not smoothing at all is best. */
  readonly alpha: number | null;
  /** Inputs are divided by them, columns of the weights multiplied; all 1 for alpha null. */
  readonly factors: Float64Array<ArrayBuffer>;
  /** Expected output error, relative to the outputs. */
  readonly error: number;
  /** Of no smoothing, then of each alpha. */
  readonly errors: readonly number[];
}

const ALPHAS = Array.from({ length: 13 }, (_, i) => (30 + 5 * i) / 100);

/**
 * Chooses alpha; never worse than no smoothing on what it estimates.
 * @throws LowbitError E_CALIBRATION as gptq, E_SHAPE, E_ABORTED; RangeError for bits or alphas
 * @example
 * const layers = [{ weight: w.data, rows: 64, k: 256 }]; // all that read the same input
 * const { factors } = searchSmoothing(layers, { statistics: stats, format: format("int8_row") });
 * scaleColumns(layers[0], factors) // and the inputs are divided by the factors
 */
export function searchSmoothing(layers: readonly Linear[], options: SmoothSearch): Smoothing {
  const { statistics, format, activationBits = 8, alphas = ALPHAS } = options;
  if (layers.length === 0) throw new TypeError("searchSmoothing: expected at least one layer, got none.");
  if (!Number.isInteger(activationBits) || activationBits < 2 || activationBits > 16)
    throw new RangeError(`searchSmoothing activationBits: expected an integer in 2..16, got ${activationBits}.`);
  const { k } = statistics;
  for (const layer of layers)
    if (layer.k !== k) throw new LowbitError("E_SHAPE", `searchSmoothing: expected layers of ${k} inputs, got ${layer.k}.`);
  const hessian = hessianOf(statistics, k, "");
  const amax = channelAmax(statistics);
  const qmax = 2 ** (activationBits - 1) - 1;
  let power = 0;
  for (const { weight, rows } of layers) power += outputError(weight, new Float64Array(rows * k), rows, hessian, options);
  if (!(power > 0)) throw new LowbitError("E_CALIBRATION", `searchSmoothing: expected outputs other than zero, got a power of ${power}.`);
  const errorOf = (s: Float64Array): number => {
    const h = hessian.map((v, i) => v / (s[Math.floor(i / k)] * s[i % k]));
    let top = 0;
    for (let j = 0; j < k; j++) top = Math.max(top, amax[j] / s[j]);
    const noise = (statistics.weight * (top / qmax) ** 2) / 12;
    let error = 0;
    for (const layer of layers) {
      const { weight, rows } = scaleColumns(layer, s);
      const values = dequantize(quantize({ data: weight, shape: [rows, k], stride: [k, 1], offset: 0 }, format), { dtype: "float64" });
      error += outputError(weight, values, rows, h, options);
      for (const v of values) error += noise * v * v;
    }
    return error / power;
  };
  const candidates = [null, ...alphas].map((alpha, i, list) => {
    checkAborted(options.signal, "searchSmoothing");
    options.onProgress?.({ stage: "smooth", done: i, total: list.length });
    const factors = alpha === null ? new Float64Array(k).fill(1) : smoothFactors(amax, layers, alpha);
    return { alpha, factors, error: errorOf(factors) };
  });
  const best = candidates.reduce((a, b) => (b.error < a.error ? b : a));
  return { ...best, errors: candidates.map((c) => c.error) };
}

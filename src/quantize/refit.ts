// Least-squares refit: layers are quantized one after the other, so a layer reads inputs y of the model quantized so
// far, not the inputs x that it had. Its weight is moved to give from y what it gave from x, then quantized. Closed
// form V = W + W E[(x - y) y^T] (E[y y^T] + ridge)^-1: the compensation of QuartDepth (spec B7); the aim is that of
// GPTAQ, arXiv 2504.02692. Not here: running the model; the caller streams both inputs.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import type { WeightQuantizer } from "../tensor/quantize/index.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Linear } from "./equalize.ts";
import { gptq } from "./gptq.ts";
import { weightMatrix } from "./grid.ts";
import { hessianOf } from "./hessian.ts";
import { gptqFactorInPlace, transposed } from "./linalg.ts";
import { algebraFor, type AlgebraOptions } from "./simd.ts";
import { layerStatistics, mergeStatistics, outputError, type AddOptions, type LayerStatistics } from "./statistics.ts";
import { runSteps, type RunOptions, type SteppedQuantizer, type Steps } from "./steps.ts";

/** What is kept of the inputs of one layer in the float model (x) and in the model quantized so far (y): sums only. */
export interface DriftStatistics {
  /** Of y. */
  readonly inputs: LayerStatistics;
  /** sum w (x - y) y^T, [k * k] row-major. */
  readonly cross: Float64Array<ArrayBuffer>;
  /** sum w (x - y) / sum w. */
  readonly shift: Float64Array<ArrayBuffer>;
}

/** Which tokens count, and sums that the caller has already. */
export interface DriftAddOptions extends AddOptions {
  /** sum (x - y) y^T of these tokens, [k * k], where the caller has it; goes with `products`. */
  readonly crossProducts?: ArrayLike<number>;
}

/** Sums over tokens of a layer's inputs in the float model and in the quantized one. */
export interface DriftAccumulator {
  readonly k: number;
  /**
   * @param float tokens of the float model, row-major [tokens * k]
   * @param quantized the same tokens in the quantized model
   * @throws LowbitError E_CALIBRATION for NaN or infinities, E_SHAPE
   */
  add(float: Float32Array | Float64Array, quantized: Float32Array | Float64Array, options?: DriftAddOptions): void;
  /** @throws LowbitError E_CALIBRATION without any token */
  finish(): DriftStatistics;
}

/**
 * Collects both inputs of a layer. Memory: 16 k^2 bytes.
 * @throws RangeError for k; its `add` LowbitError E_SHAPE, E_CALIBRATION for values that are not finite
 * @example
 * const acc = driftStatistics(2);
 * acc.add(Float32Array.of(1, 2, 3, 4), Float32Array.of(1, 2, 3, 5)); // float model, quantized model
 * acc.finish().inputs.rows // 2
 */
export function driftStatistics(k: number, options: { readonly name?: string } & AlgebraOptions = {}): DriftAccumulator {
  const { product } = algebraFor(options, "driftStatistics");
  const at = options.name === undefined ? "" : ` of layer "${options.name}"`;
  const inputs = layerStatistics(k, options);
  const cross = new Float64Array(k * k);
  const shift = new Float64Array(k);
  const PANEL = 128;
  const [left, right] = [new Float64Array(PANEL * k), new Float64Array(PANEL * k)];
  return {
    k,
    add(float, quantized, { mask, weights, products, crossProducts } = {}) {
      if (float.length !== quantized.length)
        throw new LowbitError(
          "E_SHAPE",
          `drift${at}: expected the same tokens from both models, got ${float.length} and ${quantized.length} numbers.`,
        );
      const tokens = float.length / k;
      const weightOf = (t: number): number => (mask && !mask[t] ? 0 : weights ? weights[t] : 1);
      for (let t = 0; t < tokens; t++)
        if (weightOf(t) !== 0)
          for (let j = 0; j < k; j++)
            if (!Number.isFinite(float[t * k + j]))
              throw new LowbitError(
                "E_CALIBRATION",
                `drift${at}: expected finite inputs of the float model, got ${float[t * k + j]} in channel ${j} of token ${t}.`,
              );
      if ((products === undefined) !== (crossProducts === undefined) || (crossProducts !== undefined && crossProducts.length !== k * k))
        throw new LowbitError(
          "E_SHAPE",
          `drift${at}: expected products and crossProducts of ${k} x ${k} numbers together, got one, or another size.`,
        );
      inputs.add(quantized, { mask, weights, products });
      if (crossProducts !== undefined) {
        for (let i = 0; i < cross.length; i++) cross[i] += crossProducts[i];
        for (let i = 0; i < float.length; i += k) for (let j = 0; j < k; j++) shift[j] += float[i + j] - quantized[i + j];
        return;
      }
      let n = 0;
      const flush = () => {
        product(cross, 0, k, k, k, left, 0, k, right, 0, k, n, 1);
        n = 0;
      };
      for (let t = 0; t < tokens; t++) {
        const w = weightOf(t);
        if (w === 0) continue;
        for (let j = 0; j < k; j++) {
          const y = quantized[t * k + j];
          const d = w * (float[t * k + j] - y);
          left[n * k + j] = d;
          right[n * k + j] = y;
          shift[j] += d;
        }
        if (++n === PANEL) flush();
      }
      if (n > 0) flush();
    },
    finish() {
      const finished = inputs.finish();
      return { inputs: finished, cross, shift: shift.map((v) => v / finished.weight) };
    },
  };
}

/**
 * Drift over the tokens of both collections, see mergeStatistics. @throws LowbitError E_SHAPE
 * @example mergeDrift(drift, drift).inputs.rows // 1024: twice the tokens
 */
export function mergeDrift(a: DriftStatistics, b: DriftStatistics): DriftStatistics {
  const inputs = mergeStatistics(a.inputs, b.inputs);
  const [first, second] = [a.inputs.weight / inputs.weight, b.inputs.weight / inputs.weight];
  return {
    inputs,
    cross: a.cross.map((v, i) => v + b.cross[i]),
    shift: a.shift.map((v, i) => first * v + second * b.shift[i]),
  };
}

/**
 * R (H + ridge mean(diag H) I)^-1 for R [rows, k]; channels that H never saw stay 0.
 * @throws LowbitError E_CALIBRATION where the sum is not positive definite
 */
export function timesInverse(
  r: Float64Array,
  rows: number,
  h: Float64Array,
  k: number,
  ridge: number,
  at: string,
  options: AlgebraOptions,
): Float64Array<ArrayBuffer> {
  const algebra = algebraFor(options, `refit${at}`);
  const factor = h.slice();
  let mean = 0;
  for (let j = 0; j < k; j++) mean += h[j * k + j] / k;
  for (let j = 0; j < k; j++) factor[j * k + j] += h[j * k + j] === 0 ? 1 : ridge * mean;
  const bad = gptqFactorInPlace(factor, k, algebra);
  if (bad >= 0)
    throw new LowbitError(
      "E_CALIBRATION",
      `refit${at}: expected a positive definite Hessian, got a bad pivot at input ${bad} with ridge ${ridge}. Raise the ridge, or calibrate on more data.`,
    );
  const times = (left: Float64Array, right: Float64Array): Float64Array<ArrayBuffer> => {
    const out = new Float64Array(rows * k);
    algebra.product(out, 0, k, rows, k, transposed(left, rows, k), 0, rows, right, 0, k, k, 1);
    return out;
  };
  // (H + ridge)^-1 = U^T U
  return times(times(r, transposed(factor, k, k)), factor);
}

/** Weights fitted to the inputs that the quantized model really gives. */
export interface RefitOptions extends RunOptions, AlgebraOptions {
  readonly drift: DriftStatistics;
  /** Pull towards the weight as it was, as a share of the mean diagonal of E[y y^T]; default 0.05. */
  readonly ridge?: number;
  /** What quantizes the refitted weight; default GPTQ on the inputs of the quantized model. */
  readonly quantizer?: WeightQuantizer;
  /** Fewest calibration tokens accepted; default k / 8 rounded up. */
  readonly minRows?: number;
  readonly name?: string;
}

function checkRidge(ridge: number): void {
  if (!(ridge >= 0 && ridge < Infinity)) throw new RangeError(`refit ridge: expected a number >= 0, got ${ridge}.`);
}

/**
 * The weight V with the smallest ||W x - V y||^2 + ridge ||V - W||^2 over the calibration tokens, row-major [rows * k].
 * @throws LowbitError E_CALIBRATION (too few tokens, constant inputs, not positive definite), E_SHAPE; RangeError for
 * ridge
 * @example const v = refitWeight(w, { drift }); // [64 * 256], to be quantized in place of w
 */
export function refitWeight(weight: Tensor, options: Omit<RefitOptions, "quantizer">): Float64Array<ArrayBuffer> {
  const { drift, ridge = 0.05, name } = options;
  checkRidge(ridge);
  const at = name === undefined ? "" : ` of layer "${name}"`;
  const { data, rows, k } = weightMatrix(weight, `refit${at}`);
  const hessian = hessianOf(drift.inputs, k, at, options.minRows);
  const wc = new Float64Array(rows * k);
  algebraFor(options, `refit${at}`).product(wc, 0, k, rows, k, transposed(data, rows, k), 0, rows, drift.cross, 0, k, k, 1);
  const change = timesInverse(wc, rows, hessian, k, ridge, at, options);
  for (let i = 0; i < data.length; i++) data[i] += change[i];
  return data;
}

/**
 * What ||W x - Q y||^2 over the tokens exceeds that of Q = W by: negative where Q makes up for the drift. For choices
 * on tokens that Q was not fitted to.
 * @param quantized values of Q, [rows * k] @throws LowbitError E_SHAPE
 * @example
 * const plain = driftError(w, dequantize(quantize(w, format("int4_b32"))), drift);
 * const fitted = driftError(w, dequantize(quantize(w, format("int4_b32"), refit({ drift }))), drift);
 * fitted < plain // true
 */
export function driftError(weight: Tensor, quantized: ArrayLike<number>, drift: DriftStatistics, options: AlgebraOptions = {}): number {
  const { data: w, rows, k } = weightMatrix(weight, "driftError");
  const error = outputError(w, quantized, rows, drift.inputs.hessian!, options);
  const wc = new Float64Array(rows * k);
  algebraFor(options, "driftError").product(wc, 0, k, rows, k, transposed(w, rows, k), 0, rows, drift.cross, 0, k, k, 1);
  return wc.reduce((sum, v, i) => sum + 2 * v * (w[i] - quantized[i]), error);
}

/**
 * Refit, then a quantizer, as one quantizer.
 * @throws TypeError, RangeError for options; at use as `refitWeight` and the quantizer
 * @example
 * quantize(w, format("int4_b32"), refit({ drift, quantizer: gptq({ hessian: drift.inputs, actOrder: true }) }))
 */
export function refit(options: RefitOptions): SteppedQuantizer {
  if (!options?.drift) throw new TypeError("refit: expected options.drift, got none. Collect it with driftStatistics(k).");
  checkRidge(options.ridge ?? 0.05);
  const inner =
    options.quantizer ?? gptq({ hessian: options.drift.inputs, name: options.name, minRows: options.minRows, backend: options.backend });
  const steps = function* (weight: Tensor, format: Format): Steps<PackedTensor> {
    yield { stage: "refit", done: 0, total: 1, layer: options.name };
    const data = refitWeight(weight, options);
    yield { stage: "refit", done: 1, total: 1, layer: options.name };
    const k = options.drift.inputs.k;
    const t: Tensor = { data, shape: [data.length / k, k], stride: [k, 1], offset: 0 };
    const packed = "steps" in inner ? yield* (inner as SteppedQuantizer).steps(t, format) : inner.quantizeWeight(t, format);
    return { ...packed, shape: weight.shape.slice(), recipe: { ...packed.recipe, refit: { ridge: options.ridge ?? 0.05 } } };
  };
  return { algorithm: "refit", steps, quantizeWeight: (weight, format) => runSteps(steps(weight, format), options) };
}

/**
 * Bias with which the quantized layer on the inputs of the quantized model has the mean output of the float layer on
 * its own: b + W E[x] - Q E[y].
 * @param quantized values of the quantized weight, [rows * k] @throws LowbitError E_SHAPE
 * @example
 * const layer = { weight: w.data, rows: 64, k: 256 };
 * const bias = correctDriftBias(layer, dequantize(quantize(w, format("int4_b32"))), drift); // 64 values
 */
export function correctDriftBias(layer: Linear, quantized: ArrayLike<number>, drift: DriftStatistics): Float64Array<ArrayBuffer> {
  const { rows, k, weight } = layer;
  const { sum, weight: total } = drift.inputs;
  if (weight.length !== rows * k || quantized.length !== rows * k || drift.inputs.k !== k || (layer.bias && layer.bias.length !== rows))
    throw new LowbitError(
      "E_SHAPE",
      `correctDriftBias: expected ${rows} x ${k} weights and statistics of ${k} inputs, got ${quantized.length} and ${drift.inputs.k}.`,
    );
  const out = layer.bias ? Float64Array.from(layer.bias) : new Float64Array(rows);
  for (let r = 0; r < rows; r++)
    for (let j = 0; j < k; j++) {
      const y = sum[j] / total;
      out[r] += weight[r * k + j] * (y + drift.shift[j]) - quantized[r * k + j] * y;
    }
  return out;
}

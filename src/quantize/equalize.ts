// Transformations of float layers that leave the function as it is and make it easier to quantize, and the correction
// of biases afterwards: SmoothQuant (arXiv 2211.10438), cross-layer equalisation and bias correction (Nagel et al.,
// arXiv 1906.04721), folding of norms for rotations (QuaRot, SliceGPT). All in float64, all return new arrays. Weights
// are [rows, k], row-major, rows the outputs.
import { LowbitError } from "../../formats/core/errors.ts";
import { normalCdf, normalDensity } from "./normal.ts";
import type { LayerStatistics } from "./statistics.ts";

/** y = W x + b. */
export interface Linear {
  readonly weight: Float32Array | Float64Array;
  readonly rows: number;
  readonly k: number;
  readonly bias?: Float32Array | Float64Array | null;
}

/** The same in float64. */
export interface Linear64 {
  readonly weight: Float64Array<ArrayBuffer>;
  readonly rows: number;
  readonly k: number;
  readonly bias: Float64Array<ArrayBuffer> | null;
}

function copy(layer: Linear, what: string): Linear64 {
  const { rows, k, bias } = layer;
  if (layer.weight.length !== rows * k || (bias && bias.length !== rows))
    throw new LowbitError(
      "E_SHAPE",
      `${what}: expected a weight of ${rows} x ${k} and a bias of ${rows}, got ${layer.weight.length} and ${bias?.length}.`,
    );
  return { weight: Float64Array.from(layer.weight), rows, k, bias: bias ? Float64Array.from(bias) : null };
}

/**
 * Largest magnitude of each channel of the inputs, from their statistics.
 * @example
 * const acc = layerStatistics(2);
 * acc.add(Float32Array.of(1, -8, 3, 2)); // two tokens
 * channelAmax(acc.finish()) // [3, 8]
 */
export function channelAmax(statistics: LayerStatistics): Float64Array<ArrayBuffer> {
  return Float64Array.from(statistics.max, (m, j) => Math.max(Math.abs(m), Math.abs(statistics.min[j])));
}

/**
 * SmoothQuant factors s_j = amax_j^alpha / wmax_j^(1 - alpha), at least 1e-5: inputs are divided by them, the columns
 * of the weights multiplied.
 * @param layers all linear layers that read the same input
 * @throws RangeError for alpha outside 0..1; LowbitError E_SHAPE
 * @example
 * const layer = { weight: Float32Array.of(1, 1), rows: 1, k: 2 };
 * smoothFactors(Float64Array.of(100, 1), [layer]) // [10, 1]: the loud channel is divided by 10
 */
export function smoothFactors(amax: Float64Array, layers: readonly Linear[], alpha = 0.5): Float64Array<ArrayBuffer> {
  if (!(alpha >= 0 && alpha <= 1)) throw new RangeError(`smoothFactors alpha: expected a number in 0..1, got ${alpha}.`);
  const k = amax.length;
  const wmax = new Float64Array(k);
  for (const layer of layers) {
    const { weight, rows } = copy(layer, "smoothFactors");
    if (layer.k !== k) throw new LowbitError("E_SHAPE", `smoothFactors: expected layers of ${k} inputs, got ${layer.k}.`);
    for (let i = 0; i < rows * k; i++) wmax[i % k] = Math.max(wmax[i % k], Math.abs(weight[i]));
  }
  // A dead channel or a zero column has nothing to balance.
  return amax.map((a, j) => (a === 0 || wmax[j] === 0 ? 1 : Math.max(a ** alpha / wmax[j] ** (1 - alpha), 1e-5)));
}

/**
 * W diag(s), to go with inputs divided by s.
 * @throws LowbitError E_SHAPE for another number of factors than k
 * @example
 * scaleColumns({ weight: Float32Array.of(1, 1, 2, 2), rows: 2, k: 2 }, Float64Array.of(10, 1)).weight // [10, 1, 20, 2]
 */
export function scaleColumns(layer: Linear, s: Float64Array): Linear64 {
  const out = copy(layer, "scaleColumns");
  if (s.length !== layer.k) throw new LowbitError("E_SHAPE", `scaleColumns: expected ${layer.k} factors, got ${s.length}.`);
  for (let i = 0; i < out.weight.length; i++) out.weight[i] *= s[i % layer.k];
  return out;
}

/**
 * diag(s)^-1 W and b / s: the layer before gives its outputs divided by s.
 * @throws LowbitError E_SHAPE for another number of factors than rows
 * @example
 * divideRows({ weight: Float32Array.of(2, 4, 6, 9), rows: 2, k: 2 }, Float64Array.of(2, 3)).weight // [1, 2, 2, 3]
 */
export function divideRows(layer: Linear, s: Float64Array): Linear64 {
  const out = copy(layer, "divideRows");
  if (s.length !== layer.rows) throw new LowbitError("E_SHAPE", `divideRows: expected ${layer.rows} factors, got ${s.length}.`);
  for (let i = 0; i < out.weight.length; i++) out.weight[i] /= s[Math.floor(i / layer.k)];
  if (out.bias) for (let r = 0; r < out.rows; r++) out.bias[r] /= s[r];
  return out;
}

/**
 * Cross-layer equalisation of a chain of layers with positively homogeneous functions between them (ReLU, PReLU, none):
 * the ranges of the output rows of a layer and of the input columns of the next become equal. The function of the chain
 * is unchanged.
 * @throws LowbitError E_SHAPE where outputs and inputs of neighbours differ
 * @example
 * const [first, second] = crossLayerEqualize([
 *   { weight: Float32Array.of(8, 2), rows: 2, k: 1 },
 *   { weight: Float32Array.of(2, 8), rows: 1, k: 2 },
 * ]);
 * [first.weight, second.weight] // [[4, 4], [4, 4]]
 */
export function crossLayerEqualize(
  chain: readonly Linear[],
  options: { readonly iterations?: number; readonly tolerance?: number } = {},
): Linear64[] {
  const layers = chain.map((l) => copy(l, "crossLayerEqualize"));
  for (let i = 0; i + 1 < layers.length; i++)
    if (layers[i].rows !== layers[i + 1].k)
      throw new LowbitError(
        "E_SHAPE",
        `crossLayerEqualize: expected layer ${i + 1} to read ${layers[i].rows} inputs, got ${layers[i + 1].k}.`,
      );
  const { iterations = 50, tolerance = 1e-8 } = options;
  for (let it = 0; it < iterations; it++) {
    let largest = 0;
    for (let i = 0; i + 1 < layers.length; i++) {
      const [a, b] = [layers[i], layers[i + 1]];
      const r1 = new Float64Array(a.rows);
      const r2 = new Float64Array(a.rows);
      for (let j = 0; j < a.weight.length; j++) r1[Math.floor(j / a.k)] = Math.max(r1[Math.floor(j / a.k)], Math.abs(a.weight[j]));
      for (let j = 0; j < b.weight.length; j++) r2[j % b.k] = Math.max(r2[j % b.k], Math.abs(b.weight[j]));
      const s = r1.map((r, c) => (r === 0 || r2[c] === 0 ? 1 : Math.sqrt(r * r2[c]) / r2[c]));
      for (const v of s) largest = Math.max(largest, Math.abs(v - 1));
      layers[i] = divideRows(a, s);
      layers[i + 1] = scaleColumns(b, s);
    }
    if (largest < tolerance) break;
  }
  return layers;
}

/**
 * High-bias absorption (Nagel et al., 4.1.3), after equalisation and with a ReLU between: what the inputs of the ReLU
 * of a channel practically always exceed, c = max(0, mean - 3 deviations), moves from the bias before to the bias
 * after. Exact wherever the inputs of the ReLU are at least c.
 * @param outputs mean and deviation of each output of the first layer before its ReLU, or statistics of them; beta and
 * gamma of a batch norm are such
 * @throws LowbitError E_SHAPE where the sizes differ; RangeError for `deviations`
 * @example
 * const one = { weight: Float32Array.of(1), rows: 1, k: 1 };
 * const before = { ...one, bias: Float32Array.of(5) };
 * const { first, second, absorbed } = absorbHighBias(before, one, { mean: [5], deviation: [1] });
 * [first.bias, second.bias, absorbed] // [[3], [2], [2]]: what always passes the ReLU, 5 - 3 * 1, moves on
 */
export function absorbHighBias(
  first: Linear,
  second: Linear,
  outputs: LayerStatistics | { readonly mean: ArrayLike<number>; readonly deviation: ArrayLike<number> },
  deviations = 3,
): { first: Linear64; second: Linear64; absorbed: Float64Array<ArrayBuffer> } {
  const [a, b] = [copy(first, "absorbHighBias"), copy(second, "absorbHighBias")];
  if (!(deviations >= 0)) throw new RangeError(`absorbHighBias deviations: expected a number >= 0, got ${deviations}.`);
  const n = "sum" in outputs ? outputs.k : outputs.mean.length;
  if (a.rows !== b.k || n !== a.rows || ("mean" in outputs && outputs.deviation.length !== n))
    throw new LowbitError("E_SHAPE", `absorbHighBias: expected ${a.rows} channels in both layers and in the moments, got ${b.k} and ${n}.`);
  const moments = (c: number): [number, number] => {
    if (!("sum" in outputs)) return [outputs.mean[c], Math.abs(outputs.deviation[c])];
    const mean = outputs.sum[c] / outputs.weight;
    return [mean, Math.sqrt(Math.max(0, outputs.sumSquares[c] / outputs.weight - mean * mean))];
  };
  const absorbed = Float64Array.from({ length: n }, (_, c) => {
    const [mean, deviation] = moments(c);
    return Math.max(0, mean - deviations * deviation);
  });
  const [biasA, biasB] = [a.bias ?? new Float64Array(a.rows), b.bias ?? new Float64Array(b.rows)];
  for (let c = 0; c < n; c++) biasA[c] -= absorbed[c];
  for (let r = 0; r < b.rows; r++) for (let c = 0; c < n; c++) biasB[r] += b.weight[r * n + c] * absorbed[c];
  return { first: { ...a, bias: biasA }, second: { ...b, bias: biasB }, absorbed };
}

/**
 * E[min(limit, max(0, x))] of a normal x: the mean input behind a batch norm (mean beta, deviation gamma) and a ReLU or
 * ReLU6, for `correctBias` without data.
 * @example
 * clippedNormalMean(0, 1) // 0.3989422804014327: 1 / sqrt(2 pi)
 * clippedNormalMean(10, 1, 6) // near 6: behind a ReLU6
 */
export function clippedNormalMean(mean: number, deviation: number, limit = Infinity): number {
  const s = Math.abs(deviation);
  if (s === 0) return Math.min(limit, Math.max(0, mean));
  const above = (t: number) => (t === Infinity ? 0 : s * normalDensity((t - mean) / s) + (mean - t) * normalCdf((mean - t) / s));
  return above(0) - above(limit);
}

/**
 * Bias that takes out the mean shift of quantization: b - (Q - W) E[x].
 * @param quantized values of the quantized weight, [rows * k]
 * @param inputs statistics of the inputs, or their means
 * @throws LowbitError E_SHAPE
 * @example
 * const layer = { weight: Float32Array.of(1, 1), rows: 1, k: 2, bias: Float32Array.of(0) };
 * correctBias(layer, [1.5, 1], [2, 4]) // [-1]: what .5 too much does to a mean input of 2
 */
export function correctBias(
  layer: Linear,
  quantized: ArrayLike<number>,
  inputs: LayerStatistics | ArrayLike<number>,
): Float64Array<ArrayBuffer> {
  const { weight, rows, k, bias } = copy(layer, "correctBias");
  const means = "sum" in inputs ? inputs.sum.map((v) => v / inputs.weight) : inputs;
  if (quantized.length !== rows * k || means.length !== k)
    throw new LowbitError(
      "E_SHAPE",
      `correctBias: expected ${rows} x ${k} values and ${k} mean inputs, got ${quantized.length} and ${means.length}.`,
    );
  const out = bias ?? new Float64Array(rows);
  for (let r = 0; r < rows; r++) for (let j = 0; j < k; j++) out[r] -= (quantized[r * k + j] - weight[r * k + j]) * means[j];
  return out;
}

/** A batch norm behind a layer, in inference. */
export interface BatchNorm {
  readonly gamma: ArrayLike<number>;
  readonly beta: ArrayLike<number>;
  readonly mean: ArrayLike<number>;
  readonly variance: ArrayLike<number>;
  /** Default 1e-5. */
  readonly epsilon?: number;
}

/**
 * The layer takes over a batch norm behind it: W gamma / sqrt(variance + epsilon), beta + (b - mean) gamma /
 * sqrt(variance + epsilon).
 * @throws LowbitError E_SHAPE
 * @example
 * const norm = { gamma: [2], beta: [1], mean: [3], variance: [4], epsilon: 0 };
 * const folded = foldBatchNorm({ weight: Float32Array.of(5), rows: 1, k: 1 }, norm);
 * [folded.weight, folded.bias] // [[5], [-2]]
 */
export function foldBatchNorm(layer: Linear, norm: BatchNorm): Linear64 {
  const { weight, rows, k, bias } = copy(layer, "foldBatchNorm");
  for (const list of [norm.gamma, norm.beta, norm.mean, norm.variance])
    if (list.length !== rows) throw new LowbitError("E_SHAPE", `foldBatchNorm: expected ${rows} channels, got ${list.length}.`);
  const out = bias ?? new Float64Array(rows);
  for (let r = 0; r < rows; r++) {
    const factor = norm.gamma[r] / Math.sqrt(norm.variance[r] + (norm.epsilon ?? 1e-5));
    for (let j = 0; j < k; j++) weight[r * k + j] *= factor;
    out[r] = norm.beta[r] + (out[r] - norm.mean[r]) * factor;
  }
  return { weight, rows, k, bias: out };
}

/**
 * A reader of a norm takes over its gain and bias: W diag(gamma), b + W beta. Right for RMSNorm (without beta) and
 * LayerNorm.
 * @throws LowbitError E_SHAPE for gains of another number than k
 * @example foldNorm({ weight: Float32Array.of(1, 1), rows: 1, k: 2 }, [2, 3]).weight // [2, 3]
 */
export function foldNorm(layer: Linear, gamma: ArrayLike<number>, beta: ArrayLike<number> | null = null): Linear64 {
  const { weight, rows, k, bias } = copy(layer, "foldNorm");
  if (gamma.length !== k || (beta && beta.length !== k))
    throw new LowbitError("E_SHAPE", `foldNorm: expected gains of ${k} channels, got ${gamma.length}.`);
  const out = beta ? (bias ?? new Float64Array(rows)) : bias;
  for (let r = 0; r < rows; r++)
    for (let j = 0; j < k; j++) {
      if (beta) out![r] += weight[r * k + j] * beta[j];
      weight[r * k + j] *= gamma[j];
    }
  return { weight, rows, k, bias: out };
}

/**
 * A writer of the residual stream takes over the mean subtraction of a LayerNorm, which then is an RMSNorm: the mean
 * over outputs is subtracted from weight and bias. Not for models with RMSNorm: they subtract no mean.
 * @example centerOutputs({ weight: Float32Array.of(1, 3), rows: 2, k: 1 }).weight // [-1, 1]
 */
export function centerOutputs(layer: Linear): Linear64 {
  const { weight, rows, k, bias } = copy(layer, "centerOutputs");
  for (let j = 0; j < k; j++) {
    let mean = 0;
    for (let r = 0; r < rows; r++) mean += weight[r * k + j] / rows;
    for (let r = 0; r < rows; r++) weight[r * k + j] -= mean;
  }
  if (bias) {
    const mean = bias.reduce((s, b) => s + b / rows, 0);
    for (let r = 0; r < rows; r++) bias[r] -= mean;
  }
  return { weight, rows, k, bias };
}

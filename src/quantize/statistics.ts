// What calibration keeps of a layer's inputs: sums only, never the activations. X is (tokens x k); H = sum over tokens
// of w x x^T in float64, so constant factors (2/n in the papers) are left out: every quantizer here uses H up to a
// factor. Masked tokens have weight 0 and are not counted. Source of the Hessian: GPTQ, arXiv 2210.17323; token
// weights: MBQ, arXiv 2412.19509.
import { LowbitError } from "../../formats/core/errors.ts";
import { algebraFor, type AlgebraOptions } from "./simd.ts";

/** Statistics of the inputs of one layer. */
export interface LayerStatistics {
  /** Length of an input vector. */
  readonly k: number;
  /** Tokens counted (weight above 0). */
  readonly rows: number;
  /** Sum of the token weights; equals rows without weights. */
  readonly weight: number;
  /** sum w x x^T, [k * k] symmetric; null when it was not collected. */
  readonly hessian: Float64Array<ArrayBuffer> | null;
  /** Per channel: sum w x, sum w |x|, sum w x^2, and the range over counted tokens. */
  readonly sum: Float64Array<ArrayBuffer>;
  readonly sumAbs: Float64Array<ArrayBuffer>;
  readonly sumSquares: Float64Array<ArrayBuffer>;
  readonly min: Float64Array<ArrayBuffer>;
  readonly max: Float64Array<ArrayBuffer>;
}

/** Which tokens of a batch count, and how much. */
export interface AddOptions {
  /** One entry per token; 0 leaves the token out (padding). */
  readonly mask?: ArrayLike<number>;
  /** One weight >= 0 per token (modalities, importance); default 1. */
  readonly weights?: ArrayLike<number>;
  /**
   * sum x x^T of these tokens, [k * k], where the caller has it: it is added, not computed. Not with mask or weights.
   */
  readonly products?: ArrayLike<number>;
}

/** What is kept of a layer's inputs. */
export interface StatisticsOptions extends AlgebraOptions {
  /** Default true. Without it only the per-channel sums are kept (k numbers instead of k * k). */
  readonly hessian?: boolean;
  /** Layer name for messages. */
  readonly name?: string;
}

/** A running collection of `LayerStatistics`. Memory: 8 k^2 bytes with the Hessian. */
export interface StatisticsAccumulator {
  readonly k: number;
  /** @param x tokens, row-major [tokens * k] @throws LowbitError E_CALIBRATION for NaN or infinities, E_SHAPE */
  add(x: Float32Array | Float64Array, options?: AddOptions): void;
  /**
   * The statistics so far; the accumulator goes on. The Hessian is shared, not copied.
   * @throws LowbitError E_CALIBRATION without any token
   */
  finish(): LayerStatistics;
}

/** An accumulator that keeps the Hessian, which is the default. */
export interface HessianAccumulator extends StatisticsAccumulator {
  finish(): LayerStatistics & { readonly hessian: Float64Array<ArrayBuffer> };
}

/** Tokens per product. */
const TOKENS = 128;

/**
 * Collects the statistics of one layer's inputs.
 * @param k length of an input vector
 * @throws RangeError for k; its `add` LowbitError E_SHAPE, E_CALIBRATION for values that are not finite
 * @example
 * const acc = layerStatistics(2);
 * acc.add(Float32Array.of(1, 2, 3, 4)); // two tokens [2, 2], and more calls
 * acc.finish().hessian // [10, 14, 14, 20]: sums of products
 */
export function layerStatistics(k: number, options?: StatisticsOptions & { readonly hessian?: true }): HessianAccumulator;
export function layerStatistics(k: number, options?: StatisticsOptions): StatisticsAccumulator;
export function layerStatistics(k: number, options: StatisticsOptions = {}): StatisticsAccumulator {
  if (!Number.isSafeInteger(k) || k < 1) throw new RangeError(`layerStatistics k: expected a positive integer, got ${k}.`);
  const algebra = algebraFor(options, "layerStatistics");
  const at = options.name === undefined ? "" : ` of layer "${options.name}"`;
  const hessian = options.hessian === false ? null : new Float64Array(k * k);
  const sum = new Float64Array(k);
  const sumAbs = new Float64Array(k);
  const sumSquares = new Float64Array(k);
  const min = new Float64Array(k).fill(Infinity);
  const max = new Float64Array(k).fill(-Infinity);
  let rows = 0;
  let weight = 0;
  const left = new Float64Array(hessian ? TOKENS * k : 0);
  const right = new Float64Array(hessian ? TOKENS * k : 0);

  const flush = (count: number, weighted: boolean) => {
    if (hessian === null) return;
    // The lower triangle only; finish() mirrors it.
    algebra.lower(hessian, 0, k, k, weighted ? left : right, 0, k, right, 0, k, count, 1);
  };

  return {
    k,
    add(x, { mask, weights, products } = {}) {
      const tokens = x.length / k;
      if (!Number.isInteger(tokens))
        throw new LowbitError(
          "E_SHAPE",
          `activations${at}: expected a multiple of ${k} numbers, got ${x.length}. Pass whole input vectors.`,
        );
      for (const [name, list] of [["mask", mask] as const, ["weights", weights] as const])
        if (list !== undefined && list.length !== tokens)
          throw new LowbitError("E_SHAPE", `${name}${at}: expected one entry for each of ${tokens} tokens, got ${list.length}.`);
      if (products !== undefined && (mask || weights || products.length !== k * k))
        throw new LowbitError(
          "E_SHAPE",
          `products${at}: expected ${k} x ${k} sums of tokens without mask and weights, got ${products.length} numbers. Leave them out, and they are computed.`,
        );
      // Check everything first: a refused batch must leave the sums as they were.
      if (mask || weights || !allFinite(x)) checkTokens(x, k, at, mask, weights);
      if (!mask && !weights) {
        rows += tokens;
        weight += tokens;
        addPlain(x, k, { sum, sumAbs, sumSquares, min, max });
        if (hessian !== null && products !== undefined) {
          for (let i = 0; i < k; i++) for (let at = i * k; at <= i * k + i; at++) hessian[at] += products[at];
          return;
        }
        for (let t = 0; hessian !== null && t < tokens; t += TOKENS) {
          const count = Math.min(TOKENS, tokens - t);
          right.set(x.subarray(t * k, (t + count) * k));
          flush(count, false);
        }
        return;
      }
      let n = 0;
      for (let t = 0; t < tokens; t++) {
        const w = weights ? weights[t] : 1;
        if ((mask && !mask[t]) || w === 0) continue;
        rows++;
        weight += w;
        for (let j = 0; j < k; j++) {
          const v = x[t * k + j];
          sum[j] += w * v;
          sumAbs[j] += w * Math.abs(v);
          sumSquares[j] += w * v * v;
          if (v < min[j]) min[j] = v;
          if (v > max[j]) max[j] = v;
        }
        if (hessian === null) continue;
        right.set(x.subarray(t * k, (t + 1) * k), n * k);
        if (weights) for (let j = 0; j < k; j++) left[n * k + j] = w * x[t * k + j];
        if (++n === TOKENS) {
          flush(n, weights !== undefined);
          n = 0;
        }
      }
      if (n > 0) flush(n, weights !== undefined);
    },
    finish() {
      if (rows === 0)
        throw new LowbitError(
          "E_CALIBRATION",
          `calibration${at}: expected at least one token, got none. Did any batch reach the layer, and is the mask not all zero?`,
        );
      if (hessian) for (let i = 0; i < k; i++) for (let j = 0; j < i; j++) hessian[j * k + i] = hessian[i * k + j];
      return { k, rows, weight, hessian, sum, sumAbs, sumSquares, min, max };
    },
  };
}

const added = (a: Float64Array, b: Float64Array): Float64Array<ArrayBuffer> => Float64Array.from(a, (v, i) => v + b[i]);

/**
 * Statistics of the tokens of both collections, as if they had been collected at once but for the order of sums.
 * Neither is changed.
 * @throws LowbitError E_SHAPE for inputs of another length, or where one only has a Hessian
 * @example mergeStatistics(stats, stats).rows // 1024
 */
export function mergeStatistics(a: LayerStatistics, b: LayerStatistics): LayerStatistics {
  if (a.k !== b.k || (a.hessian === null) !== (b.hessian === null)) {
    const kind = ({ k, hessian }: LayerStatistics): string => `inputs of length ${k} with${hessian === null ? "out" : ""} a Hessian`;
    throw new LowbitError("E_SHAPE", `mergeStatistics: expected ${kind(a)} in both, got ${kind(b)}. Collect both with the same options.`);
  }
  return {
    k: a.k,
    rows: a.rows + b.rows,
    weight: a.weight + b.weight,
    hessian: a.hessian === null ? null : added(a.hessian, b.hessian!),
    sum: added(a.sum, b.sum),
    sumAbs: added(a.sumAbs, b.sumAbs),
    sumSquares: added(a.sumSquares, b.sumSquares),
    min: Float64Array.from(a.min, (v, i) => Math.min(v, b.min[i])),
    max: Float64Array.from(a.max, (v, i) => Math.max(v, b.max[i])),
  };
}

/** NaN and infinities are the numbers that times 0 is not 0. */
function allFinite(x: Float32Array | Float64Array): boolean {
  let zero = 0;
  for (let i = 0; i < x.length; i++) zero += x[i] * 0;
  return zero === 0;
}

/** Are all inputs the same vector, or all zero? Then they say nothing of a weight. */
export const unvarying = ({ rows, min, max }: LayerStatistics): boolean =>
  rows > 0 && min.every((low, j) => low === max[j] && (rows > 1 || low === 0));

/** @throws LowbitError E_CALIBRATION for a weight or number that does not count */
function checkTokens(x: Float32Array | Float64Array, k: number, at: string, mask?: ArrayLike<number>, weights?: ArrayLike<number>): void {
  for (let t = 0; t < x.length / k; t++) {
    const w = weights ? weights[t] : 1;
    if (!(w >= 0 && w < Infinity))
      throw new LowbitError("E_CALIBRATION", `weights${at}: expected finite numbers >= 0, got ${w} for token ${t}.`);
    if ((mask && !mask[t]) || w === 0) continue;
    for (let j = 0; j < k; j++)
      if (!Number.isFinite(x[t * k + j]))
        throw new LowbitError(
          "E_CALIBRATION",
          `activations${at}: expected finite numbers, got ${x[t * k + j]} in channel ${j} of token ${t}. Mask the token, or look for the operator that overflows.`,
        );
  }
}

/** Tokens whose lines of one channel stay in the nearest cache. */
const TILE = 64;

/** Channel sums without weights: every channel adds in the order of tokens, its sums in registers over a tile. */
function addPlain(
  x: Float32Array | Float64Array,
  k: number,
  sums: Pick<LayerStatistics, "sum" | "sumAbs" | "sumSquares" | "min" | "max">,
): void {
  for (let start = 0; start < x.length; start += TILE * k) {
    const end = Math.min(x.length, start + TILE * k);
    for (let j = 0; j < k; j++) {
      let [sum, abs, squares, min, max] = [sums.sum[j], sums.sumAbs[j], sums.sumSquares[j], sums.min[j], sums.max[j]];
      for (let i = start + j; i < end; i += k) {
        const v = x[i];
        sum += v;
        abs += Math.abs(v);
        squares += v * v;
        if (v < min) min = v;
        if (v > max) max = v;
      }
      sums.sum[j] = sum;
      sums.sumAbs[j] = abs;
      sums.sumSquares[j] = squares;
      sums.min[j] = min;
      sums.max[j] = max;
    }
  }
}

/**
 * Output error of replacing W by Q on the calibration inputs: sum over rows of (w - q) H (w - q)^T = ||X (W - Q)^T||^2.
 * @param q null: nothing, so that it is the energy of the outputs
 * @throws LowbitError E_SHAPE
 * @example
 * const q = dequantize(quantize(w, format("int4_b32")));
 * const share = outputError(w.data, q, 64, stats.hessian) / outputError(w.data, null, 64, stats.hessian);
 * -10 * Math.log10(share) // SQNR of the outputs in dB
 */
export function outputError(
  w: ArrayLike<number>,
  q: ArrayLike<number> | null,
  rows: number,
  hessian: Float64Array,
  options: AlgebraOptions = {},
): number {
  const { product: multiply } = algebraFor(options, "outputError");
  const k = Math.sqrt(hessian.length);
  if (!Number.isInteger(k) || w.length !== rows * k || (q !== null && q.length !== rows * k))
    throw new LowbitError(
      "E_SHAPE",
      `outputError: expected weights of ${rows} x k and a Hessian k x k, got ${w.length}, ${q?.length ?? 0} and ${hessian.length} numbers.`,
    );
  // (D H) by panels of rows: D^T is packed so that the product form applies.
  const panel = 32;
  const d = new Float64Array(panel * k);
  const dt = new Float64Array(panel * k);
  const product = new Float64Array(panel * k);
  let total = 0;
  for (let r0 = 0; r0 < rows; r0 += panel) {
    const m = Math.min(panel, rows - r0);
    for (let i = 0; i < m; i++)
      for (let j = 0; j < k; j++) {
        const v = w[(r0 + i) * k + j] - (q === null ? 0 : q[(r0 + i) * k + j]);
        d[i * k + j] = v;
        dt[j * m + i] = v;
      }
    product.fill(0);
    multiply(product, 0, k, m, k, dt, 0, m, hessian, 0, k, k, 1);
    for (let i = 0; i < m * k; i++) total += product[i] * d[i];
  }
  return total;
}

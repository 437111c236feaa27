// Observers: ranges of activations from a stream, in bounded memory (a range, or a histogram, per group), and the scale
// and zero point that follow. Methods: minMax; movingAverage (constant 0.01, as onnxruntime); percentile; entropy
// (Kullback-Leibler); mse (least squared error, usually the best: entropy may clip far inside, spec B26). Not here:
// Hessians and channel sums (statistics.ts).
import { LowbitError } from "../../formats/core/errors.ts";
import type { NumberFormat } from "../../formats/core/types.ts";
import { affineRule, type AffineParams } from "../tensor/quantize/scales.ts";
import { entropyThreshold, gridNoise, histogram, mseRange, percentileRange, percentileThreshold, type Histogram } from "./histogram.ts";

/** How ranges are found, and what shares one. */
export interface ObserverOptions {
  readonly method: "minMax" | "movingAverage" | "percentile" | "entropy" | "mse";
  /** One range for the tensor (default), per channel (last axis), per token position, or per block of channels. */
  readonly granularity?: "tensor" | "channel" | "token" | { readonly block: number };
  /** Ranges symmetric around zero; default false. Entropy is always symmetric. */
  readonly symmetric?: boolean;
  /** Weight of a new batch in a moving average; default 0.01. */
  readonly momentum?: number;
  /** Share of the values inside, in percent; default 99.999. */
  readonly percentile?: number;
  /** Histogram bins, even; default 2048. */
  readonly bins?: number;
  /** Steps of the entropy search; default 128. */
  readonly quantizedBins?: number;
  /** Bits of the codes that `mse` looks for; default 8. */
  readonly bits?: number;
  /** Largest magnitude expected: makes histogram edges exact in a second pass. */
  readonly limit?: number;
  /** Keep a histogram also for methods that need none, for `noise`; default false. */
  readonly histogram?: boolean;
  /** Name of the tensor for messages. */
  readonly name?: string;
}

/** Ranges by group: one entry, or one per channel, token or block. */
export interface ObservedRanges {
  readonly min: Float64Array<ArrayBuffer>;
  readonly max: Float64Array<ArrayBuffer>;
}

/** Collects the range of activations batch by batch; `ranges` and `params` are what a static quantizer takes. */
export interface Observer {
  /** @param x tokens, row-major [tokens * k] @throws LowbitError E_CALIBRATION for NaN or infinities, E_SHAPE */
  observe(x: Float32Array | Float64Array, options?: { readonly mask?: ArrayLike<number> }): void;
  /** @throws LowbitError E_CALIBRATION before any value */
  ranges(): ObservedRanges;
  /**
   * By group, the power of what rounding to codes of `bits` (at most 8) over the ranges loses, over the power of the
   * values.
   * @throws LowbitError E_UNSUPPORTED without a histogram
   */
  noise(bits: number): Float64Array<ArrayBuffer>;
  /**
   * Scale and zero point per group for an integer format: with zero points for unsigned formats, symmetric for signed
   * ones.
   */
  params(format: NumberFormat): AffineParams[];
}

/**
 * Makes an observer for vectors of length k.
 * @throws RangeError for options out of range
 * @example const o = observer(256, { method: "mse", bits: 8 }); o.observe(x); o.ranges();
 */
export function observer(k: number, options: ObserverOptions): Observer {
  const o = {
    granularity: "tensor" as const,
    symmetric: false,
    momentum: 0.01,
    percentile: 99.999,
    bins: 2048,
    quantizedBins: 128,
    bits: 8,
    limit: 0,
    histogram: false,
    ...options,
  };
  check(k, o);
  const at = o.name === undefined ? "" : ` of "${o.name}"`;
  const { granularity: g } = o;
  const block = typeof g === "object" ? g.block : 1;
  const needsHistogram = o.method === "percentile" || o.method === "entropy" || o.method === "mse" || o.histogram;
  let groups = g === "tensor" ? 1 : g === "channel" ? k : g === "token" ? 0 : Math.ceil(k / block);
  const ranges: { min: number; max: number; average: { min: number; max: number } | null }[] = [];
  const histograms: Histogram[] = [];
  const groupOf = (t: number, j: number) => (g === "tensor" ? 0 : g === "channel" ? j : g === "token" ? t : Math.floor(j / block));

  const notFinite = (value: number, i: number) =>
    new LowbitError(
      "E_CALIBRATION",
      `observer${at}: expected finite numbers, got ${value} in channel ${i % k} of token ${Math.floor(i / k)}. Mask the token, or find the operator that overflows.`,
    );

  const observe: Observer["observe"] = (x, { mask } = {}) => {
    const tokens = x.length / k;
    if (!Number.isInteger(tokens))
      throw new LowbitError("E_SHAPE", `observer${at}: expected a multiple of ${k} numbers, got ${x.length}. Pass whole vectors.`);
    if (mask && mask.length !== tokens)
      throw new LowbitError("E_SHAPE", `observer mask${at}: expected one entry for each of ${tokens} tokens, got ${mask.length}.`);
    if (g === "token") {
      if (groups !== 0 && groups !== tokens)
        throw new LowbitError("E_SHAPE", `observer${at}: expected ${groups} tokens in every batch, got ${tokens}. Pad and mask.`);
      groups = tokens;
    }
    const batch = Array.from({ length: groups }, () => ({ min: Infinity, max: -Infinity }));
    // one range for everything: no group has to be looked up for each number
    const single = groups === 1 && !mask;
    if (single) {
      const b = batch[0];
      for (let i = 0; i < x.length; i++) {
        const v = x[i];
        if (!Number.isFinite(v)) throw notFinite(v, i);
        if (v < b.min) b.min = v;
        if (v > b.max) b.max = v;
      }
    } else
      for (let t = 0; t < tokens; t++) {
        if (mask && !mask[t]) continue;
        for (let j = 0; j < k; j++) {
          const v = x[t * k + j];
          if (!Number.isFinite(v)) throw notFinite(v, t * k + j);
          const b = batch[groupOf(t, j)];
          if (v < b.min) b.min = v;
          if (v > b.max) b.max = v;
        }
      }
    batch.forEach((b, i) => {
      if (b.min > b.max) return;
      const r = (ranges[i] ??= { min: Infinity, max: -Infinity, average: null });
      r.min = Math.min(r.min, b.min);
      r.max = Math.max(r.max, b.max);
      r.average = r.average
        ? { min: r.average.min + o.momentum * (b.min - r.average.min), max: r.average.max + o.momentum * (b.max - r.average.max) }
        : { ...b };
      if (needsHistogram) histograms[i] ??= histogram(o.bins, Math.max(o.limit, Math.abs(b.min), Math.abs(b.max)));
    });
    if (!needsHistogram) return;
    if (single && histograms[0] !== undefined) histograms[0].addAll(x);
    else for (let t = 0; t < tokens; t++) if (!mask || mask[t]) for (let j = 0; j < k; j++) histograms[groupOf(t, j)].add(x[t * k + j]);
  };

  const rangeOf = (i: number): { min: number; max: number } => {
    const r = ranges[i];
    if (r === undefined)
      throw new LowbitError(
        "E_CALIBRATION",
        `observer${at}: expected at least one value in group ${i}, got none. Did any batch reach the tensor?`,
      );
    const symmetric = (t: number) => ({ min: -t, max: t });
    switch (o.method) {
      case "minMax":
      case "movingAverage": {
        const m = o.method === "minMax" ? r : r.average!;
        return o.symmetric ? symmetric(Math.max(Math.abs(m.min), Math.abs(m.max))) : { min: m.min, max: m.max };
      }
      case "percentile": {
        const share = o.percentile / 100;
        return o.symmetric ? symmetric(percentileThreshold(histograms[i], o.bins, share)) : percentileRange(histograms[i], o.bins, share);
      }
      case "entropy":
        return symmetric(entropyThreshold(histograms[i], o.bins, o.quantizedBins).threshold);
      case "mse":
        return mseRange(histograms[i], o.bins, o.bits, o.symmetric);
    }
  };

  const observed = (): ObservedRanges => {
    const list = Array.from({ length: Math.max(groups, 1) }, (_, i) => rangeOf(i));
    return { min: Float64Array.from(list, (r) => r.min), max: Float64Array.from(list, (r) => r.max) };
  };

  return {
    observe,
    ranges: observed,
    noise(bits) {
      if (!needsHistogram)
        throw new LowbitError(
          "E_UNSUPPORTED",
          `observer noise${at}: expected a histogram, got ${o.method} without one. Set histogram: true.`,
        );
      const { min, max } = observed();
      return Float64Array.from(min, (lo, i) => gridNoise(histograms[i], o.bins, bits, { min: lo, max: max[i] }));
    },
    params(format) {
      if (format.kind !== "int")
        throw new LowbitError("E_UNSUPPORTED", `observer params: expected an integer format, got ${format.name}. Read ranges() instead.`);
      const { min, max } = observed();
      const zeroPoint = format.limits.min >= 0;
      const params = affineRule({ element: format, rangeRule: zeroPoint ? "minmax" : "narrow", zeroPoint, steps: "exact" });
      return Array.from(min, (lo, i) => params({ min: lo, max: max[i] }));
    },
  };
}

function check(k: number, o: Required<Omit<ObserverOptions, "name" | "granularity">> & Pick<ObserverOptions, "granularity">): void {
  const bad = (what: string, expected: string, got: unknown) =>
    new RangeError(`observer ${what}: expected ${expected}, got ${String(got)}.`);
  if (!Number.isSafeInteger(k) || k < 1) throw bad("k", "a positive integer", k);
  if (!["minMax", "movingAverage", "percentile", "entropy", "mse"].includes(o.method))
    throw bad("method", "minMax, movingAverage, percentile, entropy or mse", o.method);
  const g = o.granularity;
  if (typeof g === "object" ? !(Number.isInteger(g.block) && g.block > 0) : !["tensor", "channel", "token"].includes(g!))
    throw bad("granularity", `"tensor", "channel", "token" or { block }`, JSON.stringify(g));
  if (!(o.momentum > 0 && o.momentum <= 1)) throw bad("momentum", "a number in (0, 1]", o.momentum);
  if (!(o.percentile > 50 && o.percentile <= 100)) throw bad("percentile", "a number in (50, 100]", o.percentile);
  if (!(Number.isInteger(o.bins) && o.bins >= 16 && o.bins % 2 === 0)) throw bad("bins", "an even integer of 16 or more", o.bins);
  if (!(Number.isInteger(o.quantizedBins) && o.quantizedBins >= 2 && o.quantizedBins % 2 === 0))
    throw bad("quantizedBins", "an even integer of 2 or more", o.quantizedBins);
  if (!(Number.isInteger(o.bits) && o.bits >= 2 && o.bits <= 16)) throw bad("bits", "an integer in 2..16", o.bits);
  if (!(o.limit >= 0 && o.limit < Infinity)) throw bad("limit", "a number >= 0", o.limit);
}

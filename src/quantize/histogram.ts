// A streaming histogram over [-limit, limit] and the clipping thresholds read from it. The limit doubles when a larger
// magnitude arrives (neighbouring bins merge), so memory is fixed; bins are finer than asked for, so that rebinning at
// the end loses nothing that matters. One batch, or a range given in advance, makes the edges exact. Entropy:
// onnxruntime's calibrate.py (its default of 128 bins leaves one candidate; 2048 here).
import { LowbitError } from "../../formats/core/errors.ts";

/** Internal bins per bin asked for. */
const FINE = 4;

export interface Histogram {
  /** Largest magnitude met. */
  readonly amax: number;
  readonly min: number;
  readonly max: number;
  readonly count: number;
  add(value: number): void;
  /** All of a batch of finite numbers, as `add` one by one. */
  addAll(values: ArrayLike<number>): void;
  /** Counts over [-amax, amax] in `bins` equal bins. */
  counts(bins: number): Float64Array;
}

export function histogram(bins: number, firstLimit: number): Histogram {
  const half = (bins * FINE) / 2;
  let width = firstLimit > 0 ? firstLimit / half : 0;
  const fine = new Float64Array(2 * half);
  let [min, max, count, zeros] = [Infinity, -Infinity, 0, 0];
  const grow = () => {
    // Around the middle, bins 2i and 2i + 1 merge; the outer half becomes empty.
    for (let i = 0; i < half; i++) {
      fine[half + i] = 2 * i + 1 < half ? fine[half + 2 * i] + fine[half + 2 * i + 1] : 0;
      fine[half - 1 - i] = 2 * i + 1 < half ? fine[half - 1 - 2 * i] + fine[half - 2 - 2 * i] : 0;
    }
    width *= 2;
  };
  const addAll = (values: ArrayLike<number>): void => {
    let [low, high] = [min, max];
    for (let i = 0; i < values.length; i++) {
      const v = values[i];
      if (v < low) low = v;
      if (v > high) high = v;
    }
    const limit = Math.max(Math.abs(low), Math.abs(high));
    if (width === 0 && limit > 0) {
      width = limit / half;
      fine[half] += zeros;
    }
    count += values.length;
    [min, max] = [low, high];
    if (width === 0) {
      zeros += values.length;
      return;
    }
    while (limit > width * half) grow();
    const last = 2 * half - 1;
    for (let i = 0; i < values.length; i++) {
      const at = Math.floor(values[i] / width) + half;
      fine[at < 0 ? 0 : at > last ? last : at]++;
    }
  };
  return {
    addAll,
    get amax() {
      return count === 0 ? 0 : Math.max(Math.abs(min), Math.abs(max));
    },
    get min() {
      return min;
    },
    get max() {
      return max;
    },
    get count() {
      return count;
    },
    add(v) {
      count++;
      if (v < min) min = v;
      if (v > max) max = v;
      if (width === 0) {
        if (v === 0) {
          zeros++;
          return;
        }
        width = Math.abs(v) / half;
        fine[half] += zeros;
      }
      while (Math.abs(v) > width * half) grow();
      const i = Math.floor(v / width) + half;
      fine[i < 0 ? 0 : i >= 2 * half ? 2 * half - 1 : i]++;
    },
    counts(n) {
      const out = new Float64Array(n);
      const amax = Math.max(Math.abs(min), Math.abs(max));
      if (count === 0) return out;
      if (amax === 0) {
        out[n >> 1] = count;
        return out;
      }
      const step = (2 * amax) / n;
      for (let i = 0; i < 2 * half; i++) {
        if (fine[i] === 0) continue;
        // A fine bin goes to the bin of its middle.
        const at = Math.floor(((i - half + 0.5) * width + amax) / step);
        out[at < 0 ? 0 : at >= n ? n - 1 : at] += fine[i];
      }
      return out;
    },
  };
}

/** Symmetric threshold that keeps `share` (0..1) of the magnitudes. */
export function percentileThreshold(h: Histogram, bins: number, share: number): number {
  const counts = h.counts(bins);
  let kept = h.count;
  let edge = bins / 2;
  // From the outside inwards: drop whole bins while enough remains.
  for (; edge > 1; edge--) {
    const drop = counts[bins / 2 - edge] + counts[bins / 2 + edge - 1];
    if (kept - drop < share * h.count) break;
    kept -= drop;
  }
  return (h.amax * edge) / (bins / 2);
}

/** [min, max] that leaves (1 - share) / 2 of the values outside on each side. */
export function percentileRange(h: Histogram, bins: number, share: number): { min: number; max: number } {
  const counts = h.counts(bins);
  const tail = ((1 - share) / 2) * h.count;
  const step = (2 * h.amax) / bins;
  let [lo, hi, below, above] = [0, bins - 1, 0, 0];
  while (lo < hi && below + counts[lo] <= tail) below += counts[lo++];
  while (hi > lo && above + counts[hi] <= tail) above += counts[hi--];
  return { min: Math.max(h.min, -h.amax + lo * step), max: Math.min(h.max, -h.amax + (hi + 1) * step) };
}

export interface EntropyResult {
  readonly threshold: number;
  readonly candidates: number;
}

/**
 * Threshold of least Kullback-Leibler divergence between the clipped histogram and its version in `quantizedBins`
 * steps, as onnxruntime: half-widths from quantizedBins / 2 to bins / 2, zero bins smoothed by 1e-4.
 */
export function entropyThreshold(h: Histogram, bins: number, quantizedBins: number): EntropyResult {
  if (bins < quantizedBins)
    throw new LowbitError("E_CALIBRATION", `entropy bins: expected at least ${quantizedBins} bins, got ${bins}. Use 2048.`);
  const counts = h.counts(bins);
  const zero = bins / 2;
  let best = Infinity;
  let bestHalf = zero;
  let candidates = 0;
  for (let half = quantizedBins / 2; half <= zero; half++) {
    candidates++;
    const [start, end] = [zero - half, Math.min(bins, zero + half + 1)];
    const divergence = klDivergence(counts, start, end, quantizedBins);
    if (divergence < best) [best, bestHalf] = [divergence, half];
  }
  return { threshold: (h.amax * bestHalf) / zero, candidates };
}

function klDivergence(counts: Float64Array, start: number, end: number, quantizedBins: number): number {
  const n = end - start;
  const p = counts.slice(start, end);
  for (let i = 0; i < start; i++) p[0] += counts[i];
  for (let i = end; i < counts.length; i++) p[n - 1] += counts[i];
  const merged = Math.floor(n / quantizedBins);
  const q = new Float64Array(n);
  for (let b = 0; b < quantizedBins; b++) {
    const from = b * merged;
    const to = b === quantizedBins - 1 ? n : from + merged;
    let sum = 0;
    let used = 0;
    for (let i = from; i < to; i++) {
      sum += counts[start + i];
      if (p[i] !== 0) used++;
    }
    if (used > 0) for (let i = from; i < to; i++) if (p[i] !== 0) q[i] = sum / used;
  }
  if (!smooth(p) || !smooth(q)) return Infinity;
  let [ps, qs] = [0, 0];
  for (let i = 0; i < n; i++) {
    ps += p[i];
    qs += q[i];
  }
  let kl = 0;
  for (let i = 0; i < n; i++) kl += (p[i] / ps) * Math.log(p[i] / ps / (q[i] / qs));
  return Number.isNaN(kl) ? Infinity : kl;
}

const EPSILON = 1e-4;

function smooth(p: Float64Array): boolean {
  let zeros = 0;
  for (const v of p) if (v === 0) zeros++;
  const take = (EPSILON * zeros) / (p.length - zeros);
  // nothing but zeros: Infinity
  if (take >= 1) return false;
  for (let i = 0; i < p.length; i++) p[i] = p[i] === 0 ? EPSILON : p[i] - take;
  return true;
}

const even = (x: number) => x + 6755399441055744 - 6755399441055744;

/** Expected squared error of rounding to `levels` codes of a step, with zero at a code. */
function gridError(counts: Float64Array, amax: number, min: number, max: number, levels: number): number {
  const step = (max - min) / (levels - 1);
  if (!(step > 0)) return Infinity;
  const zero = even(-min / step);
  const width = (2 * amax) / counts.length;
  let error = 0;
  for (let i = 0; i < counts.length; i++) {
    if (counts[i] === 0) continue;
    const x = -amax + (i + 0.5) * width;
    const q = Math.min(levels - 1, Math.max(0, even(x / step) + zero));
    const d = (q - zero) * step - x;
    // Within a bin the values are spread; where steps are coarser than bins the middle stands for them.
    error += counts[i] * d * d;
  }
  return error;
}

/** Share of a histogram's energy that codes of `bits` over a range leave as noise. */
export function gridNoise(h: Histogram, bins: number, bits: number, { min, max }: { readonly min: number; readonly max: number }): number {
  const counts = h.counts(bins);
  const width = (2 * h.amax) / bins;
  let energy = 0;
  for (let i = 0; i < bins; i++) energy += counts[i] * (-h.amax + (i + 0.5) * width) ** 2;
  const noise = gridError(counts, h.amax, Math.min(0, min), Math.max(0, max), 2 ** bits);
  return energy === 0 || noise === 0 ? 0 : noise / energy;
}

/**
 * The range (zero inside) of least squared error for codes of `bits`: both ends shrink together first, then each alone.
 */
export function mseRange(h: Histogram, bins: number, bits: number, symmetric: boolean): { min: number; max: number } {
  const counts = h.counts(bins);
  const levels = symmetric ? 2 ** bits - 1 : 2 ** bits;
  const lo = symmetric ? -h.amax : Math.min(0, h.min);
  const hi = symmetric ? h.amax : Math.max(0, h.max);
  if (lo === hi) return { min: lo, max: hi };
  const steps = 200;
  let best = { min: lo, max: hi };
  let least = gridError(counts, h.amax, lo, hi, levels);
  const attempt = (min: number, max: number) => {
    const e = gridError(counts, h.amax, min, max, levels);
    if (e < least) [least, best] = [e, { min, max }];
  };
  for (let i = 1; i < steps; i++) attempt((lo * i) / steps, (hi * i) / steps);
  if (!symmetric)
    for (let round = 0; round < 2; round++) {
      const { min, max } = best;
      for (let i = 0; i <= steps; i++) attempt((lo * i) / steps, max);
      const left = best.min;
      for (let i = 0; i <= steps; i++) attempt(left, (hi * i) / steps);
      if (best.min === min && best.max === max) break;
    }
  return best;
}

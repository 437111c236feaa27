// The standard normal distribution, and what rounding does to it: density, distribution, the error of a format on
// Gaussian data and the scale that makes it least (the clip constants of QuEST, arXiv 2502.05003, and of Max 1960, for
// every scalar format).
import { LowbitError } from "../../formats/core/errors.ts";
import type { NumberFormat } from "../../formats/core/types.ts";

export const normalDensity = (x: number): number => Math.exp(-0.5 * x * x) / Math.sqrt(2 * Math.PI);

/** P(X <= x), to about 1e-15: the Taylor series of Marsaglia (2004) within 7 sigma, its limit beyond. */
export function normalCdf(x: number): number {
  if (x < -7) return normalDensity(x) / -x / (1 + 1 / (x * x));
  if (x > 7) return 1 - normalCdf(-x);
  let [sum, term, i] = [x, x, 1];
  for (let last = NaN; sum !== last;) {
    last = sum;
    term *= (x * x) / (i += 2);
    sum += term;
  }
  return 0.5 + sum * normalDensity(x);
}

/** E (x - q(x))^2 for standard normal x rounded to the nearest of values * scale. */
function gaussianError(values: ArrayLike<number>, boundaries: ArrayLike<number>, scale: number): number {
  let error = 1;
  let [pdf, cdf] = [0, 0];
  for (let i = 0; i < values.length; i++) {
    const edge = i + 1 < values.length ? boundaries[i] * scale : Infinity;
    const nextPdf = edge === Infinity ? 0 : normalDensity(edge);
    const nextCdf = edge === Infinity ? 1 : normalCdf(edge);
    const v = values[i] * scale;
    // The integral of x phi over the cell is the difference of the densities at its ends.
    error += v * v * (nextCdf - cdf) - 2 * v * (pdf - nextPdf);
    [pdf, cdf] = [nextPdf, nextCdf];
  }
  return error;
}

/** The scale at which a format loses least on normal values. */
export interface GaussianClip {
  /** Scale per unit of standard deviation: value = element * scale * rms. */
  readonly scale: number;
  /** Largest value over the rms: QuEST's constant. */
  readonly clip: number;
  /** E (x - q(x))^2 / E x^2. */
  readonly relativeError: number;
}

const clips = new WeakMap<NumberFormat, Map<boolean, GaussianClip>>();

/**
 * The scale of least squared error for Gaussian data.
 * @param narrow leave the most negative code of a signed integer unused, default true
 * @throws LowbitError E_UNSUPPORTED for formats wider than 16 bits
 * @example gaussianClip(bipolar4).clip.toFixed(3) // "2.514"
 */
export function gaussianClip(element: NumberFormat, narrow = true): GaussianClip {
  const known = clips.get(element)?.get(narrow);
  if (known) return known;
  if (element.order === null)
    throw new LowbitError("E_UNSUPPORTED", `gaussianClip: expected a format of at most 16 bits, got ${element.name}.`);
  const { values, boundaries } = element.order;
  const from = narrow && element.kind === "int" && values[0] < 0 ? values.findIndex((v) => v >= -element.limits.max) : 0;
  const [v, b] = [values.subarray(from), boundaries.subarray(from)];
  const largest = Math.max(v[v.length - 1], -v[0]);
  const at = (logClip: number) => gaussianError(v, b, Math.exp(logClip) / largest);
  // The error has one valley for uniform grids, shallow ripples for floating ones: a scan, then a golden section around
  // the best.
  let best = 0;
  const step = 0.01;
  for (let i = -120; i <= 700; i++) if (at(i * step) < at(best)) best = i * step;
  let [lo, hi] = [best - step, best + step];
  const ratio = (Math.sqrt(5) - 1) / 2;
  for (let i = 0; i < 60; i++) {
    const [x1, x2] = [hi - ratio * (hi - lo), lo + ratio * (hi - lo)];
    if (at(x1) < at(x2)) hi = x2;
    else lo = x1;
  }
  const clip = Math.exp((lo + hi) / 2);
  const result = { scale: clip / largest, clip, relativeError: at((lo + hi) / 2) };
  if (!clips.has(element)) clips.set(element, new Map());
  clips.get(element)!.set(narrow, result);
  return result;
}

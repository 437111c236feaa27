// Errors of formats on synthetic data, and the figures they are compared with: relative mean squared errors, signal to
// noise ratios of Monte Carlo blocks, and the closed formulas of "INT v.s. FP" (arXiv 2510.25602). Used by
// bench/formats-statistics.ts and, with fewer samples, by a test.
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor, type QuantizeOptions } from "../../src/index.ts";
import { random } from "./random.ts";

export type Distribution = "gaussian" | "laplace";

export function sample(distribution: Distribution, n: number, seed: number): Float32Array {
  const rng = random(seed);
  return Float32Array.from({ length: n }, distribution === "gaussian" ? rng.normal : rng.laplace);
}

/** sum (x - x^)^2 / sum x^2 with x as rows of 1024. */
export function relativeError(name: string, x: Float32Array, options: QuantizeOptions = {}): number {
  const y = dequantize(quantize(tensor(x, [x.length / 1024, 1024]), format(name), options), { dtype: "float64" });
  let [error, power] = [0, 0];
  for (let i = 0; i < x.length; i++) {
    error += (x[i] - y[i]) ** 2;
    power += x[i] * x[i];
  }
  return error / power;
}

export interface Row {
  readonly format: string;
  readonly rule?: QuantizeOptions["scaleRule"];
  /** Published relative errors of unit-variance data. */
  readonly gaussian?: number;
  readonly laplace?: number;
  /** Why a published figure is of something else. */
  readonly note?: string;
}

/** Published figures: relative MSE, N = 2^21. */
export const published: readonly Row[] = [
  { format: "mxfp4", rule: "floor", gaussian: 1.322e-2, laplace: 1.58e-2 },
  { format: "mxfp4", rule: "rceil", gaussian: 1.332e-2 },
  { format: "mxfp4_fourthirds", gaussian: 1.387e-2 },
  { format: "mxfp4", rule: "nearest", gaussian: 1.476e-2 },
  { format: "mxfp6_e2m3", rule: "floor", gaussian: 8.06e-4, laplace: 9.27e-4 },
  { format: "mxfp6_e3m2", rule: "floor", gaussian: 2.92e-3 },
  { format: "mxfp8_e4m3", rule: "floor", gaussian: 8.62e-4, laplace: 9.75e-4 },
  { format: "mxfp8_e4m3", rule: "rceil", gaussian: 7.05e-4, laplace: 7.0e-4 },
  { format: "mxfp8_e5m2", rule: "floor", gaussian: 2.92e-3 },
  { format: "mxfp8_e5m2", rule: "rceil", gaussian: 2.8e-3 },
  { format: "nvfp4", rule: "torchao", gaussian: 9.03e-3, laplace: 8.59e-3 },
  { format: "nvfp4", rule: "mse", gaussian: 7.39e-3, laplace: 7.27e-3 },
  { format: "nvfp4", rule: "mseSweep", note: "a wider search than the published one" },
  { format: "nvint4", rule: "torchao", gaussian: 7.45e-3, laplace: 1.048e-2 },
  { format: "mxint8", rule: "rceil", gaussian: 6.91e-5, laplace: 1.0e-4 },
  { format: "mxint8", rule: "floor", gaussian: 6.82e-5 },
  { format: "mxint6", rule: "rceil", gaussian: 1.14e-3 },
  { format: "mxint4", rule: "rceil", gaussian: 2.07e-2, laplace: 3.17e-2 },
  { format: "mxint4", rule: "floor", gaussian: 1.76e-2 },
  { format: "int4_b32", gaussian: 9.41e-3, laplace: 1.46e-2 },
  { format: "int4_b64", gaussian: 1.159e-2 },
  { format: "int4_b128", gaussian: 1.376e-2, laplace: 2.56e-2 },
  { format: "int4_b1024", gaussian: 2.03e-2 },
  { format: "int4_b128", rule: "mse", gaussian: 1.116e-2 },
  { format: "uint4_b32_zp", gaussian: 6.53e-3 },
  { format: "uint4_b128_zp", gaussian: 1.011e-2, laplace: 1.69e-2 },
  { format: "int3_b128", gaussian: 7.49e-2 },
  { format: "uint3_b128_zp", gaussian: 4.64e-2 },
  { format: "uint2_b64_zp", gaussian: 0.209 },
  { format: "int6_b128", gaussian: 7.01e-4 },
  { format: "int8_b128", gaussian: 4.18e-5, laplace: 7.98e-5 },
  { format: "bipolar2_b64", gaussian: 0.255 },
  { format: "bipolar4_b128", gaussian: 1.198e-2 },
  { format: "bipolar6_b128", gaussian: 6.8e-4 },
  { format: "bipolar8_b128", gaussian: 4.14e-5 },
  { format: "nf4_b64", gaussian: 8.46e-3, laplace: 1.07e-2 },
  { format: "nf4_b32", gaussian: 7.62e-3 },
  { format: "float8_e4m3fn", gaussian: 7.05e-4 },
  { format: "float8_e5m2", gaussian: 2.8e-3 },
  { format: "posit4_es0", gaussian: 2.08e-2 },
  { format: "posit4_es1", gaussian: 3.81e-2, note: "published: nearest value; here bit-string rounding" },
  { format: "posit6_es0", gaussian: 1.55e-3 },
  { format: "posit6_es1", gaussian: 2.83e-3 },
  { format: "posit8_es0", gaussian: 9.74e-5 },
  { format: "posit8_es0", laplace: 1.75e-4, note: "integrating the density gives 1.788e-4: the published sample is low" },
  { format: "posit8_es1", gaussian: 1.79e-4, laplace: 2.3e-4 },
  { format: "posit8_es2", gaussian: 7.05e-4 },
  { format: "posit16_es1", gaussian: 2.74e-9 },
  { format: "posit16_es2", gaussian: 1.08e-8 },
];

/** Orthonormal Walsh-Hadamard transform of consecutive runs of g. */
export function hadamard(x: Float32Array, g: number): Float32Array {
  const y = Float64Array.from(x);
  for (let h = 1; h < g; h *= 2)
    for (let i = 0; i < y.length; i += 2 * h) for (let j = i; j < i + h; j++) [y[j], y[j + h]] = [y[j] + y[j + h], y[j] - y[j + h]];
  return Float32Array.from(y, (v) => v / Math.sqrt(g));
}

/**
 * Monte Carlo signal to noise ratios in dB: [normal, Laplace, Laplace after a Hadamard transform of the block size].
 */
export const qsnrTable: readonly {
  format: string;
  block: number;
  rule: QuantizeOptions["scaleRule"];
  db: readonly [number, number, number];
}[] = [
  { format: "mxfp8_e4m3", block: 32, rule: "rceil", db: [31.51, 31.55, 31.52] },
  { format: "mxint8", block: 32, rule: "rceil", db: [41.6, 40.01, 42.02] },
  { format: "mxfp6_e2m3", block: 32, rule: "rceil", db: [30.97, 30.34, 31.03] },
  { format: "mxint6", block: 32, rule: "rceil", db: [29.41, 27.71, 29.79] },
  { format: "mxfp4", block: 32, rule: "rceil", db: [18.76, 17.62, 18.79] },
  { format: "mxint4", block: 32, rule: "rceil", db: [16.86, 15.07, 17.05] },
  { format: "nvfp4", block: 16, rule: "torchao", db: [20.37, 20.65, 20.4] },
  { format: "nvint4", block: 16, rule: "torchao", db: [21.24, 19.75, 21.59] },
];

export function qsnr(row: (typeof qsnrTable)[number], blocks: number, seed: number): [number, number, number] {
  const n = Math.ceil((blocks * row.block) / 1024) * 1024;
  const db = (x: Float32Array) => -10 * Math.log10(relativeError(row.format, x, { scaleRule: row.rule }));
  const laplace = sample("laplace", n, seed + 1);
  return [db(sample("gaussian", n, seed)), db(laplace), db(hadamard(laplace, row.block))];
}

/** Normal density and distribution (erf by its series; arguments here are small). */
const density = (t: number) => Math.exp((-t * t) / 2) / Math.sqrt(2 * Math.PI);
function distribution(t: number): number {
  let term = t;
  let sum = t;
  for (let n = 1; n < 400 && Math.abs(term) > 1e-18; n++) sum += term = (term * t * t) / (2 * n + 1);
  return 0.5 + sum * density(t);
}

/**
 * Noise to signal of integers of b bits at crest factor kappa: step^2 / 12; `g`: the block maximum is exact (fine
 * scales).
 */
export function intNoise(bits: number, kappa: number, rho: number, g = Infinity): number {
  return ((rho * kappa) ** 2 / (12 * 4 ** (bits - 1))) * (1 - 1 / g);
}

/**
 * Noise to signal of floats (mantissa M, bias B, largest Q): relative steps above the smallest normal number, constant
 * ones below, zero at the bottom.
 */
export function floatNoise(M: number, B: number, Q: number, kappa: number, rho: number, g = Infinity): number {
  const s = (rho * kappa) / Q;
  const zero = s * 2 ** (-B - M);
  const normal = s * 2 ** (1 - B);
  const wNormal = Math.max(0, 2 * (normal * density(normal) + 1 - distribution(normal)) - (g < Infinity ? kappa ** 2 / g : 0));
  const pSubnormal = 2 * (distribution(normal) - distribution(zero));
  const wZero = 2 * distribution(zero) - 1 - 2 * zero * density(zero);
  return wNormal / (24 * 4 ** M) + (4 ** (1 - B - M) / (12 * Q * Q)) * (rho * kappa) ** 2 * pSubnormal + wZero;
}

export const crossovers = [
  { pair: "MXINT8 / MXFP8 E4M3", bits: 8, float: [3, 7, 448], rho: 1.5, g: Infinity, kappa: 7.54, db: 31.86 },
  { pair: "MXINT6 / MXFP6 E2M3", bits: 6, float: [3, 1, 7.5], rho: 1.5, g: Infinity, kappa: 1.96, db: 31.54 },
  { pair: "MXINT4 / MXFP4", bits: 4, float: [1, 1, 6], rho: 1.5, g: Infinity, kappa: 2.04, db: 19.14 },
  { pair: "NVINT4 / NVFP4", bits: 4, float: [1, 1, 6], rho: 1.05, g: 16, kappa: 2.39, db: 21.14 },
] as const;

/** The crest factor below which the integers win, and the ratio there. */
export function crossover(c: (typeof crossovers)[number]): { kappa: number; db: number } {
  const [M, B, Q] = c.float;
  let [lo, hi] = [1, 12];
  for (let i = 0; i < 60; i++) {
    const mid = (lo + hi) / 2;
    if (intNoise(c.bits, mid, c.rho, c.g) < floatNoise(M, B, Q, mid, c.rho, c.g)) lo = mid;
    else hi = mid;
  }
  return { kappa: lo, db: -10 * Math.log10(intNoise(c.bits, lo, c.rho, c.g)) };
}

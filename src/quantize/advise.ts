// advise: what each candidate format costs on a tensor, measured, beside the closed-form prediction from its crest
// factors. Prediction: "INT v.s. FP" (Chen et al., arXiv 2510.25602): integer error from step and crest factor,
// floating error from the shares of normal, subnormal and vanishing values of Gaussian blocks. It assumes Gaussian
// blocks and symmetric scales; formats beyond that get null.
import { LowbitError } from "../../formats/core/errors.ts";
import { dequantize } from "../../formats/core/packed.ts";
import { spanGrid } from "../../formats/core/span.ts";
import type { BlockFormat, Format, NumberFormat } from "../../formats/core/types.ts";
import { quantize } from "../tensor/quantize/index.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { weightMatrix } from "./grid.ts";
import { normalCdf, normalDensity } from "./normal.ts";
import { checkAborted, type RunOptions } from "./steps.ts";

/** What one format costs and loses on one tensor: see `advise`. */
export interface Advice {
  readonly format: Format;
  /** Stored bits per value. */
  readonly bits: number;
  /** Signal to quantization noise, dB; Infinity where the format is exact. */
  readonly qsnr: number;
  /** sum (x - q)^2 / sum x^2. */
  readonly relativeError: number;
  /** Mean over blocks of amax / rms; of the tensor for formats without scales. */
  readonly crestFactor: number;
  /** Closed-form QSNR at the mean crest factor, dB; null where there is no formula. */
  readonly predictedQsnr: number | null;
}

/** What a tensor looks like: size, outliers, tails. */
export interface TensorProfile {
  readonly rms: number;
  readonly amax: number;
  /** amax / rms of the whole tensor. */
  readonly crestFactor: number;
  /** Fourth moment over squared second; 3 for Gaussian data. */
  readonly kurtosis: number;
  /** max |w| sqrt(rows k) / ||w||: QuIP's incoherence. */
  readonly incoherence: number;
}

/**
 * Ratio of the stored scale to the exact one, on average: powers of two rounded up 1.5, three mantissa bits 1.05, finer
 * 1.
 */
function scaleOverhead(format: BlockFormat): number {
  const mantissa = format.scales[0].format.fields.filter((f) => f.name === "mantissa").reduce((n, f) => n + f.bits, 0);
  return mantissa === 0 ? 1.5 : mantissa <= 4 ? 1 + 0.4 / 2 ** mantissa : 1;
}

/**
 * Predicted QSNR in dB of a block format at a crest factor; null without a formula (codebooks, posits, zero points,
 * wide elements).
 * @param crest amax / rms of a block
 * @example
 * predictQsnr(format("int8_row"), 4)! > predictQsnr(format("int4_row"), 4)! // true
 * predictQsnr(nf4, 4) // null: no formula for codebooks
 */
export function predictQsnr(format: Format, crest: number): number | null {
  if (format.kind !== "block" || format.offset) return null;
  const { element } = format;
  const rho = scaleOverhead(format);
  const span = format.scales[0].span;
  const size = typeof span === "number" ? span : null;
  // With a fine scale the largest value of the block is exact and makes no error.
  const exactMax = size !== null && rho < 1.2 ? 1 / size : 0;
  if (element.kind === "int" || element.kind === "fixed") {
    const levels = 2 ** (element.bits - 1);
    return -10 * Math.log10(((rho * crest) ** 2 / (12 * levels ** 2)) * (1 - exactMax));
  }
  const fields = floatFields(element);
  if (fields === null) return null;
  const { mantissa: m, bias: b } = fields;
  const top = element.limits.max;
  const zero = ((rho * crest) / top) * 2 ** (-b - m);
  const sub = ((rho * crest) / top) * 2 ** (1 - b);
  const alpha = 1 / (24 * 4 ** m);
  const beta = 2 ** (2 * (1 - b - m)) / (12 * top * top);
  const pSub = 2 * (normalCdf(sub) - normalCdf(zero));
  const wZero = 2 * normalCdf(zero) - 1 - 2 * zero * normalDensity(zero);
  const wNormal = 2 * (sub * normalDensity(sub) + 1 - normalCdf(sub)) - crest ** 2 * exactMax;
  return -10 * Math.log10(alpha * Math.max(0, wNormal) + beta * (rho * crest) ** 2 * pSub + wZero);
}

function floatFields(element: NumberFormat): { mantissa: number; bias: number } | null {
  if (element.kind !== "float" || element.bits > 16) return null;
  const mantissa = element.fields.find((f) => f.name === "mantissa")?.bits ?? 0;
  // The smallest normal number is 2^(1 - bias).
  return { mantissa, bias: 1 - Math.log2(element.limits.minNormal) };
}

/**
 * Moments of a tensor. @throws LowbitError E_VALUE for NaN, infinities, or nothing but zeros
 * @example profile(tensor(Float32Array.of(1, -1, 1, -1), [1, 4])) // crestFactor 1, kurtosis 1: as flat as can be
 */
export function profile(tensor: Tensor): TensorProfile {
  const { data, rows, k } = weightMatrix(tensor, "profile");
  let [m2, m4, amax] = [0, 0, 0];
  for (const v of data) {
    const s = v * v;
    m2 += s;
    m4 += s * s;
    amax = Math.max(amax, Math.abs(v));
  }
  if (m2 === 0) throw new LowbitError("E_VALUE", "profile: expected numbers other than zero, got an all-zero tensor.");
  const n = rows * k;
  const rms = Math.sqrt(m2 / n);
  return { rms, amax, crestFactor: amax / rms, kurtosis: m4 / n / (m2 / n) ** 2, incoherence: (amax * Math.sqrt(n)) / Math.sqrt(m2) };
}

/**
 * Measures every candidate on a tensor, best QSNR first.
 * @throws LowbitError E_VALUE for NaN or an all-zero tensor, E_ABORTED; TypeError without candidates. A candidate that
 * cannot hold the shape throws E_SHAPE.
 * @example
 * const [best] = advise(w, [mxfp4, nvfp4, format("int4_b32")]);
 * best.format.name // "nvfp4": best.bits a value, best.qsnr in dB
 */
export function advise(tensor: Tensor, candidates: readonly Format[], options: RunOptions = {}): Advice[] {
  if (!Array.isArray(candidates) || candidates.length === 0) throw new TypeError("advise: expected candidate formats, got none.");
  const w = weightMatrix(tensor, "advise");
  const { rows, k, data } = w;
  const { crestFactor } = profile(tensor);
  let power = 0;
  for (const v of data) power += v * v;
  const view: Tensor = { data, shape: [rows, k], stride: [k, 1], offset: 0 };
  const out = candidates.map((format, index): Advice => {
    checkAborted(options.signal, "advise");
    options.onProgress?.({ stage: "advise", done: index, total: candidates.length });
    const values = dequantize(quantize(view, format), { dtype: "float64" });
    let error = 0;
    for (let i = 0; i < data.length; i++) error += (data[i] - values[i]) ** 2;
    const crest = format.kind === "block" ? meanCrest(data, rows, k, format) : crestFactor;
    return {
      format,
      bits: storedBits(format, rows, k),
      qsnr: error === 0 ? Infinity : -10 * Math.log10(error / power),
      relativeError: error / power,
      crestFactor: crest,
      predictedQsnr: predictQsnr(format, crest),
    };
  });
  return out.sort((a, b) => b.qsnr - a.qsnr);
}

/**
 * Stored bits per value of a [rows, k] matrix in any format.
 * @example storedBits(format("int4_b32"), 64, 256) // 5: a float32 scale per 32 codes
 */
export function storedBits(format: Format, rows: number, k: number): number {
  if (format.kind === "block") return format.bitsPerValue(rows, k);
  return format.kind === "opaque" ? (8 * format.blockBytes) / format.blockSize : format.bits;
}

function meanCrest(data: Float64Array, rows: number, k: number, format: BlockFormat): number {
  const grid = spanGrid(format.scales[0].span, rows, k);
  const cells = grid.gridRows * grid.gridK;
  const [squares, amax, count] = [new Float64Array(cells), new Float64Array(cells), new Float64Array(cells)];
  for (let r = 0; r < rows; r++)
    for (let j = 0; j < k; j++) {
      const c = Math.floor(r / grid.rows) * grid.gridK + Math.floor(j / grid.k);
      const v = data[r * k + j];
      squares[c] += v * v;
      count[c]++;
      amax[c] = Math.max(amax[c], Math.abs(v));
    }
  let [sum, used] = [0, 0];
  for (let c = 0; c < cells; c++) {
    if (amax[c] === 0) continue;
    sum += amax[c] / Math.sqrt(squares[c] / count[c]);
    used++;
  }
  return sum / used;
}

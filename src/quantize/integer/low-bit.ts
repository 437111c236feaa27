// Activations of few bits: token-wise codes, a logarithmic format for the outputs of softmax (Agile-Quant,
// arXiv 2312.05693, after FQ-ViT), and a split whose integer products add up to the whole one exactly: outliers of
// codes beside a 4-bit rest. Channels in blocks of 4 and of 8 bits (COMET) are those of `outlierSplit`, mixed.ts.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { NumberFormat } from "../../../formats/core/types.ts";
import { defineCodebook } from "../../../formats/define/index.ts";

/** Codes of rows, a scale each: value = code * scale. */
export interface TokenCodes {
  readonly codes: Int8Array;
  readonly scales: Float32Array;
}

const checkRows = (what: string, length: number, k: number): number => {
  if (!Number.isSafeInteger(k) || k < 1 || length % k !== 0)
    throw new LowbitError("E_SHAPE", `${what}: expected rows of ${k} numbers, got ${length} numbers. Give whole rows.`);
  return length / k;
};

/**
 * Every row (token) on a scale of its own: scale = amax / (2^(bits - 1) - 1), code = rne(x / scale), in float32.
 * @throws RangeError for bits other than 2 to 8; LowbitError E_SHAPE, E_VALUE for rows that hold NaN or infinities
 * @example
 * const { codes, scales } = quantizeTokens(Float32Array.of(1, -2, 10, 20), 2);
 * [codes, scales] // two tokens: [64, -127], [64, 127] times 2 / 127, 20 / 127
 */
export function quantizeTokens(x: Float32Array, k: number, bits = 8): TokenCodes {
  if (!Number.isInteger(bits) || bits < 2 || bits > 8) throw new RangeError(`quantizeTokens: expected 2 to 8 bits, got ${bits}.`);
  const rows = checkRows("quantizeTokens", x.length, k);
  const most = 2 ** (bits - 1) - 1;
  const codes = new Int8Array(x.length);
  const scales = new Float32Array(rows);
  for (let r = 0; r < rows; r++) {
    let amax = 0;
    for (let i = r * k; i < (r + 1) * k; i++) {
      if (!Number.isFinite(x[i]))
        throw new LowbitError("E_VALUE", `quantizeTokens: expected finite numbers, got ${x[i]} in row ${r}. Clean the activations first.`);
      amax = Math.max(amax, Math.abs(x[i]));
    }
    scales[r] = amax / most;
    if (scales[r] === 0) continue;
    for (let i = r * k; i < (r + 1) * k; i++) codes[i] = Math.max(-most, Math.min(most, halfEven(Math.fround(x[i] / scales[r]))));
  }
  return { codes, scales };
}

function halfEven(v: number): number {
  const down = Math.floor(v);
  const rest = v - down;
  return rest < 0.5 || (rest === 0.5 && down % 2 === 0) ? down : down + 1;
}

/**
 * The logarithmic quantizer of softmax outputs as a format: codes q of 2^-q, q = clip(round(-log2 x), 0, 2^bits - 1);
 * products with it are shifts. The geometric midpoints decide.
 * @param bits 2 to 4
 * @throws RangeError
 * @example encodeArray(log2Format(4), Float32Array.of(1, 0.5, 0.25)) // [0, 1, 2]: what follows a softmax
 */
export function log2Format(bits: 2 | 3 | 4): NumberFormat {
  if (![2, 3, 4].includes(bits)) throw new RangeError(`log2Format: expected 2 to 4 bits, got ${String(bits)}.`);
  const n = 2 ** bits;
  const values = Array.from({ length: n }, (_, q) => 2 ** -q);
  // thresholds ascend, as the sorted values do
  const thresholds = Array.from({ length: n - 1 }, (_, i) => 2 ** -(n - 1 - i - 0.5));
  return defineCodebook({ name: `log2_u${bits}`, bits, values, thresholds });
}

/** Codes as 4-bit (or narrower) ones and what is left of some channels. */
export interface OutlierCodes {
  /** Codes within `limit`, as many as were given. */
  readonly inliers: Int8Array;
  /** Channels that hold a code beyond it, ascending. */
  readonly channels: Int32Array;
  /** Of [rows, channels]: the codes less the inliers. */
  readonly outliers: Int8Array;
}

/**
 * Splits codes so that `inliers * W^T + outliers * W[:, channels]^T` is `codes * W^T`, in exact integers: the first
 * product has operands of 4 bits, the second few channels.
 * @param limit the largest magnitude of the inliers: 7 for 4 bits
 * @throws LowbitError E_SHAPE; RangeError for a limit that is not from 1 to 127, or codes further than 127 beyond it
 * @example
 * const { inliers, channels, outliers } = splitOutliers(Int8Array.of(3, 100, -5, 2), 4);
 * [inliers, channels, outliers] // [[3, 7, -5, 2], [1], [93]]
 */
export function splitOutliers(codes: Int8Array, k: number, limit = 7): OutlierCodes {
  if (!Number.isInteger(limit) || limit < 1 || limit > 127)
    throw new RangeError(`splitOutliers: expected a limit from 1 to 127, got ${limit}.`);
  const rows = checkRows("splitOutliers", codes.length, k);
  const beyond = new Set<number>();
  const inliers = codes.map((code, i) => {
    if (code < -limit || code > limit) beyond.add(i % k);
    return code < -limit ? -limit : code > limit ? limit : code;
  });
  const channels = Int32Array.from([...beyond].sort((a, b) => a - b));
  const outliers = new Int8Array(rows * channels.length);
  for (let r = 0; r < rows; r++)
    channels.forEach((channel, j) => {
      const at = r * k + channel;
      outliers[r * channels.length + j] = codes[at] - inliers[at];
    });
  return { inliers, channels, outliers };
}

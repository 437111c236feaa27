// Shiftmax and ShiftGELU of I-ViT (arXiv 2207.01405, sections 3.3 and 3.4): softmax and GELU on integer codes by
// shifts, additions and integer division. e^x is 2^(x log2 e); log2 e is 1 + 1/2 - 1/16, and 2^-r for r in [0, 1) is
// 1 - r / 2. Quotients are formed directly: the authors multiply with floor((2^31 - 1) / sum), which has as few as 4
// bits under the sums of ShiftGELU and costs it up to 7 %.

/** Bits that the exponential keeps below its unit: those of the paper. */
const SOFTMAX_BITS = 15;
const GELU_BITS = 23;
/** Dividends are exact in a double, and fit int64. */
const MOST = 2 ** 53;

/** Codes of one unit: 1 / scale, rounded up as the authors' floor of -1 / scale. @throws RangeError */
export function unitCodes(scale: number): number {
  if (!(scale > 0) || scale > 1)
    throw new RangeError(`scale: expected a number above 0 and at most 1, got ${scale}. An exponential needs finer codes.`);
  return -Math.floor(-1 / scale);
}

/**
 * e^(x scale) of a code that is not positive, in units of scale / 2^bits: floor((unit - r / 2) 2^(bits - q)), where
 * -x log2 e = q unit + r.
 */
export function shiftExp(x: number, unit: number, bits: number): number {
  const scaled = Math.max(x + Math.floor(x / 2) - Math.floor(x / 16), -bits * unit);
  // q, r of the authors' negative numbers: floor of (-p) / (-unit) and what is left, from -unit + 1 to 0
  const q = Math.floor(scaled / -unit);
  const r = scaled + q * unit;
  return Math.floor((2 * unit + r) * 2 ** (bits - q - 1));
}

/** Scales and bits of an integer softmax by shifts (I-ViT). */
export interface ShiftmaxOptions {
  /** Codes a row. */
  readonly columns: number;
  /** A code's value: at most 1. */
  readonly scale: number;
  /** Bits of the result: codes from 0 to 2^(bits - 1), the value of one is 2^(1 - bits). Default 8. */
  readonly bits?: number;
}

/**
 * Softmax of rows of codes, as codes of scale 2^(1 - bits). Truncated, as published: a row sums to at most 1, and with
 * 8 bits to much less where it is long.
 * @throws RangeError for options out of range, and where sums would pass 2^53 (codes too fine)
 * @example shiftmax([0, 0, 0, 0], { columns: 4, scale: 2 ** -4 }) // [32, 32, 32, 32]: of scale 2^-7
 */
export function shiftmax(x: ArrayLike<number>, { columns, scale, bits = 8 }: ShiftmaxOptions): Int32Array {
  const unit = unitCodes(scale);
  if (!Number.isSafeInteger(columns) || columns < 1 || x.length % columns !== 0)
    throw new RangeError(`shiftmax: expected rows of ${columns} codes, got ${x.length} codes.`);
  if (!Number.isSafeInteger(bits) || bits < 2 || bits > 31) throw new RangeError(`shiftmax: expected 2 to 31 bits, got ${bits}.`);
  const finest = 2 ** (SOFTMAX_BITS + bits - 1) / MOST;
  if (unit * columns * finest > 1)
    throw new RangeError(
      `shiftmax: expected a scale of at least ${columns * finest} for ${columns} columns, got ${scale}. Take coarser codes.`,
    );
  const out = new Int32Array(x.length);
  const exps = new Float64Array(columns);
  for (let start = 0; start < x.length; start += columns) {
    let top = x[start];
    for (let i = 1; i < columns; i++) top = Math.max(top, x[start + i]);
    let sum = 0;
    for (let i = 0; i < columns; i++) sum += exps[i] = shiftExp(x[start + i] - top, unit, SOFTMAX_BITS);
    for (let i = start; i < start + columns; i++) out[i] = Math.floor((exps[i - start] * 2 ** (bits - 1)) / sum);
  }
  return out;
}

/** Scales and bits of an integer GELU by shifts (I-ViT). */
export interface ShiftGeluOptions {
  /** Codes a row: the exponentials of a row share a maximum. Default: all codes are one row. */
  readonly columns?: number;
  /** A code's value: at most 1 / 1.702. */
  readonly scale: number;
  /** Bits of the sigmoid; the result has scale `scale` * 2^(1 - bits). Default 8. */
  readonly bits?: number;
}

/**
 * GELU of rows of codes, as x sigmoid(1.702 x): codes of scale `scale` * 2^(1 - bits).
 * @throws RangeError for options out of range
 * @example shiftGelu([-64, 0, 64], { columns: 3, scale: 2 ** -5 }) // codes of scale 2^-5 * 2^-7
 */
export function shiftGelu(x: ArrayLike<number>, { columns = x.length, scale, bits = 8 }: ShiftGeluOptions): Int32Array {
  const unit = unitCodes(scale * 1.702);
  if (x.length > 0 && (!Number.isSafeInteger(columns) || columns < 1 || x.length % columns !== 0))
    throw new RangeError(`shiftGelu: expected rows of ${columns} codes, got ${x.length} codes.`);
  if (!Number.isSafeInteger(bits) || bits < 2 || bits > 31) throw new RangeError(`shiftGelu: expected 2 to 31 bits, got ${bits}.`);
  const finest = 2 ** (GELU_BITS + bits) / MOST;
  if (unit * finest > 1)
    throw new RangeError(`shiftGelu: expected a scale of at least ${finest / 1.702}, got ${scale}. Take coarser codes.`);
  const out = new Int32Array(x.length);
  for (let start = 0; start < x.length; start += columns) {
    // sigmoid(v) = e^(v - top) / (e^(v - top) + e^-top) for any top: from 0 on, both exponents are not positive
    let top = 0;
    for (let i = 0; i < columns; i++) top = Math.max(top, x[start + i]);
    const rest = shiftExp(-top, unit, GELU_BITS);
    for (let i = start; i < start + columns; i++) {
      const e = shiftExp(x[i] - top, unit, GELU_BITS);
      out[i] = x[i] * Math.floor((e * 2 ** (bits - 1)) / (e + rest));
    }
  }
  return out;
}

// Dyadic numbers: a real factor as c / 2^t with integers c and t, so that codes pass from one scale to another by a
// product, an addition and a shift (I-ViT, arXiv 2207.01405, section 3.2; Jacob et al., arXiv 1712.05877, section 2.2).
// All is exact in integers of 64 bits; here in doubles, the product in two parts.

/** The factor `multiplier / 2^shift`: multiplier from 0 to 2^31 - 1, shift from 17 to 62. */
export interface Dyadic {
  readonly multiplier: number;
  readonly shift: number;
}

/** Factors of one shift, for example one a column. */
export interface DyadicVector {
  readonly multipliers: Int32Array;
  readonly shift: number;
}

/** Codes are clipped to them: default those of int32. */
export interface CodeRange {
  readonly low?: number;
  readonly high?: number;
}

const MOST = 2 ** 31 - 1;
/** A product is formed in two parts at this bit, so no shift is smaller than the bit and one. */
const PART = 16;
const LEAST_SHIFT = PART + 1;
const MOST_SHIFT = 62;

function shiftFor(largest: number, what: string): number {
  if (!(largest >= 0) || largest >= 2 ** (31 - LEAST_SHIFT))
    throw new RangeError(`${what}: expected a factor from 0 to ${2 ** (31 - LEAST_SHIFT)}, got ${largest}. Scale the codes first.`);
  if (largest === 0) return LEAST_SHIFT;
  // the multiplier of the largest factor has 31 bits
  let shift = Math.min(MOST_SHIFT, 30 - Math.floor(Math.log2(largest)));
  while (Math.round(largest * 2 ** shift) > MOST) shift--;
  return Math.max(LEAST_SHIFT, shift);
}

/**
 * The nearest c / 2^t to a factor, c of 31 bits: off by at most 2^-31 of it for factors from 2^-32 on.
 * @param factor from 0 to 2^14
 * @throws RangeError
 * @example
 * const { multiplier, shift } = dyadic(0.3);
 * multiplier / 2 ** shift // 0.30000000004656613
 */
export function dyadic(factor: number): Dyadic {
  const shift = shiftFor(factor, "dyadic");
  return { multiplier: Math.round(factor * 2 ** shift), shift };
}

/**
 * Factors of one shift, which the largest of them sets: each is off by at most 2^-31 of the largest.
 * @throws RangeError
 * @example dyadicVector([0.5, 0.25]).multipliers // [1073741824, 536870912], over one power of two
 */
export function dyadicVector(factors: ArrayLike<number>): DyadicVector {
  let largest = 0;
  for (let i = 0; i < factors.length; i++) {
    // a NaN too
    if (!(factors[i] >= 0)) throw new RangeError(`dyadic: expected factors from 0, got ${factors[i]} at ${i}.`);
    largest = Math.max(largest, factors[i]);
  }
  const shift = shiftFor(largest, "dyadic");
  return { multipliers: Int32Array.from(factors, (factor) => Math.round(factor * 2 ** shift)), shift };
}

/**
 * floor((q * multiplier + addend * 2^16 + 2^(shift - 1)) / 2^shift), exact: the factor times the code, halves up.
 * @param q a code of 32 bits
 * @param addend an integer within 2^45
 */
export function multiplyShift(q: number, multiplier: number, shift: number, addend = 0): number {
  const high = Math.floor(multiplier / 2 ** PART);
  const low = multiplier % 2 ** PART;
  // every part stays below 2^48
  const sum = q * high + Math.floor((q * low) / 2 ** PART) + addend;
  return Math.floor((sum + 2 ** (shift - LEAST_SHIFT)) / 2 ** (shift - PART));
}

const clip = (v: number, low: number, high: number): number => (v < low ? low : v > high ? high : v);

/**
 * Codes at another scale: out = clip(round(x * factor)), halves up, by integers only.
 * @param factors one for all, or one per column of rows as long as their number
 * @throws RangeError for a number of codes that is no multiple of the factors'
 * @example
 * requantize([1000, -1000, 3], dyadic(0.1)) // [100, -100, 0]
 * requantize([1000, -1000, 3], dyadic(0.3), { low: -128, high: 127 }) // [127, -128, 1]
 */
export function requantize(x: ArrayLike<number>, factors: Dyadic | DyadicVector, range: CodeRange = {}): Int32Array {
  const { low = -(2 ** 31), high = MOST } = range;
  const multipliers = "multipliers" in factors ? factors.multipliers : Int32Array.of(factors.multiplier);
  if (multipliers.length === 0 || x.length % multipliers.length !== 0)
    throw new RangeError(`requantize: expected rows of ${multipliers.length} codes, one per factor, got ${x.length} codes.`);
  const out = new Int32Array(x.length);
  for (let i = 0, j = 0; i < out.length; i++, j++) {
    if (j === multipliers.length) j = 0;
    out[i] = clip(multiplyShift(x[i], multipliers[j], factors.shift), low, high);
  }
  return out;
}

/**
 * The sum of codes of two scales at a third: clip(round(a * f + b * g)) with one rounding, f and g of one shift.
 * @throws RangeError for another number of codes
 * @example addCodes([100, -20], [50, 50], dyadicVector([0.5, 0.25])) // [63, 3]: round(50 + 12.5), round(-10 + 12.5)
 */
export function addCodes(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  { multipliers: [f, g], shift }: DyadicVector,
  range: CodeRange = {},
): Int32Array {
  if (a.length !== b.length) throw new RangeError(`addCodes: expected as many codes in both, got ${a.length} and ${b.length}.`);
  const { low = -(2 ** 31), high = MOST } = range;
  const out = new Int32Array(a.length);
  for (let i = 0; i < out.length; i++) out[i] = clip(sumShift(a[i], f, b[i], g, shift), low, high);
  return out;
}

/** floor((a f + b g + 2^(shift - 1)) / 2^shift), exact. */
export function sumShift(a: number, f: number, b: number, g: number, shift: number): number {
  const part = 2 ** PART;
  const low = a * (f % part) + b * (g % part);
  const sum = a * Math.floor(f / part) + b * Math.floor(g / part) + Math.floor(low / part);
  return Math.floor((sum + 2 ** (shift - LEAST_SHIFT)) / 2 ** (shift - PART));
}

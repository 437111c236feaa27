// Rounding of an exact double to an integer under a named mode: the arithmetic half of rule codecs (formats wider than
// a table). Uses that every double of magnitude 2^52 and more is an integer already.
import type { Rounding } from "./types.ts";

/**
 * q rounded to an integer. `q` must be exact (a value divided by a power of two). -0 and the sign of zero are not kept.
 * @throws TypeError for "stochastic" without a generator.
 */
export function roundToInteger(q: number, rounding: Rounding, random?: () => number): number {
  // On the magnitude, whose fraction is exact; the fraction of a negative number (q - floor(q)) is not.
  const magnitude = Math.abs(q);
  const lo = Math.floor(magnitude);
  if (lo === magnitude) return q;
  return Math.sign(q) * (lo + (awayFromZero(magnitude - lo, lo, q > 0, rounding, random) ? 1 : 0));
}

function awayFromZero(frac: number, lo: number, positive: boolean, rounding: Rounding, random?: () => number): boolean {
  switch (rounding) {
    case "halfEven":
      return frac > 0.5 || (frac === 0.5 && lo % 2 !== 0);
    case "halfExpand":
      return frac >= 0.5;
    case "halfTrunc":
      return frac > 0.5;
    case "halfCeil":
      return positive ? frac >= 0.5 : frac > 0.5;
    case "halfFloor":
      return positive ? frac > 0.5 : frac >= 0.5;
    case "trunc":
      return false;
    case "expand":
      return true;
    case "ceil":
      return positive;
    case "floor":
      return !positive;
    case "stochastic":
      if (random === undefined)
        throw new TypeError(`rounding "stochastic": expected options.random, got none. Pass a seeded generator of numbers in [0, 1).`);
      return random() < frac;
  }
}

const f64 = new Float64Array(1);
const u32 = new Uint32Array(f64.buffer);
const u64 = new BigUint64Array(f64.buffer);
/** Which half of a double holds sign and exponent: the second on little-endian machines. */
const HIGH = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1 ? 1 : 0;

/** floor(log2 |x|) of a finite nonzero double, from its bits: Math.log2 is off by one near powers of two. */
export function exponentOf(x: number): number {
  f64[0] = x;
  const e = (u32[HIGH] >>> 20) & 0x7ff;
  if (e > 0) return e - 1023;
  f64[0] = x * 2 ** 54; // a subnormal double: normalise first
  return ((u32[HIGH] >>> 20) & 0x7ff) - 1023 - 54;
}

/** The next double above x (x finite). */
export function nextUp(x: number): number {
  if (x === 0) return Number.MIN_VALUE;
  f64[0] = x;
  u64[0] += x > 0 ? 1n : -1n;
  return f64[0];
}

/** The next double below x (x finite). */
export function nextDown(x: number): number {
  return -nextUp(-x);
}

/** The smallest double in (lo, hi] for which a monotone predicate holds; it holds at hi. */
export function bisect(holds: (x: number) => boolean, lo: number, hi: number): number {
  if (holds(lo)) return lo;
  const f = new Float64Array(1);
  const u = new BigInt64Array(f.buffer);
  const key = (x: number) => ((f[0] = x), u[0] < 0n ? -(u[0] & 0x7fffffffffffffffn) : u[0]);
  const value = (k: bigint) => ((u[0] = k < 0n ? -k | (1n << 63n) : k), f[0]);
  let [a, b] = [key(lo), key(hi)];
  while (b - a > 1n) {
    const mid = (a + b) >> 1n;
    if (holds(value(mid))) b = mid;
    else a = mid;
  }
  return value(b);
}

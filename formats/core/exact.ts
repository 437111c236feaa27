// Exact arithmetic on doubles for results that are rounded only once: error-free transforms where they apply, BigInt
// elsewhere. A real result r is handed on as a double that stands for it, "rounded to odd": r itself where a double
// holds it, else the one of its two neighbours with an odd last bit. Rounding that once more, to a format whose values
// and boundaries have at most 52 significant bits, equals rounding r (Boldo and Melquiond, "Emulation of FMA and
// correctly rounded sums: proved algorithms using rounding to odd", 2008).
import { nextDown, nextUp } from "./round.ts";

const f64 = new Float64Array(1);
const u32 = new Uint32Array(f64.buffer);
const u64 = new BigUint64Array(f64.buffer);
const LOW = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1 ? 0 : 1;

/** Is the last significand bit of a double set? */
export function isOdd(x: number): boolean {
  f64[0] = x;
  return (u32[LOW] & 1) === 1;
}

/**
 * The double that stands for the real number x + error, where x is the nearest double and only the sign of the error
 * matters.
 */
export function toOdd(x: number, error: number): number {
  return error === 0 || isOdd(x) ? x : error > 0 ? nextUp(x) : nextDown(x);
}

/** a + b - s for s = fl(a + b): exact without overflow (Knuth). */
export function sumError(a: number, b: number, s: number): number {
  const t = s - a;
  return a - (s - t) + (b - t);
}

/** a * b - p for p = fl(a * b): exact while neither overflow nor underflow is near (Dekker, Veltkamp); see `fits`. */
export function productError(a: number, b: number, p: number): number {
  const ca = 134217729 * a; // 2^27 + 1
  const ah = ca - (ca - a);
  const al = a - ah;
  const cb = 134217729 * b;
  const bh = cb - (cb - b);
  const bl = b - bh;
  return ah * bh - p + ah * bl + al * bh + al * bl;
}

/** May productError be used for factors and products of this size? Zero counts as no. */
export function fits(x: number): boolean {
  const m = Math.abs(x);
  return m > 1e-250 && m < 1e250;
}

/** The number m * 2^e. */
export interface Dyadic {
  readonly m: bigint;
  readonly e: number;
}

/** A finite double, exactly. */
export function dyadic(x: number): Dyadic {
  f64[0] = x;
  const bits = u64[0];
  const field = Number((bits >> 52n) & 0x7ffn);
  const m = (bits & 0xfffffffffffffn) | (field > 0 ? 0x10000000000000n : 0n);
  return { m: bits >> 63n ? -m : m, e: (field || 1) - 1075 };
}

export function addDyadic(a: Dyadic, b: Dyadic): Dyadic {
  const e = Math.min(a.e, b.e);
  return { m: (a.m << BigInt(a.e - e)) + (b.m << BigInt(b.e - e)), e };
}

export const mulDyadic = (a: Dyadic, b: Dyadic): Dyadic => ({ m: a.m * b.m, e: a.e + b.e });

/** a / b with at least 64 bits, the last one odd where the division does not end. */
export function divDyadic(a: Dyadic, b: Dyadic): Dyadic {
  const n = (a.m < 0n ? -a.m : a.m) << 128n;
  const d = b.m < 0n ? -b.m : b.m;
  const q = (n / d) | (n % d === 0n ? 0n : 1n);
  return { m: a.m < 0n !== b.m < 0n ? -q : q, e: a.e - b.e - 128 };
}

/** The double that stands for m * 2^e (rounded to odd); beyond the range of doubles the largest or smallest one. */
export function oddDouble({ m, e }: Dyadic): number {
  if (m === 0n) return 0;
  const a = m < 0n ? -m : m;
  const shift = Math.max(a.toString(2).length - 53, -1074 - e);
  let kept = a;
  if (shift > 0) {
    kept = a >> BigInt(shift);
    if (kept << BigInt(shift) !== a) kept |= 1n;
    e += shift;
  }
  const x = e > 1023 ? Infinity : Number(kept) * 2 ** e;
  return (m < 0n ? -1 : 1) * Math.min(x, Number.MAX_VALUE);
}

/**
 * An exact sum of doubles and of products of doubles, of any count: a superaccumulator. Each number is split into two
 * halves of at most 27 bits that go into one of 272 bins by exponent; bin j holds multiples of 2^(8j-1082-26) below
 * 2^(8j-1074), so 2^18 additions stay exact.
 */
export class ExactSum {
  private readonly bins = new Float64Array(272);
  private count = 0;
  private rest: Dyadic = { m: 0n, e: 0 };

  add(x: number): void {
    if (x === 0) return;
    if (!fits(x)) {
      this.rest = addDyadic(this.rest, dyadic(x));
      return;
    }
    const c = 134217729 * x;
    const high = c - (c - x);
    this.put(high);
    if (x !== high) this.put(x - high);
    if (++this.count >= 1 << 17) this.flush();
  }

  /** Adds a * b. */
  addProduct(a: number, b: number): void {
    const p = a * b;
    if (fits(p) && fits(a) && fits(b)) {
      this.add(p);
      this.add(productError(a, b, p));
    } else if (a !== 0 && b !== 0) this.rest = addDyadic(this.rest, mulDyadic(dyadic(a), dyadic(b)));
  }

  /** The sum so far, exactly. */
  value(): Dyadic {
    this.flush();
    return this.rest;
  }

  private put(x: number): void {
    f64[0] = x;
    this.bins[((u32[1 - LOW] >>> 20) & 0x7ff) >>> 3] += x;
  }

  private flush(): void {
    for (let j = 0; j < this.bins.length; j++) {
      if (this.bins[j] === 0) continue;
      this.rest = addDyadic(this.rest, dyadic(this.bins[j]));
      this.bins[j] = 0;
    }
    this.count = 0;
  }
}

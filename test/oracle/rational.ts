// Exact rationals on BigInt and the exact value of a double. An oracle: imports nothing of the library, slow on
// purpose.

export interface Rational {
  readonly n: bigint;
  /** Positive. */
  readonly d: bigint;
}

export const rational = (n: bigint, d: bigint = 1n): Rational => (d < 0n ? { n: -n, d: -d } : { n, d });
export const addR = (a: Rational, b: Rational): Rational => ({ n: a.n * b.d + b.n * a.d, d: a.d * b.d });
export const subR = (a: Rational, b: Rational): Rational => ({ n: a.n * b.d - b.n * a.d, d: a.d * b.d });
export const mulR = (a: Rational, b: Rational): Rational => ({ n: a.n * b.n, d: a.d * b.d });
export const divR = (a: Rational, b: Rational): Rational => rational(a.n * b.d, a.d * b.n);
export const compareR = (a: Rational, b: Rational): number => {
  const c = a.n * b.d - b.n * a.d;
  return c < 0n ? -1 : c > 0n ? 1 : 0;
};

/** The exact value of a finite double, read from its sign, exponent and significand fields. */
export function exactDouble(x: number): Rational {
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, x);
  const bits = view.getBigUint64(0);
  const exponent = Number((bits >> 52n) & 0x7ffn);
  let significand = bits & 0xfffffffffffffn;
  if (exponent > 0) significand += 1n << 52n;
  if (bits >> 63n) significand = -significand;
  const shift = Math.max(exponent, 1) - 1075;
  return shift >= 0 ? { n: significand << BigInt(shift), d: 1n } : { n: significand, d: 1n << BigInt(-shift) };
}

/** floor(log2 r) of r > 0, by comparison. */
export function floorLog2(r: Rational): number {
  let e = r.n.toString(2).length - r.d.toString(2).length;
  const atLeast = (k: number) => (k >= 0 ? r.n >= r.d << BigInt(k) : r.n << BigInt(-k) >= r.d);
  while (!atLeast(e)) e--;
  while (atLeast(e + 1)) e++;
  return e;
}

// e^x and 2^x to the nearest double by BigInt fixed point of 400 bits: the series, nothing in common with
// formats/core/exp.ts.
const BITS = 400n;
const ONE = 1n << BITS;
const HALVINGS = 20n;

/** e^x * 2^400, x = numerator / 2^400. */
function series(x: bigint): bigint {
  const small = x >> HALVINGS;
  let [term, sum] = [ONE, ONE];
  for (let i = 1n; i < 80n; i++) {
    term = ((term * small) >> BITS) / i;
    sum += term;
  }
  for (let i = 0n; i < HALVINGS; i++) sum = (sum * sum) >> BITS;
  return sum;
}

/** 2 atanh(1/3). */
const LN2 = ((): bigint => {
  let [sum, term] = [0n, ONE / 3n];
  for (let i = 0n; i < 300n; i++, term /= 9n) sum += term / (2n * i + 1n);
  return 2n * sum;
})();

function nearest(value: bigint): number {
  const drop = BigInt(value.toString(2).length - 53);
  const cut = value >> drop;
  const rest = value - (cut << drop);
  const half = 1n << (drop - 1n);
  return Number(cut + (rest > half || (rest === half && cut % 2n === 1n) ? 1n : 0n)) * 2 ** Number(drop - BITS);
}

/** x is a multiple of 2^-40. */
const fixed = (x: number): bigint => BigInt(x * 2 ** 40) << (BITS - 40n);

export const exp = (x: number): number => nearest(series(fixed(x)));
export const exp2 = (x: number): number => nearest(series((fixed(x) * LN2) >> BITS));

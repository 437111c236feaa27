// Hadamard matrices, generated: Sylvester (powers of two), Paley I (q + 1, prime power q = 3 mod 4), Paley II (2 (q +
// 1), q = 1 mod 4; Paley 1933), four circulants in the array of Goethals and Seidel (1967) for 92, 116, 156 and 172,
// and their Kronecker products with powers of two. Prime powers are p and p^2. That is every order that a Hadamard
// matrix can have (1, 2, multiples of 4) to 184; 188 is the first that is missing. Matrices are +-1, row-major, H H^T =
// n I.
import { LowbitError } from "../../formats/core/errors.ts";
import { butterflies } from "../../kernels/reference/hadamard.ts";

/** Of a number from 2 on. */
const isPrime = (n: number): boolean => {
  for (let d = 2; d * d <= n; d++) if (n % d === 0) return false;
  return true;
};

/** p where q is p or p^2 with p prime; 0 otherwise. */
function primeRoot(q: number): number {
  if (isPrime(q)) return q;
  const p = Math.round(Math.sqrt(q));
  return p * p === q && isPrime(p) ? p : 0;
}

/** Quadratic character of GF(q): chi[a * q + b] = chi(a - b): 1 for squares, -1 for others; that of 0 is not read. */
function jacobsthal(q: number): Int8Array {
  const p = primeRoot(q);
  const chi = new Int8Array(q).fill(-1);
  if (p === q) {
    for (let a = 1; a < q; a++) chi[(a * a) % q] = 1;
    const out = new Int8Array(q * q);
    for (let a = 0; a < q; a++) for (let b = 0; b < q; b++) out[a * q + b] = chi[(a - b + q) % q];
    return out;
  }
  // GF(p^2) = GF(p)[t] / (t^2 - g), g a non-square: element x + y t is x + p y.
  const squares = new Set(Array.from({ length: p }, (_, a) => (a * a) % p));
  let g = 2;
  while (squares.has(g)) g++;
  for (let x = 0; x < p; x++) for (let y = 0; y < p; y++) if (x || y) chi[((x * x + g * y * y) % p) + p * ((2 * x * y) % p)] = 1;
  const out = new Int8Array(q * q);
  for (let a = 0; a < q; a++)
    for (let b = 0; b < q; b++) {
      const x = ((a % p) - (b % p) + p) % p;
      const y = (Math.floor(a / p) - Math.floor(b / p) + p) % p;
      out[a * q + b] = chi[x + p * y];
    }
  return out;
}

/** Paley I of order q + 1: I + S with S the bordered, skew character matrix. */
function paley1(q: number): Int8Array {
  const n = q + 1;
  const c = jacobsthal(q);
  const h = new Int8Array(n * n);
  for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) h[i * n + j] = i === j ? 1 : i === 0 ? 1 : j === 0 ? -1 : c[(i - 1) * q + j - 1];
  return h;
}

/**
 * Paley II of order 2 (q + 1): the symmetric conference matrix C of order q + 1 with 0 -> [1 -1; -1 -1] and c -> c [1
 * 1; 1 -1].
 */
function paley2(q: number): Int8Array {
  const m = q + 1;
  const n = 2 * m;
  const c = jacobsthal(q);
  const h = new Int8Array(n * n);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < m; j++) {
      const v = i === j ? 0 : i === 0 || j === 0 ? 1 : c[(i - 1) * q + j - 1];
      const block = v === 0 ? [1, -1, -1, -1] : [v, v, v, -v];
      h[2 * i * n + 2 * j] = block[0];
      h[2 * i * n + 2 * j + 1] = block[1];
      h[(2 * i + 1) * n + 2 * j] = block[2];
      h[(2 * i + 1) * n + 2 * j + 1] = block[3];
    }
  return h;
}

/**
 * Four sequences of length v whose periodic autocorrelations add up to zero, -1 on unions of orbits of a group of units
 * on Z_v: generators of the group, and for each sequence the orbits as bits (the orbit of 0 is +1; others in the order
 * of their least element). Found by search; {1, -1} gives Williamson's (1944).
 */
const CIRCULANTS: Readonly<Record<number, { readonly group: readonly number[]; readonly orbits: readonly number[] }>> = {
  23: { group: [22], orbits: [1130, 527, 804, 702] },
  29: { group: [28], orbits: [2833, 12454, 1723, 755] },
  39: { group: [14, 16], orbits: [213, 117, 209, 188] },
  43: { group: [4], orbits: [19, 7, 15, 11] },
};

function sequences(v: number): Int8Array[] {
  const { group, orbits } = CIRCULANTS[v];
  const orbitOf = new Int32Array(v).fill(-1);
  let count = 0;
  for (let x = 0; x < v; x++) {
    if (orbitOf[x] >= 0) continue;
    const reach = [x];
    orbitOf[x] = count;
    for (const y of reach)
      for (const g of group) {
        const z = (y * g) % v;
        if (orbitOf[z] >= 0) continue;
        orbitOf[z] = count;
        reach.push(z);
      }
    count++;
  }
  return orbits.map((bits) => Int8Array.from(orbitOf, (o) => (o > 0 && (bits >> (o - 1)) & 1 ? -1 : 1)));
}

/**
 * [A BR CR DR; -BR A D'R -C'R; -CR -D'R A B'R; -DR C'R -B'R A] of circulants A..D, ' the transpose, R the reversal of
 * columns.
 */
function goethalsSeidel(v: number): Int8Array {
  const n = 4 * v;
  const [a, b, c, d] = sequences(v);
  const h = new Int8Array(n * n);
  const put = (blockRow: number, blockColumn: number, sign: number, x: Int8Array, transposed: boolean, reversed: boolean) => {
    for (let i = 0; i < v; i++)
      for (let j = 0; j < v; j++) {
        const column = reversed ? v - 1 - j : j;
        const at = transposed ? i - column : column - i;
        h[(blockRow * v + i) * n + blockColumn * v + j] = sign * x[(at + v) % v];
      }
  };
  for (let i = 0; i < 4; i++) put(i, i, 1, a, false, false);
  [b, c, d].forEach((x, i) => {
    put(0, i + 1, 1, x, false, true);
    put(i + 1, 0, -1, x, false, true);
  });
  for (const [row, column, sign, x] of [[1, 2, 1, d], [1, 3, -1, c], [2, 1, -1, d], [2, 3, 1, b], [3, 1, 1, c], [3, 2, -1, b]] as const) put(row, column, sign, x, true, true); // prettier-ignore
  return h;
}

function paley(n: number): Int8Array | null {
  if (n % 4 !== 0) return null;
  if (primeRoot(n - 1)) return paley1(n - 1);
  if ((n / 2 - 1) % 4 === 1 && primeRoot(n / 2 - 1)) return paley2(n / 2 - 1);
  return n / 4 in CIRCULANTS ? goethalsSeidel(n / 4) : null;
}

export interface HadamardFactors {
  /** Order of the factor that is no power of two; 1 for powers of two. */
  readonly base: number;
  /** n / base, a power of two. */
  readonly power: number;
  /** The base matrix; null for base 1. */
  readonly matrix: Int8Array | null;
}

const factors = new Map<number, HadamardFactors>();

/**
 * n as one of the other orders times a power of two, with the largest power.
 * @throws LowbitError E_UNSUPPORTED where there is no such construction, with the largest power of two that divides n
 */
export function hadamardFactors(n: number): HadamardFactors {
  const known = factors.get(n);
  if (known) return known;
  if (!Number.isSafeInteger(n) || n < 1) throw new RangeError(`hadamard order: expected a positive integer, got ${n}.`);
  let power = 1;
  while (n % (2 * power) === 0) power *= 2;
  const divisor = power;
  for (; power >= 1; power /= 2) {
    const base = n / power;
    const matrix = base === 1 ? null : paley(base);
    if (base !== 1 && matrix === null) continue;
    const found = { base, power, matrix };
    factors.set(n, found);
    return found;
  }
  throw new LowbitError(
    "E_UNSUPPORTED",
    `hadamard: expected a multiple of 4 with a known construction (all to 184; 2^m (q + 1) and 2^m 2 (q + 1) with a prime power q), got ${n}. Rotate in blocks of ${divisor}.`,
  );
}

/** A Hadamard matrix of order n, +-1, row-major. @throws LowbitError E_UNSUPPORTED @example hadamard(12) */
export function hadamard(n: number): Int8Array<ArrayBuffer> {
  const { base, power, matrix } = hadamardFactors(n);
  const out = new Int8Array(n * n);
  for (let i = 0; i < n; i++)
    for (let j = 0; j < n; j++) {
      const a = matrix === null ? 1 : matrix[Math.floor(i / power) * base + Math.floor(j / power)];
      // Sylvester: the sign of row r, column c is the parity of r AND c.
      let bits = (i % power) & (j % power);
      let parity = 0;
      for (; bits; bits &= bits - 1) parity ^= 1;
      out[i * n + j] = parity ? -a : a;
    }
  return out;
}

/**
 * x H_n for each of the consecutive vectors of length n in x, in place, not normalised; n a power of two: n log2 n
 * additions per vector.
 * @throws RangeError where n is no power of two or x holds no whole vectors
 * @example
 * const x = Float32Array.of(1, 0, 0, 0, 1, 1, 1, 1);
 * fwht(x, 4);
 * x // [1, 1, 1, 1, 4, 0, 0, 0]: two vectors of 4
 */
export function fwht(x: Float32Array | Float64Array, n: number): void {
  if (!Number.isSafeInteger(n) || n < 1 || (n & (n - 1)) !== 0) throw new RangeError(`fwht n: expected a power of two, got ${n}.`);
  if (x.length % n !== 0) throw new RangeError(`fwht: expected a multiple of ${n} numbers, got ${x.length}.`);
  butterflies(x, n);
}

// e^x and 2^x, correctly rounded to double for the arguments that logarithmic formats have: the same number on every
// engine, where Math.exp is what an engine makes of it. Double-double arithmetic (Dekker, Knuth): about 100 bits, so
// the last rounding is right but for values nearer to a tie than 2^-100, which dyadic arguments of few bits do not come
// (Lefèvre, Muller: worst cases of exp need 113 bits over ALL doubles).

/** An unevaluated sum, |lo| at most half a unit in the last place of hi. */
type Pair = readonly [hi: number, lo: number];

const LN2: Pair = [0.6931471805599453, 2.3190468138462996e-17];
/** LN2[0] + LN2[1] + LN2_REST is ln 2 to 160 bits. */
const LN2_REST = 5.707708438416212e-34;

function twoSum(a: number, b: number): Pair {
  const s = a + b;
  const t = s - a;
  return [s, a - (s - t) + (b - t)];
}

function fastTwoSum(a: number, b: number): Pair {
  const s = a + b;
  return [s, b - (s - a)];
}

function twoProduct(a: number, b: number): Pair {
  const p = a * b;
  const split = (x: number): Pair => {
    const t = 134217729 * x; // 2^27 + 1
    const hi = t - (t - x);
    return [hi, x - hi];
  };
  const [ah, al] = split(a);
  const [bh, bl] = split(b);
  return [p, ah * bh - p + ah * bl + al * bh + al * bl];
}

function add(a: Pair, b: Pair): Pair {
  const [s, e] = twoSum(a[0], b[0]);
  const [t, f] = twoSum(a[1], b[1]);
  const [u, v] = fastTwoSum(s, e + t);
  return fastTwoSum(u, v + f);
}

function multiply(a: Pair, b: Pair): Pair {
  const [p, e] = twoProduct(a[0], b[0]);
  return fastTwoSum(p, e + (a[0] * b[1] + a[1] * b[0]));
}

/** e^r for |r| <= ln 2 / 2: the series of r / 256, then squared eight times. */
function expReduced(r: Pair): Pair {
  const s: Pair = [r[0] / 256, r[1] / 256];
  // sum of s^i / i! without its 1: what is small is squared as (1 + t)^2 - 1 = 2 t + t^2, which keeps its digits
  let term: Pair = s;
  let sum: Pair = s;
  for (let i = 2; i <= 12; i++) {
    term = divide(multiply(term, s), i);
    sum = add(sum, term);
  }
  for (let i = 0; i < 8; i++) sum = add([2 * sum[0], 2 * sum[1]], multiply(sum, sum));
  return add([1, 0], sum);
}

function divide(a: Pair, n: number): Pair {
  const q = a[0] / n;
  const [p, e] = twoProduct(q, n);
  return fastTwoSum(q, (a[0] - p - e + a[1]) / n);
}

/** e^x to the nearest double, |x| <= 300. */
export function exactExp(x: number): number {
  const k = Math.round(x / LN2[0]);
  const reduced = add(add([x, 0], negate(twoProduct(k, LN2[0]))), add(negate(twoProduct(k, LN2[1])), [-k * LN2_REST, 0]));
  const [hi, lo] = expReduced(reduced);
  return (hi + lo) * 2 ** k;
}

/** 2^x to the nearest double, |x| <= 300. */
export function exactExp2(x: number): number {
  const k = Math.round(x);
  if (k === x) return 2 ** k;
  const f = x - k;
  const [p, e] = twoProduct(f, LN2[0]);
  const [q, g] = twoProduct(f, LN2[1]);
  const [hi, lo] = expReduced(add(add([p, 0], [e, 0]), add([q, 0], [g + f * LN2_REST, 0])));
  return (hi + lo) * 2 ** k;
}

function negate([hi, lo]: Pair): Pair {
  return [-hi, -lo];
}

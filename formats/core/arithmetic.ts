// Arithmetic on the codes of any scalar format, each operation rounded ONCE from its exact result: never first to a
// double and then to the format. What a format cannot hold follows the policies of its encoder (docs/numerics.md):
// overflow saturates or becomes infinity or NaN, a sum that a format without zero cannot hold goes to its nearest
// value, and a NaN result in a format without NaN is E_UNSUPPORTED unless { nan } says what to do.
import { LowbitError } from "./errors.ts";
import { addDyadic, divDyadic, dyadic, ExactSum, fits, isOdd, mulDyadic, oddDouble, productError, sumError, toOdd } from "./exact.ts";
import { nextDown, nextUp } from "./round.ts";
import { testVectors, type Operations, type TestVector, type VectorOperation, type VectorOptions } from "./test-vectors.ts";
import type { EncodeOptions, NumberFormat } from "./types.ts";

/** A running exact sum (for posits: the quire), rounded only when it is read. */
export interface Accumulator {
  add(a: number): Accumulator;
  sub(a: number): Accumulator;
  /** Adds a * b. */
  addProduct(a: number, b: number): Accumulator;
  subProduct(a: number, b: number): Accumulator;
  /** The code of the sum, rounded once. The sum goes on. */
  round(): number;
}

/**
 * Operations on codes; every argument and result that is a number is a code, but those of `compare` and `totalOrder`.
 */
export interface Arithmetic extends Operations {
  neg(a: number): number;
  abs(a: number): number;
  /**
   * The code of the next greater (smaller) value. Ends: infinity where there is one, else the end itself; posits wrap
   * through NaR.
   */
  next(a: number): number;
  previous(a: number): number;
  /** -1, 0 or 1; NaN when unordered. Both zeros are equal. In posits NaR is the smallest value and equals itself. */
  compare(a: number, b: number): number;
  eq(a: number, b: number): boolean;
  lt(a: number, b: number): boolean;
  le(a: number, b: number): boolean;
  gt(a: number, b: number): boolean;
  ge(a: number, b: number): boolean;
  /** -1, 0 or 1 over all codes, as IEEE 754 totalOrder: -0 before +0, NaN with the sign bit first, other NaN last. */
  totalOrder(a: number, b: number): number;
  accumulator(): Accumulator;
  /**
   * Operands and results for a test bench: all there are, or corner cases and seeded draws. What has no result (0/0 in
   * a format without NaN) is left out.
   * @example
   * const vectors = arithmetic(float8_e4m3fn).vectors("mul", { count: 100 });
   * for (const { operands, result } of vectors) check(operands, result);
   */
  vectors(operation: VectorOperation, options?: VectorOptions): Iterable<TestVector>;
}

const cache = new WeakMap<NumberFormat, Arithmetic>();

/**
 * Arithmetic on the codes of a format.
 * @param options rounding and policies of every result; default the format's own
 * @example const { add } = arithmetic(posit8_es2); add(0x40, 0x40) // 0x48: 1 + 1 = 2
 */
export function arithmetic(format: NumberFormat, options?: EncodeOptions): Arithmetic {
  if (options !== undefined) return make(format, options);
  let made = cache.get(format);
  if (made === undefined) cache.set(format, (made = make(format, {})));
  return made;
}

function make(format: NumberFormat, options: EncodeOptions): Arithmetic {
  const { bits, name } = format;
  const size = 2 ** bits;
  const byWord = format.ordering === "word";
  const wraps = options.overflow === "wrap" && format.kind === "int";
  const value = (code: number) => format.decode(code);
  const between = betweenDoubles(format, options);

  /** The code of a double that is the result itself. */
  const exact = (x: number): number => {
    if (x !== x && !format.limits.hasNaN && (options.nan ?? format.defaults.nan) === "error")
      throw new LowbitError(
        "E_UNSUPPORTED",
        `${name} arithmetic: expected a result that is a number, got NaN (0/0, infinity - infinity, the root of a negative number), which the format lacks. Pass { nan: "zero" } or another policy.`,
      );
    return format.encode(x, options);
  };
  /** The code of the real number x + error. */
  const code = (x: number, error: number): number => (error === 0 ? exact(x) : between ? between(x, error) : exact(toOdd(x, error)));
  /** The code of m * 2^e: as a double rounded to odd, or modulo 2^bits. */
  const big = (d: { m: bigint; e: number }): number => {
    // Sums and products of integers are integers; their low bits would be lost in a double.
    if (wraps) return Number(BigInt.asUintN(bits, d.e >= 0 ? d.m << BigInt(d.e) : d.m >> BigInt(-d.e)));
    const x = oddDouble(d);
    const back = dyadic(x);
    if (!between) return exact(x);
    const sum = addDyadic(d, { m: -back.m, e: back.e }).m;
    return code(x, sum > 0n ? 1 : sum < 0n ? -1 : 0);
  };
  const addValues = (a: number, b: number): number => {
    const s = a + b;
    if (Number.isFinite(s)) return code(s, sumError(a, b, s));
    return Number.isFinite(a) && Number.isFinite(b) ? big(addDyadic(dyadic(a), dyadic(b))) : exact(s);
  };
  const add = (a: number, b: number) => addValues(value(a), value(b));
  const sub = (a: number, b: number) => addValues(value(a), -value(b));
  const mul = (a: number, b: number): number => {
    const [x, y] = [value(a), value(b)];
    const p = x * y;
    if (x === 0 || y === 0 || !Number.isFinite(x) || !Number.isFinite(y)) return exact(p);
    if (wraps && Math.abs(p) >= 2 ** 53) return big(mulDyadic(dyadic(x), dyadic(y)));
    return fits(p) && fits(x) && fits(y) ? code(p, productError(x, y, p)) : big(mulDyadic(dyadic(x), dyadic(y)));
  };
  const div = (a: number, b: number): number => {
    const [x, y] = [value(a), value(b)];
    const q = x / y;
    if (x === 0 || y === 0 || !Number.isFinite(x) || !Number.isFinite(y)) return exact(q);
    if (!(fits(x) && fits(y) && fits(q))) return big(divDyadic(dyadic(x), dyadic(y)));
    // x - q y is a double; its sign and that of y say on which side of q the quotient lies.
    const p = q * y;
    const r = x - p - productError(q, y, p);
    return code(q, y > 0 ? r : -r);
  };
  const fma = (a: number, b: number, c: number): number => {
    const [x, y, z] = [value(a), value(b), value(c)];
    if (!Number.isFinite(x) || !Number.isFinite(y) || !Number.isFinite(z)) return exact(x * y + z);
    const p = x * y;
    if (x === 0 || y === 0) return exact(p + z);
    if (fits(p) && fits(x) && fits(y) && productError(x, y, p) === 0 && !(wraps && Math.abs(p + z) >= 2 ** 53)) return addValues(p, z);
    return big(addDyadic(mulDyadic(dyadic(x), dyadic(y)), dyadic(z)));
  };
  const sqrt = (a: number): number => {
    const x = value(a);
    if (!(x > 0 && Number.isFinite(x))) return exact(Math.sqrt(x));
    // A power of four keeps the square clear of the limits of productError.
    const scale = x < 1e-200 ? 2 ** 300 : x > 1e200 ? 2 ** -300 : 1;
    const s = Math.sqrt(x * scale * scale);
    const p = s * s;
    return code(s / scale, x * scale * scale - p - productError(s, s, p));
  };

  const compare = (a: number, b: number): number => {
    const [x, y] = [value(a), value(b)];
    if (byWord && (x !== x || y !== y)) return x === x ? 1 : y === y ? -1 : 0;
    return x < y ? -1 : x > y ? 1 : x === y ? 0 : NaN;
  };
  /** Above all numbers 1, below all -1, a number 0. */
  const nanSide = (code: number, x: number) => (x === x ? 0 : code >= size / 2 ? -1 : 1);
  const totalOrder = (a: number, b: number): number => {
    const [x, y] = [value(a), value(b)];
    const [s, t] = [nanSide(a, x), nanSide(b, y)];
    if (s !== t) return s < t ? -1 : 1;
    if (s !== 0) return Math.sign(a - b) * s + 0;
    if (x !== y) return x < y ? -1 : 1;
    const [zx, zy] = [Object.is(x, -0), Object.is(y, -0)];
    return zx !== zy ? (zx ? -1 : 1) : Math.sign(a - b) + 0;
  };
  const ends: EncodeOptions = { overflow: format.limits.hasInf ? "inf" : "saturate" };
  const step = (a: number, up: boolean): number => {
    const x = value(a);
    if (byWord) return (a + (up ? 1 : size - 1)) % size;
    if (x !== x || x === (up ? Infinity : -Infinity)) return a;
    const start = Number.isFinite(x) ? x : x > 0 ? Number.MAX_VALUE : -Number.MAX_VALUE;
    const from = up ? (x === start ? nextUp(start) : start) : x === start ? nextDown(start) : start;
    // A scale without sign or zero has nothing below its smallest value.
    if (!up && from < format.limits.minPositive && format.limits.min > 0) return a;
    return format.encode(from, { ...ends, rounding: up ? "ceil" : "floor" });
  };

  const accumulator = (): Accumulator => {
    const sum = new ExactSum();
    let special = 0; // the sum of infinities and NaN
    const acc: Accumulator = {
      add: (a) => plus(value(a), 1),
      sub: (a) => plus(-value(a), 1),
      addProduct: (a, b) => plus(value(a), value(b)),
      subProduct: (a, b) => plus(-value(a), value(b)),
      round: () => (special === 0 ? big(sum.value()) : exact(special)),
    };
    const plus = (x: number, y: number): Accumulator => {
      if (Number.isFinite(x) && Number.isFinite(y)) sum.addProduct(x, y);
      else special += x * y;
      return acc;
    };
    return acc;
  };

  let dotLimit: number | undefined;
  const dot = (as: ArrayLike<number>, bs: ArrayLike<number>): number => {
    const n = as.length;
    if (bs.length !== n)
      throw new LowbitError("E_SHAPE", `${name} dot: expected two arrays of one length, got ${n} and ${bs.length}. Pad or cut one.`);
    if (n <= (dotLimit ??= plainDotLength(format))) {
      let s = 0;
      for (let i = 0; i < n; i++) s += value(as[i]) * value(bs[i]);
      return exact(s + 0);
    }
    const acc = accumulator();
    for (let i = 0; i < n; i++) acc.addProduct(as[i], bs[i]);
    return acc.round();
  };

  // Operations of two codes of at most 8 bits are looked up once they have been computed.
  const remember = (op: (a: number, b: number) => number): ((a: number, b: number) => number) => {
    if (bits > 8 || (options.rounding ?? format.defaults.rounding) === "stochastic") return op;
    let table: Int16Array | undefined;
    return (a, b) => {
      if (a >>> 0 !== a || a >= size || b >>> 0 !== b || b >= size) return op(a, b); // throws
      table ??= new Int16Array(size * size).fill(-1);
      const i = a * size + b;
      return table[i] >= 0 ? table[i] : (table[i] = op(a, b));
    };
  };

  const made: Arithmetic = Object.freeze({
    format,
    add: remember(add),
    sub: remember(sub),
    mul: remember(mul),
    div: remember(div),
    fma,
    sqrt,
    neg(a: number) {
      const x = value(a);
      if (x > 0 && format.limits.min >= 0)
        throw new LowbitError(
          "E_UNSUPPORTED",
          `${name} neg: expected a format with negative values, got code ${a} (${x}). Use a signed format.`,
        );
      return exact(-x);
    },
    abs: (a: number) => exact(Math.abs(value(a))),
    next: (a: number) => step(a, true),
    previous: (a: number) => step(a, false),
    compare,
    eq: (a: number, b: number) => compare(a, b) === 0,
    lt: (a: number, b: number) => compare(a, b) < 0,
    le: (a: number, b: number) => compare(a, b) <= 0,
    gt: (a: number, b: number) => compare(a, b) > 0,
    ge: (a: number, b: number) => compare(a, b) >= 0,
    totalOrder,
    dot,
    accumulator,
    vectors: (operation: VectorOperation, wanted?: VectorOptions) => testVectors(made, operation, wanted),
  });
  return made;
}

/**
 * The longest dot product whose plain double sum is exact: values are multiples of a power of two q, so partial sums
 * are multiples of q^2 and stay below 2^53 q^2. -1 for wide formats.
 */
function plainDotLength(format: NumberFormat): number {
  const { order, limits } = format;
  if (order === null) return -1;
  // Euclid's algorithm is exact on doubles; the lowest bit of the common divisor is the lowest of all values.
  let divisor = 0;
  for (const v of order.values) {
    let m = Math.abs(v);
    while (m !== 0) [divisor, m] = [m, divisor % m];
  }
  const { m, e } = dyadic(divisor);
  const quantum = e + (m & -m).toString(2).length - 1;
  const top = Math.max(Math.abs(limits.max), Math.abs(limits.min)) * 2 ** -quantum;
  return Math.min(2 ** 30, Math.floor(2 ** 53 / (top * top)));
}

/**
 * For formats with values or boundaries that are odd doubles (codebooks of arbitrary doubles): the code of a real
 * number strictly between two neighbouring doubles, which rounding to odd cannot tell from its neighbour. null for all
 * other formats.
 */
function betweenDoubles(format: NumberFormat, options: EncodeOptions): ((x: number, error: number) => number) | null {
  const { order } = format;
  if (order === null || format.kind !== "codebook") return null;
  const values = new Set(order.values);
  const boundaries = new Set(order.boundaries);
  if (![...values, ...boundaries].some(isOdd)) return null;
  const nearest = (options.rounding ?? format.defaults.rounding).startsWith("half");
  return (x, error) => {
    const y = error > 0 ? nextUp(x) : nextDown(x);
    // Rounding to nearest changes only at boundaries, directed rounding only at values: use the neighbour that is none
    // of these.
    return format.encode((nearest ? boundaries : values).has(x) ? y : x, options);
  };
}

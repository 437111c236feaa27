// Exact arithmetic on doubles against rationals in BigInt.
import { expect, test } from "vitest";
import {
  addDyadic,
  divDyadic,
  dyadic,
  isOdd,
  mulDyadic,
  oddDouble,
  productError,
  sumError,
  toOdd,
  type Dyadic,
} from "../../../formats/core/exact.ts";
import { random } from "../../helpers/random.ts";

const abs = (x: bigint): bigint => (x < 0n ? -x : x);
const rng = random(4);
/** Doubles of every exponent, with few or with all significand bits. */
function anyDouble(range = 300): number {
  const m = rng.next() < 0.5 ? 1 + rng.integer(64) : 2 ** 52 + rng.integer(2 ** 30) * 2 ** 20 + rng.integer(2 ** 20);
  return (rng.next() < 0.5 ? -1 : 1) * m * 2 ** (rng.integer(2 * range) - range - 26);
}
/** a and b over one power of two. */
const aligned = (a: Dyadic, b: Dyadic): [bigint, bigint] => {
  const e = Math.min(a.e, b.e);
  return [a.m << BigInt(a.e - e), b.m << BigInt(b.e - e)];
};
const equal = (a: Dyadic, b: Dyadic): boolean => {
  const [x, y] = aligned(a, b);
  return x === y;
};

test("doubles as m 2^e, sums and products of them", () => {
  expect(dyadic(1)).toEqual({ m: 2n ** 52n, e: -52 });
  expect(dyadic(-5e-324)).toEqual({ m: -1n, e: -1074 });
  expect(dyadic(2 ** -1022)).toEqual({ m: 2n ** 52n, e: -1074 });
  expect(dyadic(Number.MAX_VALUE)).toEqual({ m: 2n ** 53n - 1n, e: 971 });
  for (let i = 0; i < 500; i++) {
    const [a, b] = [anyDouble(30), anyDouble(30)];
    const [x, y] = [dyadic(a), dyadic(b)];
    expect(Number(x.m) * 2 ** x.e).toBe(a);
    const [s, p] = [a + b, a * b];
    expect(equal(addDyadic(x, y), addDyadic(dyadic(s), dyadic(sumError(a, b, s))))).toBe(true);
    expect(equal(mulDyadic(x, y), addDyadic(dyadic(p), dyadic(productError(a, b, p))))).toBe(true);
  }
});

test("quotients: cut after 64 bits or more, odd where more would follow", () => {
  let ended = 0;
  for (let i = 0; i < 2000; i++) {
    const [a, b] = [anyDouble(), i % 3 === 0 ? 2 ** (rng.integer(600) - 300) * (1 + 2 * rng.integer(4)) : anyDouble()];
    const [x, y] = [dyadic(a), dyadic(b)];
    const q = divDyadic(x, y);
    const shift = BigInt(x.e - y.e - q.e);
    // q 2^e and a / b, both times |b| 2^-e: q |b| and |a| 2^shift
    const [n, d] = [abs(x.m) << shift, abs(y.m)];
    expect(shift >= 0n && abs(q.m).toString(2).length >= 64).toBe(true);
    expect(q.m < 0n).toBe(a < 0 !== b < 0);
    const exact = n % d === 0n;
    if (exact) ended++;
    expect(exact ? abs(q.m) * d === n : (abs(q.m) & 1n) === 1n).toBe(true);
    // the last bit set or not: within one unit, from below
    expect(abs(abs(q.m) * d - n) < d).toBe(true);
  }
  expect(ended).toBeGreaterThan(100);
  expect(ended).toBeLessThan(1900);
  // 1 / 3 is 0.0101...: the bit before the last is the one that a cut would leave
  expect(divDyadic({ m: 1n, e: 0 }, { m: 3n, e: 0 })).toEqual({ m: (2n ** 128n / 3n) | 1n, e: -128 });
  expect(divDyadic({ m: 2n, e: 0 }, { m: 3n, e: 0 })).toEqual({ m: (2n ** 129n / 3n) | 1n, e: -128 });
});

test("rounded to odd: the double itself, else the odd one of its neighbours", () => {
  for (let i = 0; i < 2000; i++) {
    const a = anyDouble(900);
    expect(oddDouble(dyadic(a))).toBe(a);
    const one = dyadic(a);
    // a little more than a, in magnitude
    const got = oddDouble({ m: (one.m << 20n) + (one.m < 0n ? -1n : 1n), e: one.e - 20 });
    expect(isOdd(got)).toBe(true);
    expect(got === a || Math.abs(got) > Math.abs(a)).toBe(true);
    expect(got === a).toBe(isOdd(a));
  }
  expect(oddDouble({ m: 0n, e: 5 })).toBe(0);
  expect(oddDouble({ m: 1n, e: 1024 })).toBe(Number.MAX_VALUE);
  expect(oddDouble({ m: -1n, e: 5000 })).toBe(-Number.MAX_VALUE);
  expect(oddDouble({ m: 1n, e: 1023 })).toBe(2 ** 1023);
  // below the smallest double: that one, for it is odd
  expect(oddDouble({ m: 1n, e: -2000 })).toBe(5e-324);
  expect(oddDouble({ m: -3n, e: -1076 })).toBe(-5e-324);
  expect(oddDouble({ m: 5n, e: -1075 })).toBe(3 * 5e-324);
  expect([toOdd(1, 0), toOdd(1, 1e-30), toOdd(1, -1e-30)]).toEqual([1, 1 + 2 ** -52, 1 - 2 ** -53]);
  expect([toOdd(1 + 2 ** -52, 1e-30), toOdd(1 + 2 ** -52, -1e-30)]).toEqual([1 + 2 ** -52, 1 + 2 ** -52]);
});

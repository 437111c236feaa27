// Posits against an oracle that works on bit strings and exact rationals, and against the decode tables of the shared
// vectors.
import { describe, expect, test } from "vitest";
import { definePosit, format, type NumberFormat } from "../../formats/index.ts";
import { describeShared, readVectors, vectorPath } from "../helpers/shared.ts";
import { decodePosit, roundPosit } from "../oracle/posit.ts";
import { exactDouble } from "../oracle/rational.ts";

const sizes = [3, 4, 5, 6, 7, 8, 9, 10].flatMap((n) => [0, 1, 2, 3, 4].map((es) => [n, es] as const));

const f64 = new Float64Array(1);
const i64 = new BigInt64Array(f64.buffer);
/** The double `steps` units in the last place away from x > 0. */
const ulps = (x: number, steps: number): number => {
  f64[0] = x;
  i64[0] += BigInt(steps);
  return f64[0];
};

const expectWord = (f: NumberFormat, x: number, n: number, es: number) => {
  const want = roundPosit(exactDouble(x), n, es);
  const got = f.encode(x);
  if (got !== want) throw new Error(`${f.name}.encode(${x}): expected ${want.toString(2)}, got ${got.toString(2)}`);
};

describe("posit values", () => {
  test.each(sizes)("posit<%i,%i>: every code has the value of its bit string and re-encodes", (n, es) => {
    const f = definePosit({ bits: n, es });
    for (let c = 0; c < 2 ** n; c++) {
      const want = decodePosit(c, n, es);
      const got = f.decode(c);
      if (want === null) expect(got).toBeNaN();
      else expect(exactDouble(got).n * want.d).toBe(want.n * exactDouble(got).d);
      expect(f.encode(got)).toBe(c);
    }
  });

  test.each([2, 11, 16, 17, 24, 31, 32])("posit<%i,0..4>: sampled codes of wide words", (n) => {
    for (let es = 0; es <= 4; es++) {
      const f = definePosit({ bits: n, es });
      for (let i = 0; i < 400; i++) {
        const c = i < 20 ? i % 2 ** n : Math.floor((((i * 2654435761) % 2 ** 32) / 2 ** 32) * 2 ** n);
        const want = decodePosit(c, n, es);
        const got = f.decode(c);
        if (want === null) expect(got).toBeNaN();
        else expect(exactDouble(got).n * want.d).toBe(want.n * exactDouble(got).d);
        expect(f.encode(got)).toBe(c);
      }
    }
  });

  test("minpos, maxpos, NaR and the words of the standard", () => {
    const p = format("posit32_es2") as NumberFormat;
    expect(p.limits.max).toBe(2 ** 120);
    expect(p.limits.minPositive).toBe(2 ** -120);
    expect(p.encode(1)).toBe(0x40000000);
    expect(p.encode(-1)).toBe(0xc0000000);
    expect(p.encode(NaN)).toBe(0x80000000);
    expect(p.encode(Infinity)).toBe(0x80000000);
    expect(p.encode(1e300)).toBe(0x7fffffff);
    expect(p.encode(-1e-300)).toBe(0xffffffff);
    expect(definePosit({ bits: 2, es: 0 }).table).toEqual(Float64Array.of(0, 1, NaN, -1));
  });
});

describe("posit rounding", () => {
  test.each(sizes)("posit<%i,%i>: every boundary and one ulp on either side", (n, es) => {
    const f = definePosit({ bits: n, es });
    for (let c = 0; c < 2 ** (n - 1) - 1; c++) {
      // The boundary above word c is the word with a 1 appended; above 0 it is 0 itself, so any positive number.
      const r = decodePosit(2 * c + 1, n + 1, es)!;
      const tie = Number(r.n) / Number(r.d);
      for (const x of [ulps(tie, -1), tie, ulps(tie, 1), f.decode(c + 1), ulps(f.decode(c + 1), -1), ulps(f.decode(c + 1), 1)]) {
        expectWord(f, x, n, es);
        expectWord(f, -x, n, es);
      }
    }
  });

  test.each([
    [16, 1],
    [16, 2],
    [17, 0],
    [19, 3],
    [24, 4],
    [31, 1],
    [32, 0],
    [32, 2],
    [32, 4],
  ])("posit<%i,%i>: ties, neighbours of ties and random doubles", (n, es) => {
    const f = definePosit({ bits: n, es });
    let seed = 1;
    const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
    for (let i = 0; i < 1500; i++) {
      const c = Math.floor(random() ** (i % 3) * (2 ** (n - 1) - 2));
      const r = decodePosit(2 * c + 1, n + 1, es)!;
      const tie = Number(r.n) / Number(r.d);
      for (const x of [tie, ulps(tie, 1), ulps(tie, -1), random() * 2 ** Math.round((random() - 0.5) * 2 * n * 2 ** es)]) {
        expectWord(f, x, n, es);
        expectWord(f, -x, n, es);
      }
    }
  });

  test("boundaries are not arithmetic means where exponent bits are cut off", () => {
    const f = format("posit4_es1") as NumberFormat;
    expect([0.13166, 1 / 8, 3 / 8, 3 / 4, 3 / 2, 3, 8, 8.1, 9.9].map((x) => f.encode(x))).toEqual([2, 2, 2, 4, 4, 6, 6, 7, 7]);
    // Neighbours 2^20 and 2^24 of posit<8,2>: the tie is 2^22, not 8.9e6.
    const g = format("posit8_es2") as NumberFormat;
    expect(g.encode(2 ** 22)).toBe(126);
    expect(g.encode(2 ** 22 + 1)).toBe(127);
  });

  test("named roundings bracket a value", () => {
    const f = definePosit({ bits: 20, es: 1 });
    const x = 1.2345678;
    const [down, up] = [f.encode(x, { rounding: "floor" }), f.encode(x, { rounding: "ceil" })];
    expect(up).toBe(down + 1);
    expect(f.decode(down)).toBeLessThan(x);
    expect(f.encode(-x, { rounding: "trunc" })).toBe(2 ** 20 - down);
    expect(f.encode(-x, { rounding: "expand" })).toBe(2 ** 20 - up);
  });
});

test("bad widths are refused", () => {
  for (const bad of [
    { bits: 1, es: 0 },
    { bits: 33, es: 0 },
    { bits: 8, es: 5 },
    { bits: 8, es: -1 },
    { bits: 8.5, es: 0 },
  ])
    expect(() => definePosit(bad)).toThrow(/expected an integer/);
  expect(() => format("posit40_es2")).toThrow(/Nearest/);
});

const vectors = vectorPath("posit_decode.jsonl.gz");
describeShared("posit_decode vectors", vectors, (path) => {
  test("every code of n 3..10, es 0..3", () => {
    const bytes = new DataView(new ArrayBuffer(8));
    for (const { n, es, values } of readVectors<{ n: number; es: number; values: string[] }>(path)) {
      const f = format(`posit${n}_es${es}`) as NumberFormat;
      expect(values.length).toBe(2 ** n);
      values.forEach((hex, code) => {
        if (hex === "NaR") return expect(f.decode(code)).toBeNaN();
        bytes.setBigUint64(0, BigInt(`0x${hex}`));
        expect(f.decode(code)).toBe(bytes.getFloat64(0));
      });
    }
  });
});

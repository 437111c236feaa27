// Arithmetic on codes against exact rationals: full tables of small posits, every pair of some 8-bit floats, samples of
// wide formats, dot products.
import { describe, expect, test } from "vitest";
import { arithmetic, defineCodebook, defineFloat, definePosit, format, quireBits, type NumberFormat } from "../../formats/index.ts";
import { gridOf, nearest, type Grid } from "../oracle/nearest.ts";
import { decodePosit, roundPosit } from "../oracle/posit.ts";
import { addR, compareR, divR, exactDouble, mulR, rational, subR, type Rational } from "../oracle/rational.ts";

const scalar = (name: string) => format(name) as NumberFormat;
const operations = { add: addR, sub: subR, mul: mulR, div: divR } as const;
const generator = (seed: number) => () => (seed = (seed * 48271) % 2147483647) / 2147483647;

describe("posit tables", () => {
  test.each([0, 1, 2])("posit<8,%i>: all 65,536 entries of add, sub, mul and div", (es) => {
    const f = definePosit({ bits: 8, es });
    const a = arithmetic(f);
    const values = Array.from({ length: 256 }, (_, c) => decodePosit(c, 8, es));
    const rounded = new Map<string, number>();
    const round = (r: Rational) => {
      const key = `${r.n}/${r.d}`;
      let word = rounded.get(key);
      if (word === undefined) rounded.set(key, (word = roundPosit(r, 8, es)));
      return word;
    };
    for (const [name, op] of Object.entries(operations)) {
      let wrong = 0;
      for (let x = 0; x < 256; x++)
        for (let y = 0; y < 256; y++) {
          const [u, v] = [values[x], values[y]];
          const want = u === null || v === null || (name === "div" && v.n === 0n) ? 0x80 : round(op(u, v));
          if (a[name as "add"](x, y) !== want) wrong++;
        }
      expect(`${name}: ${wrong} wrong`).toBe(`${name}: 0 wrong`);
    }
  });

  test.each([
    [3, 0],
    [4, 1],
    [5, 2],
    [6, 3],
    [6, 4],
    [7, 1],
  ])("posit<%i,%i>: all entries, and fma and sqrt", (n, es) => {
    const a = arithmetic(definePosit({ bits: n, es }));
    const size = 2 ** n;
    const values = Array.from({ length: size }, (_, c) => decodePosit(c, n, es));
    for (let x = 0; x < size; x++) {
      const u = values[x];
      for (let y = 0; y < size; y++) {
        const v = values[y];
        for (const [name, op] of Object.entries(operations)) {
          const want = u === null || v === null || (name === "div" && v.n === 0n) ? size / 2 : roundPosit(op(u, v), n, es);
          expect(a[name as "add"](x, y)).toBe(want);
        }
        const z = (x * 7 + y * 13) % size;
        const w = values[z];
        expect(a.fma(x, y, z)).toBe(u === null || v === null || w === null ? size / 2 : roundPosit(addR(mulR(u, v), w), n, es));
      }
      expect(a.sqrt(x)).toBe(u === null || u.n < 0n ? size / 2 : sqrtPosit(u, n, es));
    }
  });
});

/** The word of the square root: the largest word whose boundaries' squares lie on either side. */
function sqrtPosit(r: Rational, n: number, es: number): number {
  if (r.n === 0n) return 0;
  const square = (word: number, bits: number) => {
    const v = decodePosit(word, bits, es)!;
    return mulR(v, v);
  };
  for (let w = 1; ; w++) {
    if (w === 2 ** (n - 1) - 1) return w;
    const c = compareR(r, square(2 * w + 1, n + 1));
    if (c < 0 || (c === 0 && w % 2 === 0)) return w;
  }
}

describe("wide and 16-bit formats, samples", () => {
  test.each([
    [16, 1],
    [16, 2],
    [20, 0],
    [32, 0],
    [32, 2],
    [32, 4],
  ])("posit<%i,%i>: add, sub, mul, div, fma", (n, es) => {
    const a = arithmetic(definePosit({ bits: n, es }));
    const random = generator(7 * n + es);
    const size = 2 ** n;
    const pick = () =>
      random() < 0.2 ? Math.floor(random() * 40) : random() < 0.5 ? Math.floor(random() * size) : Math.floor(size * (0.25 + random() / 64));
    for (let i = 0; i < 600; i++) {
      const [x, y, z] = [pick() % size, pick() % size, pick() % size];
      const [u, v, w] = [x, y, z].map((c) => decodePosit(c, n, es));
      for (const [name, op] of Object.entries(operations)) {
        const want = u === null || v === null || (name === "div" && v.n === 0n) ? size / 2 : roundPosit(op(u, v), n, es);
        if (a[name as "add"](x, y) !== want)
          throw new Error(`posit<${n},${es}> ${name}(${x}, ${y}): expected ${want}, got ${a[name as "add"](x, y)}`);
      }
      const want = u === null || v === null || w === null ? size / 2 : roundPosit(addR(mulR(u, v), w), n, es);
      if (a.fma(x, y, z) !== want) throw new Error(`posit<${n},${es}> fma(${x}, ${y}, ${z}): expected ${want}, got ${a.fma(x, y, z)}`);
    }
  });

  test("float32 equals Math.fround of double operations, which double rounding cannot spoil there", () => {
    const f = scalar("float32");
    const a = arithmetic(f);
    const random = generator(3);
    const words = new Uint32Array(1);
    const floats = new Float32Array(words.buffer);
    const code = (x: number) => ((floats[0] = x), words[0]);
    for (let i = 0; i < 4000; i++) {
      words[0] = Math.floor(random() * 2 ** 32);
      const x = words[0];
      const u = floats[0];
      words[0] = i % 3 ? Math.floor(random() * 2 ** 32) : x ^ Math.floor(random() * 2 ** 25);
      const y = words[0];
      const v = floats[0];
      for (const [name, r] of [
        ["add", u + v],
        ["sub", u - v],
        ["mul", u * v],
        ["div", u / v],
      ] as const) {
        const got = a[name](x, y);
        if (Number.isNaN(r)) expect(f.decode(got)).toBeNaN();
        else expect(got).toBe(code(r));
      }
      if (u > 0) expect(a.sqrt(x)).toBe(code(Math.sqrt(u)));
    }
  });

  test("fma rounds once where a double product and sum would round twice", () => {
    const f = scalar("float32");
    const a = arithmetic(f);
    const c = (x: number) => f.encode(x);
    // (1 + 2^-12)(1 - 2^-12) + 2^-24 = 1 exactly; 1 + 2^-23 ... and a product whose last bits decide a tie.
    expect(f.decode(a.fma(c(1 + 2 ** -12), c(1 - 2 ** -12), c(2 ** -24)))).toBe(1);
    const [x, y, z] = [1 + 2 ** -23, 1 + 2 ** -23, 2 ** 30].map(c);
    expect(f.decode(a.fma(x, y, z))).toBe(2 ** 30);
    // tie at 2^24 + 1, broken upward only by the product's 2^-46
    expect(f.decode(a.fma(c(1 + 2 ** -23), c(1 + 2 ** -23), c(2 ** 24)))).toBe(2 ** 24 + 2);
    expect(f.decode(a.fma(c(1), c(1), c(2 ** 24)))).toBe(2 ** 24);
  });
});

describe("small floats", () => {
  test.each([
    ["float4_e2m1fn", 8],
    ["float5_e2m2", 8],
    ["float6_e3m2fn", 32],
    ["float6_e4m1", 512],
    ["bnb_fp4", null],
  ] as const)("%s: every pair against exact nearest values, saturating", (name, beyond) => {
    const f = scalar(name);
    const even = { rounding: "halfEven", overflow: "saturate", nan: "zero" } as const;
    const a = arithmetic(f, even);
    if (f.kind === "codebook") {
      // Boundaries of a codebook are its own: compare with encoding of the exact double where the result is one.
      for (let x = 0; x < 16; x++) for (let y = 0; y < 16; y++) expect(a.mul(x, y)).toBe(f.encode(f.decode(x) * f.decode(y), even));
      return;
    }
    checkTable(f, gridOf(f.table!, beyond), a, 1);
  });

  test.each([
    ["float8_e4m3fn", 480],
    ["float8_e5m2", 65536],
    ["float8_e3m4", 16],
    ["binary8p3sf", 65536],
    ["float16", 65536],
    ["bfloat16", 2 ** 128],
  ] as const)("%s: a sample of pairs against exact nearest values", (name, beyond) => {
    const f = scalar(name);
    checkTable(
      f,
      gridOf(f.table!, beyond),
      arithmetic(f, { overflow: "saturate", nan: f.limits.hasNaN ? "nan" : "zero" }),
      f.bits > 8 ? 997 : 7,
    );
  });

  function checkTable(f: NumberFormat, grid: Grid, a: ReturnType<typeof arithmetic>, stride: number): void {
    const size = 2 ** f.bits;
    for (let x = 0; x < size; x += f.bits > 8 ? 701 : 1)
      for (let y = x % stride; y < size; y += stride) {
        const [u, v] = [f.decode(x), f.decode(y)];
        if (!Number.isFinite(u) || !Number.isFinite(v)) continue;
        for (const [name, op] of Object.entries(operations)) {
          if (name === "div" && v === 0) continue;
          const r = op(exactDouble(u), exactDouble(v));
          const found = nearest(r, grid);
          const want = found === "above" ? f.limits.max : found === "below" ? f.limits.min : f.decode(found);
          const got = f.decode(a[name as "add"](x, y));
          if (got !== want) throw new Error(`${f.name} ${name}(${u}, ${v}): expected ${want}, got ${got}`);
        }
      }
  }

  test("zeros, infinities and NaN follow IEEE 754 where the format has them", () => {
    const f = scalar("float8_e5m2");
    const a = arithmetic(f);
    const c = (x: number) => f.encode(x);
    const v = (code: number) => f.decode(code);
    expect(v(a.add(c(1), c(-1)))).toBe(0);
    expect(v(a.add(c(-0), c(-0)))).toBe(-0);
    expect(v(a.mul(c(-0), c(1)))).toBe(-0);
    expect(v(a.mul(c(2 ** -16), c(-0.25)))).toBe(-0);
    expect(v(a.div(c(1), c(0)))).toBe(Infinity);
    expect(v(a.div(c(1), c(-0)))).toBe(-Infinity);
    expect(v(a.div(c(0), c(0)))).toBeNaN();
    expect(v(a.sub(c(Infinity), c(Infinity)))).toBeNaN();
    expect(v(a.mul(c(57344), c(2)))).toBe(Infinity);
    expect(v(a.sqrt(c(-1)))).toBeNaN();
    expect(v(a.sqrt(c(-0)))).toBe(-0);
    expect(v(a.dot([c(Infinity), c(1)], [c(1), c(1)]))).toBe(Infinity);
    expect(v(a.dot([c(Infinity), c(Infinity)], [c(1), c(-1)]))).toBeNaN();
  });
});

describe("policies of formats that lack something", () => {
  test("integers saturate, wrap on request, and have no NaN", () => {
    const a = arithmetic(scalar("int8"));
    const code = (x: number) => x & 255;
    expect(a.add(code(100), code(100))).toBe(127);
    expect(a.mul(code(-100), code(100))).toBe(code(-128));
    expect(a.div(code(7), code(2))).toBe(4); // 3.5 to even
    expect(a.div(code(5), code(2))).toBe(2);
    expect(a.sqrt(code(12))).toBe(3);
    expect(a.neg(code(-128))).toBe(127);
    expect(() => a.div(0, 0)).toThrow(/int8 arithmetic: expected a result that is a number/);
    expect(() => a.sqrt(code(-4))).toThrow(expect.objectContaining({ code: "E_UNSUPPORTED" }));
    expect(arithmetic(scalar("int8"), { nan: "zero" }).div(0, 0)).toBe(0);
    expect(a.div(code(-3), 0)).toBe(code(-128));
    const w = arithmetic(scalar("int32"), { overflow: "wrap" });
    for (const [x, y] of [
      [0x7fffffff, 0x7ffffffd],
      [0x89abcdef, 0x12345677],
      [-1 >>> 0, 0x80000000],
    ]) {
      expect(w.mul(x, y)).toBe(Math.imul(x, y) >>> 0);
      expect(w.add(x, y)).toBe((x + y) >>> 0);
      expect(w.fma(x, y, 5)).toBe((Math.imul(x, y) + 5) >>> 0);
      expect(w.dot([x, x], [y, y])).toBe((2 * Math.imul(x, y)) >>> 0);
    }
  });

  test("unsigned formats refuse negation and saturate below", () => {
    const a = arithmetic(scalar("uint4"));
    expect(a.sub(3, 5)).toBe(0);
    expect(a.neg(0)).toBe(0);
    expect(() => a.neg(3)).toThrow(expect.objectContaining({ code: "E_UNSUPPORTED" }));
  });

  test("bipolar sums that would be zero go to a neighbour, ties to the even word", () => {
    const f = scalar("bipolar4");
    const a = arithmetic(f);
    expect(f.decode(a.add(f.encode(3), f.encode(-3)))).toBe(1);
    expect(f.decode(a.add(f.encode(3), f.encode(5)))).toBe(9);
    expect(f.decode(a.neg(f.encode(15)))).toBe(-15);
  });

  test("e8m0: a difference of zero is NaN by default, a product is exact", () => {
    const f = scalar("e8m0");
    const a = arithmetic(f);
    expect(f.decode(a.mul(f.encode(4), f.encode(0.125)))).toBe(0.5);
    expect(f.decode(a.sub(5, 5))).toBeNaN();
    expect(f.decode(arithmetic(f, { overflow: "saturate" }).sub(5, 5))).toBe(2 ** -127);
    expect([a.next(0), a.previous(0), a.next(254), a.previous(7)]).toEqual([1, 0, 254, 6]);
  });

  test("codebooks of arbitrary doubles: sums next to a boundary that is an odd double", () => {
    const ulp = 2 ** -52;
    const f = defineCodebook({ name: "sharp", values: [1, 1 + 6 * ulp, 2 ** -60, -(2 ** -60), 0.5, 0.5 + 3 * ulp] });
    const a = arithmetic(f);
    expect(f.order!.boundaries[f.order!.values.indexOf(1)]).toBe(1 + 3 * ulp);
    // The sum of these two is the boundary exactly: a tie, the lower value. With 2^-60 more or less the sides are
    // clear.
    const [x, y] = [f.encode(0.5), f.encode(0.5 + 3 * ulp)];
    expect(f.decode(a.add(x, y))).toBe(1);
    const sum = () => a.accumulator().add(x).add(y);
    expect(
      f.decode(
        sum()
          .add(f.encode(2 ** -60))
          .round(),
      ),
    ).toBe(1 + 6 * ulp);
    expect(
      f.decode(
        sum()
          .sub(f.encode(2 ** -60))
          .round(),
      ),
    ).toBe(1);
  });
});

describe("order", () => {
  test("posits compare as signed words; next and previous step the word", () => {
    const a = arithmetic(scalar("posit8_es1"));
    const signed = (c: number) => (c >= 128 ? c - 256 : c);
    let wrong = 0;
    for (let x = 0; x < 256; x++)
      for (let y = 0; y < 256; y++) {
        const want = Math.sign(signed(x) - signed(y));
        if (a.compare(x, y) !== want || a.totalOrder(x, y) !== want) wrong++;
      }
    expect(wrong).toBe(0);
    expect([a.next(127), a.next(128), a.previous(128), a.next(255)]).toEqual([128, 129, 127, 0]);
    expect(a.eq(128, 128)).toBe(true);
  });

  test.each(["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float7_e5m1", "float4_e2m1fn", "int4", "nf4", "bnb_fp4", "binary8p3se"])(
    "%s: next and previous visit every value in order",
    (name) => {
      const f = scalar(name);
      const a = arithmetic(f);
      const { values } = f.order!;
      let code = f.encode(values[0]);
      for (let i = 0; i + 1 < values.length; i++) {
        let up = a.next(code);
        if (f.decode(up) === f.decode(code)) up = a.next(up); // -0 and +0 are two codes of one value
        if (Object.is(f.decode(up), -0)) up = f.encode(0);
        expect(f.decode(up)).toBe(values[i + 1]);
        expect(f.decode(a.previous(up)) + 0).toBe(values[i]);
        code = up;
      }
      expect(f.decode(a.next(code))).toBe(f.limits.hasInf ? Infinity : f.limits.max);
      if (f.limits.hasInf) expect(f.decode(a.previous(f.encode(Infinity, { infinity: "keep" })))).toBe(f.limits.max);
    },
  );

  test("floats: NaN is unordered, zeros are equal, totalOrder sorts every code", () => {
    const f = scalar("float8_e5m2");
    const a = arithmetic(f);
    const [nan, one, zero, negativeZero] = [f.encode(NaN), f.encode(1), f.encode(0), f.encode(-0)];
    expect(a.compare(nan, one)).toBeNaN();
    expect([a.eq(nan, nan), a.lt(nan, one), a.ge(nan, one), a.eq(zero, negativeZero), a.le(zero, one), a.gt(one, zero)]).toEqual([
      false,
      false,
      false,
      true,
      true,
      true,
    ]);
    const codes = Array.from({ length: 256 }, (_, i) => i).sort(a.totalOrder);
    expect(codes[0]).toBe(255);
    expect(codes[255]).toBe(127);
    expect(codes.indexOf(negativeZero)).toBe(codes.indexOf(zero) - 1);
    for (let i = 0; i + 1 < 256; i++) expect(a.totalOrder(codes[i], codes[i + 1])).toBe(-1);
  });
});

describe("dot products", () => {
  const exactDot = (f: NumberFormat, as: number[], bs: number[]): Rational =>
    as.reduce((sum, c, i) => addR(sum, mulR(exactDouble(f.decode(c)), exactDouble(f.decode(bs[i])))), rational(0n));

  test.each([
    [8, 0],
    [8, 2],
    [16, 1],
    [16, 2],
    [32, 2],
  ])("posit<%i,%i>: the quire, random and cancelling", (n, es) => {
    const f = definePosit({ bits: n, es });
    const a = arithmetic(f);
    const random = generator(n + es);
    const size = 2 ** n;
    for (let trial = 0; trial < 60; trial++) {
      const length = 1 + Math.floor(random() * 40);
      const code = () => {
        const c = Math.floor(random() * size);
        return c === size / 2 ? 1 : c;
      };
      const as = Array.from({ length }, code);
      const bs = Array.from({ length }, code);
      if (trial % 2) {
        // The same products once more with the other sign, and one small term: all but it cancels.
        const [p, q] = [as.slice(), bs.slice()];
        as.push(...p.map((c) => (c === 0 ? 0 : size - c)), 1);
        bs.push(...q, f.encode(1));
      }
      expect(a.dot(as, bs)).toBe(roundPosit(exactDot(f, as, bs), n, es));
    }
    expect(a.dot([size / 2, 0], [0, 0])).toBe(size / 2);
    // sums one after the other, rounded at every step: another result, by the same steps of the oracle
    let differs = 0;
    for (let trial = 0; trial < 20; trial++) {
      const terms = Array.from({ length: 30 }, () => f.encode((random() - 0.5) * 2 ** Math.floor(random() * 12 - 6)));
      const exact = terms.map((c) => decodePosit(c, n, es)!);
      let [got, want] = [0, 0];
      terms.forEach((c, i) => {
        got = a.add(got, c);
        want = roundPosit(addR(decodePosit(want, n, es)!, exact[i]), n, es);
        expect(got).toBe(want);
      });
      if (got !== roundPosit(exact.reduce(addR), n, es)) differs++;
    }
    expect(differs).toBeGreaterThan(0);
  });

  test.each([
    ["float8_e4m3fn", 480],
    ["float8_e5m2", 65536],
    ["float16", 65536],
    ["bfloat16", 2 ** 128],
    ["float8_e4m3b11fnuz", 32],
    ["bipolar8", 257],
    ["nf4", null],
  ] as const)("%s: exact sum, rounded once", (name, beyond) => {
    const f = scalar(name);
    const grid = gridOf(f.table!, beyond);
    const a = arithmetic(f, { overflow: "saturate" });
    const random = generator(11);
    const finite = [...f.order!.codes];
    for (let trial = 0; trial < 60; trial++) {
      const length = 1 + Math.floor(random() * 50);
      // Small values mostly, so that sums do not all saturate.
      const code = () => finite[Math.floor((0.5 + (random() - 0.5) * random()) * finite.length)];
      const as = Array.from({ length }, code);
      const bs = Array.from({ length }, code);
      const r = exactDot(f, as, bs);
      const got = f.decode(a.dot(as, bs));
      if (f.kind === "codebook") {
        expect(got).toBe(f.order!.values[[...f.order!.boundaries].filter((t) => compareR(r, exactDouble(t)) > 0).length]);
        continue;
      }
      const found = nearest(r, grid);
      expect(got + 0).toBe(found === "above" ? f.limits.max : found === "below" ? f.limits.min : f.decode(found));
    }
  });

  test("long sums of extremes stay exact", () => {
    const f = scalar("float32");
    const a = arithmetic(f);
    const big = f.encode(3e38);
    const small = f.encode(2 ** -149);
    const one = f.encode(1);
    const acc = a.accumulator();
    for (let i = 0; i < 200_000; i++) acc.addProduct(big, big).addProduct(small, small);
    for (let i = 0; i < 200_000; i++) acc.subProduct(big, big);
    for (let i = 0; i < 200_000 - 3; i++) acc.subProduct(small, small);
    acc.add(one).sub(one);
    expect(f.decode(acc.round())).toBe(0); // 3 * 2^-298 underflows
    acc.addProduct(small, one);
    expect(f.decode(acc.round())).toBe(2 ** -149);
  });

  test("quire widths of the standard", () => {
    expect([8, 16, 32].map((n) => quireBits(definePosit({ bits: n, es: 2 })))).toEqual([128, 256, 512]);
    expect(quireBits(definePosit({ bits: 8, es: 0 }))).toBe(56);
  });

  test("lengths must agree and codes must be codes", () => {
    const a = arithmetic(scalar("posit8_es0"));
    expect(() => a.dot([1, 2], [1])).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
    expect(() => a.add(256, 0)).toThrow(RangeError);
    expect(() => a.mul(-1, 0)).toThrow(RangeError);
    expect(() => a.dot([1.5], [1])).toThrow(RangeError);
  });
});

test("a format of extreme bias: products beyond the range of doubles are still rounded once", () => {
  const f = defineFloat({ name: "far", exponentBits: 8, mantissaBits: 3, bias: -500, specials: "finite" });
  const a = arithmetic(f);
  const x = f.encode(2 ** 620 * 1.5);
  expect(f.decode(a.mul(x, x))).toBe(f.limits.max);
  expect(f.decode(a.div(x, x))).toBe(0);
  expect(f.decode(a.sqrt(x))).toBe(0);
  const g = defineFloat({ name: "near", exponentBits: 8, mantissaBits: 3, bias: 500, specials: "finite" });
  const tiny = g.encode(2 ** -480 * 1.5);
  expect(g.decode(arithmetic(g).mul(tiny, tiny))).toBe(0);
  expect(g.decode(arithmetic(g).fma(tiny, tiny, g.encode(2 ** -300)))).toBe(2 ** -300);
});

// Takums, logarithmic numbers, HiFloat8, P3109 of every width, Q formats and floats by their fields, each against a
// second reading of its definition.
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { exactExp, exactExp2 } from "../../formats/core/exp.ts";
import { decodeArray, encodeArray, format, isLowbitError, type NumberFormat } from "../../formats/index.ts";
import { defineFixed, defineFloat, defineFormat, defineLns, defineP3109, defineTakum } from "../../formats/define/index.ts";
import { exp, exp2 } from "../oracle/exponential.ts";

const csv = (name: string): string[][] =>
  readFileSync(new URL(`../fixtures/takum/${name}`, import.meta.url), "utf8").trim().split("\n").map((line) => line.split(",")); // prettier-ignore
const scalar = (name: string): NumberFormat => format(name) as NumberFormat;
/** Where an `expect` by code would be most of the time. */
const same = (name: string, of: number, got: number, want: number): void => {
  if (!Object.is(got, want)) throw new Error(`${name} of ${of}: expected ${want}, got ${got}`);
};
const refused = (call: () => unknown) => {
  try {
    call();
  } catch (error) {
    return isLowbitError(error) ? error.code : String(error);
  }
  return "accepted";
};

describe("exponentials are correctly rounded", () => {
  test.each([0, 1 / 16, 5 / 16, 3 / 2048, 1 - 2 ** -27, 1000003 / 2 ** 27])("fraction %f", (fraction) => {
    for (let whole = -254; whole <= 254; whole += 7) {
      expect(exactExp((whole + fraction) / 2)).toBe(exp((whole + fraction) / 2));
      expect(exactExp2(whole + fraction)).toBe(exp2(whole + fraction));
    }
  });
});

/** The logarithm c + m of a positive takum, from its string of bits. */
function takumLogarithm(bits: string): number {
  const s = bits.padEnd(12, "0");
  const up = s[1] === "1";
  const regime = parseInt(s.slice(2, 5), 2);
  const r = up ? regime : 7 - regime;
  const characteristic = parseInt(`0${s.slice(5, 5 + r)}`, 2);
  const c = up ? 2 ** r - 1 + characteristic : -(2 ** (r + 1)) + 1 + characteristic;
  return c + parseInt(`0${s.slice(5 + r)}`, 2) / 2 ** (s.length - 5 - r);
}

function takumValue(code: number, bits: number, linear: boolean): number {
  if (code === 0) return 0;
  if (code === 2 ** (bits - 1)) return NaN;
  const negative = code > 2 ** (bits - 1);
  const l = takumLogarithm((negative ? 2 ** bits - code : code).toString(2).padStart(bits, "0"));
  const c = Math.floor(l);
  const magnitude = linear ? (1 + (l - c)) * 2 ** c : exp(l / 2);
  return negative ? -magnitude : magnitude;
}

describe("takum", () => {
  test.each([5, 6, 8, 9, 11, 12])("%i bits: values, round trips and ties", (bits) => {
    for (const linear of [true, false]) {
      const f = defineTakum({ bits, linear });
      const wider = defineTakum({ bits: bits + 1, linear });
      for (let code = 0; code < 2 ** bits; code++) {
        const value = takumValue(code, bits, linear);
        same(f.name, code, f.decode(code), value);
        same(f.name, value, f.encode(value), code);
        // a word with a 1 appended is the boundary to the word above it, and goes to the even one
        const above = code + 1;
        if (code > 0 && above < 2 ** (bits - 1)) {
          const tie = wider.decode(2 * code + 1);
          const even = code % 2 === 0 ? code : above;
          same(f.name, tie, f.encode(tie), even);
          same(f.name, -tie, f.encode(-tie), 2 ** bits - even);
        }
      }
    }
  });
  test("libtakum 1.0.1 gives the same codes and values", () => {
    const [names, ...draws] = csv("libtakum-1.0.1.csv");
    const formats = names.slice(1).map(scalar);
    expect([formats.length, draws.length]).toEqual([6, 1500]);
    for (const [x, ...codes] of draws) formats.forEach((f, i) => same(f.name, Number(x), f.encode(Number(x)), Number(codes[i])));
    const values = csv("takum_linear8.csv").slice(1);
    expect(values).toHaveLength(256);
    for (const [code, value] of values) expect(scalar("takum_linear8").decode(Number(code))).toEqual(value === "nan" ? NaN : Number(value));
    expect(scalar("takum_linear16").decode(0x7fff)).toBe(2 ** 254 * 1.9375);
  });
  test("wide words come back, and neighbours are in order", () => {
    for (const name of ["takum_linear32", "takum32", "takum_linear19", "takum27"]) {
      const f = scalar(name);
      const top = 2 ** (f.bits - 1) - 1;
      for (let i = 0; i < 300; i++) {
        const code = 1 + Math.floor((((i * 2654435761) % 2 ** 32) / 2 ** 32) * (top - 1));
        const value = f.decode(code);
        expect(f.encode(value)).toBe(code);
        expect(f.encode(-value)).toBe(2 ** f.bits - code);
        expect(f.decode(code + 1)).toBeGreaterThan(value);
      }
      expect([f.encode(1e308), f.encode(5e-324), f.encode(NaN), f.encode(-Infinity)]).toEqual([top, 1, top + 1, top + 1]);
    }
  });
});

describe("logarithmic numbers", () => {
  test.each([
    [3, 0],
    [4, 1],
    [5, 0],
    [8, 3],
    [8, 0],
    [10, 8],
  ])("lns%i_f%i: every value, and rounding of the logarithm", (bits, fraction) => {
    const f = defineLns({ bits, fraction });
    const half = 2 ** (bits - 1);
    for (let code = 0; code < 2 ** bits; code++) {
      const field = code % half;
      const l = field >= half / 2 ? field - half : field;
      const value = field === half / 2 ? 0 : exp2(l / 2 ** fraction);
      expect(f.decode(code)).toBe(code >= half ? -value : value);
      if (value !== 0) expect(f.encode(f.decode(code))).toBe(code);
    }
    for (let i = 0; i < 500; i++) {
      const l = ((i * 0.6180339887) % 1) * (half / 2 - 1) * 2 - (half / 2 - 1);
      if (Math.abs(l - Math.floor(l) - 0.5) < 1e-6) continue;
      const code = f.encode(2 ** (l / 2 ** fraction));
      expect(code).toBe((Math.round(l) + half) % half);
    }
    expect(f.encode(Infinity)).toBe(half / 2 - 1);
  });
  test("widths that leave no format", () => {
    for (const [bits, fraction] of [
      [2, 0],
      [17, 9],
      [8, 7],
      [16, 5],
      [8, 0.5],
    ])
      expect(refused(() => defineLns({ bits, fraction }))).toBe("E_FORMAT");
  });
});

describe("HiFloat8", () => {
  const f = scalar("hif8");
  /** Table 1 of the paper, read off the string of bits. */
  const value = (code: number): number => {
    const s = code.toString(2).padStart(8, "0");
    const sign = s[0] === "1" ? -1 : 1;
    if (code === 0x80) return NaN;
    if (s.slice(1) === "1101111") return sign * Infinity;
    const [, dot] = /^(11|10|01|001|0001|0000)/.exec(s.slice(1))!;
    const width = { "11": 4, "10": 3, "01": 2, "001": 1, "0001": 0, "0000": 0 }[dot]!;
    const rest = s.slice(1 + dot.length);
    const mantissa = parseInt(rest.slice(width), 2);
    if (dot === "0000") return mantissa === 0 ? 0 : sign * 2 ** (mantissa - 23);
    const e = width === 0 ? 0 : parseInt(`1${rest.slice(1, width)}`, 2) * (rest[0] === "1" ? -1 : 1);
    return sign * 2 ** e * (1 + mantissa / 2 ** (7 - dot.length - width));
  };
  test("every code", () => {
    for (let code = 0; code < 256; code++) {
      expect(f.decode(code)).toEqual(value(code));
      expect(f.encode(value(code), { infinity: "keep" })).toBe(code);
    }
    expect(f.limits).toMatchObject({ max: 32768, minPositive: 2 ** -22, minNormal: 2 ** -15, finiteValues: 253 });
  });
  test("rounding by binade, half away from zero; infinity from 40960 on", () => {
    for (let i = 0; i < 4000; i++) {
      const x = 2 ** (((i * 0.6180339887) % 1) * 37 - 22);
      const e = Math.floor(Math.log2(x));
      const digits = Math.abs(e) <= 3 ? 3 : Math.abs(e) <= 7 ? 2 : Math.abs(e) <= 15 ? 1 : 0;
      const step = 2 ** (e - digits);
      expect(f.decode(f.encode(x))).toBe(Math.floor(x / step + 0.5) * step);
    }
    expect([1.0625, 1.1875, 3 * 2 ** -19, 2 ** -23, 2 ** -23 * 0.999].map((x) => f.decode(f.encode(-x)))).toEqual([
      -1.125,
      -1.25,
      -(2 ** -17),
      -(2 ** -22),
      0,
    ]);
    expect([40959, 40960, 1e9].map((x) => f.decode(f.encode(x)))).toEqual([32768, Infinity, Infinity]);
    expect(f.decode(f.encode(1e9, { overflow: "saturate" }))).toBe(32768);
  });
});

describe("P3109 of every width", () => {
  /**
   * The draft's value of a code: sign, exponent with bias 2^(E-1), subnormals; specials at the places of the domain.
   */
  const value = (code: number, bits: number, precision: number, domain: string): number => {
    const signed = domain[0] === "s";
    const half = 2 ** (bits - 1);
    if (code === (signed ? half : 2 * half - 1)) return NaN;
    const magnitude = signed ? code % half : code;
    const sign = signed && code >= half ? -1 : 1;
    if (domain[1] === "e" && magnitude === (signed ? half - 1 : 2 * half - 2)) return sign * Infinity;
    const width = bits - precision + (signed ? 0 : 1);
    const [e, t] = [Math.floor(magnitude / 2 ** (precision - 1)), magnitude % 2 ** (precision - 1)];
    const bias = 2 ** (width - 1);
    return sign * (e === 0 ? t * 2 ** (2 - precision - bias) : (1 + t / 2 ** (precision - 1)) * 2 ** (e - bias));
  };
  test.each([3, 4, 5, 6, 7, 9, 11, 13])("K = %i", (bits) => {
    for (let precision = 1; precision <= bits; precision++)
      for (const domain of ["se", "sf", "ue", "uf"] as const) {
        const width = bits - precision + (domain[0] === "s" ? 0 : 1);
        if (width < 1 || width > 8) {
          expect(refused(() => defineP3109({ bits, precision, domain }))).toBe("E_FORMAT");
          continue;
        }
        const f = scalar(`binary${bits}p${precision}${domain}`);
        for (let code = 0; code < 2 ** bits; code++) {
          const v = value(code, bits, precision, domain);
          same(f.name, code, f.decode(code), v);
        }
      }
  });
});

test("floats by their fields", () => {
  const f = scalar("float_e3m2");
  expect(f).toBe(format("float_e3m2"));
  const own = defineFloat({ name: "own", exponentBits: 3, mantissaBits: 2, specials: "finite" });
  for (let code = 0; code < 64; code++) expect(f.decode(code)).toBe(own.decode(code));
  expect(scalar("float_e5m10_ieee").limits).toEqual(scalar("float16").limits);
  expect(scalar("float_e4m3_fn").limits).toEqual(scalar("float8_e4m3fn").limits);
  expect(scalar("float_e4m3_fnuz").limits).toEqual(scalar("float8_e4m3fnuz").limits);
  expect(scalar("float_e4m3_p3109").limits).toEqual(scalar("binary8p4se").limits);
  for (const name of ["float_e9m2", "float_e3m24", "float_e1m0_ieee", "float_e3m2_inf"])
    expect(refused(() => format(name))).toBe("E_FORMAT_UNKNOWN");
});

test("Q formats, unsigned and wide", () => {
  const q = scalar("q4.12");
  expect([q.name, q.bits, q.limits.max, q.limits.min]).toEqual(["q4_12", 16, 8 - 2 ** -12, -8]);
  const wide = scalar("q1_31");
  expect([wide.limits.max, wide.limits.min, wide.decode(0x80000000), wide.encode(1)]).toEqual([1 - 2 ** -31, -1, -1, 0x7fffffff]);
  const unsigned = scalar("uq8_16");
  expect([unsigned.bits, unsigned.limits.max, unsigned.encode(-3), unsigned.encode(1.5)]).toEqual([24, 256 - 2 ** -16, 0, 98304]);
  for (const f of [wide, unsigned, scalar("fixed20_f4"), scalar("ufixed9_f3")]) {
    const x = Float32Array.from({ length: 64 }, (_, i) => (i - 20.3) / 7);
    const codes = encodeArray(f, x);
    const back = decodeArray(f, codes);
    x.forEach((v, i) => expect(back[i]).toBe(Math.fround(f.decode(f.encode(v)))));
    expect(defineFormat(f.definition)).toMatchObject({ name: f.name, bits: f.bits });
    // ties go to even multiples
    const unit = f.limits.minPositive;
    expect([0.5, 1.5, 2.5].map((k) => f.decode(f.encode(k * unit)) / unit)).toEqual([0, 2, 2]);
  }
  expect(refused(() => defineFixed({ bits: 8, fraction: 4, signed: false, narrow: true }))).toBe("E_FORMAT");
});

// Every rounding boundary and one ulp on either side, for all formats of at most 10 bits whose boundaries are
// arithmetic means, against nearest values by exact rationals; all policies at the ends; stochastic rounding. Posits
// have a suite of their own.
import { describe, expect, test } from "vitest";
import { allFormats, defineFloat, format, type NumberFormat } from "../../formats/index.ts";
import { gridOf, nearest } from "../oracle/nearest.ts";
import { exactDouble } from "../oracle/rational.ts";

const scalars = allFormats.filter((f): f is NumberFormat => f.kind !== "block" && f.kind !== "opaque");
const meansAndEven = scalars.filter(
  (f) => f.bits <= 10 && ["int", "float", "bipolar", "fixed"].includes(f.kind) && f.defaults.rounding === "halfEven",
);
const view = new DataView(new ArrayBuffer(8));
const ulp = (x: number, step: bigint): number => {
  if (x === 0) return Number(step) * 5e-324;
  view.setFloat64(0, x);
  view.setBigInt64(0, view.getBigInt64(0) + (x > 0 ? step : -step));
  return view.getFloat64(0);
};

const more = [
  defineFloat({ name: "float9_e4m4", exponentBits: 4, mantissaBits: 4, specials: "ieee" }),
  defineFloat({ name: "float10_e5m4", exponentBits: 5, mantissaBits: 4, specials: "fn" }),
  format("int9") as NumberFormat,
  format("bipolar10") as NumberFormat,
];

describe("every boundary, one ulp below and above", () => {
  test.each([...meansAndEven, ...more].map((f) => [f.name, f] as const))("%s", (_, f) => {
    // The narrow range of ternary: -2 is no value.
    const table = Array.from({ length: 2 ** f.bits }, (_, c) => f.decode(c));
    const grid = gridOf(table, null, f.name === "ternary" ? [2] : []);
    const values = grid.codes.map((c) => f.decode(c));
    const options = { overflow: "saturate" } as const;
    for (let i = 0; i + 1 < values.length; i++) {
      const mean = values[i] / 2 + values[i + 1] / 2;
      for (const x of [ulp(mean, -1n), mean, ulp(mean, 1n), ulp(values[i], 1n), ulp(values[i + 1], -1n)]) {
        const want = nearest(exactDouble(x), grid);
        const got = f.encode(x, options);
        // Zero has two codes where there is a -0; the sign is that of x.
        if (f.decode(got) === 0) expect(f.decode(want as number)).toBe(0);
        else if (got !== want) throw new Error(`${f.name}.encode(${x}): expected ${want}, got ${got}`);
      }
    }
  });

  test.each(scalars.filter((f) => f.kind === "codebook").map((f) => [f.name, f] as const))("%s: its thresholds", (_, f) => {
    const { values, codes, boundaries } = f.order!;
    boundaries.forEach((b, i) => {
      expect(f.decode(f.encode(ulp(b, -1n))) + 0).toBe(values[i]);
      expect(f.decode(f.encode(ulp(b, 1n))) + 0).toBe(values[i + 1]);
      expect([codes[i], codes[i + 1]]).toContain(f.encode(b) === 8 && values[i + 1] === 0 ? codes[i + 1] : f.encode(b));
    });
  });

  test("e8m0: ties go up, over the whole range", () => {
    const f = format("e8m0") as NumberFormat;
    for (let c = 0; c < 254; c++) {
      const tie = 1.5 * 2 ** (c - 127);
      expect([f.encode(ulp(tie, -1n)), f.encode(tie), f.encode(ulp(tie, 1n))]).toEqual([c, c + 1, c + 1]);
    }
    expect([f.encode(ulp(1.5 * 2 ** 127, -1n)), f.encode(1.5 * 2 ** 127)]).toEqual([254, 255]);
  });
});

describe("policies at the ends", () => {
  const e4m3 = format("e4m3fn") as NumberFormat;
  test("overflow", () => {
    expect(e4m3.encode(-500, { overflow: "saturate" })).toBe(0xfe);
    expect(e4m3.encode(-500, { overflow: "nan" })).toBe(0x7f);
    expect(() => e4m3.encode(500, { overflow: "inf" })).toThrow(expect.objectContaining({ code: "E_UNSUPPORTED" }));
    expect(() => e4m3.encode(500, { overflow: "error" })).toThrow(expect.objectContaining({ code: "E_VALUE" }));
    expect(() => e4m3.encode(500, { overflow: "wrap" })).toThrow(expect.objectContaining({ code: "E_UNSUPPORTED" }));
    expect(e4m3.encode(449, { overflow: "error" })).toBe(0x7e);
    expect(e4m3.encode(500, { rounding: "trunc" })).toBe(0x7e);
    expect(e4m3.encode(449, { rounding: "ceil" })).toBe(0x7f);
  });
  test("NaN in every policy", () => {
    const e2m1 = format("e2m1") as NumberFormat;
    expect((["zero", "negativeZero", "max"] as const).map((nan) => e2m1.encode(NaN, { nan }))).toEqual([0, 8, 7]);
    expect(() => e2m1.encode(NaN, { nan: "nan" })).toThrow(expect.objectContaining({ code: "E_UNSUPPORTED" }));
    expect(() => e2m1.encode(NaN)).toThrow(expect.objectContaining({ code: "E_VALUE" }));
    expect(e4m3.encode(NaN)).toBe(0x7f);
    expect(() => e4m3.encode(NaN, { nan: "error" })).toThrow(expect.objectContaining({ code: "E_VALUE" }));
    expect(() => (format("e8m0") as NumberFormat).encode(NaN, { nan: "zero" })).toThrow(/no zero/);
  });
});

describe("stochastic rounding", () => {
  test("needs a generator, is unbiased inside the range and exact on values", () => {
    let seed = 5;
    const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
    for (const [name, x] of [
      ["float8_e4m3fn", 0.3],
      ["int8", -3.25],
      ["posit8_es1", 1.03],
      ["posit32_es2", 1 / 3],
      ["float32", 0.1],
      ["nf4", 0.4],
    ] as const) {
      const f = format(name) as NumberFormat;
      expect(() => f.encode(x, { rounding: "stochastic" })).toThrow(/random/);
      const low = f.decode(f.encode(x, { rounding: "floor" }));
      const high = f.decode(f.encode(x, { rounding: "ceil" }));
      const n = 20000;
      let ups = 0;
      for (let i = 0; i < n; i++) {
        const v = f.decode(f.encode(x, { rounding: "stochastic", random }));
        expect(v === low || v === high).toBe(true);
        if (v === high) ups++;
      }
      const p = (x - low) / (high - low);
      // Five standard deviations of a binomial count.
      expect(Math.abs(ups / n - p)).toBeLessThan(5 * Math.sqrt((p * (1 - p)) / n) + 1e-12);
      expect(f.decode(f.encode(low, { rounding: "stochastic", random }))).toBe(low);
    }
  });
});

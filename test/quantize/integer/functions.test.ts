// Integer-only functions against BigInt and float64 oracles; Shiftmax and ShiftGELU for every int8 code.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  addCodes,
  dyadic,
  dyadicVector,
  gaussian,
  integerLayerNorm,
  integerNorm,
  integerSqrt,
  requantize,
  seededRandom,
  shiftGelu,
  shiftmax,
} from "../../../src/quantize/index.ts";

const bytes = Int32Array.from({ length: 256 }, (_, i) => i - 128);
const floorShift = (v: bigint, t: number): bigint => v >> BigInt(t);

describe("dyadic numbers", () => {
  const factors = fc.double({ min: -30, max: 13, noNaN: true }).map((e) => 2 ** e);

  test("are within 2^-31 of the factor, and the product is the integer one of 64 bits", () => {
    fc.assert(
      fc.property(factors, fc.integer(), (factor, q) => {
        const { multiplier, shift } = dyadic(factor);
        expect(multiplier).toBeLessThan(2 ** 31);
        expect(Math.abs(multiplier / 2 ** shift / factor - 1)).toBeLessThanOrEqual(2 ** -31);
        const exact = floorShift(BigInt(q) * BigInt(multiplier) + (1n << BigInt(shift - 1)), shift);
        const clipped = exact < -100n ? -100 : exact > 90n ? 90 : Number(exact);
        expect(requantize([q], { multiplier, shift }, { low: -100, high: 90 })).toEqual(Int32Array.of(clipped));
      }),
      { seed: 14, numRuns: 300 },
    );
  });

  test("sums round once", () => {
    fc.assert(
      fc.property(factors, factors, fc.integer(), fc.integer(), (f, g, a, b) => {
        const { multipliers, shift } = dyadicVector([f, g]);
        const exact = floorShift(
          BigInt(a) * BigInt(multipliers[0]) + BigInt(b) * BigInt(multipliers[1]) + (1n << BigInt(shift - 1)),
          shift,
        );
        const clipped = exact < -30000n ? -30000 : exact > 30000n ? 30000 : Number(exact);
        expect(addCodes([a], [b], { multipliers, shift }, { low: -30000, high: 30000 })[0]).toBe(clipped);
      }),
      { seed: 15, numRuns: 300 },
    );
  });

  test("of columns share a shift", () => {
    const vector = dyadicVector([0.5, 0.25, 0]);
    expect(vector).toEqual({ multipliers: Int32Array.of(2 ** 30, 2 ** 29, 0), shift: 31 });
    expect([...requantize([7, -7, 9, 1, 1, 1], vector)]).toEqual([4, -2, 0, 1, 0, 0]);
  });

  test("refuse what they cannot hold", () => {
    expect(() => dyadic(-1)).toThrow(/from 0 to 16384/);
    expect(() => dyadicVector([1, NaN])).toThrow(/got NaN at 1/);
    expect(() => requantize([1, 2, 3], dyadicVector([1, 1]))).toThrow(/rows of 2 codes/);
    expect(() => addCodes([1], [], dyadicVector([1, 1]))).toThrow(/as many codes/);
  });
});

test("integer square roots are floors", () => {
  for (let v = 0; v < 70000; v++) if (integerSqrt(v) !== Math.floor(Math.sqrt(v))) throw new Error(String(v));
  fc.assert(
    fc.property(fc.nat(2 ** 26), (r) => {
      expect([integerSqrt(r * r), integerSqrt(r * r + 2 * r)]).toEqual([r, r]);
    }),
    { seed: 1 },
  );
  expect(() => integerSqrt(-1)).toThrow(RangeError);
});

describe("Shiftmax", () => {
  const exact = (row: number[], scale: number): number[] => {
    const top = Math.max(...row);
    const e = row.map((v) => Math.exp((v - top) * scale));
    const sum = e.reduce((a, b) => a + b);
    return e.map((v) => v / sum);
  };

  // two codes: the result of every difference that int8 codes can have
  test.each([
    [1 / 4, 0.0525],
    [1 / 8, 0.0366],
    [1 / 16, 0.0232],
    [1 / 32, 0.0229],
    [5 / 127, 0.027],
  ])("of every pair of int8 codes, scale %d", (scale, bound) => {
    let worst = 0;
    for (const bits of [8, 16]) {
      for (let d = 0; d < 256; d++) {
        const codes = shiftmax([0, -d], { columns: 2, scale, bits });
        const want = exact([0, -d], scale);
        codes.forEach((code, i) => (worst = Math.max(worst, Math.abs(code / 2 ** (bits - 1) - want[i]))));
        expect(codes[0] + codes[1]).toBeLessThanOrEqual(2 ** (bits - 1));
      }
      expect(worst).toBeLessThan(bound);
    }
  });

  test("rows of 64: as far off as published codes are", () => {
    const random = gaussian(seededRandom(7));
    let worst = 0;
    let sums = [0, 0];
    const rows = 200;
    for (let r = 0; r < rows; r++) {
      const row = Array.from({ length: 64 }, () => Math.max(-128, Math.min(127, Math.round(32 * random()))));
      const want = exact(row, 1 / 16);
      const [p8, p16] = [8, 16].map((bits) => shiftmax(row, { columns: 64, scale: 1 / 16, bits }));
      p8.forEach((code, i) => (worst = Math.max(worst, Math.abs(code / 128 - want[i]))));
      sums = [sums[0] + p8.reduce((a, b) => a + b) / 128, sums[1] + p16.reduce((a, b) => a + b) / 32768];
    }
    expect(worst).toBeLessThan(0.0305);
    // truncation takes a fifth of a long row at 8 bits
    expect(sums[0] / rows).toBeGreaterThan(0.7);
    expect(sums[0] / rows).toBeLessThan(0.85);
    expect(sums[1] / rows).toBeGreaterThan(0.997);
    expect(sums[1] / rows).toBeLessThanOrEqual(1);
  });

  test("refuses rows and scales that do not fit", () => {
    expect(() => shiftmax([1, 2, 3], { columns: 2, scale: 0.1 })).toThrow(/rows of 2 codes/);
    expect(() => shiftmax([1, 2], { columns: 2, scale: 1e-12 })).toThrow(/Take coarser codes/);
    expect(() => shiftmax([1, 2], { columns: 2, scale: 2 })).toThrow(/at most 1/);
  });
});

/** Phi by the integral of the density, Simpson's rule. */
function gelu(x: number): number {
  const n = 400;
  const f = (t: number): number => Math.exp((-t * t) / 2) / Math.sqrt(2 * Math.PI);
  let sum = f(0) + f(x);
  for (let i = 1; i < n; i++) sum += (i % 2 === 0 ? 2 : 4) * f((x * i) / n);
  return x * (0.5 + (sum * x) / n / 3);
}

describe("ShiftGELU", () => {
  test.each([4, 5, 6])("of every int8 code, range %d", (range) => {
    const scale = range / 127;
    const out = shiftGelu(bytes, { scale });
    let [worst, squares] = [0, 0];
    bytes.forEach((code, i) => {
      const error = Math.abs((out[i] * scale) / 128 - gelu(code * scale));
      worst = Math.max(worst, error);
      squares += error ** 2;
    });
    // x sigmoid(1.702 x) itself is 0.0203 off
    expect(worst).toBeLessThan(0.051);
    expect(Math.sqrt(squares / 256)).toBeLessThan(0.026);
  });

  test("a row without positive codes is the sigmoid all the same", () => {
    const scale = 4 / 127;
    const alone = shiftGelu([-30, -60], { scale });
    alone.forEach((code, i) => expect(Math.abs((code * scale) / 128 - gelu([-30, -60][i] * scale))).toBeLessThan(0.05));
    expect(() => shiftGelu([1], { scale: 1e-9 })).toThrow(/coarser codes/);
  });
});

describe("integer normalisation", () => {
  test.each(["layer", "rms"] as const)("%s: within a step and 2^-14 of the values", (kind) => {
    const random = gaussian(seededRandom(3));
    const n = 96;
    const scale = 4 / 32767;
    const outputScale = 8 / 32767;
    const x = Int32Array.from({ length: 5 * n }, (_, i) => Math.round((random() + 0.3 + (i < n ? 0 : 0.1)) / scale / (i < n ? 400 : 3)));
    const gain = Array.from({ length: n }, () => 1 + random() / 2);
    const bias = Array.from({ length: n }, () => random());
    const norm = integerNorm({ kind, gain, bias, epsilon: 1e-5, scale, outputScale });
    const codes = integerLayerNorm(x, norm);
    let worst = 0;
    for (let r = 0; r < 5; r++) {
      const row = [...x.subarray(r * n, (r + 1) * n)].map((code) => code * scale);
      const mean = kind === "rms" ? 0 : row.reduce((a, b) => a + b) / n;
      const root = Math.sqrt(row.reduce((a, b) => a + (b - mean) ** 2, 0) / n + 1e-5);
      row.forEach((v, j) => {
        const want = ((v - mean) / root) * gain[j] + bias[j];
        // the mean is rounded to a code: the row of small codes shows it
        const step = (0.5 * scale * Math.abs(gain[j])) / root + outputScale / 2 + 2 ** -14 * Math.abs(want - bias[j]);
        worst = Math.max(worst, Math.abs(codes[r * n + j] * outputScale - want) / step);
      });
    }
    expect(worst).toBeLessThan(1);
  });

  test("constant rows give the bias, codes are clipped", () => {
    const norm = integerNorm({ gain: [1, -2], bias: [0.5, -1], epsilon: 0, scale: 1, outputScale: 0.25 });
    expect([...integerLayerNorm([7, 7, 3, -3], norm, { low: -5, high: 5 })]).toEqual([2, -4, 5, 4]);
    expect(() => integerLayerNorm([1, 2, 3], norm)).toThrow(/rows of 2/);
    expect(() => integerNorm({ gain: [], epsilon: 0, scale: 1, outputScale: 1 })).toThrow(RangeError);
  });
});

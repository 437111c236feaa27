// Shiftmax and ShiftGELU against the authors' integer steps (I-ViT, arXiv 2207.01405, algorithms 1 and 2) in BigInt, code
// by code; and the last codes and scales that integer functions take.
import { describe, expect, test } from "vitest";
import {
  absmeanTernary,
  addCodes,
  dyadic,
  dyadicVector,
  hammingScores,
  integerLayerNorm,
  integerNorm,
  packSigns,
  planMixture,
  quantizeTokens,
  requantize,
  shiftGelu,
  shiftmax,
  shiftProduct,
  splitOutliers,
  ternaryProduct,
} from "../../../src/quantize/index.ts";
import { unpack, tensor } from "../../../src/index.ts";
import { random } from "../../helpers/random.ts";

const rng = random(12);
const floorDiv = (a: bigint, b: bigint): bigint => (a % b !== 0n && a < 0n !== b < 0n ? a / b - 1n : a / b);

/** ShiftExp: x + (x >> 1) - (x >> 4), at least -bits units; floor((unit - r / 2) 2^(bits - q)) for -x = q unit + r. */
function exponential(x: bigint, unit: bigint, bits: bigint): bigint {
  let p = x + (x >> 1n) - (x >> 4n);
  if (p < -bits * unit) p = -bits * unit;
  const q = floorDiv(p, -unit);
  const r = p + q * unit;
  // twice, so that nothing is halved before the shift
  return ((2n * unit + r) << (bits - q)) >> 1n;
}

const codesOf = (n: number, most: number) => Array.from({ length: n }, () => rng.integer(2 * most + 1) - most);

describe("against integers", () => {
  test.each([
    [4, 8, 1 / 16, 127],
    [7, 16, 1 / 32, 127],
    [1, 8, 1, 3],
    [5, 2, 0.3, 40],
    [3, 24, 2 ** -9, 32767],
  ])("Shiftmax: rows of %d, %d bits, scale %d, codes to %d", (columns, bits, scale, most) => {
    const rows = 30;
    const x = codesOf(rows * columns, most);
    const got = shiftmax(x, { columns, scale, bits });
    const unit = BigInt(-Math.floor(-1 / scale));
    for (let r = 0; r < rows; r++) {
      const row = x.slice(r * columns, (r + 1) * columns).map(BigInt);
      const top = row.reduce((a, b) => (a > b ? a : b));
      const exps = row.map((v) => exponential(v - top, unit, 15n));
      const sum = exps.reduce((a, b) => a + b);
      expect([...got.subarray(r * columns, (r + 1) * columns)]).toEqual(exps.map((e) => Number((e << BigInt(bits - 1)) / sum)));
    }
    if (bits === 8) expect(shiftmax(x, { columns, scale })).toEqual(got);
  });

  test.each([
    [4, 8, 1 / 16, 127],
    [7, 16, 1 / 64, 127],
    [1, 8, 0.5, 3],
    [6, 2, 0.3, 40],
  ])("ShiftGELU: rows of %d, %d bits, scale %d, codes to %d", (columns, bits, scale, most) => {
    const rows = 30;
    const x = codesOf(rows * columns, most);
    // a row of negative codes only: both exponentials are taken of codes that are not positive
    for (let i = 0; i < columns; i++) x[i] = -1 - Math.abs(x[i]);
    const got = shiftGelu(x, { columns, scale, bits });
    const unit = BigInt(-Math.floor(-1 / (scale * 1.702)));
    for (let r = 0; r < rows; r++) {
      const row = x.slice(r * columns, (r + 1) * columns).map(BigInt);
      const top = row.reduce((a, b) => (a > b ? a : b), 0n);
      const rest = exponential(-top, unit, 23n);
      const want = row.map((v) => {
        const e = exponential(v - top, unit, 23n);
        return Number(v * ((e << BigInt(bits - 1)) / (e + rest)));
      });
      expect([...got.subarray(r * columns, (r + 1) * columns)].map((v) => v + 0)).toEqual(want.map((v) => v + 0));
    }
    // without columns all codes are one row
    const one = x.slice(0, columns);
    expect(shiftGelu(one, { scale, bits })).toEqual(shiftGelu(one, { columns, scale, bits }));
    if (bits === 8) expect(shiftGelu(x, { columns, scale })).toEqual(got);
  });

  test.each(["layer", "rms"] as const)("normalisation of kind %s, with gains of both signs", (kind) => {
    const n = 12;
    const gain = Array.from({ length: n }, (_, j) => (j % 3 === 0 ? -1 : 1) * (0.1 + 2 * rng.next()));
    const bias = Array.from({ length: n }, () => rng.normal());
    const [scale, outputScale, epsilon] = [0.02, 2 ** -6, 1e-3];
    const norm = integerNorm({ kind, gain, bias, epsilon, scale, outputScale });
    const x = codesOf(8 * n, 900);
    const got = integerLayerNorm(x, norm, { low: -120, high: 121 });
    const { shift } = norm.gain;
    const root = (v: bigint) => BigInt(Math.floor(Math.sqrt(Number(v))));
    for (let r = 0; r < 8; r++) {
      const row = x.slice(r * n, (r + 1) * n).map(BigInt);
      const sum = kind === "rms" ? 0n : row.reduce((a, b) => a + b);
      const mean = floorDiv(2n * sum + BigInt(n), BigInt(2 * n));
      const squares = BigInt(Math.round((n * epsilon) / scale ** 2)) + row.reduce((s, v) => s + (v - mean) ** 2n, 0n);
      const factor = (2n ** 31n - 1n) / root(squares);
      row.forEach((v, j) => {
        const z = (((v - mean) * factor) >> 8n) * (gain[j] < 0 ? -1n : 1n);
        const add = BigInt(Math.round((bias[j] / outputScale) * 2 ** (shift - 16)));
        const code = Number((z * BigInt(norm.gain.multipliers[j]) + add * 2n ** 16n + (1n << BigInt(shift - 1))) >> BigInt(shift));
        expect(got[r * n + j]).toBe(Math.min(121, Math.max(-120, code)));
      });
    }
  });
});

describe("the last that is taken, and the first that is not", () => {
  type Row = [what: string, make: (v: number) => unknown, taken: number[], refused: number[]];
  const rows: Row[] = [
    ["shiftmax bits", (bits) => shiftmax([0, 1], { columns: 2, scale: 0.5, bits }), [2, 31], [1, 32, 2.5]],
    ["shiftmax columns", (columns) => shiftmax([0, 1], { columns, scale: 0.5 }), [1, 2], [0, -1, 3, 0.5]],
    ["shiftmax scale", (scale) => shiftmax([0, 1], { columns: 2, scale }), [1, 2 ** -30], [0, -1, 1.01, NaN, 2 ** -30.1]],
    ["shiftGelu bits", (bits) => shiftGelu([0, 1], { scale: 0.5, bits }), [2, 29], [1, 32, 2.5]],
    ["shiftGelu columns", (columns) => shiftGelu([0, 1], { columns, scale: 0.5 }), [1, 2], [0, 3, 0.5]],
    ["shiftGelu scale", (scale) => shiftGelu([0, 1], { scale }), [1 / 1.702, 2 ** -22 / 1.701], [0, 0.6, 2 ** -22.1 / 1.702]],
    ["dyadic", dyadic, [0, 16383.9], [-1e-9, 16384, NaN]],
    ["quantizeTokens bits", (bits) => quantizeTokens(Float32Array.of(1), 1, bits), [2, 8], [1, 9, 2.5]],
    ["splitOutliers limit", (limit) => splitOutliers(Int8Array.of(1), 1, limit), [1, 127], [0, 128, 1.5]],
    ["integerNorm scale", (scale) => integerNorm({ gain: [1], epsilon: 1, scale, outputScale: 1 }), [1e-3], [0, -1, NaN]],
    ["integerNorm results", (outputScale) => integerNorm({ gain: [1], epsilon: 1, scale: 1, outputScale }), [1], [0, -1, NaN]],
    ["integerNorm bias", (n) => integerNorm({ gain: [1], bias: new Float64Array(n), epsilon: 1, scale: 1, outputScale: 1 }), [1], [0, 2]],
    ["addCodes", (n) => addCodes([1], new Int32Array(n), dyadicVector([1, 1])), [1], [0, 2]],
    ["requantize", (n) => requantize([1, 2], { multipliers: new Int32Array(n), shift: 31 }), [1, 2], [0, 3]],
    ["mixture latency", (ms) => planMixture(new Map([["a", [{ name: "b", ms, loss: 0 }]]])), [0], [-1, NaN]],
    ["mixture loss", (loss) => planMixture(new Map([["a", [{ name: "b", ms: 1, loss }]]])), [0], [-1, NaN]],
  ];
  test.each(rows)("%s", (_, make, taken, refused) => {
    for (const v of taken) expect(() => make(v), String(v)).not.toThrow();
    for (const v of refused) expect(() => make(v), String(v)).toThrow(RangeError);
  });

  const shapes: [string, (v: number) => unknown, number[], number[]][] = [
    ["packSigns", (d) => packSigns(new Float32Array(6), d), [1, 2, 3, 6], [0, 4, 1.5, -1]],
    ["hammingScores", (d) => hammingScores(new Uint32Array(2), new Uint32Array(4), d), [1, 32, 64], [0, 65, NaN]],
    ["shiftProduct", (m) => shiftProduct(new Int8Array(6), m, { n: 1, k: 3, signs: new Int8Array(3), exponents: new Uint8Array(3) }), [2], [1, 3]], // prettier-ignore
    ["ternaryProduct", (n) => ternaryProduct(new Int8Array(6), 2, new Int8Array(6), n, 3), [2], [1, 3]],
    ["quantizeTokens", (k) => quantizeTokens(new Float32Array(6), k), [1, 6], [0, 4, 1.5]],
  ];
  test.each(shapes)("rows of %s", (_, make, taken, refused) => {
    for (const v of taken) expect(() => make(v), String(v)).not.toThrow();
    for (const v of refused) expect(() => make(v), String(v)).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
  });

  test("scales are checked before what follows from them", () => {
    for (const scale of [0, -1, 1.01, NaN]) {
      expect(() => shiftmax([1], { columns: 1, scale })).toThrow(`scale: expected a number above 0 and at most 1, got ${scale}`);
      expect(() => shiftGelu([1], { scale: scale / 1.702 })).toThrow(/scale: expected a number above 0 and at most 1/);
    }
  });

  test("nothing is a whole number of rows", () => {
    expect(shiftGelu([], { scale: 0.5 })).toHaveLength(0);
    expect(shiftmax([], { columns: 2, scale: 0.5 })).toHaveLength(0);
    expect(dyadicVector([])).toEqual({ multipliers: new Int32Array(0), shift: 17 });
    expect(dyadic(0)).toEqual({ multiplier: 0, shift: 17 });
    expect(dyadic(2 ** -40).shift).toBe(62);
    // nothing is clipped short of int32, nothing wraps beyond it
    expect([...requantize([2 ** 31 - 1, -(2 ** 31), 2 ** 30], dyadic(4))]).toEqual([2 ** 31 - 1, -(2 ** 31), 2 ** 31 - 1]);
    expect([...addCodes([2 ** 30, -(2 ** 30)], [2 ** 30, -(2 ** 31)], dyadicVector([1, 1]))]).toEqual([2 ** 31 - 1, -(2 ** 31)]);
  });

  test("ties of token codes go to the even one; a row's own largest is at the end", () => {
    // scale 1: amax 7 of 4 bits
    const x = Float32Array.of(7, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.4999, -6.51);
    expect([...quantizeTokens(x, 9, 4).codes].map((v) => v + 0)).toEqual([7, 0, 2, 2, 0, -2, -2, 0, -7]);
    const many = absmeanTernary(tensor(Float32Array.of(3, -1, 0, 0, -2, 0), [2, 3]));
    expect([[...unpack(many)], new Float32Array(many.scales!.slice().buffer)[0]]).toEqual([[1, 3, 0, 0, 3, 0], 1]);
    const none = absmeanTernary(tensor(new Float32Array(4), [2, 2]));
    expect([[...unpack(none)], none.recipe.algorithm]).toEqual([[0, 0, 0, 0], "absmean"]);
  });
});

test("mixtures: the exchange that saves most for its loss first; equal gains by the faster; free ones always", () => {
  const row = (...list: [number, number][]) => list.map(([ms, loss]) => ({ name: `${ms}`, ms, loss }));
  const names = (layers: Record<string, ReturnType<typeof row>>, bounds: object = {}) => {
    const { chosen, ms, loss } = planMixture(new Map(Object.entries(layers)), bounds);
    return [...[...chosen.values()].map(({ name }) => name), ms, loss];
  };
  const two = { a: row([10, 0], [4, 0.5]), b: row([10, 0], [8, 0.125]) };
  // a saves 12 for each unit of loss, b 16; both do not fit
  expect(names(two, { maxLoss: 0.5 })).toEqual(["10", "8", 18, 0.125]);
  expect(names(two, { maxLoss: 0.625 })).toEqual(["4", "8", 12, 0.625]);
  expect(names(two, { maxLoss: 0.5, layerLoss: 0.2 })).toEqual(["10", "8", 18, 0.125]);
  // of equal loss the fastest is where it starts; what takes as long and loses more is never taken
  expect(names({ a: row([9, 0], [7, 0], [7, 0.25]) })).toEqual(["7", 7, 0]);
  // two steps of one layer: the far one is taken where it saves more a unit
  expect(names({ a: row([10, 0], [9, 0.25], [2, 0.5]) }, { maxLoss: 0.5 })).toEqual(["2", 2, 0.5]);
  expect(() => planMixture(new Map([["a", row([1, 0.5])], ["b", row([1, 0.75])]]), { maxLoss: 1 })).toThrow(/at most 1, got 1.25/); // prettier-ignore
});

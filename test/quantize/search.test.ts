// Scale searches against the best of all candidates that they name: fractions of the rule's scale in fine formats, every
// code in reach of coarse ones, shrunk ranges with zero points; by squares or another norm, columns weighted or not. And
// the scales and constants that need no search: QuEST's, from the root mean square.
import { describe, expect, test } from "vitest";
import { defineBlock, float16, float32, float8_e4m3fn, float8_e8m0fnu, format, int4 } from "../../formats/index.ts";
import { quantize, tensor, unpack, dequantize } from "../../src/index.ts";
import type { BlockFormat, NumberFormat, PackedTensor } from "../../src/index.ts";
import { gaussianClip, quest, rtn, type ScaleSearch } from "../../src/quantize/index.ts";
import { normalCdf, normalDensity } from "../../src/quantize/normal.ts";
import { halfEven } from "../oracle/affine.ts";
import { random } from "../helpers/random.ts";

const [rows, k] = [6, 20];
const rng = random(21);
const x = Float32Array.from({ length: rows * k }, (_, i) => Math.fround((i % 7 === 0 ? 3 : 0.4) * rng.laplace()));
x.fill(0, 2 * k, 2 * k + 8); // blocks of zeros
const t = tensor(x, [rows, k]);
const weights = Float64Array.from({ length: k }, () => 0.05 + 4 * rng.next() ** 3);

interface Cell {
  readonly values: number[];
  readonly columns: number[];
}

/** The values of every cell of [down, across], row-major over cells. */
function cellsOf(down: number, across: number): Cell[] {
  const out: Cell[] = [];
  for (let r = 0; r < rows; r += down)
    for (let j = 0; j < k; j += across) {
      const cell: Cell = { values: [], columns: [] };
      for (let a = r; a < Math.min(rows, r + down); a++)
        for (let b = j; b < Math.min(k, j + across); b++) {
          cell.values.push(x[a * k + b]);
          cell.columns.push(b);
        }
      out.push(cell);
    }
  return out;
}

/** All finite values of a format's codes; narrow: without the lowest one. */
function valuesOf(element: NumberFormat, narrow: boolean): number[] {
  const all = Array.from({ length: 2 ** element.bits }, (_, code) => element.decode(code)).filter(Number.isFinite);
  return narrow && element.kind === "int" ? all.filter((v) => v >= -element.limits.max) : all;
}

const errorOf = (cell: Cell, allowed: number[], scale: number, zero: number, norm: number, weighted: boolean): number =>
  cell.values.reduce((sum, v, i) => {
    const d = Math.min(...allowed.map((a) => Math.abs(v - (a - zero) * scale)));
    return sum + d ** norm * (weighted ? weights[cell.columns[i]] : 1);
  }, 0);

const outerOf = ({ superScales }: PackedTensor): number => (superScales === null ? 1 : new Float32Array(superScales.slice().buffer)[0]);

/** Scales of a packed tensor as values, one of each cell. */
function scalesOf(packed: PackedTensor, level: NumberFormat, cells: number, per: number): number[] {
  const rowBytes = packed.scales!.length / (cells / per);
  const codes = unpack({ ...packed, format: level, codes: packed.scales!, rows: cells / per, k: per, rowBytes });
  return Array.from(codes, (code) => Math.fround(level.decode(code) * outerOf(packed)));
}

const block = (element: NumberFormat, scale: NumberFormat, span: number | [number, number], name: string): BlockFormat =>
  defineBlock({ name, element, scales: [{ format: scale, span: span as number }], tail: "short" });
const byName = (name: string) => format(name) as BlockFormat;

const formats: [name: string, f: BlockFormat, down: number, across: number][] = [
  ["float32 scales", byName("int4_b8"), 1, 8],
  ["scales of single values", byName("int4_b1"), 1, 1],
  ["float16 scales of tiles", block(int4, float16, [4, 8], "tiles"), 4, 8],
  ["one scale of a tensor", byName("int3_tensor"), rows, k],
  ["powers of two", block(int4, float8_e8m0fnu, 5, "powers"), 1, 5],
  ["E4M3", block(int4, float8_e4m3fn, 10, "e4m3"), 1, 10],
  ["two levels", byName("nvfp4"), 1, 16],
  ["floats of 4 bits", byName("mxfp4"), 1, 32],
];
const searches: [ScaleSearch, boolean][] = [
  [{ method: "mse" }, false],
  [{ method: "mse", norm: 2.4, grid: 13, maxShrink: 0.5 }, false],
  [{ method: "mse", norm: 1, grid: 7, maxGrow: 1 }, true],
  [{ method: "mse", maxGrow: 4, maxShrink: 0.9, grid: 10 }, true],
];

describe.each(formats)("%s", (_, f, down, across) => {
  test.each(searches)("%j, columns weighted: %s", (search, weighted) => {
    if (k % across !== 0 && f.tail !== "short") return onWholeBlocks(f, across, search);
    const { norm = 2, grid = 80, maxShrink = 0.8, maxGrow = 2 } = search;
    const level = f.scales[0].format;
    const cells = cellsOf(down, across);
    const per = Math.ceil(k / across);
    const before = scalesOf(quantize(t, f, rtn()), level, cells.length, per);
    const packed = quantize(t, f, rtn({ search, ...(weighted ? { columnWeights: weights } : {}) }));
    const after = scalesOf(packed, level, cells.length, per);
    const allowed = valuesOf(f.element, true);
    let changed = 0;
    cells.forEach((cell, c) => {
      const error = (scale: number) => errorOf(cell, allowed, scale, 0, norm, weighted);
      if (cell.values.every((v) => v === 0)) return expect(after[c]).toBe(before[c]);
      const candidates = level.bits <= 8 ? Array.from({ length: 256 }, (_v, code) => Math.fround(level.decode(code) * outerOf(packed))).filter((s) => s > 0 && s >= before[c] * (1 - maxShrink) && s <= before[c] * maxGrow) : Array.from({ length: grid + 1 }, (_v, i) => level.decode(level.encode(before[c] * (1 - (maxShrink * i) / grid), { overflow: "saturate" }))); // prettier-ignore
      const least = Math.min(error(before[c]), ...candidates.map(error));
      expect(error(after[c])).toBeLessThanOrEqual(least * (1 + 1e-12));
      if (after[c] !== before[c]) {
        changed++;
        expect(error(after[c])).toBeLessThan(error(before[c]));
        expect(candidates).toContain(after[c]);
      }
    });
    // single values are exact as they are
    if (across > 1) expect(changed).toBeGreaterThan(0);
    expect(packed.recipe.search).toEqual({ method: "mse", norm, grid, maxShrink, maxGrow, weighted });
  });
});

/** Formats of whole blocks only, on rows that hold them: never worse, and better somewhere. */
function onWholeBlocks(f: BlockFormat, across: number, search: ScaleSearch): void {
  const wide = tensor(Float32Array.from({ length: 4 * across }, () => rng.laplace()), [2, 2 * across]); // prettier-ignore
  const error = (packed: PackedTensor) =>
    dequantize(packed, { dtype: "float64" }).reduce((sum, v, i) => sum + Math.abs(v - wide.data[i]) ** (search.norm ?? 2), 0);
  expect(error(quantize(wide, f, rtn({ search })))).toBeLessThanOrEqual(error(quantize(wide, f, rtn())) * (1 + 1e-6));
}

test.each(searches)("with zero points both ends of the range shrink: %j, columns weighted: %s", (search, weighted) => {
  const f = format("uint4_b10_zp") as BlockFormat;
  const { norm = 2, grid = 80, maxShrink = 0.8 } = search;
  const cells = cellsOf(1, 10);
  const packed = quantize(t, f, rtn({ search, ...(weighted ? { columnWeights: weights } : {}) }));
  const scales = scalesOf(packed, float32, cells.length, 2);
  const zeros = unpack({ ...packed, format: format("uint4"), codes: packed.offsets!, rows, k: 2, rowBytes: 1 });
  const allowed = valuesOf(f.element, false);
  let shrunk = 0;
  cells.forEach((cell, c) => {
    const [lo, hi] = [Math.min(0, ...cell.values), Math.max(0, ...cell.values)];
    if (lo === hi) return;
    const errors = Array.from({ length: grid + 1 }, (_, i) => {
      const p = 1 - (maxShrink * i) / grid;
      const exact = (hi * p - lo * p) / 15;
      const zero = Math.min(15, Math.max(0, halfEven(-(lo * p) / exact)));
      return errorOf(cell, allowed, Math.fround(exact), zero, norm, weighted);
    });
    const got = errorOf(cell, allowed, scales[c], zeros[c], norm, weighted);
    expect(got / Math.min(...errors)).toBeCloseTo(1, 9);
    if (got < errors[0] * (1 - 1e-9)) shrunk++;
  });
  expect(shrunk).toBeGreaterThan(grid < 13 ? -1 : 1);
});

test("QuEST: the root mean square of each block times the constant of its format, at any size of the weights", () => {
  const small = tensor(x.map((v) => v * 1e-3), [rows, k]); // prettier-ignore
  for (const name of ["int4_b5", "bipolar4_b5"]) {
    const f = byName(name);
    const packed = quantize(small, f, quest());
    const clip = gaussianClip(f.element, true);
    const got = new Float32Array(packed.scales!.slice().buffer);
    const plain = new Float32Array(quantize(small, f).scales!.slice().buffer);
    cellsOf(1, 5).forEach(({ values }, c) => {
      const rms = Math.sqrt(values.reduce((sum, v) => sum + (Math.fround(v * 1e-3)) ** 2, 0) / values.length); // prettier-ignore
      expect(got[c]).toBe(rms === 0 ? plain[c] : Math.fround(rms * clip.scale));
    });
    expect(packed.recipe).toEqual({ version: 1, algorithm: "quest", clip: clip.clip });
  }
  expect(() => quantize(small, format("float8_e4m3fn"), quest())).toThrow(/block format without offsets, got float8_e4m3fn/);
});

test("clips: the constants follow the element's range, narrow or not; the error is that of the scale", () => {
  // the middle of the largest cell and the largest value, by the moments of a normal
  for (const [element, narrow] of [
    [int4, true],
    [int4, false],
    [format("uint3"), true],
    [format("float4_e2m1fn"), true],
  ] as const) {
    // prettier-ignore
    const got = gaussianClip(element as NumberFormat, narrow);
    const allowed = valuesOf(element as NumberFormat, narrow);
    const error = (scale: number) => {
      let sum = 0;
      const n = 4000;
      for (let i = 0; i < n; i++) {
        const v = -6 + (12 * (i + 0.5)) / n;
        sum += Math.min(...allowed.map((a) => (v - a * scale) ** 2)) * normalDensity(v) * (12 / n);
      }
      return sum;
    };
    expect(error(got.scale) / got.relativeError).toBeCloseTo(1, 4);
    for (const p of [0.9, 0.97, 1.03, 1.1]) expect(error(got.scale * p)).toBeGreaterThan(error(got.scale));
    expect(got.clip / got.scale).toBeCloseTo(Math.max(...allowed.map(Math.abs)), 9);
    expect(gaussianClip(element as NumberFormat, narrow)).toBe(got);
  }
  expect(gaussianClip(int4, false)).not.toEqual(gaussianClip(int4, true));
  expect(gaussianClip(int4)).toBe(gaussianClip(int4, true));
  expect(() => gaussianClip(float32)).toThrow(/at most 16 bits, got float32/);
});

test("the normal distribution, far out too", () => {
  // Abramowitz and Stegun, table 26.2
  const tails = [[3, 1.3498980316300957e-3], [5, 2.866515718791946e-7], [7, 1.279812543885835e-12], [7.5, 3.190891672910894e-14], [9, 1.1285884059538425e-19]]; // prettier-ignore
  for (const [v, tail] of tails) {
    expect(Math.abs(normalCdf(-v) / tail - 1)).toBeLessThan(v < 6 ? 1e-8 : 1e-3);
    expect(normalCdf(v)).toBe(1 - tail < 1 ? normalCdf(v) : 1);
    expect(Math.abs(normalCdf(v) + normalCdf(-v) - 1)).toBeLessThan(1e-15);
  }
  expect(normalCdf(0)).toBe(0.5);
});

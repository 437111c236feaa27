// Transformations of layers on numbers small enough for a pencil: with a bias and without, dead channels, zero columns,
// the first size that does not fit, and that what is given stays as it is.
import { describe, expect, test } from "vitest";
import {
  absorbHighBias,
  centerOutputs,
  channelAmax,
  clippedNormalMean,
  correctBias,
  crossLayerEqualize,
  divideRows,
  foldBatchNorm,
  foldNorm,
  layerStatistics,
  scaleColumns,
  smoothFactors,
  type Linear,
} from "../../src/quantize/index.ts";

const f64 = (...v: number[]) => Float64Array.from(v);
const layer = (weight: number[], rows: number, bias?: number[]): Linear => ({
  weight: Float32Array.from(weight),
  rows,
  k: weight.length / rows,
  ...(bias ? { bias: Float32Array.from(bias) } : {}),
});
/** [[1, 2, 3], [4, 5, 6]], bias [1, -1]. */
const two = layer([1, 2, 3, 4, 5, 6], 2, [1, -1]);
const bare = layer([1, 2, 3, 4, 5, 6], 2);
const shape = expect.objectContaining({ code: "E_SHAPE" });

test("factors on columns and under rows", () => {
  expect(scaleColumns(two, f64(2, 3, 10))).toEqual({ weight: f64(2, 6, 30, 8, 15, 60), rows: 2, k: 3, bias: f64(1, -1) });
  expect(scaleColumns(bare, f64(1, 1, 1)).bias).toBeNull();
  expect(divideRows(two, f64(2, 4))).toEqual({ weight: f64(0.5, 1, 1.5, 1, 1.25, 1.5), rows: 2, k: 3, bias: f64(0.5, -0.25) });
  expect(divideRows(bare, f64(2, 4)).bias).toBeNull();
  expect(two.weight).toEqual(Float32Array.of(1, 2, 3, 4, 5, 6));
});

test("largest magnitudes of channels, whatever their sign", () => {
  const made = layerStatistics(3);
  made.add(Float32Array.of(1, -8, 0, 3, 2, 0));
  expect(channelAmax(made.finish())).toEqual(f64(3, 8, 0));
});

test("SmoothQuant's factors: both powers, all layers, what is dead stays, at least 1e-5", () => {
  const amax = f64(16, 9, 0, 4);
  const [a, b] = [layer([1, -2, 5, 0, 0.5, 1, 5, 0], 2), layer([-4, 1, 5, 0], 1)];
  // the largest weights of both: 4, 2, 5, 0
  expect(smoothFactors(amax, [a, b], 0.5)).toEqual(f64(4 / 2, 3 / Math.SQRT2, 1, 1));
  expect(smoothFactors(amax, [a, b])).toEqual(smoothFactors(amax, [a, b], 0.5));
  expect(smoothFactors(amax, [a, b], 1)).toEqual(f64(16, 9, 1, 1));
  expect(smoothFactors(amax, [a, b], 0)).toEqual(f64(1 / 4, 1 / 2, 1, 1));
  expect(smoothFactors(f64(1e-9, 1, 1, 1), [b], 1)[0]).toBe(1e-5);
  for (const alpha of [-0.01, 1.01, NaN]) expect(() => smoothFactors(amax, [a], alpha)).toThrow(RangeError);
  expect(() => smoothFactors(f64(1, 1), [a])).toThrow(/layers of 2 inputs, got 4/);
});

describe("cross-layer equalisation", () => {
  const range = (l: { weight: Float64Array; k: number }, row: number | null, column: number | null) =>
    Math.max(...l.weight.filter((_, i) => (row === null || Math.floor(i / l.k) === row) && (column === null || i % l.k === column)).map(Math.abs)); // prettier-ignore

  test("of three layers all ranges that meet are equal at the end, which takes more than one round", () => {
    const chain = [layer([1, 8, -3, 2], 2, [3, 6]), layer([5, 0.25, 1, -2], 2), layer([0.5, 9], 1)];
    const done = crossLayerEqualize(chain);
    for (const i of [0, 1]) for (const c of [0, 1]) expect(range(done[i], c, null) / range(done[i + 1], null, c)).toBeCloseTo(1, 6);
    const once = crossLayerEqualize(chain, { iterations: 1 });
    expect(Math.abs(range(once[0], 0, null) / range(once[1], null, 0) - 1)).toBeGreaterThan(0.01);
    expect(crossLayerEqualize(chain, { tolerance: 10 })).toEqual(once);
    expect(crossLayerEqualize(chain, { iterations: 0 })[0].weight).toEqual(Float64Array.from(chain[0].weight));
    // a channel's gain is the product of what comes in and what goes out: it stays
    for (const c of [0, 1]) expect(range(done[0], c, null) * range(done[1], null, c)).toBeGreaterThan(0);
    expect(done[0].bias![0] / 3).toBeCloseTo(done[0].weight[0] / 1, 12);
    expect(done[0].bias![1] / 6).toBeCloseTo(done[0].weight[3] / 2, 12);
  });

  test("a channel that is zero on either side keeps its scale", () => {
    const [a, b] = crossLayerEqualize([layer([0, 4, 2], 3), layer([7, 1, 0], 1)]);
    expect([a.weight, b.weight]).toEqual([f64(0, 2, 2), f64(7, 2, 0)]);
    expect(() => crossLayerEqualize([two, layer([1, 2, 3], 1)])).toThrow(/layer 1 to read 2 inputs, got 3/);
    expect(crossLayerEqualize([two])).toHaveLength(1);
  });
});

describe("high-bias absorption", () => {
  const first = layer([1, 1], 2, [5, 1]);
  const second = layer([2, 10, 3, 100], 2);

  test("what exceeds the deviations moves on, with or without biases", () => {
    const { first: a, second: b, absorbed } = absorbHighBias(first, second, { mean: [5, 1], deviation: [-1, 1] });
    expect([absorbed, a.bias, b.bias]).toEqual([f64(2, 0), f64(3, 1), f64(4, 6)]);
    const none = absorbHighBias({ ...first, bias: null }, { ...second, bias: f64(1, 1) }, { mean: [5, 4], deviation: [1, 1] });
    expect([none.first.bias, none.second.bias]).toEqual([f64(-2, -1), f64(1 + 4 + 10, 1 + 6 + 100)]);
    // no deviations at all: the mean
    expect(absorbHighBias(first, second, { mean: [5, -1], deviation: [1, 1] }, 0).absorbed).toEqual(f64(5, 0));
  });

  test("moments from statistics, tokens weighted", () => {
    const made = layerStatistics(2);
    // channel 0: 8 once, 12 three times: mean 11, deviation sqrt(3); channel 1: constant 2
    made.add(Float64Array.of(8, 2, 12, 2), { weights: [1, 3] });
    const { absorbed } = absorbHighBias(first, second, made.finish());
    expect(absorbed[0]).toBeCloseTo(11 - 3 * Math.sqrt(3), 12);
    expect(absorbed[1]).toBe(2);
  });

  test("sizes and deviations", () => {
    const moments = { mean: [1, 1], deviation: [1, 1] };
    expect(() => absorbHighBias(first, layer([1, 2, 3], 1), moments)).toThrow(/2 channels .* got 3 and 2/);
    expect(() => absorbHighBias(first, second, { mean: [1], deviation: [1] })).toThrow(/got 2 and 1/);
    expect(() => absorbHighBias(first, second, { mean: [1, 1], deviation: [1] })).toThrow(shape);
    for (const bad of [-1, NaN]) expect(() => absorbHighBias(first, second, moments, bad)).toThrow(RangeError);
  });
});

test("the mean of a clipped normal: nothing below zero, nothing above the limit, deviations of either sign", () => {
  expect(clippedNormalMean(0, 1)).toBeCloseTo(1 / Math.sqrt(2 * Math.PI), 14);
  expect(clippedNormalMean(0, -2)).toBeCloseTo(2 / Math.sqrt(2 * Math.PI), 14);
  // symmetric about the middle of the range
  expect(clippedNormalMean(3, 1.7, 6)).toBeCloseTo(3, 13);
  expect(clippedNormalMean(50, 1, 6)).toBeCloseTo(6, 12);
  expect([clippedNormalMean(2, 0), clippedNormalMean(-2, 0), clippedNormalMean(9, 0, 6)]).toEqual([2, 0, 6]);
  expect(clippedNormalMean(1, 1e-9)).toBeCloseTo(1, 12);
});

test("bias that takes out the mean error, from means or statistics, with a bias or without", () => {
  const q = [1.5, 2, 3, 4, 5, 5];
  expect(correctBias(two, q, [2, 7, 10])).toEqual(f64(1 - 1, -1 + 10));
  expect(correctBias(bare, q, [2, 7, 10])).toEqual(f64(-1, 10));
  const made = layerStatistics(3);
  made.add(Float64Array.of(1, 7, 0, 3, 7, 40), { weights: [2, 2] });
  expect(correctBias(bare, q, made.finish())).toEqual(f64(-1, 20));
  expect(() => correctBias(two, q.slice(1), [1, 1, 1])).toThrow(/2 x 3 values and 3 mean inputs, got 5 and 3/);
  expect(() => correctBias(two, q, [1, 1])).toThrow(shape);
});

test("norms fold into their neighbours", () => {
  const norm = { gamma: [2, 3], beta: [1, -1], mean: [3, 5], variance: [4, 9], epsilon: 0 };
  expect(foldBatchNorm(two, norm)).toEqual({ weight: f64(1, 2, 3, 4, 5, 6), rows: 2, k: 3, bias: f64(-1, -7) });
  expect(foldBatchNorm(bare, norm).bias).toEqual(f64(-2, -6));
  // the usual epsilon where none is said
  const { epsilon: _, ...plain } = norm;
  expect(foldBatchNorm(two, { ...plain, variance: [0, 0] }).weight[0]).toBeCloseTo(2 / Math.sqrt(1e-5), 9);
  for (const what of ["gamma", "beta", "mean", "variance"])
    expect(() => foldBatchNorm(two, { ...norm, [what]: [1] })).toThrow(/2 channels, got 1/);
  expect(foldNorm(two, [2, 3, 10])).toEqual({ weight: f64(2, 6, 30, 8, 15, 60), rows: 2, k: 3, bias: f64(1, -1) });
  expect(foldNorm(bare, [2, 3, 10]).bias).toBeNull();
  // W beta, of the weight before its gain
  expect(foldNorm(two, [2, 3, 10], [1, 0, -1]).bias).toEqual(f64(1 - 2, -1 - 2));
  expect(foldNorm(bare, [2, 3, 10], [1, 0, -1]).bias).toEqual(f64(-2, -2));
  expect(() => foldNorm(two, [1, 1])).toThrow(/gains of 3 channels, got 2/);
  expect(() => foldNorm(two, [1, 1, 1], [1])).toThrow(shape);
  expect(centerOutputs(two)).toEqual({ weight: f64(-1.5, -1.5, -1.5, 1.5, 1.5, 1.5), rows: 2, k: 3, bias: f64(1, -1) });
  expect(centerOutputs(layer([1, 3], 2, [2, 6])).bias).toEqual(f64(-2, 2));
  expect(centerOutputs(bare).bias).toBeNull();
});

test("weights and biases of another size than said", () => {
  for (const bad of [
    { ...two, rows: 3 },
    { ...two, bias: Float32Array.of(1) },
  ])
    for (const f of [
      () => scaleColumns(bad, f64(1, 1, 1)),
      () => divideRows(bad, f64(1, 1)),
      () => foldNorm(bad, [1, 1, 1]),
      () => centerOutputs(bad),
      () => crossLayerEqualize([bad, bad]),
    ])
      expect(f).toThrow(shape);
  expect(() => scaleColumns(two, f64(1, 1))).toThrow(/3 factors, got 2/);
  expect(() => divideRows(two, f64(1, 1, 1))).toThrow(/2 factors, got 3/);
});

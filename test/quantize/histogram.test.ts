// Histograms and the ranges read from them, on counts small enough to be written down, and against onnxruntime's entropy
// search and direct sums over the values.
import { describe, expect, test } from "vitest";
import {
  entropyThreshold,
  gridNoise,
  histogram,
  mseRange,
  percentileRange,
  percentileThreshold,
  type Histogram,
} from "../../src/quantize/histogram.ts";
import { observer } from "../../src/quantize/index.ts";
import { random } from "../helpers/random.ts";

const rng = random(9);
function filled(bins: number, limit: number, values: readonly number[], way: "add" | "addAll" = "addAll"): Histogram {
  const h = histogram(bins, limit);
  if (way === "addAll") h.addAll(values);
  else values.forEach((v) => h.add(v));
  return h;
}
/** The middles of `bins` bins over [-limit, limit], each as often as said. */
const middles = (counts: readonly number[], limit: number) =>
  counts.flatMap((n, i) => new Array<number>(n).fill(((2 * (i + 0.5)) / counts.length - 1) * limit));

describe.each(["add", "addAll"] as const)("%s", (way) => {
  test("counts over the largest magnitude met", () => {
    const h = filled(16, 8, [-8, -7.5, -7, 0, 0.5, 7.9, 8, 8], way);
    expect([h.min, h.max, h.amax, h.count]).toEqual([-8, 8, 8, 8]);
    expect([...h.counts(16)]).toEqual([2, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 3]);
    expect([...h.counts(2)]).toEqual([3, 5]);
  });

  test("none, and nothing but zeros", () => {
    const empty = histogram(16, 0);
    expect([empty.amax, empty.count, [...empty.counts(4)]]).toEqual([0, 0, [0, 0, 0, 0]]);
    const zeros = filled(16, 0, [0, 0, 0], way);
    expect([zeros.min, zeros.max, zeros.amax, zeros.count]).toEqual([0, 0, 0, 3]);
    expect([...zeros.counts(4)]).toEqual([0, 0, 3, 0]);
    // zeros before the first other number are kept when it sets the width
    zeros.add(-2);
    zeros.add(2);
    expect([...zeros.counts(4)]).toEqual([1, 0, 3, 1]);
    const both = filled(16, 0, [0, 0, 3], way);
    both.addAll([0, -3]);
    expect([both.count, ...both.counts(8)]).toEqual([5, 1, 0, 0, 0, 3, 0, 0, 1]);
  });

  test("the limit doubles as often as it must, and neighbours merge on both sides", () => {
    const values = [-0.9, -0.4, -0.1, 0.1, 0.4, 0.9];
    const h = filled(16, 1, values, way);
    const before = h.counts(16);
    const wide = filled(16, 1, [...values, 4], way);
    expect([...wide.counts(16)]).toEqual([0, 0, 0, 0, 0, 0, 1, 2, 2, 1, 0, 0, 0, 0, 0, 1]);
    expect(before.reduce((a, b) => a + b)).toBe(6);
    // a magnitude at the edge needs no room; one beyond it does, to whichever side
    const negative = filled(16, 1, [...values, -1, -3.99], way);
    expect([...negative.counts(4)]).toEqual([1, 4, 3, 0]);
    expect([negative.min, negative.max]).toEqual([-3.99, 0.9]);
    // the first number sets the limit where none is given
    const grown = histogram(16, 0);
    for (const v of [0.001, ...values, -64, 63]) grown.add(v);
    expect([...grown.counts(16)]).toEqual([1, 0, 0, 0, 0, 0, 0, 3, 4, 0, 0, 0, 0, 0, 0, 1]);
  });

  test("is what the values say, in any order of batches", () => {
    const values = Array.from({ length: 500 }, () => Math.round(100 * rng.normal()) / 16);
    const amax = Math.max(...values.map(Math.abs));
    const h = filled(64, amax, values, way);
    const want = new Float64Array(32);
    for (const v of values) want[Math.min(31, Math.floor(((v + amax) / (2 * amax)) * 32))]++;
    const got = h.counts(32);
    // a fine bin goes to the bin of its middle: single values at its edge may go either way
    expect(got.reduce((sum, n, i) => sum + Math.abs(n - want[i]), 0)).toBeLessThanOrEqual(20);
    expect(got.reduce((a, b) => a + b)).toBe(500);
  });
});

test("percentiles: whole bins are dropped from outside while enough remains", () => {
  //                       -8 to 8, ten numbers at the middles
  const counts = [1, 0, 0, 0, 0, 0, 1, 2, 2, 2, 1, 0, 0, 0, 0, 1];
  const values = [...middles(counts, 8).slice(1, -1), -8, 8];
  const h = filled(16, 8, values);
  expect([...h.counts(16)]).toEqual(counts);
  expect(percentileThreshold(h, 16, 1)).toBe(8);
  // 2 of 10 outside: bins shrink to the next value, at 3 bins from the middle
  expect(percentileThreshold(h, 16, 0.8)).toBe(3);
  expect(percentileThreshold(h, 16, 0.81)).toBe(8);
  expect(percentileThreshold(h, 16, 0.71)).toBe(3);
  expect(percentileThreshold(h, 16, 0.7)).toBe(2);
  expect(percentileThreshold(h, 16, 0.41)).toBe(2);
  expect(percentileThreshold(h, 16, 0.4)).toBe(1);
  expect(percentileThreshold(h, 16, 0.01)).toBe(1);
  expect(percentileRange(h, 16, 1)).toEqual({ min: -8, max: 8 });
  expect(percentileRange(h, 16, 0.75)).toEqual({ min: -2, max: 3 });
  expect(percentileRange(h, 16, 0.6)).toEqual({ min: -1, max: 2 });
  expect(percentileRange(h, 16, 0)).toEqual({ min: 0, max: 1 });
  // never beyond what was met
  const half = filled(16, 8, [0.25, 0.75, 8]);
  expect(percentileRange(half, 16, 1)).toEqual({ min: 0.25, max: 8 });
});

/**
 * onnxruntime's get_entropy_threshold: for every half-width, the counts clipped into it against themselves merged into
 * `steps` parts; both smoothed by 1e-4; scipy's entropy.
 */
function entropyRef(counts: number[], amax: number, steps: number): { threshold: number; candidates: number } {
  const zero = counts.length / 2;
  let [least, best] = [Infinity, amax];
  let candidates = 0;
  for (let half = steps / 2; half <= zero; half++, candidates++) {
    const [start, end] = [zero - half, Math.min(counts.length, zero + half + 1)];
    const inside = counts.slice(start, end);
    const sum = (list: number[]) => list.reduce((a, b) => a + b, 0);
    const p = [...inside];
    p[0] += sum(counts.slice(0, start));
    p[p.length - 1] += sum(counts.slice(end));
    const part = Math.floor(p.length / steps);
    const q = p.map((v, i) => {
      if (v === 0) return 0;
      const from = Math.min(steps - 1, Math.floor(i / part)) * part;
      const to = from === (steps - 1) * part ? p.length : from + part;
      const nonzero = p.slice(from, to).filter((u) => u !== 0).length;
      return sum(inside.slice(from, to)) / nonzero;
    });
    const smooth = (list: number[]): number[] | null => {
      const zeros = list.filter((v) => v === 0).length;
      const rest = list.length - zeros;
      if (rest === 0) return null;
      const taken = (1e-4 * zeros) / rest;
      return taken >= 1 ? null : list.map((v) => (v === 0 ? 1e-4 : v - taken));
    };
    const [ps, qs] = [smooth(p), smooth(q)];
    if (ps === null || qs === null) continue;
    const [pn, qn] = [sum(ps), sum(qs)];
    const divergence = sum(ps.map((v, i) => (v / pn) * Math.log(v / pn / (qs[i] / qn))));
    if (divergence < least) [least, best] = [divergence, (amax * half) / zero];
  }
  return { threshold: best, candidates };
}

test("entropy: the threshold of onnxruntime's search", () => {
  const seen = new Set<number>();
  for (const steps of [2, 4, 8, 16])
    for (let n = 0; n < 12; n++) {
      const shape = [() => rng.integer(30), () => (rng.integer(3) === 0 ? rng.integer(200) : 0), () => 0][n % 3];
      const counts = Array.from({ length: 32 }, (_, i) => shape() + Math.round(400 * Math.exp(-(((i - 15.5) / (2 + n)) ** 2))));
      counts[31] += 1;
      const h = filled(32, 8, [...middles(counts, 8), 8]);
      counts[31]++;
      expect([...h.counts(32)]).toEqual(counts);
      const got = entropyThreshold(h, 32, steps);
      expect(got).toEqual(entropyRef(counts, 8, steps));
      seen.add(got.threshold);
    }
  expect(seen.size).toBeGreaterThan(8);
  expect(() => entropyThreshold(histogram(16, 1), 16, 18)).toThrow(/at least 18 bins, got 16/);
  // windows reach a bin further up than down: all in the last bin lies within that of 7 of 8
  expect(entropyThreshold(filled(16, 1, [1, 1, 1]), 16, 4).threshold).toBe(7 / 8);
  expect(entropyThreshold(histogram(16, 1), 16, 4).threshold).toBe(0);
});

/** Squares of what rounding to codes 0 .. levels - 1 of a range leaves, zero being a code. */
function lost(values: readonly number[], min: number, max: number, levels: number): number {
  const step = (max - min) / (levels - 1);
  const even = (v: number) => (Math.abs(v % 1) === 0.5 ? 2 * Math.round(v / 2) : Math.round(v));
  const zero = even(-min / step);
  return values.reduce((sum, v) => sum + ((Math.min(levels - 1, Math.max(0, even(v / step) + zero)) - zero) * step - v) ** 2, 0);
}

test("noise: the share of the energy that rounding leaves", () => {
  const counts = [0, 3, 0, 0, 5, 1, 4, 9, 8, 2, 0, 4, 0, 1, 0, 2];
  const values = middles(counts, 8);
  const h = filled(16, 8, [...values, 8]);
  values.push(7.5);
  const energy = values.reduce((sum, v) => sum + v * v, 0);
  for (const bits of [2, 3, 4])
    for (const [min, max] of [
      [-8, 8],
      [-3, 5],
      [0, 8],
      [-8, 0],
      [-1.3, 7.9],
    ])
      // prettier-ignore
      expect(gridNoise(h, 16, bits, { min, max }) / (lost(values, min, max, 2 ** bits) / energy)).toBeCloseTo(1, 9);
  // ranges hold zero
  expect(gridNoise(h, 16, 3, { min: 2, max: 5 })).toBe(gridNoise(h, 16, 3, { min: 0, max: 5 }));
  expect(gridNoise(h, 16, 3, { min: -5, max: -2 })).toBe(gridNoise(h, 16, 3, { min: -5, max: 0 }));
  expect(gridNoise(filled(16, 1, [0, 0]), 16, 3, { min: 0, max: 0 })).toBe(0);
  const o = observer(2, { method: "minMax", bins: 16, limit: 8, histogram: true, granularity: "channel" });
  const pairs = values.flatMap((v) => [v, -v]);
  o.observe(Float64Array.from([...pairs, 8, -8]));
  expect([...o.noise(4)].map((v) => v / ((lost([...values, 7.5], Math.min(...values), 8, 16)) / (energy + 7.5 ** 2)))[0]).toBeCloseTo(1, 9); // prettier-ignore
  expect(() => observer(2, { method: "minMax" }).noise(4)).toThrow(expect.objectContaining({ code: "E_UNSUPPORTED" }));
});

test("the range of least squared error, step by step: 199 smaller ones, then twice 201 lower ends and 201 upper ones", () => {
  for (const bits of [2, 3, 4])
    for (let n = 0; n < 6; n++) {
      const values = Array.from({ length: 120 }, () => 1.3 * rng.laplace() + (n % 3 === 0 ? 0 : 1.5) - (n % 3 === 2 ? 3 : 0));
      const amax = Math.max(...values.map(Math.abs));
      const h = filled(64, amax, values);
      const seen = middles([...h.counts(64)], amax);
      const [lo, hi] = [Math.min(0, h.min), Math.max(0, h.max)];
      let best = { min: lo, max: hi, error: lost(seen, lo, hi, 2 ** bits) };
      const attempt = (min: number, max: number) => {
        const error = max > min ? lost(seen, min, max, 2 ** bits) : Infinity;
        if (error < best.error) best = { min, max, error };
      };
      for (let i = 1; i < 200; i++) attempt((lo * i) / 200, (hi * i) / 200);
      for (let round = 0; round < 2; round++) {
        const { max } = best;
        for (let i = 0; i <= 200; i++) attempt((lo * i) / 200, max);
        const { min } = best;
        for (let i = 0; i <= 200; i++) attempt(min, (hi * i) / 200);
      }
      const got = mseRange(h, 64, bits, false);
      expect(lost(seen, got.min, got.max, 2 ** bits) / best.error).toBeCloseTo(1, 9);
    }
});

test("the range of least squared error is the best of its steps, ends together and then alone", () => {
  for (const symmetric of [true, false])
    for (const bits of [2, 3, 5])
      for (const draw of [
        () => rng.normal() + (symmetric ? 0 : 0.7),
        () => rng.laplace(),
        () => Math.abs(rng.normal()),
        () => -rng.next(),
      ]) {
        const values = Array.from({ length: 300 }, () => Math.round(16 * draw()) / 16 + 1 / 32);
        const amax = Math.max(...values.map(Math.abs));
        const h = filled(256, amax, values);
        const bins = [...h.counts(256)];
        const seen = middles(bins, amax);
        const levels = symmetric ? 2 ** bits - 1 : 2 ** bits;
        const [lo, hi] = symmetric ? [-amax, amax] : [Math.min(0, h.min), Math.max(0, h.max)];
        const { min, max } = mseRange(h, 256, bits, symmetric);
        const got = lost(seen, min, max, levels);
        const near = 1 + 1e-9;
        expect(got).toBeLessThanOrEqual(lost(seen, lo, hi, levels) * near);
        for (let i = 1; i < 200; i++) expect(got).toBeLessThanOrEqual(lost(seen, (lo * i) / 200, (hi * i) / 200, levels) * near);
        if (symmetric) expect(min).toBe(-max);
        // after two rounds nothing is gained by the upper end alone
        else for (let i = 1; i <= 200; i++) expect(got).toBeLessThanOrEqual(lost(seen, min, (hi * i) / 200, levels) * near);
        expect([min <= 0, max >= 0, min >= lo, max <= hi]).toEqual([true, true, true, true]);
      }
  expect(mseRange(filled(16, 0, [0, 0]), 16, 4, false)).toEqual({ min: 0, max: 0 });
});

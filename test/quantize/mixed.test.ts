// Mixed precision after COMET: the published channel count, the permutation folded into the layer before, products over
// two ranges, and the error feedback.
import { expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, matmul, quantize, tensor } from "../../src/index.ts";
import {
  dequantizeMixed,
  gptq,
  layerStatistics,
  mixedBytes,
  mrgptq,
  outlierSplit,
  permuteColumns,
  permuteRows,
  quantizeMixed,
  selectChannels,
  splitColumns,
} from "../../src/quantize/index.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";
import { outputErrorRef } from "../oracle/gptq.ts";
import { random } from "../helpers/random.ts";

/** 8 channels of k, one per eighth, times 60. */
function spiky(tokens: number, k: number, seed: number): Float64Array {
  const rng = random(seed);
  const x = Float64Array.from({ length: tokens * k }, () => rng.normal());
  for (let t = 0; t < tokens; t++) for (let c = 0; c < 8; c++) x[t * k + Math.floor((c * k) / 8) + 5] *= 60;
  return x;
}

test("8 outlier channels of 4096 in blocks of 128: 8 blocks before, 1 of 32 after; 4.125 bits; SQNR between the two formats", () => {
  const [tokens, k] = [24, 4096];
  const x = spiky(tokens, k, 1);
  const stats = layerStatistics(k, { hessian: false });
  stats.add(x);
  const split = outlierSplit(stats.finish(), { block: 128 });
  expect(split.blocksBefore).toBe(8);
  expect(split.wideBlocks).toBe(1);
  expect(split.wide).toBe(128);
  expect(((split.wide * 8 + (k - split.wide) * 4) / k).toFixed(3)).toBe("4.125");
  expect([...split.order].sort((a, b) => a - b)).toEqual(Array.from({ length: k }, (_, j) => j));
  expect(new Set(split.order.subarray(0, 8))).toEqual(new Set(Array.from({ length: 8 }, (_, c) => c * 512 + 5)));
  const t = tensor(x, [tokens, k]);
  const [wide, narrow] = [format("int8_b128"), format("int4_b128")];
  const db = (y: ArrayLike<number>) => {
    let [e, p] = [0, 0];
    for (let i = 0; i < x.length; i++) {
      e += (x[i] - y[i]) ** 2;
      p += x[i] ** 2;
    }
    return 10 * Math.log10(p / e);
  };
  const [four, eight] = [db(dequantize(quantize(t, narrow))), db(dequantize(quantize(t, wide)))];
  const mixed = db(dequantizeMixed(quantizeMixed(t, split, [wide, narrow])));
  expect(mixed).toBeGreaterThan(four + 3);
  expect(mixed).toBeLessThan(eight);
  // Without the permutation the same block count leaves seven outlier blocks narrow.
  const plain = { ...split, order: Int32Array.from({ length: k }, (_, j) => j) };
  expect(db(dequantizeMixed(quantizeMixed(t, plain, [wide, narrow])))).toBeLessThan(mixed - 3);
});

test("threshold, ties, edges and errors of outlierSplit", () => {
  const amax = Float64Array.from({ length: 10 }, (_, j) => (j === 7 ? 41 : j === 2 ? 40 : 10));
  expect([...outlierSplit(amax, { block: 4 }).order]).toEqual([7, 0, 1, 2, 3, 4, 5, 6, 8, 9].sort((a, b) => (a === 7 ? -1 : b === 7 ? 1 : 0)).filter((v) => v !== 2).flatMap((v) => (v === 7 ? [7, 2] : [v]))); // prettier-ignore
  // 40 is 4 times the median and not above it.
  expect(outlierSplit(amax, { block: 1 }).wide).toBe(1);
  expect(outlierSplit(amax, { block: 1, threshold: 3 }).wide).toBe(2);
  expect(outlierSplit(amax, { block: 4, wideBlocks: 3 }).wide).toBe(10);
  expect(outlierSplit(amax, { block: 4, wideBlocks: 0 }).wide).toBe(0);
  expect([...outlierSplit(amax, { block: 4, wideBlocks: 0 }).order]).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  expect(outlierSplit(new Float64Array(6).fill(1), { block: 2 }).wideBlocks).toBe(0);
  expect(() => outlierSplit(amax, { wideBlocks: 2 })).toThrow(RangeError);
  expect(() => outlierSplit(amax, { block: 0 })).toThrow(RangeError);
  expect(() => outlierSplit([1, NaN])).toThrow(RangeError);
  expect(() => permuteColumns(tensor(new Float32Array(6), [2, 3]), [0, 0, 1])).toThrow(/each once/);
  expect(() => quantizeMixed(tensor(new Float32Array(6), [2, 3]), outlierSplit(amax), [format("int8_row"), format("int4_row")])).toThrow(
    /split of 3 channels, got one of 10/,
  );
});

test("the permutation folds into the layer before, and the product is the sum over two ranges", async () => {
  const [n, k, m, before] = [12, 96, 5, 20];
  const w = tensor(gaussianWeights(n, k, 3), [n, k]);
  const first = { weight: gaussianWeights(k, before, 4), rows: k, k: before, bias: gaussianWeights(1, k, 5) };
  const rng = random(8);
  const u = Float64Array.from({ length: m * before }, () => rng.normal());
  const hidden = (l: { weight: ArrayLike<number>; bias?: ArrayLike<number> | null }) =>
    Float64Array.from({ length: m * k }, (_, i) => {
      const [t, r] = [Math.floor(i / k), i % k];
      let s = l.bias![r];
      for (let j = 0; j < before; j++) s += l.weight[r * before + j] * u[t * before + j];
      return Math.max(0, s);
    });
  const x = hidden(first);
  const split = outlierSplit(
    Float64Array.from({ length: k }, (_, j) => Math.max(...Array.from({ length: m }, (_, t) => x[t * k + j]))),
    {
      block: 32,
      wideBlocks: 1,
    },
  );
  const moved = hidden(permuteRows(first, split.order));
  expect(moved).toEqual(permuteColumns(tensor(x, [m, k]), split.order).data);
  const mixed = quantizeMixed(w, split, [format("int8_b32"), format("int4_b32")]);
  expect(mixed.parts.map((p) => p.format.name)).toEqual(["int8_b32", "int4_b32"]);
  expect(mixedBytes(mixed)).toBe(n * (32 + 4 + 32 + 8) + 2 * k);
  const y = new Float64Array(m * n);
  for (const [i, part] of splitColumns(tensor(x, [m, k]), mixed).entries())
    (await matmul(part, mixed.parts[i])).data.forEach((v, at) => (y[at] += v));
  const values = dequantizeMixed(mixed);
  for (let t = 0; t < m; t++)
    for (let r = 0; r < n; r++) {
      let s = 0;
      for (let j = 0; j < k; j++) s += x[t * k + j] * values[r * k + j];
      expect(Math.abs(y[t * n + r] - s)).toBeLessThan(1e-6);
    }
});

test("statistics of chosen channels are those of the chosen inputs", () => {
  const [k, tokens] = [12, 40];
  const x = inputs("ar", tokens, k, 2);
  const all = layerStatistics(k);
  all.add(x);
  const channels = [7, 0, 3];
  const some = layerStatistics(3);
  some.add(Float64Array.from({ length: tokens * 3 }, (_, i) => x[Math.floor(i / 3) * k + channels[i % 3]]));
  const [got, want] = [selectChannels(all.finish(), channels), some.finish()];
  expect({ ...got, hessian: null }).toEqual({ ...want, hessian: null });
  for (let i = 0; i < 9; i++) expect(got.hessian![i]).toBeCloseTo(want.hessian![i], 9);
  expect(() => selectChannels(all.finish(), [12])).toThrow(RangeError);
});

test("with statistics the narrow part makes up for the wide one, and quantizers see the channels of their part", () => {
  const [rows, k, tokens] = [16, 128, 400];
  const w = gaussianWeights(rows, k, 11);
  const x = inputs("ar", tokens, k, 12);
  for (let t = 0; t < tokens; t++) for (const j of [9, 77]) x[t * k + j] *= 20;
  const acc = layerStatistics(k);
  acc.add(x);
  const statistics = acc.finish();
  const split = outlierSplit(statistics, { block: 32 });
  expect(split.wideBlocks).toBe(1);
  const t = tensor(w, [rows, k]);
  const formats = [format("int8_b32"), format("int3_b32")] as const;
  const error = (o: Parameters<typeof quantizeMixed>[3]) =>
    outputErrorRef(w, dequantizeMixed(quantizeMixed(t, split, formats, o)), rows, x, tokens);
  const plain = error({});
  // A coarse first part and a fine second one: the second can undo what of the error lies in the span of its inputs.
  const coarse = [format("int2_b32"), format("int8_b32")] as const;
  const coarseError = (o: Parameters<typeof quantizeMixed>[3]) =>
    outputErrorRef(w, dequantizeMixed(quantizeMixed(t, split, coarse, o)), rows, x, tokens);
  expect(coarseError({ statistics })).toBeLessThan(0.7 * coarseError({}));
  const best = error({ statistics, quantizer: (part) => gptq({ hessian: part.statistics!, actOrder: true }) });
  expect(best).toBeLessThan(0.6 * plain);
  // All narrow is far worse: the outliers are what counts.
  const narrow = outputErrorRef(w, dequantize(quantize(t, formats[1], gptq({ hessian: statistics }))), rows, x, tokens);
  expect(best).toBeLessThan(narrow);
  // Parts in a basis of their own are read back too.
  const rotated = quantizeMixed(t, split, formats, { statistics, quantizer: (part) => mrgptq({ hessian: part.statistics! }) });
  expect(outputErrorRef(w, dequantizeMixed(rotated), rows, x, tokens)).toBeLessThan(plain);
  expect(() => quantizeMixed(t, split, formats, { statistics: selectChannels(statistics, [1, 2]) })).toThrow(/128 inputs, got 2/);
});

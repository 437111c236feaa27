// What holds for quantizers whatever their numbers are: rows are independent, parts that are empty are none, progress
// is told by its stage, faults are found wherever they stand.
import { expect, test } from "vitest";
import { format, type BlockFormat } from "../../formats/index.ts";
import { dequantize, quantize, tensor, type WeightQuantizer } from "../../src/index.ts";
import * as q from "../../src/quantize/index.ts";
import { gridNoise, histogram, mseRange } from "../../src/quantize/histogram.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";
import { outputErrorRef } from "../oracle/gptq.ts";
import { random } from "../helpers/random.ts";

const k = 16;
const tokens = inputs("ar", 80, k, 1);
const stats = q.layerStatistics(k);
stats.add(tokens);
const hessian = stats.finish();
const f = format("int4_b8") as BlockFormat;
const error = (w: Float32Array, packed: Parameters<typeof dequantize>[0], rows: number) =>
  outputErrorRef(w, dequantize(packed), rows, tokens, 80);

const makers: [string, () => WeightQuantizer, string?][] = [
  ["gptq", () => q.gptq({ hessian, blockSize: 16 })],
  ["gptq, order of activity", () => q.gptq({ hessian, actOrder: true })],
  ["mrgptq", () => q.mrgptq({ hessian })],
  ["hqq", () => q.hqq({ iterations: 3 }), "uint4_b8_zp"],
  ["rtn with a search", () => q.rtn({ search: { method: "mse", grid: 8 } })],
  ["adaround", () => q.adaround({ hessian, iterations: 0 })],
];
test.each(makers)("%s: many rows at once are as each alone", (_, make, name = f.name) => {
  const rows = 300;
  const w = gaussianWeights(rows, k, 5);
  const whole = dequantize(quantize(tensor(w, [rows, k]), format(name), make()));
  for (const row of [0, 1, 150, rows - 1])
    expect(dequantize(quantize(tensor(w.slice(row * k, (row + 1) * k), [1, k]), format(name), make()))).toEqual(
      whole.slice(row * k, (row + 1) * k),
    );
});

test("gptq searches scales once where groups are static, and by the group where they are not", () => {
  const w = gaussianWeights(24, k, 6).map((v, i) => (i % 8 === 3 ? 6 * v : v));
  const t = tensor(w, [24, k]);
  const run = (options: object) => quantize(t, f, q.gptq({ hessian, ...options }));
  const search = { method: "mse" as const, norm: 2, grid: 40 };
  for (const staticGroups of [true, false]) {
    const [plain, searched] = [run({ staticGroups }), run({ staticGroups, search })];
    expect(searched.scales).not.toEqual(plain.scales);
    expect(error(w, searched, 24)).toBeLessThan(error(w, plain, 24));
  }
  // static groups take the scales of the searched weights as they are
  expect(run({ staticGroups: true, search }).scales).toEqual(quantize(t, f, q.rtn({ search })).scales);
});

test("a split with nothing on one side has one part, which is the other format's", () => {
  const w = tensor(gaussianWeights(8, k, 7), [8, k]);
  const formats = [format("int8_b8"), f] as const;
  const amax = Float64Array.from({ length: k }, (_, j) => 1 + j / k);
  for (const [wideBlocks, own] of [
    [0, f],
    [2, formats[0]],
  ] as const) {
    // prettier-ignore
    const split = q.outlierSplit(amax, { block: 8, wideBlocks });
    const mixed = q.quantizeMixed(w, split, formats);
    expect(mixed.parts.map((part) => part.k)).toEqual([k]);
    expect(mixed.parts[0].format).toBe(own);
    const permuted = quantize(q.permuteColumns(w, split.order), own);
    expect(mixed.parts[0].codes).toEqual(permuted.codes);
  }
});

test("a number that is not finite is named by its channel and token, in any place, unless the token does not count", () => {
  for (const [token, channel] of [
    [0, 0],
    [0, 3],
    [2, 0],
    [4, 3],
  ] as const)
    // prettier-ignore
    for (const bad of [NaN, Infinity, -Infinity]) {
      const x = Float64Array.from({ length: 20 }, (_, i) => i);
      x[token * 4 + channel] = bad;
      const made = q.layerStatistics(4);
      expect(() => made.add(x)).toThrow(expect.objectContaining({ code: "E_CALIBRATION", message: expect.stringContaining(`got ${bad} in channel ${channel} of token ${token}`) as string })); // prettier-ignore
      const mask = Uint8Array.from({ length: 5 }, (_, t) => (t === token ? 0 : 1));
      made.add(x, { mask });
      expect(made.finish().rows).toBe(4);
    }
});

test("the range of least squared error: no range of a finer scan beats it by more than its steps", () => {
  const rng = random(8);
  for (const symmetric of [true, false])
    for (const bits of [2, 3, 8]) {
      const h = histogram(512, 8);
      const x = Float64Array.from({ length: 1000 }, () => rng.normal() + (symmetric ? 0 : 1));
      h.addAll(x);
      const { min, max } = mseRange(h, 512, bits, symmetric);
      if (symmetric) expect(min).toBe(-max);
      const levels = symmetric ? 2 ** bits - 1 : 2 ** bits;
      const noise = (lo: number, hi: number) => {
        const step = (hi - lo) / (levels - 1);
        const zero = Math.round(-lo / step);
        return x.reduce((s, v) => s + (v - (Math.min(levels - 1, Math.max(0, Math.round(v / step) + zero)) - zero) * step) ** 2, 0);
      };
      const got = noise(min, max);
      let best = Infinity;
      for (let i = 1; i <= 100; i++) {
        const end = (8 * i) / 100;
        if (symmetric) best = Math.min(best, noise(-end, end));
        else for (let j = 0; j <= 20; j++) best = Math.min(best, noise((-8 * j) / 20, end));
      }
      expect(got, `${bits} bits, ${symmetric}`).toBeLessThan(best * (bits === 8 ? 1.6 : 1.05));
      expect(gridNoise(h, 512, bits, { min, max })).toBeGreaterThan(0);
    }
});

test("progress is told by the stage's name, and ends where it said it would", () => {
  const statistics = hessian;
  const t = tensor(gaussianWeights(40, k, 9), [40, k]);
  const seen = new Map<string, { done: number; total: number }>();
  const onProgress = (p: { stage: string; done: number; total: number }) => {
    const last = seen.get(p.stage);
    if (last !== undefined && last.total === p.total) expect(p.done, p.stage).toBeGreaterThanOrEqual(last.done);
    expect(p.done, p.stage).toBeLessThanOrEqual(p.total);
    seen.set(p.stage, { done: p.done, total: p.total });
  };
  quantize(t, f, q.gptq({ hessian, polish: 2, blockSize: 8, onProgress } as never));
  quantize(t, f, q.awq({ statistics, grid: 4, onProgress } as never));
  quantize(t, f, q.adaround({ hessian, iterations: 50, onProgress } as never));
  expect([...seen.keys()].sort()).toEqual(["adaround", "awq", "gptq", "polish"]);
  expect(seen.get("adaround")).toEqual({ done: 50, total: 50 });
  expect(seen.get("gptq")).toEqual({ done: k, total: k });
});

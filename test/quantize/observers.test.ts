// Observers and calibration. Figures of the entropy case are those of part D2 of the notes: 2048 / 128 bins have 961
// candidates and clip far inside (3.94 there; 3.6 to 7.2 over seeds), where the range is 58.4 and the clip of least
// error near 14; 128 / 128 bins have one candidate, the whole range.
import { expect, test } from "vitest";
import { int8, uint8 } from "../../formats/index.ts";
import { calibrate, convStatistics, layerStatistics, observer, type CalibrationBatch } from "../../src/quantize/index.ts";
import { entropyThreshold, histogram } from "../../src/quantize/histogram.ts";
import { random } from "../helpers/random.ts";

/** n vectors of 4. */
function gaussianInputs(n: number): Float32Array {
  const rng = random(n);
  return Float32Array.from({ length: 4 * n }, () => rng.normal());
}

function outliers(n: number, seed: number): Float64Array {
  const rng = random(seed);
  return Float64Array.from({ length: n }, () => rng.normal() * (rng.next() < 1e-4 ? 20 : 1));
}

/** relMSE of symmetric 8-bit rounding with clip t. */
function relativeError(x: Float64Array, t: number): number {
  const s = t / 127;
  let [e, p] = [0, 0];
  for (const v of x) {
    const q = Math.min(127, Math.max(-127, Math.round(v / s))) * s;
    e += (q - v) ** 2;
    p += v * v;
  }
  return e / p;
}

test("entropy, percentile and least squared error on Gaussian data with outliers", () => {
  const x = outliers(1 << 18, 7);
  const amax = x.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
  const h = histogram(2048, amax);
  for (const v of x) h.add(v);
  const fine = entropyThreshold(h, 2048, 128);
  expect(fine.candidates).toBe(961);
  expect(fine.threshold).toBeGreaterThan(3);
  expect(fine.threshold).toBeLessThan(9);
  expect(entropyThreshold(h, 128, 128)).toEqual({ threshold: amax, candidates: 1 });

  const clip = (method: "minMax" | "mse" | "entropy" | "percentile") => {
    const o = observer(1, { method, symmetric: true });
    o.observe(x);
    return o.ranges().max[0];
  };
  expect(clip("minMax")).toBe(amax);
  const best = relativeError(x, clip("mse"));
  // The best clip of a fine scan, found apart from the histogram.
  let scan = Infinity;
  for (let i = 1; i <= 40; i++) scan = Math.min(scan, relativeError(x, (amax * i) / 40));

  expect(best / scan).toBeLessThan(1.1);
  expect(best).toBeLessThan(0.75 * relativeError(x, amax));
  expect(best).toBeLessThan(0.75 * relativeError(x, clip("entropy")));
  const kept = clip("percentile");
  const inside = x.filter((v) => Math.abs(v) <= kept).length / x.length;
  expect(inside).toBeGreaterThanOrEqual(0.99999 - 1e-9);
  expect(kept).toBeLessThan(amax);
});

test("ranges do not depend on how the stream is cut, and a growing histogram keeps its thresholds", () => {
  const x = outliers(60_000, 3);
  for (const method of ["minMax", "percentile", "mse"] as const) {
    const whole = observer(4, { method, granularity: "channel" });
    whole.observe(x);
    const parts = observer(4, { method, granularity: "channel" });
    for (let i = 0; i < x.length; i += 600) parts.observe(x.subarray(i, i + 600));
    const [a, b] = [whole.ranges(), parts.ranges()];
    for (let c = 0; c < 4; c++) {
      expect(Math.abs(b.max[c] / a.max[c] - 1), method).toBeLessThan(method === "minMax" ? 1e-15 : 0.05);
      expect(Math.abs(b.min[c] / a.min[c] - 1), method).toBeLessThan(method === "minMax" ? 1e-15 : 0.05);
    }
  }
});

test("granularities, masks, moving average", () => {
  const x = Float32Array.from([1, -2, 3, 4, 5, -6, 7, 8, 100, 100, 100, 100]);
  const mask = [1, 1, 0];
  const of = (granularity: "tensor" | "channel" | "token" | { block: number }) => {
    const o = observer(4, { method: "minMax", granularity });
    o.observe(granularity === "token" ? x.subarray(0, 8) : x, granularity === "token" ? {} : { mask });
    const { min, max } = o.ranges();
    return [Array.from(min), Array.from(max)];
  };
  expect(of("tensor")).toEqual([[-6], [8]]);
  expect(of("channel")).toEqual([
    [1, -6, 3, 4],
    [5, -2, 7, 8],
  ]);
  expect(of("token")).toEqual([
    [-2, -6],
    [4, 8],
  ]);
  expect(of({ block: 2 })).toEqual([
    [-6, 3],
    [5, 8],
  ]);
  const m = observer(1, { method: "movingAverage", momentum: 0.25 });
  m.observe(Float32Array.of(0, 4));
  m.observe(Float32Array.of(-4, 8));
  expect(m.ranges()).toEqual({ min: Float64Array.of(-1), max: Float64Array.of(5) });
  const p = observer(4, { method: "minMax", granularity: "channel" });
  p.observe(x, { mask });
  expect(p.params(int8)[1]).toEqual({ scale: 6 / 127, zeroPoint: 0 });
  expect(p.params(uint8)[1]).toEqual({ scale: 6 / 255, zeroPoint: 255 });
});

test("observer errors", () => {
  const o = observer(2, { method: "mse", name: "act" });
  expect(() => o.ranges()).toThrow(/"act".*got none/);
  expect(() => o.observe(new Float32Array(3))).toThrow(/multiple of 2/);
  expect(() => o.observe(Float32Array.of(1, NaN))).toThrow(/NaN in channel 1 of token 0/);
  expect(() => o.observe(Float32Array.of(1, 2), { mask: [1, 1] })).toThrow(/1 tokens/);
  expect(() => observer(2, { method: "median" as never })).toThrow(RangeError);
  expect(() => observer(2, { method: "entropy", bins: 7 })).toThrow(RangeError);
  expect(() => observer(0, { method: "minMax" })).toThrow(RangeError);
});

async function* stream(batches: CalibrationBatch[]) {
  for (const b of batches) yield await Promise.resolve(b);
}
const batch = (seed: number): CalibrationBatch => {
  const rng = random(seed);
  return { x: { data: Float32Array.from({ length: 24 }, () => rng.normal()), shape: [2, 3, 4] } };
};

test("calibrate: layers share the statistics of an array, with masks and observers", async () => {
  const masked: CalibrationBatch = { x: { ...batch(2).x, mask: [1, 0, 1, 1, 1, 1] } };
  const got = await calibrate(stream([batch(1), masked]), {
    layers: { q: { input: "x" }, k: { input: "x", observer: { method: "minMax" } } },
  });
  expect(got.q.statistics.rows).toBe(11);
  expect(got.q.statistics).toBe(got.k.statistics);
  expect(got.q.observer).toBeNull();
  expect(got.k.observer!.ranges().max[0]).toBe(Math.max(...got.k.statistics.max));
  const limited = await calibrate(stream([batch(1), batch(2)]), { layers: { x: { hessian: false } }, maxBatches: 1 });
  expect(limited.x.statistics.rows).toBe(6);
  expect(limited.x.statistics.hessian).toBeNull();
});

test("calibrate errors name every failing layer", async () => {
  const bad: CalibrationBatch = { x: batch(1).x, y: { data: Float32Array.of(1, Infinity), shape: [1, 2] } };
  const run = (batches: CalibrationBatch[], o: object = {}) =>
    calibrate(stream(batches), { layers: { a: { input: "x" }, b: { input: "y" }, c: { input: "nothing" } }, ...o });
  await expect(run([bad])).rejects.toThrow(/2\.\n {2}b: .*Infinity in channel 1[\s\S]*c: expected an array "nothing", got "x", "y"/);
  await expect(run([])).rejects.toThrow(/at least one batch/);
  const controller = new AbortController();
  const stop = run([bad, bad], { signal: controller.signal, onProgress: () => controller.abort() });
  await expect(stop).rejects.toMatchObject({ code: "E_ABORTED" });
  await expect(calibrate(stream([{ x: { data: new Float32Array(5), shape: [2, 2] } }]), { layers: { x: {} } })).rejects.toThrow(
    /5 numbers/,
  );
});

test("calibrate: a token budget, every n-th token, and convolutions on maps of any width", async () => {
  const x = gaussianInputs(12);
  const array = (from: number, to: number) => ({ x: { data: x.slice(4 * from, 4 * to), shape: [to - from, 4] } });
  const rows = async (options: object) => (await calibrate([array(0, 5), array(5, 12)], { layers: { x: {} }, ...options })).x.statistics;
  expect((await rows({ maxTokens: 7 })).rows).toBe(7);
  const thin = await rows({ every: 3 });
  const direct = layerStatistics(4);
  for (const t of [0, 3, 5, 8, 11]) direct.add(x.slice(4 * t, 4 * t + 4));
  expect(Array.from(thin.sum)).toEqual(Array.from(direct.finish().sum));
  const geometry = { channels: 4, kernel: [3, 3] as [number, number], pads: [1, 1, 1, 1] as [number, number, number, number], group: 2 };
  const maps = [5, 8].map((width) => ({ x: { data: gaussianInputs(6 * width).slice(0, 4 * 6 * width), shape: [1, 4, 6, width] } }));
  const { conv } = await calibrate(maps, { layers: { conv: { input: "x", convolution: geometry, observer: { method: "minMax" } } } });
  const want = convStatistics(geometry);
  for (const { x: map } of maps) want.add(map.data, map.shape as [number, number, number, number]);
  want.finish().forEach((s, g) => expect(conv.groups[g].hessian).toEqual(s.hessian));
  expect(conv.statistics).toBe(conv.groups[0]);
  expect(conv.observer!.ranges().max[0]).toBe(Math.max(...maps.flatMap(({ x: map }) => Array.from(map.data))));
  // layers that read one input, each by its own windows
  const small = { ...geometry, kernel: [1, 1] as [number, number], pads: [0, 0, 0, 0] as [number, number, number, number] };
  const both = await calibrate(maps, {
    layers: { conv: { input: "x", convolution: geometry }, small: { input: "x", convolution: small } },
  });
  expect([both.conv.statistics.k, both.small.statistics.k]).toEqual([18, 2]);
  await expect(rows({ every: 0 })).rejects.toThrow(/calibrate every: expected a positive integer, got 0/);
});

// Long work in slices: the same result as at once, the event loop gets its turn, an abort between slices rejects.
import { expect, test } from "vitest";
import { format, mxfp4 } from "../../formats/index.ts";
import { quantize, tensor } from "../../src/index.ts";
import {
  adaround,
  advise,
  awq,
  gptq,
  hqq,
  layerStatistics,
  mrgptq,
  rtn,
  runStepsAsync,
  seededRandom,
  gaussian,
} from "../../src/quantize/index.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";

const k = 128;
const acc = layerStatistics(k);
acc.add(inputs("ar", 200, k, 1));
const hessian = acc.finish();
const t = tensor(gaussianWeights(64, k, 2), [64, k]);
const cases = [
  { q: gptq({ hessian, blockSize: 16 }), f: format("int4_b32") },
  { q: mrgptq({ hessian, blockSize: 16 }), f: mxfp4 },
  { q: awq({ statistics: hessian, grid: 4 }), f: format("int4_b32") },
  { q: adaround({ hessian, iterations: 50 }), f: format("int4_b32") },
];

test("in slices and at once give the same packed tensor", async () => {
  for (const { q, f } of cases) {
    const seen: number[] = [];
    const sliced = await runStepsAsync(q.steps(t, f), { sliceMs: 0, onProgress: (p) => seen.push(p.done / p.total) });
    expect(sliced).toEqual(quantize(t, f, q));
    expect(seen.length).toBeGreaterThan(1);
    expect(seen).toEqual([...seen].sort((a, b) => a - b));
    expect(seen.at(-1)).toBe(1);
  }
});

test("a signal from a timer stops the work", async () => {
  for (const { q, f } of cases) {
    const controller = new AbortController();
    setTimeout(() => controller.abort(new Error("enough")), 0);
    const run = runStepsAsync(q.steps(t, f), { sliceMs: 0, signal: controller.signal });
    await expect(run, q.algorithm).rejects.toMatchObject({ code: "E_ABORTED" });
  }
  const before = new AbortController();
  before.abort();
  await expect(runStepsAsync(cases[0].q.steps(t, cases[0].f), { signal: before.signal })).rejects.toMatchObject({ code: "E_ABORTED" });
});

test("scale searches, HQQ and the factor of a large Hessian pause, report and stop too", async () => {
  const many = tensor(gaussianWeights(600, 128, 3), [600, 128]);
  const fine = format("uint4_b16_zp");
  const wide = new Float64Array(1152 * 1152);
  for (let i = 0; i < 1152; i++) for (let j = 0; j < 1152; j++) wide[i * 1152 + j] = 0.9 ** Math.abs(i - j);
  const stopped = [
    { stage: "search", t: many, f: fine, make: (o: object) => rtn({ search: { method: "mse", grid: 4 }, ...o }) },
    { stage: "hqq", t: many, f: fine, make: (o: object) => hqq({ iterations: 2, ...o }) },
    { stage: "gptq factor", t: tensor(gaussianWeights(2, 1152, 4), [2, 1152]), f: format("int4_b64"), make: (o: object) => gptq({ hessian: wide, ...o }) },
  ]; // prettier-ignore
  for (const { stage, t: weight, f, make } of stopped) {
    const stages = new Set<string>();
    const whole = quantize(weight, f, make({ onProgress: (p: { stage: string }) => stages.add(p.stage) }));
    expect(stages.has(stage), stage).toBe(true);
    expect(await runStepsAsync(make({}).steps(weight, f), { sliceMs: 0 })).toEqual(whole);
    const controller = new AbortController();
    const stop = (p: { stage: string }) => p.stage === stage && controller.abort();
    expect(() => quantize(weight, f, make({ signal: controller.signal, onProgress: stop }))).toThrow(/E_ABORTED|abort signal/);
    expect(() => quantize(weight, f, make({ signal: AbortSignal.abort() })), stage).toThrow(expect.objectContaining({ code: "E_ABORTED" }));
  }
  const seen: number[] = [];
  advise(many, [mxfp4, fine], { onProgress: (p) => seen.push(p.done) });
  expect(seen).toEqual([0, 1]);
  expect(() => advise(many, [mxfp4], { signal: AbortSignal.abort() })).toThrow(expect.objectContaining({ code: "E_ABORTED" }));
});

test("seeded numbers repeat, are uniform and Gaussian", () => {
  const [a, b] = [seededRandom(7), seededRandom(7)];
  const list = Array.from({ length: 20_000 }, () => a());
  expect(list.slice(0, 5)).toEqual(Array.from({ length: 5 }, () => b()));
  expect(Math.min(...list)).toBeGreaterThanOrEqual(0);
  expect(Math.max(...list)).toBeLessThan(1);
  const counts = new Array<number>(16).fill(0);
  for (const u of list) counts[Math.floor(16 * u)]++;
  // chi squared with 15 degrees of freedom: 37.7 is the 0.1 % point
  expect(counts.reduce((s, c) => s + (c - 1250) ** 2 / 1250, 0)).toBeLessThan(37.7);
  const normal = gaussian(seededRandom(3));
  let [m1, m2, m4] = [0, 0, 0];
  for (let i = 0; i < 40_000; i++) {
    const v = normal();
    m1 += v / 40_000;
    m2 += (v * v) / 40_000;
    m4 += v ** 4 / 40_000;
  }
  expect(Math.abs(m1)).toBeLessThan(0.02);
  expect(m2).toBeCloseTo(1, 1);
  expect(m4).toBeCloseTo(3, 0);
  expect(() => seededRandom(NaN)).toThrow(TypeError);
});

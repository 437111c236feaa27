// advise and plan: predictions against the published crossovers, plans against every uniform format and against brute
// force.
import { expect, test } from "vitest";
import { format, int4, int8, mxfp4, mxfp6_e2m3, mxfp8_e4m3, mxint4, mxint6, mxint8, nvfp4, nvint4 } from "../../formats/index.ts";
import { tensor } from "../../src/index.ts";
import type { Format } from "../../src/index.ts";
import {
  advise,
  gptq,
  layerStatistics,
  mixedBytes,
  plan,
  predictQsnr,
  profile,
  quantizeMixed,
  relativeLoss,
  type Plan,
  type PlanLayer,
} from "../../src/quantize/index.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";
import { random } from "../helpers/random.ts";

test("crossovers of integer and floating blocks lie where published: 7.54, 1.96, 2.04, 2.39", () => {
  const crossover = (a: Format, b: Format) => {
    let [lo, hi] = [1, 12];
    for (let i = 0; i < 60; i++) {
      const mid = (lo + hi) / 2;
      if (predictQsnr(a, mid)! > predictQsnr(b, mid)!) lo = mid;
      else hi = mid;
    }
    return lo;
  };
  expect(Math.abs(crossover(mxint8, mxfp8_e4m3) - 7.54)).toBeLessThan(0.02);
  expect(Math.abs(crossover(mxint6, mxfp6_e2m3) - 1.96)).toBeLessThan(0.02);
  expect(Math.abs(crossover(mxint4, mxfp4) - 2.04)).toBeLessThan(0.02);
  expect(Math.abs(crossover(nvint4, nvfp4) - 2.39)).toBeLessThan(0.02);
  expect(predictQsnr(format("uint4_b32_zp"), 2)).toBeNull();
  expect(predictQsnr(int4, 2)).toBeNull();
});

test("advise measures what the notes list for Gaussian data, and predicts within 1.5 dB", () => {
  const rng = random(1);
  const x = Float32Array.from({ length: 1 << 16 }, () => rng.normal());
  const t = tensor(x, [64, 1024]);
  const advice = advise(t, [mxfp4, nvfp4, format("int4_b128"), format("int8_b128"), mxint8]);
  const of = (name: string) => advice.find((a) => a.format.name === name)!;
  for (const [name, db] of [
    ["mxfp4", 18.79],
    ["nvfp4", 20.44],
    ["int4_b128", 18.61],
    ["int8_b128", 43.79],
  ] as const)
    expect(Math.abs(of(name).qsnr - db), name).toBeLessThan(0.1);
  for (const a of advice) if (a.predictedQsnr !== null) expect(Math.abs(a.predictedQsnr - a.qsnr), a.format.name).toBeLessThan(1.5);
  expect(of("nvfp4").crestFactor).toBeCloseTo(2.11, 1);
  expect(of("int4_b128").bits).toBe(4.25);
  expect(advice.map((a) => a.qsnr)).toEqual(advice.map((a) => a.qsnr).sort((p, q) => q - p));
  const p = profile(t);
  expect(p.kurtosis).toBeCloseTo(3, 0);
  expect(p.rms).toBeCloseTo(1, 2);
  expect(p.incoherence).toBeCloseTo(p.crestFactor, 9);
  expect(() => advise(tensor(new Float32Array(8), [2, 4]), [int8])).toThrow(/all-zero/);
  expect(() => advise(t, [])).toThrow(TypeError);
});

const candidates = ["int2_b32", "int3_b32", "int4_b32", "int8_row"].map((n) => format(n));
function layers(): PlanLayer[] {
  return [64, 96, 128, 32, 64].map((k, i) => {
    const acc = layerStatistics(k);
    acc.add(inputs(i % 2 ? "ar" : "iid", 300, k, i));
    return {
      name: `l${i}`,
      weight: tensor(gaussianWeights(16 + 8 * i, k, i), [16 + 8 * i, k]),
      statistics: acc.finish(),
      importance: 1 + i,
    };
  });
}

test("plan: within the budget, never worse than the best uniform format, at or near the true optimum", async () => {
  const list = layers();
  for (const bitsPerWeight of [3.1, 3.6, 4.2, 5.5, 7]) {
    const p = await plan(list, { candidates, bitsPerWeight });
    expect(p.bitsPerWeight).toBeLessThanOrEqual(bitsPerWeight);
    let weights = 0;
    for (const l of list) weights += l.weight.shape[0] * l.weight.shape[1];
    const budget = Math.floor((bitsPerWeight * weights) / 8);
    let optimum = Infinity;
    const walk = (i: number, bytes: number, loss: number): void => {
      if (bytes > budget) return;
      if (i === p.table.length) optimum = Math.min(optimum, loss);
      else p.table[i].loss.forEach((l, c) => walk(i + 1, bytes + p.table[i].bytes[c], loss + l));
    };
    walk(0, 0, 0);
    expect(p.loss / optimum).toBeLessThan(1.02);
    for (let c = 0; c < candidates.length; c++) {
      const bytes = p.table.reduce((n, r) => n + r.bytes[c], 0);
      const loss = p.table.reduce((n, r) => n + r.loss[c], 0);
      if (bytes <= budget) expect(p.loss).toBeLessThanOrEqual(loss);
    }
  }
  const bound = (await plan(list, { candidates, bitsPerWeight: 4.2 })).loss;
  const small = await plan(list, { candidates, maxLoss: bound });
  expect(small.loss).toBeLessThanOrEqual(bound);
  expect(small.bitsPerWeight).toBeLessThanOrEqual(4.2);
});

test("policies, quantizers and errors", async () => {
  const list = layers();
  const better = await plan(list, {
    candidates,
    bitsPerWeight: 4.2,
    quantizer: (l) => gptq({ hessian: l.statistics!, name: l.name }),
  });
  expect(better.loss).toBeLessThan((await plan(list, { candidates, bitsPerWeight: 4.2 })).loss);
  const npe = await plan(list, { candidates, policy: "xr-npe", layerLoss: 0.01 });
  npe.layers.forEach((l, i) => {
    expect(l.loss).toBeLessThanOrEqual(0.01 * list[i].importance!);
    const row = npe.table[i];
    for (let c = 0; c < candidates.length; c++)
      if (row.loss[c] <= 0.01 * list[i].importance!) expect(l.bytes).toBeLessThanOrEqual(row.bytes[c]);
  });
  const flex = await plan(list, { candidates: [candidates[1], candidates[3]], policy: "flexq", layerLoss: 0.03 });
  flex.layers.forEach((l, i) => expect(l.format).toBe(flex.table[i].loss[0] > 0.03 * list[i].importance! ? candidates[3] : candidates[1]));
  await expect(plan(list, { candidates, bitsPerWeight: 1 })).rejects.toThrow(/budget of at least \d+ \(bytes\)/);
  await expect(plan(list, { candidates, maxLoss: 1e-12 })).rejects.toThrow(/\(loss\), got 1e-12/);
  await expect(plan(list, { candidates, policy: "xr-npe", layerLoss: 1e-12 })).rejects.toThrow(/layer "l0"/);
  await expect(plan(list, { candidates })).rejects.toThrow(TypeError);
  await expect(plan(list, { candidates, policy: "xr-npe", maxLoss: 1 })).rejects.toThrow(/budgetBytes, bitsPerWeight, layerLoss/);
  await expect(plan(list, { candidates, bitsPerWeight: 4, layerLoss: 0.1 })).rejects.toThrow(/got bitsPerWeight and layerLoss/);
  await expect(plan(list, { candidates, policy: "comet", bitsPerWeight: 4 })).rejects.toThrow(/two candidates/);
  await expect(plan([{ ...list[0], importance: NaN }], { candidates, bitsPerWeight: 4 })).rejects.toThrow(/l0.*importance/);
  // What goes wrong inside is reported with its layer.
  const spoiled = (list[1].weight.data as Float32Array).slice();
  spoiled[5] = NaN;
  const broken = [list[0], { ...list[1], weight: tensor(spoiled, list[1].weight.shape) }];
  await expect(plan(broken, { candidates, bitsPerWeight: 4 })).rejects.toThrow(/layer "l1".*NaN/);
  const constant = layerStatistics(64);
  constant.add(new Float32Array(64 * 50).fill(1));
  const flat = [{ ...list[0], statistics: constant.finish() }];
  const nameless = (l: PlanLayer) => gptq({ hessian: l.statistics! });
  await expect(plan(flat, { candidates, bitsPerWeight: 4, quantizer: nameless })).rejects.toThrow(/layer "l0".*50 equal tokens/);
  const narrow = [format("ggml_q4_0"), format("ggml_q4_k")];
  await expect(plan(list, { candidates: narrow, bitsPerWeight: 5 })).rejects.toMatchObject({
    code: "E_SHAPE",
    message: expect.stringMatching(/layer "l0"/),
  });
  const bare = [{ name: "fc", weight: list[0].weight }];
  await expect(plan(bare, { candidates: candidates.slice(1, 3), policy: "comet", bitsPerWeight: 4 })).rejects.toThrow(/"fc".*statistics/);
  await expect(plan([], { candidates, bitsPerWeight: 4 })).rejects.toThrow(TypeError);
  const controller = new AbortController();
  controller.abort();
  await expect(plan(list, { candidates, bitsPerWeight: 4, signal: controller.signal })).rejects.toMatchObject({ code: "E_ABORTED" });
});

const uniformOf = (p: Plan, comet: boolean, candidates: number) =>
  Array.from({ length: candidates }, (_, c) => {
    const column = (r: Plan["table"][number]) => (comet && c === 1 ? r.loss.length - 1 : c);
    const sum = (what: "loss" | "bytes") => p.table.reduce((n, r) => n + r[what][column(r)], 0);
    return { loss: sum("loss"), bytes: sum("bytes"), losses: p.table.map((r) => r.loss[column(r)]) };
  });

test("no policy is worse than a uniform format of the same bytes on its own objective", async () => {
  const list = layers();
  const pair = [candidates[1], candidates[3]];
  for (const bitsPerWeight of [4.2, 5.5, 7, 9]) {
    for (const policy of ["balanced", "flexq", "comet"] as const) {
      const p = await plan(list, { candidates: pair, policy, bitsPerWeight, channelBlock: 16 });
      expect(p.bitsPerWeight).toBeLessThanOrEqual(bitsPerWeight);
      for (const u of uniformOf(p, policy === "comet", 2))
        if (8 * u.bytes <= bitsPerWeight * ((8 * p.bytes) / p.bitsPerWeight)) expect(p.loss).toBeLessThanOrEqual(u.loss);
    }
    // The largest relative loss of a layer is what xr-npe minimises within a budget.
    const p = await plan(list, { candidates, policy: "xr-npe", bitsPerWeight });
    const worst = (losses: readonly number[]) => Math.max(...losses.map((l, i) => l / list[i].importance!));
    for (const u of uniformOf(p, false, 4))
      if (8 * u.bytes <= bitsPerWeight * ((8 * p.bytes) / p.bitsPerWeight))
        expect(worst(p.layers.map((l) => l.loss))).toBeLessThanOrEqual(worst(u.losses));
  }
  for (const layerLoss of [1e-3, 5e-3, 0.03]) {
    for (const policy of ["flexq", "comet", "xr-npe"] as const) {
      const p = await plan(list, { candidates: pair, policy, layerLoss, channelBlock: 16 });
      const within = (losses: readonly number[]) => losses.every((l, i) => l <= layerLoss * list[i].importance!);
      for (const u of uniformOf(p, policy === "comet", 2)) {
        if (policy !== "flexq" && within(u.losses)) expect(p.bytes).toBeLessThanOrEqual(u.bytes);
        if (policy === "flexq" && u.bytes <= p.bytes) expect(p.loss).toBeLessThanOrEqual(u.loss);
      }
      if (policy !== "flexq") expect(within(p.layers.map((l) => l.loss))).toBe(true);
    }
  }
});

test("comet: a few wide blocks of outlier channels beat both a narrow format and whole wide layers at the same bytes", async () => {
  const k = 128;
  const list = [1, 2, 3].map((seed): PlanLayer => {
    const x = inputs("iid", 300, k, seed);
    for (let t = 0; t < 300; t++) for (const j of [5, 40, 90, 91]) x[t * k + j] *= 30;
    const acc = layerStatistics(k);
    acc.add(x);
    return { name: `l${seed}`, weight: tensor(gaussianWeights(64, k, seed), [64, k]), statistics: acc.finish() };
  });
  const pair = [format("int3_b16"), format("int8_b16")];
  const o = { candidates: pair, bitsPerWeight: 6.2, channelBlock: 16 };
  const whole = await plan(list, { ...o, policy: "flexq" });
  const comet = await plan(list, { ...o, policy: "comet" });
  expect(comet.loss).toBeLessThan(0.1 * whole.loss);
  for (const [i, l] of comet.layers.entries()) {
    expect(l.split!.wide).toBe(pair[1]);
    const mixed = quantizeMixed(list[i].weight, l.split!.channels, [l.split!.wide, l.format], { statistics: list[i].statistics! });
    expect(mixedBytes(mixed)).toBe(l.bytes);
    expect(relativeLoss(list[i], mixed)).toBe(l.loss);
    // The outliers stand at the front.
    expect([...l.split!.channels.order.subarray(0, 4)].sort((a, b) => a - b)).toEqual([5, 40, 90, 91]);
  }
  const quantizer = (l: PlanLayer) => gptq({ hessian: l.statistics!, name: l.name });
  expect((await plan(list, { ...o, policy: "comet", quantizer })).loss).toBeLessThan(comet.loss);
});

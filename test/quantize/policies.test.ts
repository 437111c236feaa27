// Plans on losses that are given, so that every choice can be said in advance; the closed formulas of predictions on all
// formats that have one; what a format stores and how a tensor is described, by hand.
import { describe, expect, test } from "vitest";
import { float16, float8_e8m0fnu, format, int4, mxfp4, mxfp6_e2m3, mxfp8_e4m3, mxint8, nvfp4 } from "../../formats/index.ts";
import { defineBlock, defineInt } from "../../formats/define/index.ts";
import { quantize, tensor, type Format } from "../../src/index.ts";
import {
  advise,
  layerStatistics,
  mixedBytes,
  outlierSplit,
  plan,
  predictQsnr,
  profile,
  quantizeMixed,
  relativeLoss,
  storedBits,
  storedBytes,
  type PlanLayer,
  type PlanOptions,
} from "../../src/quantize/index.ts";
import { gaussianWeights } from "../helpers/layers.ts";
import { floatNoise, intNoise } from "../helpers/statistics.ts";

const [narrow, middle, wide] = ["int2_row", "int4_row", "int8_row"].map((name) => format(name));
/** 64 weights: 16, 32, 64 bytes of codes and a scale of 4 in each of 4 rows: 32, 48 and 80. */
const layers: PlanLayer[] = ["a", "b"].map((name, i) => ({ name, weight: tensor(gaussianWeights(4, 16, i), [4, 16]) }));
const losses: Record<string, number[]> = { a: [8, 2, 1], b: [4, 3, 0] };
const indexOf = (f: Format) => [narrow, middle, wide].indexOf(f);
const loss: PlanOptions["loss"] = ({ name }, f) => losses[name][indexOf(f)];
const all = [narrow, middle, wide];
const formatsOf = async (options: object, list: PlanLayer[] = layers) => {
  const { layers: chosen, ...rest } = await plan(list, { candidates: all, loss, ...options });
  return { chosen: chosen.map(({ format: f }) => indexOf(f)), ...rest };
};

describe("policies", () => {
  test("balanced, by bytes, by bits and by loss", async () => {
    const got = await formatsOf({ budgetBytes: 111 });
    // a wide and b narrow (80 + 32) is a byte too much
    expect(got).toMatchObject({ chosen: [1, 1], bytes: 96, loss: 5, bitsPerWeight: (8 * 96) / 128 });
    expect(got.table).toEqual([
      { name: "a", loss: [8, 2, 1], bytes: [32, 48, 80] },
      { name: "b", loss: [4, 3, 0], bytes: [32, 48, 80] },
    ]);
    expect(await formatsOf({ budgetBytes: 128 })).toMatchObject({ chosen: [1, 2], bytes: 128, loss: 2 });
    expect(await formatsOf({ bitsPerWeight: 8 })).toMatchObject({ chosen: [1, 2], bytes: 128 });
    expect(await formatsOf({ bitsPerWeight: 7.99 })).toMatchObject({ chosen: [1, 1] });
    expect(await formatsOf({ maxLoss: 2 })).toMatchObject({ chosen: [1, 2], loss: 2 });
    expect(await formatsOf({ maxLoss: 1.99 })).toMatchObject({ chosen: [2, 2], loss: 1 });
    expect(await formatsOf({ maxLoss: 6 })).toMatchObject({ chosen: [1, 0], bytes: 80 });
    await expect(formatsOf({ maxLoss: 0.9 })).rejects.toThrow(/at least 1 \(loss\), got 0.9/);
    await expect(formatsOf({ budgetBytes: 63 })).rejects.toThrow(/at least 64 \(bytes\), got 63/);
    // the importance of a layer multiplies its loss: that of b counts ten times
    const important = [layers[0], { ...layers[1], importance: 10 }];
    expect(await formatsOf({ budgetBytes: 112 }, important)).toMatchObject({ chosen: [0, 2], loss: 8 });
    const none = [layers[0], { ...layers[1], importance: 0 }];
    expect(await formatsOf({ budgetBytes: 112 }, none)).toMatchObject({ chosen: [2, 0], loss: 1 });
  });

  test("xr-npe: the cheapest within a bound before importance, or the least bound that bytes allow", async () => {
    const important = [{ ...layers[0], importance: 3 }, layers[1]];
    for (const list of [layers, important]) {
      expect((await formatsOf({ policy: "xr-npe", layerLoss: 3 }, list)).chosen).toEqual([1, 1]);
      expect((await formatsOf({ policy: "xr-npe", layerLoss: 2.9 }, list)).chosen).toEqual([1, 2]);
      expect((await formatsOf({ policy: "xr-npe", layerLoss: 8 }, list)).chosen).toEqual([0, 0]);
      expect((await formatsOf({ policy: "xr-npe", budgetBytes: 112 }, list)).chosen).toEqual([1, 1]);
      expect((await formatsOf({ policy: "xr-npe", budgetBytes: 80 }, list)).chosen).toEqual([1, 0]);
    }
  });

  test("flexq: the wide one where the loss of the narrow one exceeds the bound, and the wide one helps", async () => {
    const pair = { candidates: [narrow, wide], policy: "flexq" };
    expect((await formatsOf({ ...pair, layerLoss: 4 })).chosen).toEqual([2, 0]);
    expect((await formatsOf({ ...pair, layerLoss: 3.9 })).chosen).toEqual([2, 2]);
    const important = [
      { ...layers[0], importance: 0.5 },
      { ...layers[1], importance: 2 },
    ];
    expect((await formatsOf({ ...pair, layerLoss: 4 }, important)).chosen).toEqual([2, 0]);
    const backwards = { candidates: [wide, narrow], policy: "flexq", layerLoss: 0.5 };
    expect((await formatsOf(backwards)).chosen).toEqual([2, 2]);
    expect((await formatsOf({ ...pair, budgetBytes: 112 })).chosen).toEqual([2, 0]);
  });

  test("comet: 1, 2, 4 ... blocks of channels wide, then all; what a loss is asked about", async () => {
    const made = layerStatistics(16);
    made.add(Float32Array.from({ length: 160 }, (_, i) => Math.cos(i * i) * (i % 16 === 5 ? 20 : 1)));
    const statistics = made.finish();
    const list = layers.map((l) => ({ ...l, statistics }));
    const asked: string[] = [];
    const ask: PlanOptions["loss"] = ({ name }, f, packed) => {
      asked.push(`${name} ${f.name} ${"parts" in packed ? packed.split.wide : "whole"}`);
      return 100 - ("parts" in packed ? packed.split.wide : f === wide ? 16 : 0);
    };
    const seen: unknown[] = [];
    const options = { candidates: [narrow, wide], policy: "comet", loss: ask, channelBlock: 3, budgetBytes: 150 } as const;
    const got = await plan(list, { ...options, onProgress: (p) => seen.push(p) });
    const own = ["whole", "3", "6", "12", "whole"].map((w, i) => `${i === 0 ? "int2_row" : "int8_row"} ${w}`);
    expect(asked).toEqual(["a", "b"].flatMap((name) => own.map((w) => `${name} ${w}`)));
    expect(got.table[0].loss).toEqual([100, 97, 94, 88, 84]);
    const bytes = [1, 2, 4].map((b) => mixedBytes(quantizeMixed(list[0].weight, outlierSplit(statistics, { block: 3, wideBlocks: b }), [wide, narrow]))); // prettier-ignore
    expect(got.table[0].bytes).toEqual([32, ...bytes, 80]);
    expect(seen).toEqual(["a", "b"].map((layer, i) => ({ stage: "plan", done: i + 1, total: 2, layer })));
    expect(got.layers[0].split?.wide ?? wide).toBe(wide);
    // blocks that fill the layer are the wide format itself
    asked.length = 0;
    await plan([list[0]], { ...options, channelBlock: 8 });
    expect(asked.map((w) => w.split(" ")[2])).toEqual(["whole", "8", "whole"]);
    await expect(plan([{ ...list[0], weight: tensor(new Float32Array(8), [1, 8]) }], options)).rejects.toThrow(
      /"a": expected inputs of 8, got 16/,
    );
  });

  test("options", async () => {
    for (const bad of [NaN, Infinity]) await expect(formatsOf({ budgetBytes: 112, loss: () => bad })).rejects.toThrow(/"a": expected a finite loss in int2_row, got/); // prettier-ignore
    for (const [what, value] of [["budgetBytes", 0], ["bitsPerWeight", -1], ["maxLoss", NaN], ["maxLoss", Infinity]] as const) await expect(formatsOf({ [what]: value })).rejects.toThrow(RangeError); // prettier-ignore
    for (const channelBlock of [0, 1.5]) await expect(formatsOf({ budgetBytes: 112, channelBlock })).rejects.toThrow(RangeError);
    await expect(formatsOf({ budgetBytes: 112, policy: "best" })).rejects.toThrow(/expected balanced, xr-npe, flexq, comet, got "best"/);
    for (const policy of ["flexq", "comet"])
      await expect(formatsOf({ budgetBytes: 112, policy })).rejects.toThrow(/two candidates, narrow and wide/);
    await expect(formatsOf({ budgetBytes: 112 }, [layers[0], layers[0]])).rejects.toThrow(/"a" twice/);
    await expect(formatsOf({ budgetBytes: 112, candidates: [] })).rejects.toThrow(TypeError);
    for (const importance of [-1, Infinity]) await expect(formatsOf({ budgetBytes: 112 }, [{ ...layers[0], importance }])).rejects.toThrow(RangeError); // prettier-ignore
    for (const [policy, name] of [["balanced", "layerLoss"], ["xr-npe", "maxLoss"]]) await expect(formatsOf({ policy, [name]: 1 })).rejects.toThrow(/expected one of budgetBytes, bitsPerWeight/); // prettier-ignore
  });
});

test("losses relative to the outputs, to the weights where there are no inputs, none where there is nothing", () => {
  const weight = tensor(Float32Array.of(7, -3.5, 0.25, 0.25), [2, 2]);
  const packed = quantize(weight, format("int4_row"));
  // rows over 1 and .25 / 7: 3.5 becomes 4, the rest is exact
  expect(relativeLoss({ name: "a", weight }, packed)).toBeCloseTo(0.25 / (49 + 12.25 + 0.125), 6);
  const made = layerStatistics(2);
  made.add(Float32Array.of(1, 2, 0, 1));
  const statistics = made.finish(); // H = [[1, 2], [2, 5]]
  const energy = 49 * 1 + 2 * 7 * -3.5 * 2 + 12.25 * 5 + 0.0625 * (1 + 4 + 5);
  expect(relativeLoss({ name: "a", weight, statistics }, packed)).toBeCloseTo((0.25 * 5) / energy, 6);
  const zeros = tensor(new Float32Array(4), [2, 2]);
  expect(relativeLoss({ name: "a", weight: zeros }, quantize(zeros, format("int4_row")))).toBe(0);
  expect(() => relativeLoss({ name: "a", weight: tensor(new Float32Array(3), [1, 3]), statistics }, packed)).toThrow(/"a": expected inputs of 3, got 2/); // prettier-ignore
});

describe("advice", () => {
  test("predictions are the closed formulas, at any crest factor", () => {
    const db = (noise: number) => -10 * Math.log10(noise);
    for (const crest of [1, 1.5, 2, 3.1, 5, 9]) {
      const near = (f: Format, want: number) => expect(predictQsnr(f, crest)! / want, `${f.name} ${crest}`).toBeCloseTo(1, 9);
      near(mxint8, db(intNoise(8, crest, 1.5)));
      near(format("int4_b32"), db(intNoise(4, crest, 1, 32)));
      near(format("int8_row"), db(intNoise(8, crest, 1)));
      near(defineBlock({ element: defineInt({ bits: 6, signed: true }), scales: [{ format: float8_e8m0fnu, span: 16 }] }), db(intNoise(6, crest, 1.5))); // prettier-ignore
      near(defineBlock({ element: int4, scales: [{ format: float16, span: 64 }] }), db(intNoise(4, crest, 1, 64)));
      near(nvfp4, db(floatNoise(1, 1, 6, crest, 1.05, 16)));
      near(mxfp4, db(floatNoise(1, 1, 6, crest, 1.5)));
      near(mxfp6_e2m3, db(floatNoise(3, 1, 7.5, crest, 1.5)));
      near(mxfp8_e4m3, db(floatNoise(3, 7, 448, crest, 1.5)));
    }
    for (const name of ["nf4_b64", "posit8_es1_b32", "uint4_b32_zp", "float8_e4m3fn", "ggml_q4_0"])
      expect(predictQsnr(format(name), 3), name).toBeNull();
  });

  test("stored bits of every kind of format", () => {
    expect(storedBits(int4, 3, 5)).toBe(4);
    expect(storedBits(format("ggml_q4_0"), 2, 64)).toBe(4.5);
    expect(storedBits(format("int4_b32"), 64, 256)).toBe(5);
    expect(storedBits(format("int8_tensor"), 4, 8)).toBe(9);
    const packed = quantize(tensor(gaussianWeights(4, 32, 1), [4, 32]), format("uint4_b16_zp"));
    // codes, scales of 4 bytes, two zero points of 4 bits in a row
    expect(storedBytes(packed)).toBe(64 + 32 + 4);
    expect(storedBytes(quantize(tensor(gaussianWeights(4, 32, 1), [4, 32]), nvfp4))).toBe(64 + 8 + 4);
  });

  test("profiles and advice on numbers that can be counted", () => {
    const t = tensor(Float32Array.of(3, -1, 1, 1, 0, 0, 0, 0), [2, 4]);
    const rms = Math.sqrt(12 / 8);
    const p = profile(t);
    expect([p.rms, p.amax]).toEqual([rms, 3]);
    expect(p.crestFactor).toBeCloseTo(3 / rms, 14);
    expect(p.kurtosis).toBeCloseTo(84 / 8 / (12 / 8) ** 2, 14);
    expect(p.incoherence).toBeCloseTo((3 * Math.sqrt(8)) / Math.sqrt(12), 14);
    const advice = advise(t, [format("int2_row"), format("int3_row"), int4]);
    // 3 over 3 and 1 over 3: nothing is lost but by int2, whose scale is 3: three ones become 0
    expect(advice.map(({ format: f, qsnr, relativeError, bits }) => [f.name, qsnr, relativeError, bits])).toEqual([
      ["int3_row", Infinity, 0, 3 + 32 / 4],
      ["int4", Infinity, 0, 4],
      ["int2_row", -10 * Math.log10(3 / 12), 3 / 12, 2 + 32 / 4],
    ]);
    // rows of zeros do not count
    expect(advice[0].crestFactor).toBeCloseTo(3 / Math.sqrt(3), 14);
    expect(advice[1].crestFactor).toBeCloseTo(3 / rms, 14);
    expect(advice[1].predictedQsnr).toBeNull();
    expect(advice[0].predictedQsnr).toBe(predictQsnr(format("int3_row"), advice[0].crestFactor));
    const tile = advise(t, [defineBlock({ element: int4, scales: [{ format: float16, span: [2, 2] }] })])[0];
    // tiles [3, -1, 0, 0] and [1, 1, 0, 0]
    expect(tile.crestFactor).toBeCloseTo((3 / Math.sqrt(10 / 4) + 1 / Math.sqrt(2 / 4)) / 2, 14);
    expect(() => profile(tensor(new Float32Array(4), [2, 2]))).toThrow(expect.objectContaining({ code: "E_VALUE" }));
    expect(() => advise(t, undefined as never)).toThrow(TypeError);
  });
});

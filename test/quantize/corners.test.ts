// Where ranges end and nothing is left: blocks of zeros under rules of their own, scales at the ends of their formats,
// layers whose best plan takes three changes at once, tables at their limits.
import { describe, expect, test } from "vitest";
import { defineBlock, float16, float32, float8_e4m3fn, format, nf4 } from "../../formats/index.ts";
import { dequantize, quantize, tensor, unpack } from "../../src/index.ts";
import type { BlockFormat } from "../../src/index.ts";
import {
  adaround,
  awq,
  calibrate,
  driftStatistics,
  dyadic,
  dyadicVector,
  gptq,
  hadamardRotation,
  integerLayerNorm,
  integerNorm,
  layerStatistics,
  mixedBytes,
  mrgptq,
  observer,
  outlierSplit,
  outputError,
  plan,
  planMixture,
  quantizeMixed,
  quest,
  refit,
  refitWeight,
  rtn,
  searchSmoothing,
  shiftmax,
  type PlanOptions,
} from "../../src/quantize/index.ts";
import { minimise } from "../../src/quantize/choose.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";

const [rows, k] = [4, 64];
const w = gaussianWeights(rows, k, 3);
const made = layerStatistics(k);
made.add(inputs("ar", 200, k, 4, 0.95));
const stats = made.finish();

describe("plans", () => {
  /** Each layer in one of two ways: as it is for 10, or `cost` more for `gain` less of the loss. */
  const table = (...ways: [cost: number, gain: number][]) => ways.map(([cost, gain], i) => ({ name: `${i}`, loss: [20, 20 - gain], bytes: [10, 10 + cost] })); // prettier-ignore

  test("three small changes that gain more together than a large one: by gain for each byte", () => {
    // the large one gains most alone; with it, no change of two layers is for the better
    const rows4 = table([6, 10], [2, 4], [2, 4], [2, 4]);
    expect(minimise(rows4, "loss", "bytes", 46, [])).toEqual([0, 1, 1, 1]);
    expect(minimise(rows4, "bytes", "loss", 68, [])).toEqual([0, 1, 1, 1]);
    // more of them, with more ways each
    const many = table([9, 10], ...new Array<[number, number]>(9).fill([1, 1.5]));
    expect(minimise(many, "loss", "bytes", 109, [])).toEqual([0, ...new Array<number>(9).fill(1)]);
  });

  test("what fits to the byte is taken, a byte less is not", () => {
    const rows2 = [{ name: "a", loss: [9, 1], bytes: [1, 9] }, { name: "b", loss: [9, 8], bytes: [1, 9] }]; // prettier-ignore
    expect(minimise(rows2, "loss", "bytes", 18, [[0, 0], [1, 1]])).toEqual([1, 1]); // prettier-ignore
    expect(minimise(rows2, "loss", "bytes", 17, [[0, 0], [1, 1]])).toEqual([1, 0]); // prettier-ignore
  });

  test("comet: all layers in the wide format, where that is best", async () => {
    const [narrow, wide] = [format("int2_row"), format("int8_row")];
    const few = layerStatistics(16);
    few.add(inputs("iid", 40, 16, 1));
    const layers = ["a", "b", "c"].map((name) => ({ name, weight: tensor(gaussianWeights(4, 16, 1), [4, 16]), statistics: few.finish() }));
    // narrow 32 bytes, a block of channels wide 104, all of them 80
    const loss: PlanOptions["loss"] = (_, f, packed) => ("parts" in packed ? 0 : f === wide ? 2.4 : 8);
    const got = await plan(layers, { candidates: [narrow, wide], policy: "comet", channelBlock: 8, budgetBytes: 240, loss });
    expect(got.table[0]).toEqual({ name: "a", loss: [8, 0, 2.4], bytes: [32, 104, 80] });
    expect(got.layers.map((l) => [l.format, l.split])).toEqual([[wide, undefined], [wide, undefined], [wide, undefined]]); // prettier-ignore
  });

  test("of mixtures with equal gains the faster one first", () => {
    const row = (...list: [number, number][]) => list.map(([ms, loss]) => ({ name: `${ms}`, ms, loss }));
    for (const order of [["a", "b"], ["b", "a"]]) {
      const all = { a: row([10, 0], [8, 0.25]), b: row([6, 0], [4, 0.25]) };
      const layers = new Map(order.map((name) => [name, all[name as "a"]]));
      const { chosen } = planMixture(layers, { maxLoss: 0.25 });
      expect([chosen.get("a")!.ms, chosen.get("b")!.ms]).toEqual([10, 4]);
    } // prettier-ignore
  });
});

test("formats with a mean and one level of scales: the mean of the weights at the start stays", () => {
  const f = defineBlock({ name: "nf4_mean", element: nf4, scales: [{ format: float8_e4m3fn, span: 16 }], offset: { role: "mean", levels: [{ format: float32, span: "tensor" }] } }); // prettier-ignore
  const big = tensor(w.map((v) => 100 * v), [rows, k]); // prettier-ignore
  const [plain, packed] = [quantize(big, f), quantize(big, f, gptq({ hessian: stats }))];
  expect(packed.offsets).toEqual(plain.offsets);
  expect(packed.scales).not.toEqual(plain.scales);
  const error = (p: typeof plain) => outputError(big.data, dequantize(p), rows, stats.hessian);
  expect(error(packed)).toBeLessThan(0.5 * error(plain));
});

test("blocks of zeros under the range of half a step: they stay near zero while others move", () => {
  const data = w.slice();
  for (let r = 0; r < rows; r++) data.fill(0, r * k + 16, r * k + 32);
  const t = tensor(data, [rows, k]);
  const packed = quantize(t, format("int4_b16"), gptq({ hessian: stats, rangeRule: "gptq", staticGroups: true }));
  const codes = unpack(packed);
  const scales = new Float32Array(packed.scales!.slice().buffer);
  for (let r = 0; r < rows; r++) {
    expect(scales[r * 4 + 1]).toBe(1);
    for (let j = 16; j < 32; j++) expect(codes[r * k + j]).toBe(0);
  }
});

test("ties of NVFP4 in float32 steps: as without GPTQ, where exact division goes the other way", () => {
  const f = format("nvfp4") as BlockFormat;
  const base = gaussianWeights(24, k, 5, 1);
  const first = quantize(tensor(base, [24, k]), f);
  const outer = new Float32Array(first.superScales!.slice().buffer)[0];
  const ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5];
  const data = base.slice();
  for (let c = 0; c < data.length / 16; c++) {
    const block = base.subarray(16 * c, 16 * c + 16);
    const top = block.reduce((best, v, i) => (Math.abs(v) > Math.abs(block[best]) ? i : best), 0);
    const s = Math.fround(f.scales[0].format.decode(first.scales![c]) * outer);
    for (let i = 0; i < 16; i++) if (i !== top) data[16 * c + i] = Math.fround(ties[i % 7] * s) * (i % 2 === 0 ? 1 : -1);
  }
  const t = tensor(data, [24, k]);
  const diagonal = new Float64Array(k * k);
  for (let i = 0; i < k; i++) diagonal[i * k + i] = 1;
  const plain = quantize(t, f);
  expect(plain.scales).toEqual(first.scales);
  expect(quantize(t, f, gptq({ hessian: diagonal })).codes).toEqual(plain.codes);
  // half to even in exact arithmetic would be other codes
  const exact = Array.from(data, (v, i) => f.element.encode(v / Math.fround(f.scales[0].format.decode(first.scales![i >> 4]) * outer)));
  expect([...unpack(plain)]).not.toEqual(exact);
});

test("scales at the end of their format: polish does not go beyond it, and is no worse", () => {
  for (const unit of [2 ** -125, 2 ** -122, 2 ** 120]) {
    const t = tensor(w.map((v) => v * unit), [rows, k]); // prettier-ignore
    const run = (polish: number) => dequantize(quantize(t, format("mxfp4"), gptq({ hessian: stats, polish })), { dtype: "float64" });
    const error = (values: Float64Array) => outputError(t.data.map((v) => v / unit), values.map((v) => v / unit), rows, stats.hessian); // prettier-ignore
    const values = run(3);
    expect(values.every(Number.isFinite)).toBe(true);
    expect(error(values)).toBeLessThanOrEqual(error(run(0)) * 1.02); // its own objective is damped
  }
});

describe("defaults and limits", () => {
  test("refits pull towards the weight by .05 of the inputs' power", () => {
    const collected = driftStatistics(k);
    const x = inputs("ar", 100, k, 6);
    collected.add(x, x.map((v, i) => 0.9 * v + 0.1 * Math.sin(i))); // prettier-ignore
    const drift = collected.finish();
    const t = tensor(w, [rows, k]);
    expect(refitWeight(t, { drift })).toEqual(refitWeight(t, { drift, ridge: 0.05 }));
    expect(quantize(t, format("int4_b16"), refit({ drift }))).toEqual(quantize(t, format("int4_b16"), refit({ drift, ridge: 0.05 })));
    // the quantizer after it sees the name and the least number of tokens
    expect(() => quantize(t, format("int4_b16"), refit({ drift, minRows: 101, name: "fc" }))).toThrow(
      /of layer "fc": expected at least 101 calibration tokens/,
    );
    expect(() => quantize(t, format("int4_b16"), refit({ drift, minRows: 100 }))).not.toThrow();
  });

  test("Hessians of an infinite size are refused", () => {
    const huge = new Float64Array(4).fill(0);
    for (const v of [Infinity, 1.7e308]) {
      huge[0] = huge[3] = v;
      for (const quantizer of [adaround({ hessian: huge, iterations: 1 }), gptq({ hessian: huge })]) {
        const run = () => quantize(tensor(Float32Array.of(1, 2), [1, 2]), format("int4_row"), quantizer);
        if (v === Infinity) expect(run, quantizer.algorithm).toThrow(expect.objectContaining({ code: "E_CALIBRATION" }));
      }
    }
  });

  test("signals that are aborted before anything is read", async () => {
    const read: number[] = [];
    function* source() {
      read.push(1);
      yield { x: { data: new Float32Array(2), shape: [1, 2] } };
    }
    const run = calibrate(source(), { layers: { x: {} }, signal: AbortSignal.abort("enough") });
    await expect(run).rejects.toMatchObject({ code: "E_ABORTED", cause: "enough", message: expect.stringContaining("calibrate: expected to run to the end") as string }); // prettier-ignore
    expect(read).toEqual([]);
  });

  test("moving averages start at the first batch and go a share of the way to each next one", () => {
    const o = observer(1, { method: "movingAverage", momentum: 0.25 });
    for (const batch of [[-2, 4], [-6, 8], [-1, -0.5]]) o.observe(Float32Array.from(batch)); // prettier-ignore
    // -2, -3, -2.5 and 4, 5, 3.625
    expect(o.ranges()).toEqual({ min: Float64Array.of(-2.5), max: Float64Array.of(3.625) });
    const slow = observer(1, { method: "movingAverage", symmetric: true });
    slow.observe(Float32Array.of(-100, 4));
    slow.observe(Float32Array.of(0, 300));
    // by a hundredth: -99 and 6.96
    expect(slow.ranges()).toEqual({ min: Float64Array.of(-99), max: Float64Array.of(99) });
  });

  test("activations of 2 to 16 bits", () => {
    const search = (activationBits: number) => searchSmoothing([{ weight: w, rows, k }], { statistics: stats, format: format("int4_b16"), alphas: [0.5], activationBits }); // prettier-ignore
    const errors = [2, 4, 8, 16].map((bits) => search(bits).errors[0]);
    expect(errors).toEqual([...errors].sort((a, b) => b - a));
    for (const bits of [1, 17, 4.5]) expect(() => search(bits)).toThrow(RangeError);
    const alphas = { statistics: stats, format: format("int4_b16") };
    for (const bad of [[-0.1], [1.1], [NaN]]) expect(() => searchSmoothing([{ weight: w, rows, k }], { ...alphas, alphas: bad })).toThrow(RangeError); // prettier-ignore
  });

  test("bytes of an order: two for each channel up to 65536, four beyond", () => {
    const { parts } = quantizeMixed(tensor(w, [rows, k]), outlierSplit(new Float64Array(k).fill(1), { block: 16, wideBlocks: 1 }), [format("int8_row"), format("int4_row")]); // prettier-ignore
    const own = mixedBytes({ parts, k: 0 } as never);
    for (const [channels, bytes] of [[64, 2], [65536, 2], [65537, 4]]) expect(mixedBytes({ parts, k: channels } as never)).toBe(own + bytes * channels); // prettier-ignore
    expect(mixedBytes({ parts: parts.slice(1), k: 65537 } as never)).toBe(rows * (48 / 2 + 4));
    // nothing is moved where all channels have one format
    const all = outlierSplit([1, 5, 3, 9], { block: 2, wideBlocks: 2, threshold: 0.5 });
    expect([all.wide, ...all.order]).toEqual([4, 0, 1, 2, 3]);
    expect(outlierSplit([3]).k).toBe(1);
  });

  test("blocks of one in a rotation only flip signs", () => {
    const x = Float64Array.of(1, 2, 3);
    hadamardRotation(3, { block: 1 }).apply(x);
    expect([...x]).toEqual([1, 2, 3]);
    hadamardRotation(3, { block: 1, seed: 1 }).apply(x);
    expect([...x].map(Math.abs)).toEqual([1, 2, 3]);
  });

  test("integers: multipliers of 31 bits, codes of 32, rows of whole codes", () => {
    for (const factor of [1 - 2 ** -40, 2 ** -3 * (1 - 2 ** -50), 1, 0.75]) {
      const { multiplier, shift } = dyadic(factor);
      expect(multiplier).toBeLessThan(2 ** 31);
      expect(multiplier).toBeGreaterThanOrEqual(2 ** 29);
      expect(multiplier / 2 ** shift / factor).toBeCloseTo(1, 8);
      expect(dyadicVector([factor, factor / 2]).multipliers[0]).toBe(multiplier);
    }
    const norm = integerNorm({ gain: [1, 1], epsilon: 0, scale: 1, outputScale: 2 ** -35 });
    expect([...integerLayerNorm([100, -100], norm)]).toEqual([2 ** 31 - 1, -(2 ** 31)]);
    for (const columns of [-2, 0.5, 0]) expect(() => shiftmax([1, 2], { columns, scale: 0.5 })).toThrow(/shiftmax: expected rows of/);
  });
});

test("scales of float16: fitted, rounded to where they are stored", () => {
  const f = format("uint4_b16_float16_zp") as BlockFormat;
  expect(f.scales[0].format).toBe(float16);
  const run = (polish: number) => quantize(tensor(w, [rows, k]), f, gptq({ hessian: stats, damp: 1e-6, polish }));
  const [plain, once] = [run(0), run(1)];
  const error = (p: typeof plain) => outputError(w, dequantize(p, { dtype: "float64" }), rows, stats.hessian);
  expect(error(once)).toBeLessThan(error(plain));
  // further than to the codes beside: least squares moves a scale by as much as it takes
  const steps = [...once.scales!.keys()].filter((i) => i % 2 === 0).map((i) => Math.abs((once.scales![i] | (once.scales![i + 1] << 8)) - (plain.scales![i] | (plain.scales![i + 1] << 8)))); // prettier-ignore
  expect(Math.max(...steps)).toBeGreaterThan(1);
});

const NAMES = ["nvfp4", "mxfp4", "nvint4", "mxint8", "int4_b16", "nf4_b64", "bipolar4_b16", "float4_e2m1fn_b16", "mxfp8_e4m3"];
const identity = Float64Array.from({ length: k * k }, (_, i) => (i % (k + 1) === 0 ? 1 : 0));
const makers = [gptq({ hessian: identity, polish: 5 }), gptq({ hessian: stats, polish: 5 }), rtn({ search: { method: "mse" } }), awq({ statistics: stats, grid: 2 }), quest(), mrgptq({ hessian: stats })]; // prettier-ignore

test("small weights end, and stay as small", () => {
  const run = (size: number, name: string, quantizer: (typeof makers)[number]): void => {
    const values = dequantize(
      quantize(
        tensor(
          Float32Array.from(w, (v) => Math.sign(v) * size),
          [rows, k],
        ),
        format(name),
        quantizer,
      ),
    );
    expect(Math.max(...values.map(Math.abs)), `${name} ${quantizer.algorithm} ${size}`).toBeLessThan(1e-36);
  };
  for (const size of [2 ** -149, 1e-42, 1e-38]) for (const name of NAMES) for (const quantizer of makers) run(size, name, quantizer);
});

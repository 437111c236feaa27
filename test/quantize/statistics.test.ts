// What calibration keeps, by sums written out: any number of tokens around the panels it works in, masks, weights, float32
// and float64 inputs, sums that the caller has; and what is read from it: output errors, inputs that never vary, damping.
import { describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { quantize, tensor } from "../../src/index.ts";
import {
  calibrate,
  correctDriftBias,
  driftStatistics,
  gptq,
  layerStatistics,
  mergeDrift,
  mergeStatistics,
  outputError,
  refit,
  refitWeight,
  type AddOptions,
  type CalibrateOptions,
  type ConvGeometry,
  type LayerStatistics,
} from "../../src/quantize/index.ts";
import { unvarying } from "../../src/quantize/statistics.ts";
import { random } from "../helpers/random.ts";

const rng = random(31);
const k = 3;
/** Whole numbers: every sum of them is exact. */
const draw = (tokens: number, width = k) => Float64Array.from({ length: tokens * width }, () => rng.integer(19) - 9);

function direct(x: ArrayLike<number>, { mask, weights }: AddOptions = {}, width = k): Record<keyof LayerStatistics, unknown> {
  const zeros = () => new Float64Array(width);
  const s = { k: width, rows: 0, weight: 0, hessian: new Float64Array(width * width), sum: zeros(), sumAbs: zeros(), sumSquares: zeros(), min: zeros().fill(Infinity), max: zeros().fill(-Infinity) }; // prettier-ignore
  for (let t = 0; t < x.length / width; t++) {
    const w = mask && !mask[t] ? 0 : (weights?.[t] ?? 1);
    if (w === 0) continue;
    s.rows++;
    s.weight += w;
    for (let i = 0; i < width; i++) {
      const v = x[t * width + i];
      s.sum[i] += w * v;
      s.sumAbs[i] += w * Math.abs(v);
      s.sumSquares[i] += w * v * v;
      s.min[i] = Math.min(s.min[i], v);
      s.max[i] = Math.max(s.max[i], v);
      for (let j = 0; j < width; j++) s.hessian[i * width + j] += w * v * x[t * width + j];
    }
  }
  return s;
}
const plus = (x: Float64Array) => x.map((v) => v + 0);
const same = (got: LayerStatistics, want: Record<keyof LayerStatistics, unknown>) =>
  expect(Object.fromEntries(Object.entries(got).map(([name, v]) => [name, v instanceof Float64Array ? plus(v) : (v as unknown)]))).toEqual(
    Object.fromEntries(Object.entries(want).map(([name, v]) => [name, v instanceof Float64Array ? plus(v) : v])),
  );
const collected = (x: Float32Array | Float64Array, options: AddOptions = {}, made = layerStatistics(k)) => {
  made.add(x, options);
  return made.finish();
};

describe.each([1, 2, 63, 64, 65, 127, 128, 129, 257])("%d tokens", (tokens) => {
  const x = draw(tokens);
  const mask = Uint8Array.from({ length: tokens }, (_, t) => (t % 3 === 1 ? 0 : 1));
  const weights = Float64Array.from({ length: tokens }, (_, t) => (t % 5 === 4 ? 0 : 1 + (t % 4)));

  test("all, some, and weighted", () => {
    same(collected(x), direct(x));
    same(collected(Float32Array.from(x)), direct(x));
    same(collected(x, { mask }), direct(x, { mask }));
    same(collected(x, { weights }), direct(x, { weights }));
    same(collected(x, { mask, weights }), direct(x, { mask, weights }));
    const without = collected(x, { mask }, layerStatistics(k, { hessian: false }) as never);
    same(without, { ...direct(x, { mask }), hessian: null });
    const given = collected(x, { products: direct(x).hessian as Float64Array });
    same(given, direct(x));
  });

  test("both inputs of a layer", () => {
    const y = draw(tokens);
    const drift = (options: AddOptions) => {
      const made = driftStatistics(k);
      made.add(x, y, options);
      return made.finish();
    };
    for (const options of [{}, { mask }, { weights }, { mask, weights }]) {
      const got = drift(options);
      same(got.inputs, direct(y, options));
      const [cross, shift] = [new Float64Array(k * k), new Float64Array(k)];
      let total = 0;
      for (let t = 0; t < tokens; t++) {
        const w = options.mask?.[t] === 0 ? 0 : (options.weights?.[t] ?? 1);
        total += w;
        for (let i = 0; i < k; i++) {
          shift[i] += w * (x[t * k + i] - y[t * k + i]);
          for (let j = 0; j < k; j++) cross[i * k + j] += w * (x[t * k + i] - y[t * k + i]) * y[t * k + j];
        }
      }
      expect(plus(got.cross)).toEqual(plus(cross));
      got.shift.forEach((v, i) => expect(v).toBeCloseTo(shift[i] / total, 12));
    }
  });
});

test("collections add up, and neither is changed", () => {
  const [x, y] = [draw(5), draw(4)];
  const [a, b] = [collected(x), collected(y, { weights: [1, 0, 2, 3] })];
  const merged = mergeStatistics(a, b);
  const all = Float64Array.of(...x, ...y);
  same(merged, direct(all, { weights: [1, 1, 1, 1, 1, 1, 0, 2, 3] }));
  same(a, direct(x));
  const bare = (v: Float64Array) => collected(v, {}, layerStatistics(k, { hessian: false }) as never);
  expect(mergeStatistics(bare(x), bare(y)).hessian).toBeNull();
  expect(() => mergeStatistics(a, bare(y))).toThrow(/with a Hessian in both, got inputs of length 3 without/);
  const drift = (v: Float64Array, w: Float64Array) => {
    const made = driftStatistics(k);
    made.add(v, w);
    return made.finish();
  };
  const [one, two] = [drift(x, x.map((v) => v + 1)), drift(y, y.map((v) => v - 2))]; // prettier-ignore
  // five tokens shifted by -1 and four by 2
  mergeDrift(one, two).shift.forEach((v) => expect(v).toBeCloseTo((5 * -1 + 4 * 2) / 9, 14));
});

test("refused batches leave the sums as they were", () => {
  const made = layerStatistics(k, { name: "fc" });
  const x = draw(4);
  made.add(x);
  const bad = draw(2);
  bad[4] = NaN;
  const refused: [Float64Array, AddOptions, RegExp][] = [
    [draw(2).subarray(1), {}, /activations of layer "fc": expected a multiple of 3 numbers, got 5/],
    [draw(2), { mask: [1] }, /mask of layer "fc": expected one entry for each of 2 tokens, got 1/],
    [draw(2), { weights: [1, 1, 1] }, /weights of layer "fc".* 2 tokens, got 3/],
    [bad, {}, /got NaN in channel 1 of token 1/],
    [bad, { weights: [0, 1] }, /got NaN in channel 1 of token 1/],
    [draw(2), { weights: [1, -1] }, /expected finite numbers >= 0, got -1 for token 1/],
    [draw(2), { weights: [Infinity, 1] }, /got Infinity for token 0/],
    [draw(2), { products: new Float64Array(9), weights: [1, 1] }, /without mask and weights/],
  ];
  for (const [batch, options, words] of refused) expect(() => made.add(batch, options)).toThrow(words);
  same(made.finish(), direct(x));
  // what does not count may be anything
  made.add(bad, { weights: [1, 0] });
  expect(made.finish().rows).toBe(5);
  for (const bad of [0, -1, 1.5, NaN]) expect(() => layerStatistics(bad)).toThrow(RangeError);
});

test("inputs that never vary: equal tokens, or one of zeros", () => {
  const of = (...v: number[]) => unvarying(collected(Float64Array.from(v)));
  expect([of(1, 2, 3), of(0, 0, 0), of(0, 0, 1)]).toEqual([false, true, false]);
  expect([of(1, 2, 3, 1, 2, 3), of(1, 2, 3, 1, 2, 4), of(0, 0, 0, 0, 0, 0)]).toEqual([true, false, true]);
  expect(unvarying({ ...collected(Float64Array.of(0, 0, 0)), rows: 0 })).toBe(false);
});

test("output errors by definition, of any number of rows, and the energy of the outputs", () => {
  for (const rows of [1, 31, 32, 33, 70]) {
    const [w, q] = [draw(rows), draw(rows)];
    const h = direct(draw(7)).hessian as Float64Array;
    const form = (d: Float64Array) => {
      let sum = 0;
      for (let r = 0; r < rows; r++)
        for (let i = 0; i < k; i++) for (let j = 0; j < k; j++) sum += d[r * k + i] * h[i * k + j] * d[r * k + j];
      return sum;
    };
    expect(outputError(w, q, rows, h)).toBe(form(w.map((v, i) => v - q[i])));
    expect(outputError(w, null, rows, h)).toBe(form(w));
    expect(() => outputError(w, q, rows + 1, h)).toThrow(/weights of \d+ x k and a Hessian k x k/);
    expect(() => outputError(w, q.subarray(1), rows, h)).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
    expect(() => outputError(w, q, rows, h.subarray(1))).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
  }
});

test("damping is raised tenfold until the matrix is definite, as often as is allowed", () => {
  // eigenvalues 1 - c and 1 + c
  const run = (c: number, options: object) =>
    quantize(tensor(Float32Array.of(1, 2), [1, 2]), format("int4_row"), gptq({ hessian: Float64Array.of(1, c, c, 1), ...options }));
  expect(run(0.5, {}).recipe.dampUsed).toBe(0.01);
  expect(run(1.05, {}).recipe.dampUsed).toBe(0.1);
  expect(run(1.5, { damp: 0.02 }).recipe.dampUsed).toBeCloseTo(2, 12);
  expect(run(1.5, { damp: 1 }).recipe.dampUsed).toBe(1);
  expect(() => run(1.5, { dampRetries: 1 })).toThrow(/a bad pivot at input 0 even with damp 0.1/);
  expect(run(1.05, { dampRetries: 1 }).recipe.dampUsed).toBe(0.1);
  expect(() => run(1.05, { dampRetries: 0 })).toThrow(/even with damp 0.01/);
  // without any, the least that a factor of ten is of
  expect(run(1, { damp: 0 }).recipe.dampUsed).toBe(1e-8);
});

describe("refit", () => {
  const acc = (x: Float64Array, y: Float64Array, width: number) => {
    const made = driftStatistics(width);
    made.add(x, y);
    return made.finish();
  };

  test("an input that is always zero keeps its weights, without any ridge too", () => {
    const y = draw(30, 4);
    for (let t = 0; t < 30; t++) y[4 * t + 2] = 0;
    const drift = acc(y.map((v) => 2 * v), y, 4); // prettier-ignore
    const w = Float64Array.of(1, 2, 3, 4, -5, 6, 7, 8);
    const v = refitWeight(tensor(w, [2, 4]), { drift, ridge: 0 });
    // from half of the inputs the same outputs: twice the weights
    v.forEach((got, i) => expect(got).toBeCloseTo(i % 4 === 2 ? w[i] : 2 * w[i], 9));
  });

  test("inputs of which one says nothing new are no positive definite matrix", () => {
    // two equal inputs whose sums of squares are exact: a pivot of zero at the first of them
    const y = Float64Array.of(1, 1, 1, 1, -1, -1, 1, 1);
    const drift = acc(y, y, 2);
    expect(() => refitWeight(tensor(Float64Array.of(1, 2), [1, 2]), { drift, ridge: 0, name: "fc" })).toThrow(
      /refit of layer "fc": expected a positive definite Hessian, got a bad pivot at input 0 with ridge 0/,
    );
    expect(refitWeight(tensor(Float64Array.of(1, 2), [1, 2]), { drift, ridge: 0.5 })).toEqual(Float64Array.of(1, 2));
    for (const ridge of [-1, Infinity, NaN]) {
      expect(() => refitWeight(tensor(Float64Array.of(1, 2), [1, 2]), { drift, ridge })).toThrow(RangeError);
      expect(() => refit({ drift, ridge })).toThrow(RangeError);
    }
  });

  test("the bias of every row makes up for the mean of the drift", () => {
    const drift = acc(Float64Array.of(1, 2, 3, 4), Float64Array.of(1, 0, 1, 4), 2); // means of x [2, 3], of y [1, 2]
    const layer = { weight: Float64Array.of(1, 2, 3, 4), rows: 2, k: 2 };
    const q = [1, 2, 3, 5];
    expect(correctDriftBias(layer, q, drift)).toEqual(Float64Array.of(8 - 5, 18 - 13));
    expect(correctDriftBias({ ...layer, bias: Float32Array.of(10, 20) }, q, drift)).toEqual(Float64Array.of(13, 25));
    for (const bad of [
      { ...layer, rows: 3 },
      { ...layer, bias: Float32Array.of(1) },
      { ...layer, k: 3, weight: new Float64Array(6) },
    ])
      expect(() => correctDriftBias(bad, q, drift)).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
  });
});

describe("calibrate", () => {
  const array = (from: number, to: number, extra: object = {}) => ({
    x: { data: Float64Array.from({ length: 2 * (to - from) }, (_, i) => 2 * from + i), shape: [to - from, 2], ...extra },
  });
  const sums = async (batches: object[], options: Partial<CalibrateOptions>) => {
    const { statistics } = (await calibrate(batches as never, { layers: { x: {} }, ...options })).x;
    return [statistics.rows, statistics.weight, ...statistics.sum];
  };
  /** Token t is [2 t, 2 t + 1]. */
  const of = (...tokens: number[]) => [tokens.length, tokens.length, tokens.reduce((s, t) => s + 2 * t, 0), tokens.reduce((s, t) => s + 2 * t + 1, 0)]; // prettier-ignore

  test("budgets, thinning, masks and weights together", async () => {
    const batches = [array(0, 5), array(5, 11)];
    expect(await sums(batches, {})).toEqual(of(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10));
    expect(await sums(batches, { maxBatches: 1 })).toEqual(of(0, 1, 2, 3, 4));
    expect(await sums(batches, { maxTokens: 5 })).toEqual(of(0, 1, 2, 3, 4));
    expect(await sums(batches, { maxTokens: 6 })).toEqual(of(0, 1, 2, 3, 4, 5));
    expect(await sums(batches, { every: 2 })).toEqual(of(0, 2, 4, 5, 7, 9));
    expect(await sums(batches, { every: 2, maxTokens: 4 })).toEqual(of(0, 2, 4, 5));
    const masked = [array(0, 5, { mask: [0, 1, 1, 0, 1] }), array(5, 11, { mask: [1, 1, 0, 1, 1, 1] })];
    expect(await sums(masked, {})).toEqual(of(1, 2, 4, 5, 6, 8, 9, 10));
    expect(await sums(masked, { maxTokens: 4 })).toEqual(of(1, 2, 4, 5));
    expect(await sums(masked, { every: 2 })).toEqual(of(2, 4, 5, 9));
    const weighted = [array(0, 3, { weights: [1, 2, 0] })];
    expect(await sums(weighted, {})).toEqual([2, 3, 4, 7]);
    expect(await sums(weighted, { maxTokens: 1 })).toEqual([1, 1, 0, 1]);
    for (const what of ["maxTokens", "every"] as const)
      for (const bad of [0, -1, 1.5]) await expect(sums(batches, { [what]: bad })).rejects.toThrow(`calibrate ${what}`);
    await expect(calibrate(batches, { layers: {} })).rejects.toThrow(TypeError);
  });

  test("convolutions without groups, strides and pads; budgets of their patches", async () => {
    const x = { data: Float32Array.from({ length: 24 }, (_, i) => i), shape: [1, 2, 3, 4] };
    const run = (convolution: ConvGeometry, options: Partial<CalibrateOptions> = {}) =>
      calibrate([{ x }] as never, { layers: { x: { convolution } }, ...options });
    const { x: whole } = await run({ channels: 2, kernel: [2, 3] });
    expect([whole.statistics.k, whole.statistics.rows, whole.groups.length, whole.observer]).toEqual([12, 4, 1, null]);
    const { x: some } = await run({ channels: 2, kernel: [2, 3] }, { maxTokens: 3, every: 1 });
    expect(some.statistics.rows).toBe(3);
    expect((await run({ channels: 2, kernel: [2, 3] }, { every: 3 })).x.statistics.rows).toBe(2);
    const { x: deep } = await run({ channels: 2, kernel: [1, 1], group: 2 });
    expect(deep.groups.map((g) => [g.k, g.sum[0]])).toEqual([[1, 66], [1, 210]]); // prettier-ignore
    for (const extra of [{ mask: new Uint8Array(4) }, { weights: new Float32Array(4) }, { shape: [2, 3, 4] }])
      await expect(calibrate([{ x: { ...x, ...extra } }] as never, { layers: { x: { convolution: { channels: 2, kernel: [1, 1] } } } })).rejects.toThrow(/without masks or weights/); // prettier-ignore
  });

  test("arrays that are none, and those that change", async () => {
    const run = (...arrays: object[]) => calibrate(arrays.map((x) => ({ x })) as never, { layers: { x: {} } });
    for (const bad of [
      { data: [1, 2], shape: [1, 2] },
      { data: new Float32Array(2), shape: [] },
      { data: new Float32Array(0), shape: [2, 0] },
      { data: new Float32Array(2), shape: [2, 2] },
    ])
      // prettier-ignore
      await expect(run(bad)).rejects.toThrow(/array "x": expected \{ data: Float32Array or Float64Array, shape \} that agree/);
    await expect(run({ data: new Float32Array(4).fill(1), shape: [2, 2] }, { data: new Float32Array(3), shape: [1, 3] })).rejects.toThrow(/last axis 2 as before, got 3/); // prettier-ignore
    await expect(calibrate([{ constructor: array(0, 1).x }] as never, { layers: { x: {} } })).rejects.toThrow(/got "constructor"/);
    await expect(calibrate([{}], { layers: { toString: {} } })).rejects.toThrow(/array "toString", got none/);
  });
});

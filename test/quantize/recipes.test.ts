// What recipes record: every option in force, the defaults by their numbers, and the rules of the format; the stages that
// each quantizer tells, and its name; seeded numbers by their authors' steps. A recipe says how to do it again.
import { describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor, type Tensor, type WeightQuantizer } from "../../src/index.ts";
import * as q from "../../src/quantize/index.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";

const k = 16;
const weight = tensor(gaussianWeights(4, k, 1), [4, k]);
const made = q.layerStatistics(k);
made.add(inputs("ar", 40, k, 2));
const hessian = made.finish();
const drifting = q.driftStatistics(k);
drifting.add(inputs("ar", 40, k, 2), inputs("ar", 40, k, 2).map((v) => 0.9 * v)); // prettier-ignore
const drift = drifting.finish();
const [number, some] = [expect.any(Number) as number, { signal: new AbortController().signal }];
const search = { method: "mse", norm: 2, grid: 80, maxShrink: 0.8, maxGrow: 2 };
const rules = { version: 1, scaleRule: "max", rangeRule: "narrow" };
const rounded = { rounding: "halfEven", overflow: "saturate" };
const nearest = { ...rules, algorithm: "rtn", ...rounded, arithmetic: "exact" };
const gptq = { ...rules, algorithm: "gptq", damp: 0.01, dampRetries: 3, blockSize: 128, actOrder: false, staticGroups: false, groupScales: "current", dampUsed: 0.01, deadInputs: 0, calibrationRows: 40, loss: number }; // prettier-ignore
const { calibrationRows: _, ...matrix } = gptq;

const cases: [name: string, quantizer: WeightQuantizer, recipe: Record<string, unknown>, format?: string][] = [
  ["rtn", q.rtn(some), nearest],
  ["rtn", q.rtn({ scaleRule: "ceil", rounding: "trunc" }), { ...nearest, scaleRule: "ceil", rounding: "trunc" }],
  ["rtn", q.rtn({ rounding: "stochastic", seed: 3 }), { ...nearest, rounding: "stochastic", seed: 3 }],
  ["rtn", q.rtn(), { version: 1, algorithm: "rtn", ...rounded }, "int8"],
  ["rtn", q.rtn({ search: { method: "mse" } }), { ...rules, algorithm: "rtn", search: { ...search, weighted: false } }],
  ["rtn", q.rtn({ search: { method: "mse", grid: 3 }, rangeRule: "full", columnWeights: new Float64Array(k).fill(1) }), { ...rules, rangeRule: "full", algorithm: "rtn", search: { ...search, grid: 3, weighted: true } }], // prettier-ignore
  ["gptq", q.gptq({ hessian }), gptq],
  ["gptq", q.gptq({ hessian: hessian.hessian!, scaleRule: "nearest", rangeRule: "ort", name: "fc", ...some }), { ...matrix, scaleRule: "nearest", rangeRule: "ort" }], // prettier-ignore
  ["gptq", q.gptq({ hessian, actOrder: true, damp: 0.1, polish: true, search: { method: "mse", grid: 5 } }), { ...gptq, damp: 0.1, dampUsed: 0.1, actOrder: true, staticGroups: true, search: { ...search, grid: 5 }, polish: { passes: 4, errorKept: number } }], // prettier-ignore
  ["gptq", q.gptq({ hessian, polish: 2, groupScales: "blockStart", staticGroups: true, blockSize: 8, dampRetries: 1 }), { ...gptq, polish: { passes: 2, errorKept: number }, groupScales: "blockStart", staticGroups: true, blockSize: 8, dampRetries: 1 }], // prettier-ignore
  ["gptq", q.gptq({ hessian, prune: { pattern: "4x1", sparsity: 0.25 } }), { ...gptq, prune: { pattern: "4x1", sparsity: 0.25, by: "sparsegpt" } }], // prettier-ignore
  ["mrgptq", q.mrgptq({ hessian, seed: 5 }), { ...matrix, algorithm: "mrgptq", actOrder: true, staticGroups: true, search, rotation: { kind: "hadamard", n: k, block: 8, seed: 5 } }], // prettier-ignore
  ["mrgptq", q.mrgptq({ hessian, search: null, block: 4, actOrder: false }), { ...matrix, algorithm: "mrgptq", rotation: { kind: "hadamard", n: k, block: 4, seed: null } }], // prettier-ignore
  ["rotated-rtn", q.rotatedRtn({ seed: 5 }), { ...nearest, algorithm: "rotated-rtn", rotation: { kind: "hadamard", n: k, block: 8, seed: 5 } }], // prettier-ignore
  ["rotated-rtn", q.rotatedRtn({ block: 16 }), { ...nearest, algorithm: "rotated-rtn", rotation: { kind: "hadamard", n: k, block: k, seed: null } }], // prettier-ignore
  ["awq", q.awq({ statistics: hessian, grid: 1 }), { ...rules, algorithm: "awq", power: 0, searched: true, error: number, roundToNearestError: number, search: { ...search, grid: 20, maxShrink: 0.5, weighted: true } }], // prettier-ignore
  ["awq", q.awq({ statistics: hessian, grid: 1, search: null }), { ...nearest, algorithm: "awq", power: 0, searched: false, error: number, roundToNearestError: number }], // prettier-ignore
  ["hqq", q.hqq(some), { version: 1, algorithm: "hqq", norm: 0.7, beta: 10, kappa: 1.01, iterations: 20 }, "uint4_b8_zp"],
  ["hqq", q.hqq({ norm: 0.5, iterations: 2 }), { version: 1, algorithm: "hqq", norm: 0.5, beta: 10, kappa: 1.01, iterations: 2 }, "uint4_b8_zp"], // prettier-ignore
  ["adaround", q.adaround({ hessian, iterations: 2 }), { ...rules, algorithm: "adaround", iterations: 2, learningRate: 0.05, lambda: 0.1, error: number, roundingsChanged: number, search }], // prettier-ignore
  ["adaround", q.adaround({ hessian, iterations: 0, search: null, lambda: 1 }), { ...rules, algorithm: "adaround", iterations: 0, learningRate: 0.05, lambda: 1, error: number, roundingsChanged: number }], // prettier-ignore
  ["refit", q.refit({ drift }), { ...gptq, refit: { ridge: 0.05 } }],
  ["refit", q.refit({ drift, ridge: 0.5, quantizer: q.rtn() }), { ...nearest, refit: { ridge: 0.5 } }],
];

test.each(cases)("%s %#", (name, quantizer, recipe, f = "int4_b8") => {
  const packed = quantize(weight, format(f), quantizer);
  expect(packed.recipe).toEqual(recipe);
  expect(quantizer.algorithm).toBe(name);
  // plain JSON, and the weight's own shape
  expect(JSON.parse(JSON.stringify(packed.recipe))).toEqual(packed.recipe);
  const cube: Tensor = { ...weight, shape: [4, 2, 8], stride: [16, 8, 1] };
  expect(quantize(cube, format(f), quantizer)).toEqual({ ...packed, shape: [4, 2, 8] });
});

test("by default 1000 steps of AdaRound, 20 powers of AWQ, searches of the inputs' energy, 13 exponents of SmoothQuant", () => {
  const seen: string[] = [];
  const onProgress = ({ stage, done, total, layer }: q.Progress) => seen.push([stage, done, total, layer ?? ""].join(" "));
  const small = tensor(gaussianWeights(1, k, 1), [1, k]);
  const f = format("int4_b8");
  const learned = quantize(small, f, q.adaround({ hessian, name: "fc", onProgress }));
  expect([learned.recipe.iterations, seen.length, seen[0], seen.at(-1)]).toEqual([
    1000,
    40,
    "adaround 25 1000 fc",
    "adaround 1000 1000 fc",
  ]);
  seen.length = 0;
  quantize(small, f, q.awq({ statistics: hessian, onProgress }));
  expect([seen.length, seen[0], seen.at(-1)]).toEqual([20, "awq 1 20 ", "awq 20 20 "]);
  seen.length = 0;
  quantize(small, f, q.gptq({ hessian, blockSize: 10, name: "fc", onProgress, polish: 1 }));
  // blocks end where a group does
  expect(seen).toEqual(["gptq 0 16 fc", "gptq 8 16 fc", "gptq 16 16 fc", "polish 8 16 fc", "polish 16 16 fc"]);
  seen.length = 0;
  const layers = [{ weight: Float64Array.from(small.data), rows: 1, k }];
  const found = q.searchSmoothing(layers, { statistics: hessian, format: f, onProgress });
  const alphas = [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9];
  expect([found.errors.length, seen.length, seen.at(-1)]).toEqual([14, 14, "smooth 13 14 "]);
  expect(q.searchSmoothing(layers, { statistics: hessian, format: f, alphas, activationBits: 8 })).toEqual(found);
  seen.length = 0;
  const signs = q.searchRotation(small, f, { onProgress });
  expect([signs.errors.length, seen.length, seen[0], seen.at(-1)]).toEqual([9, 9, "rotation 0 9 ", "rotation 8 9 "]);
  expect(q.searchRotation(small, f, { count: 8, seed: 1 })).toEqual(signs);
  expect(q.searchRotation(small, f, { count: 2, seed: 3 }).errors).toEqual([signs.errors[0], signs.errors[3], signs.errors[4]]);
  expect(q.searchRotation(small, f, { count: 0 })).toEqual({ seed: null, error: signs.errors[0], errors: [signs.errors[0]] });
});

test("AWQ: one token is enough, scalar formats have no scales to search, names are told", () => {
  const one = q.layerStatistics(k);
  one.add(inputs("iid", 1, k, 3));
  const few = quantize(weight, format("int4_b8"), q.awq({ statistics: one.finish(), grid: 3 }));
  expect(few.recipe.error as number).toBeLessThanOrEqual(few.recipe.roundToNearestError as number);
  const scalar = quantize(weight, format("float4_e2m1fn"), q.awq({ statistics: hessian, grid: 3 }));
  expect(scalar.recipe.searched).toBe(false);
  const none = q.layerStatistics(k, { hessian: false });
  none.add(inputs("iid", 9, k, 3));
  const awq = q.awq({ statistics: none.finish(), name: "fc" });
  expect(() => quantize(weight, format("int4_b8"), awq)).toThrow(/hessian of layer "fc": expected statistics with a Hessian/);
});

describe("seeded numbers", () => {
  /** xoshiro128** (Blackman and Vigna) over a state from splitmix32, in BigInt. */
  function* words(seed: number): Generator<number> {
    const M = 0xffffffffn;
    let s = BigInt(seed >>> 0);
    const split = () => {
      s = (s + 0x9e3779b9n) & M;
      let z = ((s ^ (s >> 16n)) * 0x85ebca6bn) & M;
      z = ((z ^ (z >> 13n)) * 0xc2b2ae35n) & M;
      return z ^ (z >> 16n);
    };
    const x = [split(), split(), split(), split()];
    const rotl = (v: bigint, n: bigint) => ((v << n) | (v >> (32n - n))) & M;
    for (;;) {
      yield Number((rotl((x[1] * 5n) & M, 7n) * 9n) & M);
      const t = (x[1] << 9n) & M;
      x[2] ^= x[0];
      x[3] ^= x[1];
      x[1] ^= x[2];
      x[0] ^= x[3];
      x[2] ^= t;
      x[3] = rotl(x[3], 11n);
    }
  }

  test.each([0, 1, 7, 2 ** 31, 2 ** 32 - 1, -1, 123456789])("of seed %d are the authors'", (seed) => {
    const random = q.seededRandom(seed);
    const want = words(seed);
    for (let i = 0; i < 200; i++) expect(random()).toBe((want.next().value as number) / 2 ** 32);
  });

  test("normal ones come in pairs by Box and Muller, zero among the uniform ones too", () => {
    const uniform = [0, 0.25, 0.5, 0.75, 0.999];
    let at = 0;
    const normal = q.gaussian(() => uniform[at++ % uniform.length]);
    for (const [u, v] of [
      [0, 0.25],
      [0.5, 0.75],
      [0.999, 0],
    ]) {
      // prettier-ignore
      const r = Math.sqrt(-2 * Math.log(1 - u));
      expect(normal()).toBe(r * Math.cos(2 * Math.PI * v));
      expect(normal()).toBe(r * Math.sin(2 * Math.PI * v));
    }
    for (const bad of [NaN, Infinity, undefined]) expect(() => q.seededRandom(bad as number)).toThrow(TypeError);
  });
});

test("blocks of zeros of an element without a zero: nothing but zeros, whoever quantizes", () => {
  const data = gaussianWeights(4, k, 1);
  data.fill(0, 8, 16);
  data.fill(0, 32, 40);
  const t = tensor(data, [4, k]);
  const diagonal = new Float64Array(k * k);
  for (let i = 0; i < k; i++) diagonal[i * k + i] = 1 + i;
  const f = format("bipolar4_b8");
  const plain = quantize(t, f);
  for (const quantizer of [
    q.gptq({ hessian: diagonal }),
    q.gptq({ hessian: diagonal, polish: true, staticGroups: true }),
    q.rtn({ search: { method: "mse" } }),
    q.quest(),
    q.awq({ statistics: hessian, grid: 2 }),
  ]) {
    // prettier-ignore
    const packed = quantize(t, f, quantizer);
    const codes = (p: typeof packed) => [...p.codes.subarray(4, 8), ...p.codes.subarray(16, 20)];
    expect(codes(packed), quantizer.algorithm).toEqual(codes(plain));
    const scales = new Float32Array(packed.scales!.slice().buffer);
    expect([scales[1], scales[4]], quantizer.algorithm).toEqual([0, 0]);
  }
});

test("the loss of GPTQ is half of the output error under the damped Hessian, where inputs do not depend on one another", () => {
  const diagonal = new Float64Array(k * k);
  for (let i = 0; i < k; i++) diagonal[i * k + i] = 1 + i;
  const packed = quantize(weight, format("int4_b8"), q.gptq({ hessian: diagonal, damp: 0.1 }));
  const values = dequantize(packed, { dtype: "float64" });
  const mean = (k + 1) / 2;
  const want = values.reduce((sum, v, i) => sum + (v - weight.data[i]) ** 2 * (1 + (i % k) + 0.1 * mean), 0) / 2;
  expect((packed.recipe.loss as number) / want).toBeCloseTo(1, 6);
});

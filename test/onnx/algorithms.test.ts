// Algorithms by name: which options each has, which formats are searched, and when there is nothing left to choose.
import { describe, expect, test } from "vitest";
import { defineBlock } from "../../formats/define/index.ts";
import { float16 } from "../../formats/float16.ts";
import { format } from "../../formats/index.ts";
import { uint4 } from "../../formats/uint4.ts";
import { dequantize, tensor } from "../../src/index.ts";
import { ALGORITHMS, resolveAlgorithm } from "../../src/onnx/algorithms.ts";
import { decideWeights, modelLayers, readModelBytes, type Algorithm, type DecideOptions, type Feeds } from "../../src/onnx/index.ts";
import { driftStatistics, rtn } from "../../src/quantize/index.ts";
import { refitFamily } from "../../src/onnx/algorithm-choices.ts";
import { levelCodes } from "../../formats/core/packed.ts";
import { uint8 } from "../../formats/uint8.ts";
import { encode, matmulModel, raw, weights } from "./build.ts";
import { SPECIMENS } from "./specimens.ts";
import { quantizeModelBytes } from "./kept.ts";

const scales = ["scaleRule", "rangeRule"];
const gptq = [...scales, "damp", "dampRetries", "blockSize", "actOrder", "staticGroups", "search", "groupScales", "minRows", "polish"]; // prettier-ignore
const OPTIONS: Record<string, string[]> = {
  rtn: [...scales, "search", "rounding", "overflow", "seed"],
  mse: [...scales, "search"],
  hqq: ["norm", "beta", "kappa", "iterations"],
  awq: ["grid", "search"],
  gptq: [...gptq, "prune"],
  mrgptq: [...gptq, "block", "seed"],
  adaround: [...scales, "iterations", "learningRate", "lambda", "search", "minRows"],
  refit: [...gptq, "prune", "ridge"],
};

test.each(Object.entries(OPTIONS))("%s takes its options and no others", (name, own) => {
  for (const option of new Set([...Object.values(OPTIONS).flat(), "hessian", "statistics", "Damp"])) {
    const resolve = () => resolveAlgorithm({ name, [option]: 1 } as unknown as Algorithm);
    if (own.includes(option)) expect(resolve().name).toBe(name);
    else expect(resolve, option).toThrow(`algorithm ${name}: expected options of ${own.slice(0, 2).join(", ")}`);
  }
});

test("what each needs, and whose rows may come in bands", () => {
  expect(Object.keys(OPTIONS)).toEqual([...ALGORITHMS]);
  const of = (name: string, options = {}) => resolveAlgorithm({ name, ...options } as unknown as Algorithm);
  expect(ALGORITHMS.map((name) => of(name).needs)).toEqual(["nothing", "nothing", "nothing", "statistics", "statistics", "statistics", "statistics", "drift"]); // prettier-ignore
  expect(ALGORITHMS.filter((name) => of(name).byRows)).toEqual(["mse", "hqq", "gptq", "mrgptq"]);
  expect(of("gptq", { prune: { keep: 2 } }).byRows).toBe(false);
  for (const name of ALGORITHMS) expect(of(name).takes).toBe(of(name).needs !== "nothing");
  expect(resolveAlgorithm(() => rtn())).toMatchObject({ name: "function", needs: "nothing", takes: true, byRows: false });
  const nothing = { statistics: null, drift: null, name: "l" } as never;
  for (const name of ["awq", "gptq", "mrgptq", "adaround", "refit"]) expect(() => of(name).make(nothing, {})).toThrow(`layer l: expected statistics of its inputs for ${name}`); // prettier-ignore
  expect(() => of("refit").make({ statistics: {}, drift: null, name: "l" } as never, {})).toThrow("Set sequential");
});

describe("mse", () => {
  const w = tensor(weights(8 * 256, 3), [8, 256]);
  const made = (name: Parameters<typeof format>[0] | ReturnType<typeof defineBlock>, options = {}) => {
    const to = typeof name === "string" ? format(name) : name;
    const algorithm = resolveAlgorithm({ name: "mse", ...options }).make({} as never, {});
    const [searched, plain] = [algorithm, rtn()].map((one) => one.quantizeWeight(w, to));
    const error = (packed: typeof plain) => dequantize(packed).reduce((sum: number, v: number, i: number) => sum + (v - w.data[i]!) ** 2, 0); // prettier-ignore
    return { searched, plain, ratio: error(searched) / error(plain) };
  };
  test.each(["int4_b32", "int3_row", "mxfp4", "nf4_b64", "uint4_b32_zp"] as const)("%s: scales are searched", (name) => {
    const { searched, ratio } = made(name);
    expect(searched.recipe.search).toMatchObject({ method: "mse" });
    expect(ratio).toBeLessThan(0.999);
    expect(made(name, { search: { method: "mse", norm: 4 } }).searched.recipe.search).not.toEqual(searched.recipe.search);
  });
  test.each(["float8_e4m3fn", "ggml_q4_0"] as const)("%s, which has no scales of its own to search: rounded to nearest", (name) => {
    const { searched, plain } = made(name);
    expect(Buffer.compare(searched.codes, plain.codes)).toBe(0);
    expect(searched.recipe).toEqual(plain.recipe);
  });
  test("a range that lies around its zero point stays there, whatever the rows have", () => {
    for (const [rangeRule, zero] of [
      ["narrow", 127],
      ["full", 128],
    ] as const) {
      const offset = { role: "zeroPoint", levels: [{ format: uint8, span: "row" }] } as const;
      const even = defineBlock({ element: uint8, scales: [{ format: float16, span: "row" }], offset, rangeRule });
      const { searched, ratio } = made(even);
      expect(new Set(levelCodes(even.offset!.levels[0], searched.offsets!, 8, 256)), rangeRule).toEqual(new Set([zero]));
      expect(ratio, rangeRule).toBeLessThan(1);
    }
  });
  test("operators with one zero point for all channels take its scales: convolutions, LSTM", async () => {
    for (const name of ["convolution", "convolution of groups", "float16 convolution", "LSTM"]) {
      const made = async (algorithm: "rtn" | "mse") => (await quantizeModelBytes(encode(SPECIMENS.get(name)!()), { dtype: "q8", perChannel: true, algorithm })).report.layers; // prettier-ignore
      const [nearest, searched] = [await made("rtn"), await made("mse")];
      expect(searched.map(({ sqnrDb }, i) => sqnrDb! > nearest[i].sqnrDb! + 0.1), name).not.toContain(false); // prettier-ignore
    }
  });
  test("a minimum in every block, which is only read, is refused", () => {
    const offset = { role: "min", levels: [{ format: float16, span: 32 }] } as const;
    const minimum = defineBlock({ element: uint4, scales: [{ format: float16, span: 32 }], offset });
    const text = 'offsets of role "min", which is only read. Take one with zero points';
    expect(() => made(minimum)).toThrow(text);
    expect(() => rtn().quantizeWeight(w, minimum)).toThrow(text);
  });
});

describe("refit with data held out", () => {
  const K = 32;
  const batches: Feeds[] = [11, 12].map((seed) => ({ x: { type: "float32", data: weights(64 * K, seed), dims: [64, K] } }));
  const recipe = async (algorithm: object, options: DecideOptions = { holdOut: 0.5 }) => {
    const m = readModelBytes(encode(matmulModel(raw("w", [K, 8], weights(K * 8)), K, 8)));
    const [[, { packed }]] = await decideWeights(m, modelLayers(m), () => ({ format: format("int3_b16"), algorithm: { name: "refit", ...algorithm } }), batches, options); // prettier-ignore
    return packed.recipe;
  };
  const settled = { damp: 0.05, actOrder: false, polish: false };
  test("the pull is chosen where it is open, and what GPTQ leaves open; with everything said nothing is", async () => {
    // five pulls, then one form of GPTQ
    expect(await recipe(settled)).toMatchObject({ chosenOf: 6, heldOut: { signal: expect.any(Number), error: expect.any(Number) } });
    const given = await recipe({ ...settled, ridge: 0.2 });
    expect([given.chosenOf, given.heldOut]).toEqual([undefined, undefined]);
    // one pull, then two orders
    expect(await recipe({ damp: 0.05, polish: false, ridge: 0.2 })).toMatchObject({ chosenOf: 3 });
    expect((await recipe(settled, { holdOut: 0 })).chosenOf).toBeUndefined();
  });
  test("the pull is the one of five that held-out inputs choose: nearly none where the drift is real, most where it is chance", async () => {
    const rows = 8;
    /** Tokens and what a model quantized so far makes of them: a mixing of channels, and noise. */
    const driftOf = (seed: number, tokens: number, mixing: number, noise: number) => {
      const [x, e, mix] = [weights(tokens * K, seed), weights(tokens * K, seed + 50), weights(K * K, 77)];
      const y = x.map((v, i) => {
        const at = i - (i % K);
        let sum = v + noise * e[i];
        for (let j = 0; j < K; j++) sum += mixing * x[at + j] * mix[j * K + (i % K)];
        return sum;
      });
      const made = driftStatistics(K);
      made.add(x, y);
      return made.finish();
    };
    const weight = tensor(weights(rows * K, 5), [rows, K]);
    const pullOf = (tokens: number, mixing: number, noise: number): unknown => {
      const [drift, heldOutDrift] = [driftOf(1, tokens, mixing, noise), driftOf(2, 1000, mixing, 0)];
      const input = { name: "l", rows, k: K, statistics: drift.inputs, heldOut: heldOutDrift.inputs, drift, heldOutDrift } as never;
      return refitFamily(input, { ...settled }, {}).quantizeWeight(weight, format("int8_b16")).recipe.refit;
    };
    expect([pullOf(1000, 1, 0), pullOf(40, 0, 2)]).toEqual([{ ridge: 0.01 }, { ridge: 10 }]);
  });
});

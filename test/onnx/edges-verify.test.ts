// Edges of verification and of choices: arithmetic that a model has and what may be asked of it, metrics, values between
// runtimes, quantiles, tokens of decoders that differ, how many forms of a quantizer are tried.
import { afterEach, describe, expect, test, vi } from "vitest";
import { format } from "../../formats/index.ts";
import { decideWeights, modelLayers, quantizeModelBytes, readModelBytes, type Feeds } from "../../src/onnx/index.ts";
import { quantile } from "../../src/onnx/verify/bench.ts";
import { arithmeticOf, explained } from "../../src/onnx/verify/explain.ts";
import { compareGeneration, promptsOf, type DecoderModel } from "../../src/onnx/verify/generate.ts";
import { measureMetric } from "../../src/onnx/verify/metric.ts";
import { numbers } from "../../src/onnx/verify/numbers.ts";
import { valueSqnr } from "../../src/onnx/verify/parting.ts";
import { compareRuntimes } from "../../src/onnx/verify/matrix.ts";
import { type OutputTensor, type Runtime, type RuntimeEntry } from "../../src/onnx/verify/runtimes.ts";
import { runtimeEntry } from "../../src/onnx/verify/table.ts";
import { T, encode, graph, matmulModel, model, node, raw, value, weights } from "./build.ts";

const opened = (nodes: ReturnType<typeof node>[], initializer = [raw("w", [1], Float32Array.of(1))]) => readModelBytes(encode(model(graph({ input: [value("x", T.FLOAT, [1])], output: [value("y", T.FLOAT, [])], initializer, node: nodes })))); // prettier-ignore
const micro = (op: string, attributes = {}) => Object.assign(node(op, ["x"], ["y"], attributes), { domain: "com.microsoft" });

test("what arithmetic a model has, and what may be asked of another runtime", () => {
  const F16 = [raw("w", [1], Uint16Array.of(1), T.FLOAT16)];
  const EIGHT = ["DynamicQuantizeLinear", "QuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "DequantizeLinear"]; // prettier-ignore
  const MICRO = ["DynamicQuantizeMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLSTM", "QGemm"];
  for (const op of EIGHT) expect([op, arithmeticOf(opened([node(op, ["x"], ["y"])]))]).toEqual([op, "8-bit activations"]);
  for (const op of MICRO) expect([op, arithmeticOf(opened([micro(op)])), arithmeticOf(opened([node(op, ["x"], ["y"])]))]).toEqual([op, "8-bit activations", "float32"]); // prettier-ignore
  expect(arithmeticOf(opened([micro("MatMulNBits", { accuracy_level: 4n })]))).toBe("8-bit activations");
  expect(arithmeticOf(opened([micro("MatMulNBits", { accuracy_level: 1n })]))).toBe("float32");
  expect(arithmeticOf(opened([micro("MatMulNBits")]))).toBe("float32");
  expect(arithmeticOf(opened([node("Relu", ["x"], ["y"])]))).toBe("float32");
  expect(arithmeticOf(opened([node("Relu", ["x"], ["y"])], F16))).toBe("float16");
  expect(arithmeticOf(opened([node("Cast", ["x"], ["y"], { to: 10n })]))).toBe("float16");
  expect(arithmeticOf(opened([node("Cast", ["x"], ["y"], { to: 1n })]))).toBe("float32");
  expect(arithmeticOf(opened([node("Cast", ["x"], ["h"], { to: 10n }), node("DequantizeLinear", ["h"], ["y"])]))).toBe("8-bit activations");
  expect([explained("float32", 3).db, explained("float16", 3).db]).toEqual([50, 30]);
  expect([100, 33.01, 20, 3.01, 1, -5, NaN].map((db) => Number(explained("8-bit activations", db).db.toFixed(6)))).toEqual([30, 30, 16.99, 0, 0, 0, 30]); // prettier-ignore
});

test("metrics of one number, of several, of none", async () => {
  const models = { reference: { path: "a" }, model: { path: "b" } } as never;
  const of = (values: Record<string, unknown>) => measureMetric((({ path }: { path: string }) => values[path]) as never, models);
  expect(await of({ a: 1, b: 2 })).toEqual({ metric: { reference: 1, model: 2 } });
  expect(await of({ a: { p: 1, q: 2 }, b: { q: 3 } })).toEqual({ p: { reference: 1, model: NaN }, q: { reference: 2, model: 3 } });
  for (const bad of [null, undefined, {}, { p: "1" }, "3", { p: 1, q: null }]) await expect(of({ a: bad, b: 1 })).rejects.toThrow("metric: expected a number"); // prettier-ignore
  await expect(of({ a: 1, b: "x" })).rejects.toThrow("metric: expected a number");
});

test("one value in two runtimes", () => {
  const of = (data: OutputTensor["data"], dims: number[], type = "float32"): OutputTensor => ({ type, dims, data });
  const a = of(Float32Array.of(3, 4), [2]);
  expect(valueSqnr(a, a)).toBe(Infinity);
  expect(valueSqnr(a, of(Float32Array.of(3, 4.5), [2]))).toBeCloseTo(20, 9);
  expect(valueSqnr(a, of(Float32Array.of(3, 4), [1, 2]))).toBe(-Infinity);
  expect(valueSqnr(a, of(Float32Array.of(3, NaN), [2]))).toBe(-Infinity);
  for (const [p, q] of [[null, a], [a, null], [undefined, a], [a, undefined], [null, null], [of(["a"], [1], "string"), of(["a"], [1], "string")], [of(Float32Array.of(NaN, NaN), [2]), a]]) expect(valueSqnr(p, q)).toBeNull(); // prettier-ignore
  expect([...numbers(of(Uint16Array.of(0x3c00, 0xc000), [2], "float16")) as Float32Array]).toEqual([1, -2]); // prettier-ignore
  expect(Array.from(numbers(of(Uint16Array.of(0x3c00, 2), [2], "uint16")))).toEqual([0x3c00, 2]);
  expect(Array.from(numbers(of(BigInt64Array.of(5n, -6n), [2], "int64")), Number)).toEqual([5, -6]);
});

test("quantiles are values of the list, by rank", () => {
  const list = [5, 1, 4, 2, 3];
  expect([0, 0.2, 0.21, 0.5, 0.8, 0.95, 1].map((share) => quantile(list, share))).toEqual([1, 1, 2, 3, 4, 5, 5]);
  expect(list).toEqual([5, 1, 4, 2, 3]);
  expect([quantile([7], 0.5), quantile([], 0.5)]).toEqual([7, NaN]);
});

describe("two decoders", () => {
  const V = 6;
  /** Writes (last + step) % V; the distribution is sharp. */
  const decoder = (step: (last: number, at: number) => number, more: Partial<DecoderModel> = {}, type = "float32"): DecoderModel => ({
    label: "d",
    inputs: [{ name: "input_ids", type: "int64", shape: ["b", "n"] }],
    outputNames: ["logits"],
    run: async (feeds) => {
      const ids = Array.from(feeds.input_ids.data as BigInt64Array, Number);
      const next = (ids.at(-1)! + step(ids.at(-1)!, ids.length)) % V;
      const data = Float32Array.from({ length: ids.length * V }, (_, i) => (i >= (ids.length - 1) * V && i % V === next ? 3 : 0));
      return new Map([["logits", { type, dims: [1, ids.length, V], data: type === "float16" ? Uint16Array.from(data, (v) => (v === 3 ? 0x4200 : 0)) : data }]]); // prettier-ignore
    },
    ...more,
  });
  const prompts: Feeds[] = [[1, 2], [5, 0, 3]].map((ids) => ({ input_ids: { type: "int64", dims: [1, ids.length], data: BigInt64Array.from(ids, BigInt) } })); // prettier-ignore
  const options = { tokens: 4, inputs: prompts, samples: 2, seed: 1, hints: new Map() };
  test("that write the same", async () => {
    const found = await compareGeneration(decoder(() => 1), decoder(() => 1, {}, "float16"), options); // prettier-ignore
    expect(found).toEqual({ tokens: 4, prompts: 2, random: false, agreement: 1, firstDivergence: null, sameTexts: 2, klMean: 0, klMax: 0, text: { prompt: [1, 2], reference: [3, 4, 5, 0], model: [3, 4, 5, 0] } }); // prettier-ignore
  });
  test("that part after some tokens", async () => {
    const found = await compareGeneration(decoder(() => 1), decoder((_, at) => (at === 4 ? 2 : 1)), options); // prettier-ignore
    // the one tells three tokens apart, the other two: what the reference wrote is read
    expect(found).toMatchObject({ agreement: 6 / 8, firstDivergence: 1, sameTexts: 0, text: { reference: [3, 4, 5, 0], model: [3, 4, 0, 0] } }); // prettier-ignore
    const all = 5 + Math.exp(3);
    const kl = (Math.exp(3) / all) * 3 - (1 / all) * 3;
    expect(found.klMax).toBeCloseTo(kl, 12);
    expect(found.klMean).toBeCloseTo(kl / 4, 12);
  });
  test("caches by the names of either exporter, what is given read again as what is past", async () => {
    for (const [past, present] of [
      ["past.0.key", "present.0.key"],
      ["past_key_values.0.key", "present.0.key"],
      ["past_key_values.0.key", "present_key_values.0.key"],
    ]) {
      // prettier-ignore
      const sizes: number[] = [];
      const cached = decoder(() => 1, {
        inputs: [
          { name: "input_ids", type: "int64", shape: ["b", "n"] },
          { name: past, type: "float32", shape: ["b", 1, "p", 1] },
        ],
        outputNames: ["logits", present],
      });
      const run = async (feeds: Feeds) => {
        const n = feeds[past].dims[2] + feeds.input_ids.dims[1];
        sizes.push(feeds[past].dims[2]);
        return new Map([...(await cached.run(feeds)), [present, { type: "float32", dims: [1, 1, n, 1], data: new Float32Array(n) }]]);
      };
      const found = await compareGeneration(decoder(() => 1), { ...cached, run }, options); // prettier-ignore
      expect([found.agreement, sizes]).toEqual([1, [0, 2, 3, 4, 0, 3, 4, 5]]);
    }
  });
  test("what is no decoder is refused", async () => {
    const bad: Partial<DecoderModel>[] = [
      { inputs: [{ name: "x", type: "float32", shape: ["b", "n"] }] },
      { inputs: [] },
      {
        inputs: [
          { name: "input_ids", type: "int64", shape: ["b", "n"] },
          { name: "other", type: "float32", shape: [1] },
        ],
      },
      {
        inputs: [
          { name: "input_ids", type: "int64", shape: ["b", "n"] },
          { name: "past.0", type: "float32", shape: [1] },
        ],
      },
      { outputNames: [] },
      { run: async () => new Map() },
      { run: async () => new Map([["logits", null]]) },
      { run: async () => new Map([["logits", { type: "float32", dims: [6], data: new Float32Array(6) }]]) },
      { run: async () => new Map([["logits", { type: "float32", dims: [1, 2, 1], data: new Float32Array(2) }]]) },
    ];
    for (const more of bad) await expect(compareGeneration(decoder(() => 1, more), decoder(() => 1), options)).rejects.toThrow("d: expected"); // prettier-ignore
  });
  test("prompts are those given, or random ones below the size of the table", () => {
    const ids = { name: "input_ids", type: "int64", shape: ["b", "n"] };
    expect(promptsOf(ids, prompts, { samples: 1, seed: 1, hint: undefined })).toEqual([[1, 2]]);
    expect(promptsOf(ids, prompts, { samples: 9, seed: 1, hint: undefined })).toEqual([[1, 2], [5, 0, 3]]); // prettier-ignore
    const random = promptsOf(ids, null, { samples: 3, seed: 2, hint: { below: 50 } });
    expect(random.map(({ length }) => length)).toEqual([8, 8, 8]);
    expect(new Set(random.flat()).size).toBeGreaterThan(12);
    expect(Math.max(...random.flat())).toBeLessThan(50);
    const wide = promptsOf(ids, null, { samples: 30, seed: 2, hint: undefined }).flat();
    expect(Math.max(...wide)).toBeGreaterThan(900);
    expect(Math.max(...wide)).toBeLessThan(1000);
    expect(promptsOf(ids, null, { samples: 3, seed: 2, hint: { below: 50 } })).toEqual(random);
  });
});

describe("forms of GPTQ that are tried on data held out", () => {
  const chosen = async (name: string, to: string, options: object, k = 128, rows = 256) => {
    const m = readModelBytes(encode(matmulModel(raw("w", [k, 8], weights(k * 8)), k, 8)));
    const batches: Feeds[] = [11, 12].map((seed) => ({ x: { type: "float32", data: weights((rows / 2) * k, seed), dims: [rows / 2, k] } }));
    const [[, { packed }]] = await decideWeights(m, modelLayers(m), () => ({ format: format(to as "mxfp4"), algorithm: { name, ...options } as never }), batches, { holdOut: 0.5 }); // prettier-ignore
    return packed.recipe.chosenOf;
  };
  test.each<[string, string, object, number | undefined, number?, number?]>([
    ["gptq", "int4_b32", {}, 5],
    ["gptq", "mxfp4", {}, 6],
    ["gptq", "int4_b16_float16", {}, 5],
    ["gptq", "int4_b32", { damp: 0.05 }, 3],
    ["gptq", "int4_b32", { damp: 0.05, polish: false }, 2],
    ["gptq", "int4_b32", { damp: 0.05, polish: false, actOrder: true }, undefined],
    ["gptq", "int4_b32", { staticGroups: true }, 4],
    ["gptq", "ggml_q4_0", {}, 3],
    ["gptq", "int4_b32", {}, 7, 128, 64],
  ])("%s of %s with %o: %s", async (name, to, options, count, k, rows) => expect(await chosen(name, to, options, k, rows)).toBe(count)); // prettier-ignore
});

test("weights that were inputs with a default are named, three of them", async () => {
  const note = async (n: number) => {
    const names = Array.from({ length: n }, (_, i) => `w${i}`);
    const nodes = names.map((name, i) => node("MatMul", [i === 0 ? "x" : `h${i}`, name], [i === n - 1 ? "y" : `h${i + 1}`]));
    const bytes = encode(model(graph({ input: [value("x", T.FLOAT, ["b", 32]), ...names.map((name) => value(name, T.FLOAT, [32, 32]))], output: [value("y", T.FLOAT, [])], initializer: names.map((name, i) => raw(name, [32, 32], weights(1024, i + 1))), node: nodes }))); // prettier-ignore
    return (await quantizeModelBytes(bytes, { dtype: "q4" })).report.notes.find((line) => line.startsWith("weights that were"));
  };
  const text = "weights that were graph inputs with a default can no longer be fed: ";
  expect(await note(1)).toBe(`${text}w0`);
  expect(await note(3)).toBe(`${text}w0, w1, w2`);
  expect(await note(5)).toBe(`${text}w0, w1, w2, ... (5 in all)`);
});

describe("models in runtimes that fail, and that differ", () => {
  const bytes = encode(model(graph({ input: [value("x", T.FLOAT, [4])], output: [value("p", T.FLOAT, [4]), value("q", T.FLOAT, [4])], node: [node("Neg", ["x"], ["p"], {}, "neg"), node("Abs", ["x"], ["q"], {}, "abs")] }))); // prettier-ignore
  const feeds: Feeds[] = [{ x: { type: "float32", data: Float32Array.of(-2, -1, 1, 2), dims: [4] } }];
  type Change = (name: string, values: Float32Array) => Float32Array | null;
  /** A runtime without a process, of this one model. */
  const plain = (change: Change, over: Partial<Runtime> = {}): Runtime => ({
    ...{ name: "stub", version: "1", peakBytes: async () => 1, close: async () => {} },
    open: async () => ({
      ...{ inputNames: ["x"], outputNames: ["p", "q"], inputs: undefined, outputs: undefined },
      loadMs: 1,
      run: async () => {
        const values = { p: Float32Array.of(2, 1, -1, -2), q: Float32Array.of(2, 1, 1, 2) };
        const outputs = Object.entries(values).map(([name, value]) => {
          const data = change(name, value);
          return [name, data === null ? null : { type: "float32", dims: [data.length], data }] as const;
        });
        return { outputs: new Map(outputs), ms: 1 };
      },
      close: async () => {},
    }),
    ...over,
  });
  const compared = async (over: Partial<Runtime>, change: Change = (_, v) => v) => {
    for (const name of ["node", "node-disabled"]) vi.spyOn(runtimeEntry(name), "start").mockImplementation(async () => plain((_, v) => v));
    const stub: RuntimeEntry = { name: "stub", about: "", check: () => {}, start: async () => plain(change, over) };
    const { cells, ok, runtimes } = await compareRuntimes(bytes, bytes, { runtimes: [stub], feeds, kinds: new Map() });
    expect(runtimes).toEqual(["node", "stub"]);
    expect(cells.map(({ model: of, runtime }) => `${of} ${runtime}`)).toEqual(["reference node", "reference stub", "model node", "model stub"]); // prettier-ignore
    return { ok, cell: cells[3] };
  };
  afterEach(() => vi.restoreAllMocks());
  test.each([
    [undefined, "no float16 here", "refused"],
    [true, "no float16 here", "refused"],
    [false, "no float16 here", "unproved"],
    [false, "no f16 here\nfor a reason", "unproved"],
    [false, "HALF is missing", "unproved"],
    [false, "out of memory", "refused"],
    [false, "out of memory\nfor float16", "refused"],
  ] as const)("half %s, %j", async (half, message, state) => {
    const open = (): never => {
      throw new Error(message);
    };
    const { ok, cell } = await compared({ open, ...(half === undefined ? {} : { half }) });
    expect([ok, cell.ok, cell.state]).toEqual([state === "unproved", state === "unproved", state]);
    expect([cell.error, cell.sqnrDb, cell.agreementDb, cell.ms, cell.peakBytes, cell.parting]).toEqual([message.split("\n")[0], NaN, NaN, NaN, null, undefined]); // prettier-ignore
  });
  const off = (of: string, by: number) => (name: string, values: Float32Array) => name === of ? values.map((v) => v * (1 + by)) : values; // prettier-ignore
  test.each([
    ["alike", (_: string, v: Float32Array) => v, Infinity, undefined],
    ["one a little off", off("q", 2 ** -14), 84.29, undefined],
    ["one far off", off("q", 0.5), 6.02, "q"],
    ["the other far off", off("p", 0.25), 12.04, "p"],
    ["both off, the second more", (name: string, v: Float32Array) => v.map((one) => one * (name === "p" ? 1.25 : 1.5)), 6.02, "p"],
    ["both alike off", (_: string, v: Float32Array) => v.map((one) => one * 1.5), 6.02, "p"],
    ["one of another shape", (name: string, v: Float32Array) => (name === "q" ? v.slice(0, 2) : v), -Infinity, "q"],
    ["one that is not there", (name: string, v: Float32Array) => (name === "q" ? null : v), Infinity, undefined],
  ] as const)("%s", async (_, change, db, output) => {
    const { ok, cell } = await compared({}, change);
    expect([ok, cell.ok, cell.parting?.output]).toEqual([output === undefined, output === undefined, output]);
    expect([cell.state, cell.error]).toEqual(["ran", undefined]);
    if (Number.isFinite(db)) expect(cell.agreementDb).toBeCloseTo(db, 2);
    else expect(cell.agreementDb).toBe(db);
    expect(cell.sqnrDb).toBe(cell.agreementDb);
  });
});

// Verification in parts, without a runtime: traps by what sets them off, kinds of outputs, judgements, random inputs,
// options, images in numbers.
import { describe, expect, test } from "vitest";
import type { NodeProto, TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { halfTable } from "../../src/onnx/file/half.ts";
import { readModelBytes, runtimeTraps, type OnnxModel } from "../../src/onnx/index.ts";
import { addSample, finish, newSums } from "../../src/onnx/verify/compare.ts";
import { inputHints, randomSource, randomTensor } from "../../src/onnx/verify/feeds.ts";
import { imageTensor, PRESETS, resize, type Pixels } from "../../src/onnx/verify/images.ts";
import { judge, type Figures } from "../../src/onnx/verify/judge.ts";
import { kindOf, kindsByGraph, type OutputKind } from "../../src/onnx/verify/kinds.ts";
import { hasHalf } from "../../src/onnx/verify/range.ts";
import { RUNTIME_TRAPS } from "../../src/onnx/verify/traps.ts";
import { checkVerifyOptions } from "../../src/onnx/verify/verify.ts";
import { T, encode, graph, model, node, raw, value, weights } from "./build.ts";

const opened = (nodes: NodeProto[], initializer: TensorProto[] = [], outputs = ["y"], input = [value("x", T.FLOAT, [2, 4])]): OnnxModel =>
  readModelBytes(encode(model(graph({ input, output: outputs.map((name) => value(name, T.FLOAT, [])), initializer, node: nodes }))));
const codes = (name: string, dims: number[], type: number = T.UINT8): TensorProto =>
  raw(name, dims, new Uint8Array(dims.reduce((a, b) => a * b, 1)), type);
const one = raw("s", [], Float32Array.of(1));

describe("traps", () => {
  const nbits = (inputs: string[], bits: bigint, more = {}) => node("MatMulNBits", inputs, ["y"], { bits, ...more });
  const dynamic = node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]);
  const pair = (op: string) => [node("DequantizeLinear", ["x", "s"], ["d"]), node(op, ["d"], ["p"]), node("QuantizeLinear", ["p", "s"], ["y"])]; // prettier-ignore
  const CASES: [nodes: NodeProto[], init: TensorProto[], ids: string[]][] = [
    [[dynamic, node("MatMulInteger", ["q", "w"], ["y"])], [codes("w", [4, 4])], ["jsep-dynamic-int8"]],
    [[dynamic, node("ConvInteger", ["q", "w"], ["y"])], [codes("w", [4, 4])], ["jsep-dynamic-int8"]],
    [[dynamic], [], []],
    [[node("MatMulInteger", ["x", "w"], ["y"])], [codes("w", [4, 4], T.INT8)], ["int8-without-vnni"]],
    ...["ConvInteger", "QLinearMatMul", "QLinearConv", "DynamicQuantizeMatMul"].map((op): (typeof CASES)[number] => [
      [node(op, ["x", "w"], ["y"])],
      [codes("w", [4, 4], T.INT8)],
      ["int8-without-vnni"],
    ]),
    [[node("DequantizeLinear", ["w", "s"], ["y"])], [codes("w", [4, 4], T.INT8), one], ["int8-without-vnni"]],
    [[node("Gather", ["w", "x"], ["y"])], [codes("w", [4, 4], T.INT8)], []],
    [[node("QLinearConv", ["x", "w"], ["y"])], [codes("w", [4, 4])], []],
    [[node("DequantizeLinear", ["x", "s"], ["y"])], [one], ["jsep-dequantize-8"]],
    [[node("DequantizeLinear", ["x", "s"], ["y"])], [], ["jsep-dequantize-8"]],
    [[node("DequantizeLinear", ["w", "s"], ["y"])], [codes("w", [4, 4]), one], []],
    [[node("DequantizeLinear", ["x", "v"], ["y"])], [raw("v", [2], weights(2))], []],
    [[nbits(["x", "q", "s"], 8n)], [one], ["jsep-nbits-8", "nbits-wasm-slow", "nbits-no-accuracy-level"]],
    [[nbits(["x", "q", "s"], 8n, { accuracy_level: 4n })], [one], ["jsep-nbits-8", "nbits-wasm-slow"]],
    [[nbits(["x", "q", "s"], 2n, { accuracy_level: 1n })], [one], ["nbits-wasm-slow", "nbits-no-accuracy-level"]],
    [[nbits(["x", "q", "s"], 4n)], [one], ["nbits-wasm-slow"]],
    [[nbits(["x", "q", "s"], 3n)], [one], ["nbits-wasm-slow", "nbits-bits"]],
    [[nbits(["x", "q", "s", "", "g"], 4n)], [one], ["nbits-wasm-slow"]],
    [[nbits(["x", "q", "s", "z", "g"], 4n)], [one], ["nbits-wasm-slow", "nbits-g-idx"]],
    [[nbits(["x", "q", "s", "", "g"], 2n, { accuracy_level: 4n })], [one], ["nbits-wasm-slow", "nbits-g-idx"]],
    [[node("DequantizeLinear", ["w", "v"], ["y"], { block_size: 2n })], [codes("w", [4]), raw("v", [2], weights(2))], ["webgpu-dequantize-1d"]], // prettier-ignore
    [[node("DequantizeLinear", ["w", "v"], ["y"], { block_size: 2n })], [codes("w", [2, 4]), raw("v", [2, 2], weights(4))], []],
    [[node("DequantizeLinear", ["w", "v"], ["y"])], [codes("w", [4]), raw("v", [2], weights(2))], []],
    [[node("QLinearSoftmax", ["x", "s"], ["y"])], [one], ["softmax-between-pairs"]],
    [pair("Softmax"), [one], ["jsep-dequantize-8", "softmax-between-pairs"]],
    [pair("Sigmoid"), [one], ["jsep-dequantize-8"]],
    [[node("DequantizeLinear", ["x", "s"], ["d"]), node("Softmax", ["d"], ["y"])], [one], ["jsep-dequantize-8"]],
    ...[T.FLOAT8E4M3FN, T.FLOAT8E5M2, T.FLOAT8E4M3FNUZ, T.FLOAT8E5M2FNUZ].map((type): (typeof CASES)[number] => [
      [node("QuantizeLinear", ["x", "s", "z"], ["y"])],
      [one, codes("z", [1], type)],
      ["fp8-activations"],
    ]),
    [[node("DequantizeLinear", ["w", "v"], ["y"])], [codes("w", [4, 4], T.FLOAT8E4M3FN), raw("v", [2], weights(2))], []],
    [[node("Identity", ["w"], ["y"])], [raw("w", [4], new Uint8Array(2), T.FLOAT4E2M1)], ["fp4"]],
    [[node("Identity", ["w"], ["y"])], [raw("w", [4], new Uint8Array(8), T.FLOAT16)], ["float16-range"]],
    [[node("Cast", ["x"], ["y"], { to: BigInt(T.FLOAT16) })], [], ["float16-range"]],
    [[node("Relu", ["x"], ["y"])], [], []],
  ];
  test("each by what sets it off, and by nothing near it", () => {
    for (const [nodes, init, ids] of CASES) {
      const shown = nodes.map(({ opType, input }) => `${opType}(${input.join()})`).join();
      expect([shown, runtimeTraps(opened(nodes, init)).map(({ id }) => id)]).toEqual([shown, ids]);
    }
    expect(new Set(CASES.flatMap(([, , ids]) => ids))).toEqual(new Set(RUNTIME_TRAPS.map(({ id }) => id)));
  });
  test("inside graphs of nodes too; every row says where, since when and what to do", () => {
    const branch = () => graph({ output: [value("b", T.FLOAT, [])], node: [node("QLinearSoftmax", ["x", "s"], ["b"])] });
    const nested = opened([node("If", ["c"], ["y"], { then_branch: branch(), else_branch: branch() })], [one]);
    expect(runtimeTraps(nested).map(({ id }) => id)).toEqual(["softmax-between-pairs"]);
    for (const { id, runtime, versions, effect, text } of RUNTIME_TRAPS) {
      expect([id, runtime.startsWith("onnxruntime-")]).toEqual([id, true]);
      expect([id, versions !== "", effect !== ("" as never), text.length > 30]).toEqual([id, true, true, true]);
    }
  });
  test("float16 is in weights or casts", () => {
    expect(hasHalf(opened([node("Relu", ["x"], ["y"])]))).toBe(false);
    expect(hasHalf(opened([node("Cast", ["x"], ["y"], { to: BigInt(T.FLOAT16) })]))).toBe(true);
    expect(hasHalf(opened([node("Cast", ["x"], ["y"], { to: BigInt(T.DOUBLE) })]))).toBe(false);
    expect(hasHalf(opened([node("Identity", ["w"], ["y"])], [raw("w", [4], new Uint8Array(8), T.FLOAT16)]))).toBe(true);
  });
});

describe("kinds of outputs", () => {
  const through = ["Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Clip", "Dropout", "Concat"];
  test.each<[string, OutputKind]>([
    ["Softmax", "probabilities"],
    ["Sigmoid", "scores"],
    ["HardSigmoid", "scores"],
    ["LogSoftmax", "logits"],
    ["LpNormalization", "embedding"],
  ])("%s makes %s, through whatever keeps the numbers", (op, kind) => {
    for (const after of through)
      expect([after, kindsByGraph(opened([node(op, ["x"], ["h"]), node(after, ["h"], ["y"])])).get("y")]).toEqual([after, kind]);
    expect(kindsByGraph(opened([node(op, ["x"], ["h"]), node("Relu", ["h"], ["y"])])).size).toBe(0);
    const branch = (name: string) => graph({ output: [value("other", T.FLOAT, []), value(name, T.FLOAT, [])], node: [node(op, ["x"], [name]), node("Relu", ["x"], ["other"])] }); // prettier-ignore
    const inside = opened([node("If", ["c"], ["z", "y"], { else_branch: branch("e"), then_branch: branch("t") })], [], ["y", "z"]);
    expect([...kindsByGraph(inside)]).toEqual([["y", kind]]);
    expect(kindsByGraph(opened([Object.assign(node(op, ["x"], ["y"]), { domain: "own" })])).size).toBe(0);
  });
  test("by type, values and name where the graph does not tell", () => {
    const of = (more: object, byGraph?: OutputKind): OutputKind =>
      kindOf({ name: "y", type: "float32", dims: [2, 5], least: -1, most: 1, sumsToOne: false, unitLength: false, ...more }, byGraph);
    expect(of({})).toBe("values");
    for (const type of ["int64", "bool", "string", "uint8"]) expect(of({ type })).toBe("labels");
    for (const type of ["float16", "float64", "bfloat16", "double"]) expect(of({ type })).toBe("values");
    expect([of({}, "probabilities"), of({ dims: [2, 1] }, "probabilities"), of({ dims: [] }, "probabilities"), of({}, "logits")]).toEqual(["probabilities", "scores", "scores", "logits"]); // prettier-ignore
    expect([of({ unitLength: true }), of({ unitLength: true, dims: [2, 1] })]).toEqual(["embedding", "values"]);
    expect([of({ least: 0, sumsToOne: true }), of({ least: -1e-9, sumsToOne: true }), of({ least: 0 })]).toEqual(["probabilities", "values", "values"]); // prettier-ignore
    for (const name of ["sentence_embedding", "last_hidden_state", "pooler_output", "features", "vector"])
      expect(of({ name })).toBe("embedding");
    for (const name of ["logits", "scores", "cls", "prob", "prediction"])
      expect([of({ name }), of({ name, dims: [2, 1] })]).toEqual(["logits", "values"]);
  });
});

test("judgements: the figure of the kind, its limits, and what is no evidence", () => {
  const of = (more: object): string[] => {
    const { grade, text } = judge({ kind: "values", agreement: null, noEvidence: null, sqnrDb: 25, cosine: 0.99, maxAbsError: 0.02, ...more } as Figures); // prettier-ignore
    return [grade, text];
  };
  const argmax = (share: number) => ({ measure: "argmax", value: share, count: 8 });
  expect(of({ sqnrDb: 30 })).toEqual(["good", "good: SQNR 30 dB (good from 30 dB, usual from 20 dB)"]);
  expect(of({ sqnrDb: 29.99 })).toEqual(["usual", "usual: SQNR 29.9 dB (good from 30 dB, usual from 20 dB)"]);
  expect(of({ sqnrDb: 19.99 })).toEqual(["weak", "weak: SQNR 19.9 dB (good from 30 dB, usual from 20 dB)"]);
  expect(of({ sqnrDb: Infinity })).toEqual(["exact", "exact"]);
  for (const kind of ["logits", "probabilities"]) {
    expect(of({ kind, agreement: argmax(0.98) })[1]).toBe("good: same largest element 98.0% (good from 98.0%, usual from 90.0%)");
    expect([0.979, 0.9, 0.899].map((share) => of({ kind, agreement: argmax(share) })[0])).toEqual(["usual", "usual", "weak"]);
    expect(of({ kind })[1]).toContain("SQNR 25 dB");
  }
  expect(of({ kind: "embedding", agreement: argmax(0.95) })[1]).toBe(
    "good: same nearest neighbours 95.0% (good from 95.0%, usual from 85.0%)",
  );
  expect([0.949, 0.85, 0.849].map((share) => of({ kind: "embedding", agreement: argmax(share) })[0])).toEqual(["usual", "usual", "weak"]);
  expect(of({ kind: "embedding" })).toEqual(["usual", "usual: cosine 0.990 (good from 0.995, usual from 0.980)"]);
  expect([0.995, 0.9949, 0.98, 0.9799].map((cosine) => of({ kind: "embedding", cosine })[0])).toEqual(["good", "usual", "usual", "weak"]);
  expect(of({ kind: "labels", agreement: argmax(0.99) })[1]).toBe("good: equal 99.0% (good from 99.0%, usual from 95.0%)");
  expect([0.989, 0.95, 0.949].map((share) => of({ kind: "labels", agreement: argmax(share) })[0])).toEqual(["usual", "usual", "weak"]);
  expect(of({ kind: "scores" })).toEqual(["usual", "usual: largest error 0.020 (good to 0.01, usual to 0.05)"]);
  expect([0.01, 0.0101, 0.05, 0.0501].map((maxAbsError) => of({ kind: "scores", maxAbsError })[0])).toEqual(["good", "usual", "usual", "weak"]); // prettier-ignore
  expect(of({ noEvidence: "nan" })).toEqual(["none", "no evidence: NaN in the reference"]);
  expect(of({ noEvidence: "empty" })[1]).toBe("no evidence: no elements");
  expect(of({ noEvidence: "constant" })[1]).toBe("no evidence: does not depend on these inputs");
  expect(of({ noEvidence: "saturated" })[1]).toBe("no evidence: stays at one score on these inputs, largest error 0.020");
  expect(of({ noEvidence: "near-zero" })[1]).toBe("no evidence: next to zero on these inputs, largest error 0.020");
});

test("hints: indices are below the size of every table, and what an input is compared with", () => {
  const table = (name: string, rows: number) => raw(name, [rows, 2], weights(2 * rows));
  const ids = ["a", "b", "c", "d"].map((name) => value(name, T.INT64, [2]));
  const read = opened(
    [
      node("Gather", ["t9", "a"], ["g1"]),
      node("Identity", ["a"], ["a2"]),
      node("Cast", ["a2"], ["a3"], { to: 6n }),
      node("Gather", ["t5", "a3"], ["g2"]),
      node("Equal", ["b", "k"], ["e1"]),
      node("Equal", ["k2", "c"], ["e2"]),
      node("Equal", ["b", "k2"], ["e3"]),
      node("Relu", ["d"], ["y"]),
    ],
    [table("t9", 9), table("t5", 5), raw("k", [], BigInt64Array.of(3n), T.INT64), raw("k2", [1], Int32Array.of(7), T.INT32)],
    ["y"],
    ids,
  );
  expect([...inputHints(read)]).toEqual([
    ["a", { below: 5 }],
    ["b", { equals: 3 }],
    ["c", { equals: 7 }],
  ]);
});

describe("random inputs", () => {
  const of = (name: string, type: string, hint?: object, style = {}, dims = [50, 40]) =>
    randomTensor({ name, type, shape: dims }, dims, hint, randomSource(5), style);
  const numbers = (data: unknown): number[] => Array.from(data as ArrayLike<number | bigint>, Number);
  test("the generator is mulberry32: uniform, and the same for a seed", () => {
    const [a, b] = [randomSource(1), randomSource(1)];
    expect([a(), a(), a()]).toEqual([b(), b(), b()]);
    expect(randomSource(1)()).toBeCloseTo(0.6270739405881613, 12);
    expect(randomSource(2)()).not.toBe(randomSource(1)());
  });
  test("floats: normal of unit variance, or uniform in 0..1, times a scale; masks are ones", () => {
    const normal = numbers(of("x", "float32").data);
    expect(normal).toHaveLength(2000);
    expect(Math.abs(normal.reduce((s, v) => s + v, 0) / 2000)).toBeLessThan(0.1);
    expect(normal.reduce((s, v) => s + v * v, 0) / 2000).toBeCloseTo(1, 0);
    const uniform = numbers(of("x", "float64", undefined, { distribution: "uniform", scale: 3 }).data);
    expect([Math.min(...uniform) >= 0, Math.max(...uniform) > 2.9, Math.max(...uniform) < 3]).toEqual([true, true, true]);
    const half = numbers(of("x", "float16").data).map((code) => halfTable()[code]);
    half.forEach((v, i) => expect(Math.abs(v - normal[i])).toBeLessThan(2e-3));
    expect(new Set(numbers(of("attention_mask", "float32").data))).toEqual(new Set([1]));
  });
  test.each(["int64", "uint64", "int32", "uint32", "int16", "uint16", "int8"])(
    "%s: indices below, what is compared with, masks, else 0 or 1",
    (type) => {
      const values = (name: string, hint?: object) => [...new Set(numbers(of(name, type, hint).data))].sort((a, b) => a - b);
      expect(of("x", type).type).toBe(type);
      expect(values("ids", { below: 5 })).toEqual([0, 1, 2, 3, 4]);
      expect(values("ids", { equals: 7, below: 5 })).toEqual([7]);
      expect(values("mask")).toEqual([1]);
      expect(values("x")).toEqual([0, 1]);
    },
  );
  test("bytes are of images, bools are masks with holes or flags, strings are empty", () => {
    const bytes = numbers(of("image", "uint8").data);
    expect([Math.min(...bytes), Math.max(...bytes)]).toEqual([0, 255]);
    expect(new Set(numbers(of("mask", "uint8").data))).toEqual(new Set([1]));
    expect(new Set(numbers(of("b", "bool").data))).toEqual(new Set([1]));
    const holes = numbers(of("b", "bool", undefined, { holes: true }).data);
    expect(holes.filter((v) => v === 0).length / 2000).toBeCloseTo(0.25, 1);
    for (let row = 0; row < 50; row++) expect(holes[row * 40]).toBe(1);
    expect([of("b", "bool", undefined, {}, [1]).data, of("b", "bool", undefined, { flag: true }, [1]).data].map(numbers)).toEqual([[0], [1]]); // prettier-ignore
    expect(of("s", "string", undefined, {}, [2]).data).toEqual(["", ""]);
  });
});

test.each<[object | null, string]>([
  [null, "verifyModels options: expected an object, got null"],
  ["x" as never, "verifyModels options: expected an object, got a string"],
  [{ samples: 0 }, "samples: expected a positive integer, got 0"],
  [{ samples: 1.5 }, "samples: expected a positive integer, got 1.5"],
  [{ inputs: [] }, "inputs: expected at least one set of feeds"],
  [{ generate: 0 }, "generate: expected a positive number of tokens, got 0"],
  [{ generate: "2" }, "generate: expected a positive number of tokens, got 2"],
  [{ images: "a", inputs: [{}], preprocess: "clip" }, "images, inputs: expected one of them, got both"],
  [{ images: "a" }, "images, preprocess: expected both or none"],
  [{ preprocess: "clip" }, "images, preprocess: expected both or none"],
  [{ images: "a", preprocess: "other" }, "preprocess: expected one of imagenet, clip, half, unit, raw"],
])("options %j are refused", (options, text) => {
  expect(() => checkVerifyOptions(options as object)).toThrow(text);
  for (const good of [{}, { samples: 1 }, { generate: 1 }, { images: "a", preprocess: "raw" }, { inputs: [{}] }]) expect(() => checkVerifyOptions(good as object)).not.toThrow(); // prettier-ignore
});

describe("images", () => {
  const image: Pixels = { width: 4, height: 2, data: Uint8Array.from({ length: 24 }, (_, i) => i * 10) };
  const input = (type: string, shape: (number | string)[]) => ({ name: "x", type, shape });
  test("presets: means and deviations by channel, bytes as they are", () => {
    const tensor = (preset: string, type = "float32") => imageTensor(image, input(type, [1, 3, 2, 4]), { ...PRESETS.get(preset)!, crop: null }); // prettier-ignore
    const at = (preset: string, type?: string): number[] => [0, 8, 23].map((i) => (tensor(preset, type).data as Float32Array)[i]);
    // red of the first pixel, green of the first, blue of the last
    const bytes = [0, 10, 230];
    const by = (mean: number[], deviation: number[]) => bytes.map((v, c) => Math.fround((v / 255 - mean[c]) / deviation[c]));
    expect(at("unit")).toEqual(by([0, 0, 0], [1, 1, 1]));
    expect(at("half")).toEqual(by([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]));
    expect(at("imagenet")).toEqual(by([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]));
    expect(at("clip")).toEqual(by([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]));
    expect(at("raw")).toEqual(bytes);
    expect(tensor("raw", "uint8").data).toBeInstanceOf(Uint8Array);
    expect(at("raw", "uint8")).toEqual(bytes);
    expect(at("raw", "float16").map((code) => halfTable()[code])).toEqual(bytes);
  });
  test("layouts: channels first, last, grey; sizes that are open are the preset's", () => {
    const raw = PRESETS.get("raw")!;
    const of = (shape: (number | string)[], preset = raw) => imageTensor(image, input("float32", shape), preset);
    expect(of([1, 2, 4, 3]).dims).toEqual([1, 2, 4, 3]);
    expect([...(of([1, 2, 4, 3]).data as Float32Array)]).toEqual([...image.data]);
    expect(of(["n", "c", "h", "w"], { ...raw, size: 2 }).dims).toEqual([1, 3, 2, 2]);
    expect(of(["n", "h", "w", 3], { ...raw, size: 2 }).dims).toEqual([1, 2, 2, 3]);
    expect([...(of([1, 1, 2, 4]).data as Float32Array)].slice(0, 2)).toEqual([Math.round(0.587 * 10 + 0.114 * 20), Math.round(0.299 * 30 + 0.587 * 40 + 0.114 * 50)]); // prettier-ignore
    for (const shape of [
      [1, 4, 2, 4],
      [3, 2, 4],
      [1, 2, 4, 2],
    ])
      expect(() => of(shape)).toThrow(/expected an image/);
  });
  test("the shorter side is scaled, the middle cut out", () => {
    const wide: Pixels = { width: 8, height: 2, data: Uint8Array.from({ length: 48 }, (_, i) => Math.floor(i / 3) % 8) };
    const { data } = imageTensor(wide, input("float32", [1, 3, 2, 2]), { ...PRESETS.get("raw")!, crop: 1 });
    expect([...(data as Float32Array)].slice(0, 4)).toEqual([3, 4, 3, 4]);
  });
  test.each(["linear", "cubic"] as const)("resize by %s: the same size is the same image, a constant stays, sums are kept", (filter) => {
    expect([...resize(image, 4, 2, filter)]).toEqual([...image.data]);
    const flat: Pixels = { width: 5, height: 3, data: new Uint8Array(45).fill(77) };
    for (const [w, h] of [[2, 2], [9, 7], [1, 1]]) for (const v of resize(flat, w, h, filter)) expect(v).toBeCloseTo(77, 3); // prettier-ignore
    const small = resize({ width: 4, height: 1, data: Uint8Array.from([0, 0, 0, 100, 100, 100, 100, 100, 100, 0, 0, 0]) }, 2, 1, filter);
    expect([small[0], small[3]]).toEqual([small[5], small[2]]);
  });
});

describe("figures of outputs", () => {
  type Data = number[] | string[];
  const tensor = (data: Data, dims: number[], type = "float32") =>
    ({ type, dims, data: type === "string" ? data : Float32Array.from(data as number[]) }) as never;
  const of = (samples: [Data, Data][], dims: number[], more: { type?: string; name?: string; kind?: OutputKind; min?: object } = {}) => {
    const sums = newSums(more.name ?? "y");
    for (const [a, b] of samples) addSample(sums, tensor(a, dims, more.type), tensor(b, dims, more.type));
    return finish(sums, more.kind, { minSqnrDb: 20, ...more.min });
  };
  test("errors, and largest elements of rows without NaN", () => {
    const found = of([[[1, 5, 2, 3, 3, 0], [1, 4, 2, 2, 3, 0]], [[-7, 0, NaN, 9, 1, 2], [-7, 0, 1, 9, 1, 2]]], [2, 3]); // prettier-ignore
    expect(found).toMatchObject({ name: "y", type: "float32", dims: [2, 3], maxAbsError: 1, nanReference: 1, ok: false });
    const signal = 1 + 25 + 4 + 9 + 9 + 49 + 81 + 1 + 4;
    expect(found.sqnrDb).toBeCloseTo(10 * Math.log10(signal / 2), 9);
    expect(found.rms).toBeCloseTo(Math.sqrt(signal / 11), 9);
    expect(found.cosine).toBeCloseTo((signal - 5 - 3) / Math.sqrt(signal * (signal - 9 - 5)), 9);
    // of three rows one has another largest element: 3, 3 against 2, 3
    expect(found.argmaxAgreement).toBeCloseTo(2 / 3, 12);
  });
  test("equal, infinite and missing numbers", () => {
    expect(of([[[1, 2], [1, 2]]], [1, 2])).toMatchObject({ sqnrDb: Infinity, cosine: 1, maxAbsError: 0, ok: true }); // prettier-ignore
    expect(of([[[1, 2], [1, Infinity]]], [1, 2])).toMatchObject({ sqnrDb: -Infinity, maxAbsError: Infinity, ok: false }); // prettier-ignore
    expect(of([[[1, 2], [1, NaN]]], [1, 2])).toMatchObject({ sqnrDb: -Infinity, maxAbsError: Infinity }); // prettier-ignore
    expect(of([[[-Infinity, 2], [-Infinity, 2]]], [1, 2])).toMatchObject({ sqnrDb: Infinity }); // prettier-ignore
    expect(of([[[NaN, NaN], [1, 2]]], [1, 2])).toMatchObject({ sqnrDb: NaN, noEvidence: "nan", ok: false }); // prettier-ignore
    expect(of([[[], []]], [0, 2])).toMatchObject({ noEvidence: "empty", ok: true });
  });
  test("what is no evidence: the same numbers, scores that stay or are next to zero", () => {
    expect(of([[[3, 3], [3, 3.1]]], [2, 1]).noEvidence).toBe("constant"); // prettier-ignore
    expect(of([[[3, 4], [3, 4]], [[3, 4], [3, 4]]], [2, 1]).noEvidence).toBe("constant"); // prettier-ignore
    expect(of([[[3, 4], [3, 4]], [[3, 5], [3, 5]]], [2, 1]).noEvidence).toBeNull(); // prettier-ignore
    expect(of([[[1, 1], [1, 0.995]]], [2, 1], { kind: "scores" })).toMatchObject({ noEvidence: "saturated", ok: true }); // prettier-ignore
    expect(of([[[0.001, 0.009], [0.001, 0.02]]], [2, 1], { kind: "scores" })).toMatchObject({ noEvidence: "near-zero", ok: false }); // prettier-ignore
    expect(of([[[0.001, 0.011], [0.001, 0.02]]], [2, 1], { kind: "scores" }).noEvidence).toBeNull(); // prettier-ignore
  });
  test("labels are equal or not; a share may be asked for", () => {
    const words = [...Array(9).fill("a"), "b"] as string[];
    const other = [...Array(10).fill("a")] as string[];
    expect(of([[words, words]], [10], { type: "string" })).toMatchObject({ sqnrDb: Infinity, agreement: { value: 1 }, ok: true });
    expect(of([[words, other]], [10], { type: "string" })).toMatchObject({ sqnrDb: -Infinity, agreement: { value: 0.9, count: 10 }, ok: true }); // prettier-ignore
    expect(of([[words, other]], [10], { type: "string", min: { minAgreement: 0.95 } }).ok).toBe(false);
    expect(of([[words, [...other.slice(1), "c"]]], [10], { type: "string" }).ok).toBe(true);
    expect(of([[words, ["c", "c", ...other.slice(2)]]], [10], { type: "string" }).ok).toBe(false);
  });
  test("rows that sum to one are probabilities, of length one embeddings", () => {
    const kind = (data: number[], name = "y") => of([[data, data]], [2, 2], { name }).kind;
    expect([kind([0.25, 0.75, 0.5, 0.5]), kind([0.25, 0.75, 0.5, 0.51]), kind([0.6, 0.8, 1, 0]), kind([0.6, 0.8, 1, 0.1])]).toEqual(["probabilities", "values", "embedding", "values"]); // prettier-ignore
    expect(kind([3, 4, 5, 6], "logits")).toBe("logits");
  });
  test("rows agree in their largest element; values and scores have no such figure", () => {
    const agreement = (kind: OutputKind) => of([[[3, 4, 5, 6], [3, 4, 6, 5]]], [2, 2], { kind }).agreement; // prettier-ignore
    expect(agreement("logits")).toEqual({ measure: "argmax", value: 0.5, count: 2 });
    expect([agreement("values"), agreement("scores")]).toEqual([null, null]);
  });
});

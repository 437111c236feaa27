// What verification computes and says, over grids of small inputs, as text against stored text: figures and judgements
// of outputs, random inputs, sizes that are tried, images as tensors, names that are matched, pages of reports. What the
// figures mean is in verify, judge, random-inputs and real-inputs tests; here none of them may change unseen.
import { describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { readModelBytes, type RuntimeTrap } from "../../src/onnx/index.ts";
import { matchNames, type PlaceRule } from "../../src/onnx/place/names.ts";
import { histogramOf } from "../../src/onnx/report/histogram.ts";
import { histogramHtml, reportHtml, type ReportContent } from "../../src/onnx/report/html.ts";
import { addSample, finish, newSums } from "../../src/onnx/verify/compare.ts";
import { inputDims, inputHints, isFlag, randomSource, randomTensor, type FeedTensor, type Feeds, type InputMetadata } from "../../src/onnx/verify/feeds.ts"; // prettier-ignore
import { imageTensor, PRESETS, resize, type Pixels } from "../../src/onnx/verify/images.ts";
import { kindsByGraph, type OutputKind } from "../../src/onnx/verify/kinds.ts";
import { randomFeeds } from "../../src/onnx/verify/random.ts";
import { rangeWarning } from "../../src/onnx/verify/range.ts";
import type { OutputTensor } from "../../src/onnx/verify/runtimes.ts";
import { runtimeTraps } from "../../src/onnx/verify/traps.ts";
import { T, encode, graph, model, node, raw, value, weights } from "./build.ts";
import { storedTexts } from "./printed.ts";
import { int64 } from "./zoo.ts";

const stored = storedTexts("verify");
const short = (v: unknown): unknown => (typeof v === "number" && !Number.isInteger(v) ? (Number.isFinite(v) ? Number(v.toPrecision(7)) : String(v)) : typeof v === "bigint" ? String(v) : v); // prettier-ignore
const text = (v: unknown): string => JSON.stringify(v, (_, x: unknown) => short(x));
const count = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);

describe("figures of outputs", () => {
  type Make = (dims: number[], seed: number) => number[];
  const plain: Make = (dims, seed) => [...weights(count(dims), seed)];
  const rows = (dims: number[], values: number[], norm: (row: number[]) => number): number[] => {
    const width = dims.at(-1) ?? 1;
    return values.map((v, i) => v / norm(values.slice(i - (i % width), i - (i % width) + width)));
  };
  const KINDS: Record<string, Make> = {
    plain,
    shares: (dims, seed) => rows(dims, plain(dims, seed).map((v) => Math.abs(v) + 0.01), (row) => row.reduce((a, b) => a + b, 0)), // prettier-ignore
    units: (dims, seed) => rows(dims, plain(dims, seed), (row) => Math.sqrt(row.reduce((a, b) => a + b * b, 0))),
    scores: (dims, seed) => plain(dims, seed).map((v) => 1 / (1 + Math.abs(v))),
    "of 0 and 1": (dims) => Array.from({ length: count(dims) }, (_, i) => i % 2),
    "next to 0": (dims, seed) => plain(dims, seed).map((v) => Math.abs(v) * 1e-3),
    constant: (dims) => new Array<number>(count(dims)).fill(0.25),
    large: (dims, seed) => plain(dims, seed).map((v) => v * 1e6),
    "some NaN": (dims, seed) => plain(dims, seed).map((v, i) => (i % 3 === 1 ? NaN : v)),
    NaN: (dims) => new Array<number>(count(dims)).fill(NaN),
    "an infinity": (dims, seed) => plain(dims, seed).map((v, i) => (i === 0 ? Infinity : v)),
  };
  const NOISE: Record<string, (v: number, i: number, noise: number) => number> = {
    none: (v) => v,
    little: (v, _, noise) => v + noise * 1e-4,
    some: (v, _, noise) => v * (1 + noise / 4),
    much: (v, _, noise) => v + noise * 10,
    "a NaN": (v, i) => (i === 2 ? NaN : v),
    "an infinity": (v, i) => (i === 1 ? -Infinity : v),
  };
  const DIMS = [[], [1], [5], [4, 5], [12, 6], [9, 3, 4], [3, 1], [0, 4]];
  const tensor = (dims: number[], values: number[]): OutputTensor => ({ type: "float32", dims, data: Float32Array.from(values) });
  for (const [kind, make] of Object.entries(KINDS))
    test(kind, () => {
      const lines: string[] = [];
      for (const dims of DIMS)
        for (const [noise, change] of Object.entries(NOISE))
          for (const samples of [1, 2])
            for (const byGraph of kind === "scores" || kind === "of 0 and 1" || kind === "next to 0"
              ? (["scores"] as const)
              : [undefined]) {
              const sums = newSums(kind === "units" ? "sentence_embedding" : kind === "plain" ? "logits" : "y");
              for (let s = 0; s < samples; s++) {
                const a = make(dims, s + 1);
                const off = weights(count(dims), 77 + s);
                addSample(sums, tensor(dims, a), tensor(dims, a.map((v, i) => change(v, i, off[i])))); // prettier-ignore
              }
              const { judgement, ...figures } = finish(sums, byGraph as OutputKind | undefined, {
                minSqnrDb: 20,
                ...(samples === 2 ? { minAgreement: 0.9 } : {}),
              });
              const { name: _n, type: _t, dims: _d, ...rest } = figures;
              lines.push(`[${dims}] ${noise} ${samples}: ${judgement.text} | ${Object.values(rest).map(text).join(" ")}`); // prettier-ignore
            }
      stored(`figures, ${kind}`, lines.join("\n"));
    });
  test("of other types", () => {
    const lines: string[] = [];
    const pairs: [string, OutputTensor["data"], OutputTensor["data"]][] = [
      ["int64", BigInt64Array.of(1n, 2n, 3n, 4n), BigInt64Array.of(1n, 2n, 3n, 5n)],
      ["int32", Int32Array.of(1, 2, 3, 4), Int32Array.of(1, 2, 3, 4)],
      ["bool", Uint8Array.of(0, 1, 1, 0), Uint8Array.of(0, 1, 0, 0)],
      ["string", ["a", "b", "c", "d"], ["a", "b", "c", "e"]],
      ["string", ["a"], ["a"]],
      ["float16", Uint16Array.of(0x3c00, 0x4000, 0x4200, 0xc400), Uint16Array.of(0x3c01, 0x4000, 0x4200, 0xc400)],
      ["float64", Float64Array.of(1, 2, 3, 4), Float64Array.of(1, 2, 3, 4 + 1e-9)],
      ["uint16", Uint16Array.of(0x3c00, 2, 3, 4), Uint16Array.of(0x3c00, 2, 3, 4)],
    ];
    for (const [type, a, b] of pairs)
      for (const dims of a.length === 1 ? [[1]] : [[4], [2, 2]]) {
        const sums = newSums("y");
        addSample(sums, { type, dims, data: a } as OutputTensor, { type, dims, data: b } as OutputTensor);
        lines.push(`${type} [${dims}] ${text(finish(sums, undefined, { minSqnrDb: 20 }))}`);
      }
    stored("figures, other types", lines.join("\n"));
  });
});

test("kinds by graph", () => {
  const made = (nodes: Parameters<typeof graph>[0]["node"]): string =>
    text([...kindsByGraph(readModelBytes(encode(model(graph({ input: [value("x", T.FLOAT, [2, 3])], output: [value("y", T.FLOAT, [])], node: nodes })))))]); // prettier-ignore
  const lines: string[] = [];
  const inner = (op: string) => graph({ name: "b", output: [value("z", T.FLOAT, [])], node: [node(op, ["x"], ["z"])] });
  for (const op of ["Softmax", "Sigmoid", "HardSigmoid", "LogSoftmax", "LpNormalization", "Relu"]) {
    lines.push(`${op} ${made([node(op, ["x"], ["y"])])}`);
    lines.push(`If ${op} ${made([node("If", ["c"], ["y"], { then_branch: inner(op), else_branch: inner("Relu") })])}`);
    for (const through of [
      "Identity",
      "Cast",
      "Reshape",
      "Squeeze",
      "Unsqueeze",
      "Flatten",
      "Transpose",
      "Slice",
      "Clip",
      "Dropout",
      "Concat",
      "Add",
    ])
      // prettier-ignore
      lines.push(`${op} ${through} ${made([node(op, ["x"], ["a"]), node(through, ["a"], ["y"])])}`);
  }
  lines.push(`of another domain ${made([Object.assign(node("Softmax", ["x"], ["y"]), { domain: "other" })])}`);
  stored("kinds", lines.join("\n"));
});

describe("random inputs", () => {
  const TYPES = ["float32", "float64", "float16", "int64", "uint64", "int32", "uint32", "int16", "uint16", "int8", "uint8", "bool", "string"]; // prettier-ignore
  test("values", () => {
    const lines: string[] = [];
    for (const type of TYPES)
      for (const name of ["x", "attention_mask"])
        for (const dims of [[1], [2, 3]])
          for (const hint of [undefined, { below: 7 }, { below: 9, equals: 5 }])
            for (const style of [{}, { distribution: "uniform", scale: 3, flag: true, holes: true }] as const) {
              const input: InputMetadata = { name, type, shape: dims };
              const { data, ...rest } = randomTensor(input, dims, hint, randomSource(3), style);
              lines.push(`${type} ${name} ${text(hint)} ${Object.keys(style).length} ${text(rest.dims)} ${isFlag(input, dims)} ${text(Array.from(data as ArrayLike<number>, (v) => (type.startsWith("float") ? Number(Number(v).toPrecision(5)) : v)))}`); // prettier-ignore
            }
    stored("random values", lines.join("\n"));
  });
  test("sizes", () => {
    const shapes: (number | string)[][] = [[], [3], ["n"], ["batch", "seq"], ["batch", 4, "past_len", 8], ["a", "past + seq"], ["seq + past", "b"], [-1, -1], ["", "?"], ["7", "12"], ["constructor", "toString"], ["batch_size", "sequence+2"]]; // prettier-ignore
    const lines = shapes.flatMap(
      (shape) =>
      ([{}, { seq: 5, b: 2, "x:1": 11, "x:0": 4 }] as Record<string, number>[]).map((dims) => `${text(shape)} ${text(dims)} ${inputDims({ name: "x", type: "float32", shape }, dims, 16, 3).join()}`), // prettier-ignore
    );
    stored("sizes", lines.join("\n"));
  });
  test("what a graph says of integers", () => {
    const table = (rows: number) => raw(`t${rows}`, [rows, 2], weights(rows * 2));
    const graphs: Parameters<typeof graph>[0]["node"][] = [
      [node("Gather", ["t5", "x"], ["y"])],
      [node("Cast", ["x"], ["a"], { to: 7n }), node("Reshape", ["a", "s"], ["b"]), node("Gather", ["t5", "b"], ["y"])],
      [node("Gather", ["t5", "x"], ["a"]), node("Gather", ["t9", "x"], ["y"])],
      [node("Gather", ["t9", "x"], ["a"]), node("Gather", ["t5", "x"], ["y"])],
      [node("Equal", ["x", "s"], ["y"])],
      [node("Equal", ["s", "x"], ["y"]), node("Equal", ["x", "u"], ["z"])],
      [node("Equal", ["x", "t5"], ["y"])],
      [node("Equal", ["x", "x"], ["y"])],
      [node("Add", ["x", "s"], ["a"]), node("Gather", ["t5", "a"], ["y"])],
      [node("Gather", ["x", "s"], ["y"])],
      [Object.assign(node("Gather", ["t5", "x"], ["y"]), { domain: "other" })],
      ["Identity", "Unsqueeze", "Squeeze", "Flatten"].flatMap((op, i) => [node(op, [i === 0 ? "x" : `v${i}`], [`v${i + 1}`])]).concat(node("Gather", ["t9", "v4"], ["y"])), // prettier-ignore
    ];
    const lines = graphs.map((nodes) => text([...inputHints(readModelBytes(encode(model(graph({ input: [value("x", T.INT64, ["n"])], output: [value("y", T.FLOAT, [])], initializer: [table(5), table(9), int64("s", 3), int64("u", 4), raw("e", [], Float32Array.of(1))], node: nodes })))))])); // prettier-ignore
    stored("hints", lines.join("\n"));
  });

  const input = (name: string, type: string, ...shape: (number | string)[]): InputMetadata => ({ name, type, shape });
  const out = (values: number[], type = "float32"): ReadonlyMap<string, OutputTensor> => new Map([["y", { type, dims: [values.length], data: Float32Array.from(values) }]]); // prettier-ignore
  const first = (feeds: Feeds, name = "x"): FeedTensor => feeds[name];
  const crash = Object.assign(new Error("gone"), { cause: Object.assign(new Error("gone"), { name: "CrashError" }) });
  const spread = ({ data }: FeedTensor): number[] => [Number((data as Float32Array)[0]), Number((data as Float32Array)[1] ?? 0)];
  type Case = [title: string, inputs: InputMetadata[], run: (feeds: Feeds) => ReadonlyMap<string, OutputTensor | null>];
  const fails = (): never => {
    throw new Error("no");
  };
  const CASES: Case[] = [
    ["anything runs", [input("x", "float32", "b", "n")], (f) => out(spread(first(f)))],
    ["fixed", [input("x", "float32", 1, 4)], (f) => out(spread(first(f)))],
    ["from 320 on", [input("x", "float32", "b", "n")], (f) => (first(f).dims[1] < 320 ? fails() : out(spread(first(f))))],
    ["an image of 64", [input("x", "float32", "b", 3, "h", "w")], (f) => (first(f).dims[2] !== 64 ? fails() : out(spread(first(f))))],
    ["a state of one", [input("x", "float32", "b", "n"), input("s", "float32", "p", "q")], (f) => (f.s.dims[1] !== 1 || first(f).dims[1] < 64 ? fails() : out(spread(first(f))))], // prettier-ignore
    ["empty without a past", [input("x", "int64", "b", "n"), input("past", "float32", "b", "past")], (f) => out(f.past.dims[1] === 0 ? [] : [1, 2])], // prettier-ignore
    ["nothing runs", [input("x", "float32", "b", "n")], fails],
    ["a crash", [input("x", "float32", "b", "n")], () => { throw crash; }], // prettier-ignore
    ["uniform alone moves it", [input("x", "float32", 1, 64)], (f) => out((first(f).data as Float32Array).every((v) => v >= 0 && v < 1) ? spread(first(f)) : [1, 1])], // prettier-ignore
    ["large values move it", [input("x", "float32", 1, 64)], (f) => out((first(f).data as Float32Array).some((v) => v > 100) ? [0, 5] : [3, 3])], // prettier-ignore
    ["small values move it", [input("x", "float32", 1, 64)], (f) => out((first(f).data as Float32Array).every((v) => Math.abs(v) < 0.5) ? [0, 5] : [0, 1e-9])], // prettier-ignore
    ["nothing moves it", [input("x", "float32", 1, 4)], () => out([2, 2])],
    ["one number that moves", [input("x", "float32", 1, 4)], (f) => out([spread(first(f))[0]])],
    ["one number that does not", [input("x", "float32", 1, 4)], () => out([3])],
    ["infinite", [input("x", "float32", 1, 4)], () => out([Infinity, NaN])],
    ["no output", [input("x", "float32", 1, 4)], () => new Map([["y", null]])],
    ["words", [input("x", "float32", 1, 4)], () => new Map([["y", { type: "string", dims: [2], data: ["a", "b"] }]]) as never],
    ["a switch", [input("x", "float32", 1, 4), input("use_cache", "bool", 1)], (f) => out(spread(first(f)))],
    ["a switch that does not go on", [input("x", "float32", 1, 4), input("use_cache", "bool", 1)], (f) => ((f.use_cache.data as Uint8Array)[0] === 1 ? fails() : out(spread(first(f))))], // prettier-ignore
    ["two switches and a past", [input("x", "float32", "b", "n"), input("use_cache_branch", "bool", 1), input("other", "bool", 1), input("past", "float32", "b", "past")], (f) => out([...spread(first(f)), f.past.dims[1]])], // prettier-ignore
    ["a mask of one", [input("x", "float32", 1, 4), input("mask", "bool", 1)], (f) => out(spread(first(f)))],
  ];
  test.each(CASES)("%s", async (title, inputs, run) => {
    const lines: string[] = [];
    for (const samples of [1, 4]) {
      const asked: string[] = [];
      const context = { inputs, hints: new Map(), run: async (feeds: Feeds) => (asked.push(inputs.map(({ name }) => `${feeds[name].dims.join("x")}`).join()), run(feeds)) }; // prettier-ignore
      try {
        const { feeds, notes } = await randomFeeds(context, { samples, seed: 2, dims: {} });
        lines.push(text(notes), text(feeds.map((feed) => inputs.map(({ name }) => [feed[name].dims, spread(feed[name]).map((v) => v.toPrecision(4))])))); // prettier-ignore
      } catch (error) {
        lines.push(`${(error as Error).message}`);
      }
      lines.push(asked.join(" "));
    }
    stored(`random inputs, ${title}`, lines.join("\n"));
  });
});

test("images as tensors", () => {
  const lines: string[] = [];
  const image = (width: number, height: number): Pixels => ({ width, height, data: Uint8Array.from({ length: width * height * 3 }, (_, i) => (i * i * 31 + i * 7) & 255) }); // prettier-ignore
  const sums = (values: ArrayLike<number>): string => {
    const all = Array.from(values);
    return [all.reduce((a, b) => a + b, 0), all.reduce((a, b, i) => a + b * ((i % 17) - 5), 0), all[0], all.at(-1)!].map((v) => v.toPrecision(6)).join(" "); // prettier-ignore
  };
  for (const filter of ["linear", "cubic"] as const)
    for (const [from, to] of [
      [5, 3],
      [3, 7],
      [8, 8],
      [1, 4],
      [9, 1],
    ])
      // prettier-ignore
      lines.push(`${filter} ${from} to ${to}: ${sums(resize(image(from, to + 1), to, from, filter))}`);
  for (const [name, preset] of PRESETS)
    for (const shape of [
      [1, 3, 8, 8],
      ["n", 8, 6, 3],
      [1, 1, 8, 8],
      [1, 4, 8, 1],
      [1, 3, "h", "w"],
      [1, "c", 6, 8],
      [1, 3, -1, -1],
    ])
      for (const type of ["float32", "float16", "uint8"]) {
        if (type !== "float32" && shape[1] !== 3) continue;
        const small = { ...preset, size: 10 };
        for (const pixels of [image(12, 9), image(7, 16)]) {
          const { dims, data, type: made } = imageTensor(pixels, { name: "x", type, shape }, small);
          lines.push(`${name} ${text(shape)} ${made} [${dims}] ${sums(data as Float32Array)}`);
        }
      }
  expect([...PRESETS.values()].map(({ size }) => size)).toEqual([224, 224, 224, 224, 224]);
  stored("images", lines.join("\n"));
});

test("names of a checkpoint and of a graph", () => {
  const graphNames = ["/model/layers.0/attn/q_proj/MatMul", "/model/layers.0/attn/k_proj/MatMul", "/model/layers.1/attn/q_proj/MatMul_1", "/model/layers.1/mlp/up/Gemm", "model.embed_tokens.weight", "lm_head", "/a/x/fc/MatMul", "/b/x/fc/MatMul", "/c/fc"]; // prettier-ignore
  const targets = graphNames.map((name, i) => ({ names: i % 2 === 0 ? [name] : [name, `onnx::MatMul_${100 + i}`] }));
  const names = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up", "model.layers.2.mlp.up", "model.embed_tokens", "lm_head", "x.fc", "a.fc", "c.fc", "fc", "nothing", "onnx::MatMul_103"]; // prettier-ignore
  const rules: PlaceRule[][] = [
    [],
    [{ match: "*.layers.*.mlp.up", to: "/model/layers.1/mlp/up/Gemm" }],
    [{ match: "model.layers.2.*", to: "keep" }, { match: "a.*", to: "/a/x/$1/MatMul" }], // prettier-ignore
    [{ match: /^model\.layers\.(\d)\.self_attn\.(\w)_proj$/, to: "/model/layers.$1/attn/$2_proj/MatMul" }],
    [{ match: "/^x\\.(fc)$/", to: "/c/$1" }],
    [{ match: "zzz", to: "keep" }],
    [{ match: "lm_hea?", to: "lm_head" }, { match: "fc", to: "lm_head" }], // prettier-ignore
    [{ match: "fc", to: "nowhere" }],
  ];
  const lines: string[] = [];
  for (const own of rules)
    for (const roles of [false, true])
      for (const asked of [names, names.map((name) => `${name}.weight`), names.filter((_, i) => i % 2 === 0)]) {
        try {
          const { found, left, ruled } = matchNames(asked, targets, own, roles);
          lines.push([text([...found].map(([name, target]) => [name, target.names[0]])), text([...left]), text([...ruled])].join("\n  ")); // prettier-ignore
        } catch (error) {
          lines.push((error as Error).message);
        }
      }
  stored("names", lines.join("\n"));
});

test("a warning of ranges", () => {
  const finding = (i: number) => ({ value: `v${i}`, node: `n${i}`, opType: i % 2 ? "Mul" : "ReduceSum", magnitude: 70000.123 * (i + 1), what: i % 2 ? ("value" as const) : ("sum" as const) }); // prettier-ignore
  stored("ranges", [1, 3, 4, 7].map((n) => rangeWarning(Array.from({ length: n }, (_, i) => finding(i)))).join("\n"));
});

test("traps of runtimes, and graphs that are next to them", () => {
  const micro = (op: string, inputs: string[], attributes = {}) => Object.assign(node(op, inputs, ["y"], attributes), { domain: "com.microsoft" }); // prettier-ignore
  const u8 = raw("q", [2, 2], Uint8Array.of(1, 2, 3, 4), T.UINT8);
  const i8 = raw("i", [2, 2], Int8Array.of(1, 2, 3, 4), T.INT8);
  const f16 = raw("h", [1], Uint16Array.of(1), T.FLOAT16);
  const fp8 = raw("f8", [2], Uint8Array.of(1, 2), T.FLOAT8E4M3FN);
  const fp4 = raw("f4", [2], Uint8Array.of(1), T.FLOAT4E2M1 as never);
  const one = raw("s", [], Float32Array.of(1));
  const two = raw("t", [2], Float32Array.of(1, 2));
  const made: [Parameters<typeof graph>[0]["node"], Parameters<typeof graph>[0]["initializer"]][] = [
    [[node("DynamicQuantizeLinear", ["x"], ["a", "b", "c"])], []],
    [[node("DynamicQuantizeLinear", ["x"], ["a", "b", "c"]), node("MatMulInteger", ["a", "q"], ["y"])], [u8]],
    [[node("DynamicQuantizeLinear", ["x"], ["a", "b", "c"]), node("ConvInteger", ["a", "i"], ["y"])], [i8]],
    [[node("DequantizeLinear", ["q", "s"], ["y"])], [u8, one]],
    [[node("DequantizeLinear", ["x", "s"], ["y"])], [one]],
    [[node("DequantizeLinear", ["x", "t"], ["y"])], [two]],
    [[node("DequantizeLinear", ["x", "u"], ["y"])], []],
    [[node("DequantizeLinear", ["q", "t"], ["y"], { block_size: 2n })], [u8, two]],
    [[node("DequantizeLinear", ["q", "t"], ["y"], { block_size: 0n })], [u8, two]],
    [[node("DequantizeLinear", ["i", "s"], ["y"])], [i8, one]],
    [[node("Gather", ["i", "x"], ["y"])], [i8]],
    [[node("QLinearSoftmax", ["x"], ["y"])], []],
    [
      [node("DequantizeLinear", ["q", "s"], ["a"]), node("Softmax", ["a"], ["b"]), node("QuantizeLinear", ["b", "s"], ["y"])],
      [u8, one],
    ],
    [
      [node("DequantizeLinear", ["q", "s"], ["a"]), node("Softmax", ["a"], ["b"]), node("QuantizeLinear", ["x", "s"], ["y"])],
      [u8, one],
    ],
    ...[2n, 3n, 4n, 8n].map((bits): [Parameters<typeof graph>[0]["node"], never[]] => [[micro("MatMulNBits", ["x", "q", "s"], { bits })], []]), // prettier-ignore
    [[micro("MatMulNBits", ["x", "q", "s"], { bits: 8n, accuracy_level: 4n })], []],
    [[micro("MatMulNBits", ["x", "q", "s"], {})], []],
    [[micro("MatMulNBits", ["x", "q", "s", "", "g"], { bits: 4n })], []],
    [[micro("MatMulNBits", ["x", "q", "s", "z", "g"], { bits: 4n })], []],
    [[micro("MatMulNBits", ["x", "q", "s", "", "g"], { bits: 2n })], []],
    [[micro("MatMulNBits", ["x", "q", "s", "z"], { bits: 2n })], []],
    [[node("QuantizeLinear", ["x", "s", "f8"], ["y"])], [one, fp8]],
    [[node("DequantizeLinear", ["f8", "s"], ["y"])], [one, fp8]],
    [[node("Relu", ["x"], ["y"])], [fp4]],
    [[node("Relu", ["x"], ["y"])], [f16]],
    [[node("Cast", ["x"], ["y"], { to: 10n })], []],
    [[node("If", ["x"], ["y"], { then_branch: graph({ name: "t", node: [micro("MatMulNBits", ["x", "q", "s"], { bits: 4n })], output: [value("y", T.FLOAT, [])] }), else_branch: graph({ name: "e", node: [node("Cast", ["x"], ["y"], { to: 10n })], output: [value("y", T.FLOAT, [])] }) })], []], // prettier-ignore
  ];
  const lines = made.map(([nodes, initializer]) => runtimeTraps(readModelBytes(encode(model(graph({ input: [value("x", T.FLOAT, [2])], output: [value("y", T.FLOAT, [])], initializer, node: nodes }))))).map(({ id, effect, runtime, versions }) => `${id} (${effect}, ${runtime} ${versions})`).join("; ")); // prettier-ignore
  stored("traps", lines.join("\n"));
});

test("pages of reports", () => {
  const layer = (i: number, more: object = {}) => ({ name: `layer ${i} <b>`, opType: ["MatMul", "Conv"][i % 2], weight: `w${i}`, shape: [8 * i, 4], format: "int4_b32", bytesBefore: 1000 * i, bytesAfter: 130 * i, sqnrDb: 20.04 + i, ...more }); // prettier-ignore
  const histograms = ["int4_b32", "int8_row", "uint4_b32_zp", "nf4_b64", "float8_e4m3fn_row", "bfloat16"].flatMap((name) => histogramOf(`h ${name}`, weights(4 * 96, 3).map((v, i) => (i < 96 ? 0 : v)), { rows: 4, k: 96 }, format(name)) ?? []); // prettier-ignore
  stored("histograms", histograms.map((one) => `${text({ ...one, points: [one.points.length, one.points[0], one.points.at(-1)] })}\n${histogramHtml(one)}`).join("\n")); // prettier-ignore
  const output = (name: string, more: object = {}) => ({ name, dims: [2, 3], sqnrDb: 31.25, cosine: 0.99987, maxAbsError: 0.0123, kind: "logits", ok: true, judgement: { text: "good: so", grade: "good" }, ...more }); // prettier-ignore
  const cell = (model_: string, more: object = {}) => ({ model: model_, runtime: "onnxruntime-node", ok: true, state: "ran", error: null, sqnrDb: 30, agreementDb: Infinity, ms: 1.234, peakBytes: 5e6, ...more }); // prettier-ignore
  const report = { dtype: "q4", seconds: 1.234, outputs: ["out.onnx", "out.onnx_data"], fileBytesBefore: 4e6, fileBytesAfter: 1.2345e6, weightBytesBefore: 3e6, weightBytesAfter: 4e5, quantized: 2, leftAlone: 2, notes: [], traps: [] as RuntimeTrap[], layers: [layer(1), layer(2, { sqnrDb: Infinity, sharedWith: "layer 1 <b>" }), layer(3, { format: null, sqnrDb: null, reason: "because" }), layer(4, { format: null, sqnrDb: null })] }; // prettier-ignore
  const verify = {
    ok: true,
    samples: 3,
    random: true,
    inputs: { x: [1, 4], z: [] },
    minSqnrDb: 10,
    notes: [],
    warnings: [],
    outputs: [output("y")],
  };
  const pages: object[] = [
    { report },
    { report: { ...report, layers: [], fileBytesBefore: 0, notes: ["one & two", "three"], traps: [{ id: "i", runtime: "r", versions: "v", effect: "wrong", text: "t" }] } }, // prettier-ignore
    { report, verify },
    { report, verify: { ...verify, ok: false, random: false, notes: ["n"], warnings: ["w"], outputs: [output("y", { ok: false, sqnrDb: -3 }), output("z", { sqnrDb: NaN, cosine: NaN }), output("i", { sqnrDb: Infinity }), output("j", { sqnrDb: -Infinity })] } }, // prettier-ignore
    { report, verify: { ...verify, outputs: [output("y", { sqnrDb: Infinity })] } },
    { report, verify: { ...verify, matrix: { cells: [cell("a"), cell("b", { ok: false, sqnrDb: 3, ms: 12.3, peakBytes: null, parting: { node: "n", opType: "Mul" } }), cell("c", { state: "failed", ok: false, error: "why" }), cell("d", { ok: false, parting: { node: null, reason: "no idea" } }), cell("e", { ok: false, parting: { node: null } })] } } }, // prettier-ignore
    { report, histograms: histograms.slice(0, 2) },
    ...[0, 1, 999, 1000, 9994, 9996, 99949, 123456, 1e9, 5e12, 7e15].map((bytes) => ({ report: { ...report, fileBytesAfter: bytes, layers: [] } })), // prettier-ignore
  ];
  const html = pages.map((page) => reportHtml({ input: "a<b>.onnx", recipe: { dtype: "q4", keep: ["x & y"] }, ...page } as unknown as ReportContent).replace(/<style>.*?<\/style>/s, "")); // prettier-ignore
  stored("pages", html.map((page, i) => (i < 7 ? page : page.slice(page.indexOf('class="cards"'), page.indexOf("layers quantized")))).join("\n")); // prettier-ignore
});

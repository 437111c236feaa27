// Passes on small encoders, in every spelling and with every option, without a run: the models that they make are kept.
// That outputs stay is in passes and passes-scales tests.
import { describe, expect, test } from "vitest";
import { applyPasses, readModelBytes, writeModelBytes, type PassCalibration, type PassRequest } from "../../src/onnx/index.ts";
import type { NodeProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { findReaders } from "../../src/onnx/edit.ts";
import { buildScopes } from "../../src/onnx/graph/graph.ts";
import { differenceFrom, referenceRun } from "../../src/onnx/passes/check.ts";
import { layersOf } from "../../src/onnx/primitives.ts";
import { layerStatistics } from "../../src/quantize/index.ts";
import { T, encode, graph, model, node, raw, value, weights } from "./build.ts";
import { encoderModel, type EncoderInit } from "./encoder.ts";
import { keep, keepAbout } from "./kept.ts";

/** Vectors of every layer's inputs from its name alone, with some channels of outliers. */
const statistics: PassCalibration = async (opened, names, { hessian }) => {
  const wanted = layersOf(buildScopes(opened), opened).filter(({ name }) => names.includes(name));
  return new Map(
    wanted.map(({ name, k }) => {
      const sums = layerStatistics(k, { hessian });
      sums.add(weights(16 * k, name.length + 1).map((v, i) => v * (i % 11 === 3 && i % k < k / 2 ? 20 : 1)));
      return [name, sums.finish()];
    }),
  );
};

const MODELS: Record<string, EncoderInit> = {
  "LayerNormalization, GELU": {},
  "spelled out, ReLU": { norm: "spelled", activation: "relu" },
  "gates, Gemm": { activation: "swiglu", linear: "gemm" },
  "spelled out, Gemm, an output of the stream": { norm: "spelled", linear: "gemm", output: "hidden" },
  "an output of the stream": { output: "hidden", activation: "relu" },
  "of 48 channels": { d: 48 },
};
/** Whose numbers are of JavaScript's own sums and roots: the same on every machine. */
const EXACT: PassRequest[][] = [
  ["fold-norm"],
  ["fold-norm", "fold-norm"],
  ["fold-batchnorm"],
  ["equalize"],
  [{ name: "rotate", block: 16 }],
  [{ name: "rotate", block: 16, boundary: true }],
  [{ name: "rotate", block: "full", heads: false, boundary: true, seed: 3 }],
  [{ name: "rotate", block: 8, heads: false, online: ["*fc2*", "*.q*"] }],
  [{ name: "rotate", block: "full", online: ["nothing", "like it"] }],
  [{ name: "gather-outliers", block: 16 }],
  [{ name: "gather-outliers", block: 16, share: 0.5 }],
  [{ name: "gather-outliers", block: 7 }],
  [{ name: "bias-correction", format: "int4_b32" }],
  [{ name: "bias-correction", format: "int4_b16", add: true }],
];
/** Through powers and sums of products. */
const ABOUT: PassRequest[][] = [
  ["smooth"],
  [{ name: "smooth", alpha: 0.8 }],
  ["fold-norm", { name: "smooth", alpha: "search", format: "int4_b16" }],
  [{ name: "awq", format: "int3_b16", grid: 4 }],
];

describe.each(Object.entries(MODELS))("%s", (_, init) => {
  const bytes = encoderModel(init);
  const made = async (passes: PassRequest[]) => {
    const opened = readModelBytes(bytes);
    const notes = await applyPasses(opened, passes, { verify: false, calibration: statistics });
    return { opened, notes };
  };
  test.each(EXACT.map((passes) => [JSON.stringify(passes), passes] as const))("%s", async (_name, passes) => {
    const { opened, notes } = await made(passes);
    keep(opened, ...notes);
    expect(notes.length).toBeGreaterThan(0);
  });
  test.each(ABOUT.map((passes) => [JSON.stringify(passes), passes] as const))("%s", async (_name, passes) => {
    const { opened, notes } = await made(passes);
    keepAbout(opened, ...notes.map((note) => note.replace(/0\.\d+/g, "0")));
    expect(notes.length).toBeGreaterThan(0);
  });
});

describe("pairs of layers, and what stands between them", () => {
  const between: Record<string, NodeProto[]> = {
    nothing: [node("Identity", ["a"], ["b"])],
    Relu: [node("Relu", ["a"], ["b"])],
    LeakyRelu: [node("LeakyRelu", ["a"], ["b"], { alpha: 0.1 })],
    PRelu: [node("PRelu", ["a", "slope"], ["b"])],
    Sigmoid: [node("Sigmoid", ["a"], ["b"])],
    "Relu, MaxPool": [node("Relu", ["a"], ["c"]), node("MaxPool", ["c"], ["b"], { kernel_shape: { ints: [2, 2] } })],
    "Clip to 6": [node("Clip", ["a", "zero", "six"], ["b"])],
    "a second reader": [node("Relu", ["a"], ["b"]), node("Abs", ["b"], ["z"])],
    "a sum with itself": [node("Add", ["a", "a"], ["b"])],
    "a factor": [node("Mul", ["a", "six"], ["b"])],
    "a factor by channel": [node("Mul", ["a", "gains"], ["b"])],
    "a bias by channel": [node("Add", ["gains", "a"], ["b"])],
    "a difference": [node("Sub", ["gains", "a"], ["b"])],
    "a quotient": [node("Div", ["a", "gains"], ["b"])],
    BatchNormalization: [node("BatchNormalization", ["a", "g", "g2", "g3", "g4"], ["b"])],
    "BatchNormalization in training": [node("BatchNormalization", ["a", "g", "g2", "g3", "g4"], ["b"], { training_mode: 1n })],
    "BatchNormalization, Relu, BatchNormalization": [node("BatchNormalization", ["a", "g", "g2", "g3", "g4"], ["c"]), node("Relu", ["c"], ["d"]), node("BatchNormalization", ["d", "g", "g2", "g3", "g4"], ["b"])], // prettier-ignore
  };
  const LAYERS: Record<string, { one: NodeProto; two: NodeProto; first: number[]; second: number[]; x: number[] }> = {
    convolutions: { one: node("Conv", ["x", "w", "bias"], ["a"], {}, "one"), two: node("Conv", ["b", "v"], ["y"], {}, "two"), first: [8, 3, 3, 3], second: [4, 8, 1, 1], x: [1, 3, 8, 8] }, // prettier-ignore
    "convolutions, depthwise": { one: node("Conv", ["x", "w"], ["a"], {}, "one"), two: node("Conv", ["b", "v", "bias"], ["y"], { group: 8n }, "two"), first: [8, 3, 1, 1], second: [8, 1, 3, 3], x: [1, 3, 8, 8] }, // prettier-ignore
    "transposed convolutions": { one: node("ConvTranspose", ["x", "w", "bias"], ["a"], {}, "one"), two: node("ConvTranspose", ["b", "v"], ["y"], {}, "two"), first: [3, 8, 2, 2], second: [8, 4, 2, 2], x: [1, 3, 8, 8] }, // prettier-ignore
    "convolutions, the second of groups": { one: node("Conv", ["x", "w", "bias"], ["a"], {}, "one"), two: node("Conv", ["b", "v"], ["y"], { group: 2n }, "two"), first: [8, 3, 1, 1], second: [6, 4, 1, 1], x: [1, 3, 8, 8] }, // prettier-ignore
    "convolutions, dead channels": { one: node("Conv", ["x", "w", "bias"], ["a"], {}, "one"), two: node("Conv", ["b", "v"], ["y"], {}, "two"), first: [8, 3, 2, 2], second: [4, 8, 1, 1], x: [1, 3, 8, 8] }, // prettier-ignore
    Gemm: { one: node("Gemm", ["x", "w", "bias"], ["a"], { transB: 1n }, "one"), two: node("Gemm", ["b", "v"], ["y"], {}, "two"), first: [8, 6], second: [8, 5], x: [2, 6] }, // prettier-ignore
    MatMul: { one: node("MatMul", ["x", "w"], ["a"], {}, "one"), two: node("MatMul", ["b", "v"], ["y"], {}, "two"), first: [6, 8], second: [8, 5], x: [2, 3, 6] }, // prettier-ignore
  };
  const uneven = (dims: number[], seed: number) =>
    raw("", dims, weights(dims.reduce((a, b) => a * b, 1), seed).map((v, i) => v * (1 + (i % 7)))); // prettier-ignore
  test.each(Object.keys(LAYERS))("%s", async (name) => {
    const { one, two, first, second, x } = LAYERS[name];
    const wide = x.length === 4 ? [8, 1, 1] : [8];
    const positive = (seed: number, dims: number[]) => raw("", dims, weights(8, seed).map((v) => 1 + v)); // prettier-ignore
    const init = { w: uneven(first, 1), v: uneven(second, 2), bias: uneven([8], 3), slope: positive(4, wide), gains: positive(5, wide), g: positive(6, [8]), g2: positive(7, [8]), g3: positive(8, [8]), g4: positive(9, [8]), zero: raw("", [], Float32Array.of(0)), six: raw("", [], Float32Array.of(6)) }; // prettier-ignore
    if (name.endsWith("dead channels")) {
      new Float32Array(init.w.rawData.buffer, init.w.rawData.byteOffset, 96).fill(0, 24, 36);
      const last = new Float32Array(init.v.rawData.buffer, init.v.rawData.byteOffset, 32);
      for (let i = 5; i < 32; i += 8) last[i] = 0;
    }
    let compared = 0;
    for (const [what, nodes] of Object.entries(between)) {
      const initializer = Object.entries(init).map(([title, tensor]) => ({ ...tensor, name: title }));
      const outputs = nodes.some(({ output }) => output[0] === "z") ? ["y", "z"] : ["y"];
      const bytes = encode(model(graph({ input: [value("x", T.FLOAT, x)], output: outputs.map((o) => value(o, T.FLOAT, [])), initializer, node: [one, ...nodes, two] }))); // prettier-ignore
      const feeds = [{ x: { type: "float32", dims: x, data: weights(x.reduce((a, b) => a * b, 1), 9).map((v) => 5 * v) } }]; // prettier-ignore
      for (const pass of ["equalize", "fold-batchnorm"]) {
        const opened = readModelBytes(bytes);
        // what no runtime takes (training, pooling of vectors) is kept all the same
        const reference = await referenceRun(opened, feeds).catch(() => null);
        const notes = await applyPasses(opened, [pass], { verify: false });
        keep(opened, ...notes);
        if (reference !== null) expect((await differenceFrom(reference, opened)).relative, `${pass}: ${what}`).toBeLessThan(1e-5); // prettier-ignore
        compared += reference === null ? 0 : 1;
        if (notes.join().includes("nothing changed")) expect(Buffer.compare(writeModelBytes(opened), bytes)).toBe(0);
      }
    }
    expect(compared).toBeGreaterThan(20);
  });
});

test("readers of a value: by input, as an output, from graphs inside nodes", () => {
  const inner = (name: string) => graph({ name, output: [value(`${name}o`, T.FLOAT, [])], node: [node("Add", ["x", "w"], [`${name}o`], {}, name)] }); // prettier-ignore
  const opened = readModelBytes(
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, [2]), value("c", T.BOOL, [])],
          output: [value("y", T.FLOAT, []), value("x", T.FLOAT, [])],
          initializer: [raw("w", [2], weights(2))],
          node: [node("If", ["c"], ["p"], { then_branch: inner("t"), else_branch: inner("e") }, "if"), node("Mul", ["p", "p"], ["y"], {}, "mul")], // prettier-ignore
        }),
      ),
    ),
  );
  const scopes = buildScopes(opened);
  const found = [...findReaders(scopes)].map(([scope, readers]) => [scope.path, [...readers].map(([name, list]) => `${name}: ${list.map((r) => `${r.node?.name ?? "out"} ${r.input} ${r.scope.path}`).join(", ")}`)]); // prettier-ignore
  expect(found[0]).toEqual(["", expect.arrayContaining(["c: if 0 ", "p: mul 0 , mul 1 ", "y: out 0 "])]);
  const main = (found[0][1] as string[]).filter((line) => /^[xw]/.test(line));
  expect(main.map((line) => line.slice(0, 2))).toEqual(expect.arrayContaining(["x:", "w:"]));
  for (const line of main) expect(line).toContain("if -1 ");
  expect(main.find((line) => line.startsWith("x"))).toContain("out 0 ");
});

describe("norms and streams of their own", () => {
  const D = 8;
  const gain = (name: string, seed: number) => raw(name, [D], weights(D, seed).map((v) => 1 + v)); // prettier-ignore
  test("more norms stay than are named", async () => {
    for (const n of [1, 5, 6, 7]) {
      const names = Array.from({ length: n }, (_, i) => `n${i}`);
      const bytes = encode(model(graph({ input: [value("x", T.FLOAT, [2, D])], output: names.map((name) => value(name, T.FLOAT, [])), initializer: names.map((name, i) => gain(`g${name}`, i + 1)), node: names.map((name) => node("LayerNormalization", ["x", `g${name}`], [name], {}, name)) }))); // prettier-ignore
      for (const pass of ["fold-norm", "rotate"]) {
        const opened = readModelBytes(bytes);
        keep(opened, ...(await applyPasses(opened, [pass], { verify: false })));
      }
    }
  });
  const norms: Record<string, (x: string, out: string) => NodeProto[]> = {
    LayerNormalization: (x, out) => [node("LayerNormalization", [x, `${out}g`, `${out}b`], [out], {}, out)],
    SimplifiedLayerNormalization: (x, out) => [node("SimplifiedLayerNormalization", [x, `${out}g`], [out], {}, out)],
  };
  const starts: Record<string, NodeProto[]> = {
    "made by a function": [node("MatMul", ["x", "w0"], ["t"], {}, "in"), node("Tanh", ["t"], ["h"], {}, "foreign")],
    "the input itself": [node("Identity", ["x"], ["h"])],
    "of a product": [node("MatMul", ["x", "w0"], ["h"], {}, "in")],
    "scaled by one number": [node("MatMul", ["x", "w0"], ["t"], {}, "in"), node("Mul", ["t", "two"], ["h"])],
    "with a position": [node("MatMul", ["x", "w0"], ["t"], {}, "in"), node("Add", ["t", "pos"], ["h"])],
    "cast there and back": [node("MatMul", ["x", "w0"], ["t"], {}, "in"), node("Cast", ["t"], ["u"], { to: 1n }), node("Dropout", ["u"], ["h"])], // prettier-ignore
    "of two products": [node("MatMul", ["x", "w0"], ["t"], {}, "in"), node("MatMul", ["x", "w1"], ["u"], {}, "in2"), node("Add", ["t", "u"], ["h"])], // prettier-ignore
  };
  const reads: Record<string, NodeProto[]> = {
    nothing: [],
    "a function": [node("Tanh", ["s"], ["z"], {}, "reader")],
    "its shape": [node("Shape", ["s"], ["z"])],
    "its size": [node("Size", ["s"], ["z"])],
    "a mean": [node("ReduceMean", ["s"], ["z"], { axes: { ints: [1] } }, "mean")],
  };
  test.each(Object.keys(norms).flatMap((kind) => Object.keys(starts).map((start) => [kind, start])))(
    "%s, a stream %s",
    async (kind, start) => {
      // prettier-ignore
      const norm = norms[kind];
      for (const [reader, more] of Object.entries(reads)) {
        const nodes = [...starts[start], ...norm("h", "p"), node("MatMul", ["p", "wu"], ["up"], {}, "up"), node("Relu", ["up"], ["r"]), node("MatMul", ["r", "wd"], ["d"], {}, "down"), node("Add", ["h", "d"], ["s"], {}, "sum"), ...more, ...norm("s", "q"), node("MatMul", ["q", "wy"], ["y"], {}, "head")]; // prettier-ignore
        const matrix = (name: string, k: number, n: number, seed: number) => raw(name, [k, n], weights(k * n, seed).map((v) => 4 * v)); // prettier-ignore
        const initializer = [matrix("w0", D, D, 1), matrix("w1", D, D, 2), matrix("wu", D, 12, 3), matrix("wd", 12, D, 4), matrix("wy", D, 5, 5), gain("pg", 6), gain("qg", 7), raw("pb", [D], weights(D, 8)), raw("qb", [D], weights(D, 9)), raw("two", [], Float32Array.of(2)), raw("pos", [3, D], weights(3 * D, 10))]; // prettier-ignore
        const bytes = encode(model(graph({ input: [value("x", T.FLOAT, [2, 3, D])], output: [value("y", T.FLOAT, []), ...(more.length > 0 ? [value("z", reader.startsWith("its") ? T.INT64 : T.FLOAT, [])] : [])], initializer, node: nodes }))); // prettier-ignore
        const feeds = [{ x: { type: "float32", dims: [2, 3, D], data: weights(6 * D, 11).map((v) => 5 * v) } }];
        for (const boundary of [false, true]) {
          const opened = readModelBytes(bytes);
          const reference = await referenceRun(opened, feeds);
          const notes = await applyPasses(opened, [{ name: "rotate", block: 4, boundary }], { verify: false });
          keep(opened, ...notes);
          expect((await differenceFrom(reference, opened)).relative, `${reader} ${boundary}`).toBeLessThan(1e-4);
        }
      }
    },
  );
});

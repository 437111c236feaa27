// Edges of what is decided for weights: how much each layer matters, which experts calibration can follow, what passes
// leave as it was, and quantized operators of codes in codes out. Expected values are of plain arithmetic here.
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize } from "../../src/index.ts";
import { relativeLoss } from "../../src/quantize/index.ts";
import { expertsObstacle } from "../../src/onnx/calibrate/experts.ts";
import {
  applyPasses,
  calibrateModel,
  decideWeights,
  dequantizeWeights,
  measureImportance,
  quantizeModelBytes,
  type QuantizeBytesOptions,
  modelLayers,
  readModelBytes,
  readWeight,
  writeModelBytes,
  type Feeds,
} from "../../src/onnx/index.ts";
import { readFloats } from "../../src/onnx/file/values.ts";
import { buildScopes, resolveConstant } from "../../src/onnx/graph/graph.ts";
import { basisOf } from "../../src/onnx/targets/basis.ts";
import { staticQuantize, type StaticOptions } from "../../src/onnx/static.ts";
import { writeQOperators } from "../../src/onnx/targets/static/qoperator.ts";
import { T, encode, graph, model, node, raw, value, weights } from "./build.ts";
import { keep } from "./kept.ts";

const K = 32;
const feedOf = (rows: number, seed: number): Feeds => ({
  x: { type: "float32", data: weights(rows * K, seed).map((v) => 8 * v), dims: [rows, K] },
});

describe("importance is damage at the output over loss of the layer", () => {
  const N = 32;
  const [w, v, u] = [weights(K * N, 1), weights(K * N, 2), weights(K * N, 3)];
  /** logits = x W + x V, where V has no part in the result of the second; u multiplies by zero. */
  const made = (output: string) =>
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, ["rows", K])],
          output: [value(output, T.FLOAT, ["rows", N])],
          initializer: [raw("w", [K, N], w), raw("v", [K, N], v), raw("u", [K, N], u), raw("zero", [1], Float32Array.of(0))],
          node: [
            node("MatMul", ["x", "w"], ["a"], {}, "w"),
            node("MatMul", ["x", "v"], ["b"], {}, "v"),
            node("MatMul", ["x", "u"], ["c"], {}, "u"),
            node("Mul", ["c", "zero"], ["none"]),
            node("Add", ["a", "b"], ["d"]),
            node("Add", ["d", "none"], [output]),
          ],
        }),
      ),
    );
  const feeds = [feedOf(3, 5), feedOf(2, 6)];
  const result = (x: ArrayLike<number>, rows: number, a: ArrayLike<number>, b: ArrayLike<number>): number[][] =>
    Array.from({ length: rows }, (_, r) =>
      Array.from({ length: N }, (_, n) => {
        let sum = 0;
        for (let k = 0; k < K; k++) sum += x[r * K + k] * (a[k * N + n] + b[k * N + n]);
        return sum;
      }),
    );
  const softmax = (row: number[]): number[] => {
    const e = row.map(Math.exp);
    const sum = e.reduce((p, q) => p + q, 0);
    return e.map((p) => p / sum);
  };
  const damages = {
    kl: (want: number[][], got: number[][]): number =>
      want.reduce((total, row, r) => {
        const [p, q] = [softmax(row), softmax(got[r])];
        return total + p.reduce((sum, one, i) => sum + one * Math.log(one / q[i]), 0);
      }, 0) / want.length,
    noise: (want: number[][], got: number[][]): number => {
      const [a, b] = [want.flat(), got.flat()];
      return a.reduce((sum, one, i) => sum + (one - b[i]) ** 2, 0) / a.reduce((sum, one) => sum + one * one, 0);
    },
  };
  test.each([
    ["logits", undefined, "kl"],
    ["y", undefined, "noise"],
    ["y", "kl", "kl"],
    ["logits", "noise", "noise"],
  ] as const)("of %s, measure %s", async (output, measure, expected) => {
    const opened = readModelBytes(made(output));
    // the fewest stored bits of the three: codes as the second, and fewer scales
    const candidates = ["int4_b16", "int3_b16", "int3_b32"];
    const found = await measureImportance(opened, feeds, { candidates, ...(measure === undefined ? {} : { measure }) });
    expect([...found.keys()]).toEqual(["w", "v", "u"]);
    const importance = modelLayers(opened).map((layer) => {
      const weight = readWeight(opened, layer);
      const packed = quantize(weight, format("int3_b32"));
      const rows = dequantize(packed) as Float32Array;
      const turned = Float32Array.from({ length: K * N }, (_, i) => rows[(i % N) * K + Math.floor(i / N)]);
      const damage = feeds.reduce((sum, { x }) => {
        const data = x.data as Float32Array;
        const want = result(data, x.dims[0], w, v);
        const got = result(data, x.dims[0], layer.name === "w" ? turned : w, layer.name === "v" ? turned : v);
        return sum + damages[expected](want, layer.name === "u" ? want : got) / feeds.length;
      }, 0);
      return damage / relativeLoss({ name: layer.name, weight }, packed);
    });
    expect(found.get("w")! / importance[0]).toBeCloseTo(1, 3);
    expect(found.get("v")! / importance[1]).toBeCloseTo(1, 3);
    // no part in the result: a thousandth of the most important
    expect(importance[2]).toBe(0);
    expect(found.get("u")! / Math.max(...importance)).toBeCloseTo(1e-3, 6);
  });
});

describe("experts that calibration cannot follow", () => {
  const CASES: [Record<string, string | bigint>, number, string[], string | undefined][] = [
    [{ activation_type: "relu" }, 3, [], undefined],
    [{}, 3, [], undefined],
    [{ activation_type: "silu", swiglu_fusion: 2n }, 3, ["b", "w2", "c"], undefined],
    [{ activation_type: "swiglu", swiglu_fusion: 1n }, 3, [], undefined],
    [{ activation_type: "relu" }, 2, [], "weights of experts of 2 dimensions are unknown to calibration"],
    [{ activation_type: "relu" }, 3, ["b", "w2", "c", "w3"], "calibration does not know mixtures of experts with fc3"],
    [{ activation_type: "relu", use_sparse_mixer: 1n }, 3, [], "calibration does not know the sparse mixer of experts"],
    [{ activation_type: "tanh" }, 3, [], "calibration does not know experts with tanh"],
    [{ activation_type: "swiglu" }, 3, [], "calibration knows experts with swiglu in turns only (swiglu_fusion 1)"],
    [{ activation_type: "swiglu", swiglu_fusion: 2n }, 3, [], "calibration knows experts with swiglu in turns only (swiglu_fusion 1)"],
  ];
  test.each(CASES)("%o, rank %i, %j", (attributes, rank, inputs, reason) => {
    const experts = node("MoE", ["x", "router", "w1", ...inputs], ["y"], attributes);
    const layer = { node: experts, shape: Array<number>(rank).fill(4) } as unknown as Parameters<typeof expertsObstacle>[0];
    expect(expertsObstacle(layer)).toBe(reason);
  });
});

test("calibration reads as many batches as it is told, all without a word", async () => {
  const bytes = encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["rows", K])],
        output: [value("y", T.FLOAT, [])],
        initializer: [raw("w", [K, 8], weights(K * 8))],
        node: [node("MatMul", ["x", "w"], ["y"], {}, "mm")],
      }),
    ),
  );
  const feeds = [2, 3, 5, 7].map((rows) => feedOf(rows, rows));
  const tokens = async (options: Parameters<typeof calibrateModel>[2]): Promise<number> =>
    (await calibrateModel(readModelBytes(bytes), feeds, options)).layers.get("mm")!.statistics[0].rows;
  expect(await tokens({})).toBe(17);
  expect(await tokens({ maxBatches: 4 })).toBe(17);
  expect(await tokens({ maxBatches: 3 })).toBe(10);
  expect(await tokens({ maxBatches: 1 })).toBe(2);
});

describe("norms that cannot be folded, and streams that cannot be turned", () => {
  const D = 16;
  const norms = (count: number, outputs: number, reader: "Add" | "MatMul") =>
    readModelBytes(
      encode(
        model(
          graph({
            input: [value("x", T.FLOAT, ["b", 3, D])],
            output: [...Array(count).keys()].map((i) => value(`y${i}`, T.FLOAT, [])),
            initializer: [
              raw(
                "g",
                [D],
                weights(D, 3).map((v) => 1 + v),
              ),
              raw("w", [D, D], weights(D * D)),
            ],
            node: [...Array(count).keys()].flatMap((i) => [
              node("LayerNormalization", ["x", "g"], [`n${i}`, ...(outputs > 1 ? [`mean${i}`] : [])], { axis: -1n }, `norm${i}`),
              node(reader, [`n${i}`, reader === "Add" ? "x" : "w"], [`p${i}`], {}, `read${i}`),
              node("Add", [`p${i}`, outputs > 1 ? `mean${i}` : "x"], [`y${i}`], {}, `sum${i}`),
            ]),
          }),
        ),
      ),
    );
  test.each([1, 4, 5, 6, 8])("%i of them: five are named, the rest is counted", async (count) => {
    const opened = norms(count, 1, "Add");
    const notes = await applyPasses(opened, ["fold-norm"], { verify: false });
    keep(opened, ...notes);
    expect(notes[0]).toBe(`fold-norm: 0 of ${count} norms folded into the products behind them`);
    expect(notes.slice(1, 6).every((note, i) => note.startsWith(`fold-norm: kept n${i}: `))).toBe(true);
    expect(notes.slice(6)).toEqual(count > 5 ? [`fold-norm: kept ${count - 5} more`] : []);
  });
  test("a mean that something reads", async () => {
    for (const outputs of [1, 2]) {
      const opened = norms(2, outputs, "MatMul");
      const notes = await applyPasses(opened, [{ name: "rotate", block: 16, boundary: true }], { verify: false });
      keep(opened, ...notes);
    }
  });
});

test("layers by name: keep, include, exclude", async () => {
  const bytes = encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["rows", K])],
        output: [value("y", T.FLOAT, [])],
        initializer: [raw("w", [K, K], weights(K * K)), raw("v", [K, K], weights(K * K, 2))],
        node: [node("MatMul", ["x", "w"], ["h"], {}, "a/one"), node("MatMul", ["h", "v"], ["y"], {}, "b/two")],
      }),
    ),
  );
  const made = async (options: QuantizeBytesOptions): Promise<(string | undefined)[]> => {
    const { report } = await quantizeModelBytes(bytes, { dtype: "q4", ...options });
    return report.layers.map(({ name, reason }) => `${name}: ${reason ?? "quantized"}`);
  };
  expect(await made({})).toEqual(["a/one: quantized", "b/two: quantized"]);
  expect(await made({ keep: ["a/*"] })).toEqual(["a/one: kept by a/*", "b/two: quantized"]);
  expect(await made({ keep: ["*two"] })).toEqual(["a/one: quantized", "b/two: kept by *two"]);
  expect(await made({ include: ["*two"] })).toEqual(["a/one: not included by name", "b/two: quantized"]);
  expect(await made({ exclude: ["*two"] })).toEqual(["a/one: quantized", "b/two: excluded by *two"]);
  await expect(made({ keep: ["c/*"] })).rejects.toThrow(
    /^keep c\/\*: expected to match a node with a weight, got none of 2\. Nearest: a\/one, b\/two\./,
  );
});

describe("quantized operators from codes to codes", () => {
  const scalars = (name: string, scale: number, zero: number) => [
    raw(`${name}_s`, [], Float32Array.of(scale)),
    raw(`${name}_z`, [], Uint8Array.of(zero), T.UINT8),
  ];
  const integers = (count: number, seed: number): Int8Array => Int8Array.from(weights(count, seed), (v) => Math.round(v * 200));
  const run = async (bytes: Uint8Array): Promise<Float32Array> => {
    const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1, graphOptimizationLevel: "disabled" });
    const { y } = await session.run({ x: new Tensor("float32", weights(5 * 16, 7).map((v) => 4 * v), [5, 16]) }); // prettier-ignore
    await session.release();
    return Float32Array.from(y.data as Float32Array);
  };
  test.each([
    ["codes", ["y_s", "y_z"], 0.02, 100],
    ["codes of another scale", ["y_s", "y_z"], 0.05, 7],
    ["floats", [], 0.02, 128],
  ] as const)("QGemm to %s", async (_, behind, scale, zero) => {
    const gemm = node("QGemm", ["q", "x_s", "x_z", "w", "w_s", "w_z", "b", ...behind], [behind.length > 0 ? "r" : "y"], { transB: 1n }, "op"); // prettier-ignore
    gemm.domain = "com.microsoft";
    const proto = model(
      graph({
        input: [value("x", T.FLOAT, [5, 16])],
        output: [value("y", T.FLOAT, [5, 3])],
        initializer: [
          raw("w", [3, 16], integers(48, 3), T.INT8),
          raw("b", [3], Int32Array.from([500, -2000, 9]), T.INT32),
          raw("w_s", [3], Float32Array.of(0.02, 0.03, 0.01)),
          raw("w_z", [3], new Int8Array(3), T.INT8),
          ...scalars("x", 0.01, 120),
          ...scalars("y", scale, zero),
        ],
        node: [
          node("QuantizeLinear", ["x", "x_s", "x_z"], ["q"]),
          gemm,
          ...(behind.length > 0 ? [node("DequantizeLinear", ["r", ...behind], ["y"])] : []),
        ],
      }),
    );
    proto.opsetImport.push({ ...proto.opsetImport[0], domain: "com.microsoft", version: 1n });
    const bytes = encode(proto);
    const opened = readModelBytes(bytes);
    const notes = dequantizeWeights(opened);
    keep(opened, ...notes);
    const pairs = ["QuantizeLinear", "DequantizeLinear"];
    expect(opened.proto.graph!.node.map(({ opType }) => opType)).toEqual([...pairs, "Gemm", ...(behind.length > 0 ? pairs : [])]);
    const [want, got] = [await run(bytes), await run(writeModelBytes(opened))];
    // a step of the output where codes are made of nearly a half
    for (let i = 0; i < want.length; i++) expect(Math.abs(got[i] - want[i])).toBeLessThanOrEqual(behind.length > 0 ? scale * 1.001 : 1e-4);
    expect([...want].filter((v, i) => Math.abs(v - got[i]) < 1e-4).length).toBeGreaterThanOrEqual(13);
  });

  const moved = (op: string, opset: number, [yScale, yZero]: [number, number], outputs = 1, attributes = {}) => {
    const opened = readModelBytes(
      encode(
        model(
          graph({
            input: [value("x", T.UINT8, [1, 2, 4, 4])],
            output: [value("y", T.UINT8, [])],
            initializer: [...scalars("x", 0.5, 100), ...scalars("y", yScale, yZero)],
            node: [
              node("DequantizeLinear", ["x", "x_s", "x_z"], ["f"]),
              node(op, ["f"], ["g", ...(outputs > 1 ? ["i"] : [])], attributes, "op"),
              node("QuantizeLinear", ["g", "y_s", "y_z"], ["y"]),
            ],
          }),
          { opset },
        ),
      ),
    );
    writeQOperators(opened);
    return buildScopes(opened)[0].graph.node.map(({ opType }) => opType);
  };
  const pool = { kernel_shape: { ints: [2, 2] } };
  const apart = ["DequantizeLinear", "MaxPool", "QuantizeLinear"];
  test.each([
    ["MaxPool", 12, [0.5, 100], 1, pool, ["MaxPool"]],
    ["MaxPool", 13, [0.5, 100], 1, pool, ["MaxPool"]],
    ["MaxPool", 11, [0.5, 100], 1, pool, apart],
    ["MaxPool", 12, [0.5, 100], 2, pool, apart],
    ["MaxPool", 12, [0.25, 100], 1, pool, apart],
    ["MaxPool", 12, [0.5, 101], 1, pool, apart],
    ["Transpose", 11, [0.5, 100], 1, { perm: { ints: [0, 1, 3, 2] } }, ["Transpose"]],
    ["Transpose", 11, [0.5, 99], 1, { perm: { ints: [0, 1, 3, 2] } }, ["DequantizeLinear", "Transpose", "QuantizeLinear"]],
  ] as [string, number, [number, number], number, object, string[]][])(
    "%s of opset %i to codes of %j with %i outputs",
    (op, opset, codes, outputs, attributes, operators) => expect(moved(op, opset, codes, outputs, attributes)).toEqual(operators),
  );
});

test("the basis of a weight with scales by channel and a rotation of random signs is both, one after the other", () => {
  const [k, block, seed] = [16, 8, 5];
  const channels = Array.from({ length: k }, (_, i) => 2 ** ((i % 5) - 2));
  const rotation = { kind: "hadamard", n: k, block, seed };
  const basis = (recipe: object) => basisOf({ k, recipe } as never);
  expect(basis({})).toBe(null);
  expect(basis({ channelScales: channels })).toEqual({ scale: Float32Array.from(channels, (c) => 1 / c), matrix: null, block: k, key: "" });
  const [signs, both] = [basis({ rotation })!, basis({ rotation, channelScales: channels })!];
  expect([...signs.scale!].every((s) => Math.abs(s) === 1)).toBe(true);
  expect(new Set(signs.scale).size).toBe(2);
  expect(both).toEqual({ ...signs, scale: signs.scale!.map((s, i) => s / channels[i]) });
  expect(basis({ rotation: { ...rotation, seed: null }, channelScales: channels })!.scale).toEqual(
    Float32Array.from(channels, (c) => 1 / c),
  );
});

test("a shift of the bias that an algorithm finds is added to the one that is there", async () => {
  const bias = weights(K, 9).map((v) => 4 + v);
  const bytes = encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["rows", K])],
        output: [value("y", T.FLOAT, [])],
        initializer: [raw("w", [K, K], weights(K * K)), raw("v", [K, K], weights(K * K, 2)), raw("b", [K], bias)],
        node: [
          node("Gemm", ["x", "w", "b"], ["h"], { transB: 1n }, "one"),
          node("Relu", ["h"], ["r"]),
          node("Gemm", ["r", "v"], ["y"], { transB: 1n }, "two"),
        ],
      }),
    ),
  );
  const calibration = [1, 2, 3].map((seed) => feedOf(64, seed));
  const options = { algorithm: "refit", sequential: true, calibration } as const;
  const opened = readModelBytes(bytes);
  const decided = await decideWeights(opened, modelLayers(opened), () => ({ format: format("int2_b32"), algorithm: "refit" }), calibration);
  const made = readModelBytes((await quantizeModelBytes(bytes, { ...options, format: "int2_b32", target: "qdq" })).bytes);
  const found = made.proto.graph!.node.filter(({ opType }) => opType === "Gemm");
  const shifts = [...decided.values()].map(({ biasShift }) => biasShift!);
  for (const [i, gemm] of found.entries()) {
    const got = resolveConstant(buildScopes(made)[0], gemm.input[2])!;
    const want = shifts[i].map((shift, c) => shift + (i === 0 ? bias[c] : 0));
    [...readFloats(made, got.tensor)].forEach((v, c) => expect(Math.abs(v - want[c])).toBeLessThan(1e-5));
  }
  expect(found.length).toBe(2);
  expect(Math.max(...shifts[0].map(Math.abs))).toBeGreaterThan(1e-3);
});

test("values of 16 bits have the whole range that was seen, values of 8 bits that of the observer", async () => {
  const proto = model(
    graph({
      input: [value("x", T.FLOAT, ["rows", K])],
      output: [value("y", T.FLOAT, [])],
      initializer: [raw("w", [K, K], weights(K * K))],
      node: [node("MatMul", ["x", "w"], ["y"], {}, "mm")],
    }),
    { opset: 21, ir: 10 },
  );
  const data = weights(128 * K, 3).map((v, i) => (i === 77 ? 64 : 2 * v));
  const least = Math.min(...data);
  const feeds: Feeds[] = [{ x: { type: "float32", data, dims: [128, K] } }];
  const scaleOf = async (activations: "uint8" | "uint16", observer: StaticOptions["observer"]) => {
    const opened = readModelBytes(encode(proto));
    await staticQuantize(opened, feeds, { activations, observer });
    const [scope] = buildScopes(opened);
    const first = scope.graph.node.find(({ opType, input }) => opType === "QuantizeLinear" && input[0] === "x")!;
    return readFloats(opened, resolveConstant(scope, first.input[1])!.tensor)[0];
  };
  const clipped = { method: "percentile", percentile: 99 } as const;
  for (const observer of [clipped, "minMax"] as const) expect(await scaleOf("uint16", observer)).toBeCloseTo((64 - least) / 65535, 8);
  expect(await scaleOf("uint8", "minMax")).toBeCloseTo((64 - least) / 255, 6);
  expect(await scaleOf("uint8", clipped)).toBeLessThan(2 / 255);
});

// Static quantization: parameters against an oracle written apart, one small graph of every operator, a real model on
// data it was not calibrated with.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, it } from "vitest";
import type { ModelProto, NodeProto, TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { readModelBytes, writeModelBytes } from "../../src/onnx/index.ts";
import { staticQuantize, type StaticOptions } from "../../src/onnx/static.ts";
import { ACTIVATION_TYPES, activationParameters, biasCodes } from "../../src/onnx/targets/static/parameters.ts";
import { T, encode, graph, model, node, raw, value, weights } from "./build.ts";
import { fashionAccuracy } from "./fashion.ts";
import { keepForm } from "./kept.ts";

type Dims = readonly number[];
const SHAPE: Dims = [1, 4, 8, 8];
const count = (dims: Dims): number => dims.reduce((a, b) => a * b, 1);
const feed = (dims: Dims, seed: number) => ({ x: { type: "float32", data: weights(count(dims), seed).map((v) => 10 * v), dims } });
/** Batches of different heights where the model takes them. */
const feeds = (dims: Dims) => [1, 2, 3].map((n) => feed(dims.length === 4 ? [dims[0], dims[1], dims[2] + 2 * (n - 1), dims[3]] : dims, n));

async function run(bytes: Uint8Array, dims: Dims, level: "all" | "disabled"): Promise<Float32Array> {
  const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1, graphOptimizationLevel: level });
  // one of the batches of calibration: these graphs show that the nodes are right, not that ranges carry over
  const { data } = feed(dims, 1).x;
  const { y } = await session.run({ x: new Tensor("float32", data, [...dims]) });
  await session.release();
  return y.data as Float32Array;
}

const decibels = (a: Float32Array, b: Float32Array): number => {
  let [signal, noise] = [0, 0];
  a.forEach((v, i) => {
    signal += v * v;
    noise += (v - b[i]) ** 2;
  });
  return 10 * Math.log10(signal / noise);
};

async function agrees(proto: ModelProto, dims: Dims, options: StaticOptions, least: number): Promise<string[]> {
  const original = encode(proto);
  const quantized = readModelBytes(original);
  await staticQuantize(quantized, feeds(dims), options);
  const bytes = writeModelBytes(quantized);
  if (options.activations !== "mixed") keepForm(bytes);
  const want = await run(original, dims, "all");
  for (const level of ["all", "disabled"] as const) expect(decibels(want, await run(bytes, dims, level))).toBeGreaterThan(least);
  return quantized.proto.graph!.node.map(({ opType }) => opType);
}

describe("parameters", () => {
  /** Straight from ONNX and onnxruntime's compute_scale_zp, in plain rational steps. */
  const oracle = (min: number, max: number, low: number, high: number): { scale: number; zeroPoint: number } => {
    const [from, to] = [min > 0 ? 0 : min, max < 0 ? 0 : max];
    const scale = Math.fround((to - from) / (high - low));
    const exact = low - from / scale;
    const [a, b] = [Math.floor(exact), Math.ceil(exact)];
    const zeroPoint = exact - a < b - exact ? a : exact - a > b - exact ? b : a % 2 === 0 ? a : b;
    return { scale, zeroPoint: zeroPoint + 0 }; // ceil gives -0
  };
  it("scale and zero point equal the oracle's, for every type", () => {
    const finite = fc.float({ min: -1e6, max: 1e6, noNaN: true });
    for (const type of ACTIVATION_TYPES.values())
      fc.assert(
        fc.property(finite, finite, (a, b) => {
          const [min, max] = [Math.min(a, b), Math.max(a, b)];
          fc.pre(Math.max(max, 0) - Math.min(min, 0) > 1e-20);
          expect(activationParameters({ min, max }, type, false)).toEqual(oracle(min, max, type.low, type.high));
        }),
      );
  });
  it("symmetric: the middle is zero, both ends are reached", () => {
    const type = ACTIVATION_TYPES.get("uint8")!;
    expect(activationParameters({ min: -1, max: 3 }, type, true)).toEqual({ scale: Math.fround(6 / 254), zeroPoint: 128 });
    expect(activationParameters({ min: 0, max: 0 }, type, false)).toEqual({ scale: 1, zeroPoint: 0 });
  });
  it("a bias beyond int32 stays float", () => {
    expect(biasCodes([1], 1e-6, [1e-6])).toBeUndefined();
    expect(Array.from(biasCodes([0.5, -0.5, 0], 0.1, [0.1, 0.2, 0])!.codes)).toEqual([50, -25, 0]);
  });
});

/** x -> Conv -> t -> the operator -> y: what it reads is quantized already where Conv is among the operators. */
function around(nodes: NodeProto[], initializer: TensorProto[] = [], rank = 4, opset = 17): ModelProto {
  return model(
    graph({
      input: [value("x", T.FLOAT, [1, 4, "h", 8])],
      output: [
        value(
          "y",
          T.FLOAT,
          Array.from({ length: rank }, (_, i) => `d${i}`),
        ),
      ],
      initializer: [
        raw(
          "w0",
          [4, 4, 1, 1],
          weights(16).map((v) => v * 4),
        ),
        raw("b0", [4], weights(4, 3)),
        ...initializer,
      ],
      node: [node("Conv", ["x", "w0", "b0"], ["t"], {}, "conv0"), ...nodes],
    }),
    { opset },
  );
}
const ints = (name: string, list: number[]) => raw(name, [list.length], BigInt64Array.from(list, BigInt), T.INT64);

describe("operators", () => {
  const cases: Record<string, [NodeProto[], TensorProto[]?, number?]> = {
    Conv: [[node("Conv", ["t", "w1"], ["y"], { pads: { ints: [1, 1, 1, 1] } })], [raw("w1", [6, 4, 3, 3], weights(216))]],
    ConvTranspose: [
      [node("ConvTranspose", ["t", "w1", "b1"], ["y"], { strides: { ints: [2, 2] } })],
      [raw("w1", [4, 3, 2, 2], weights(48)), raw("b1", [3], weights(3, 5))],
    ],
    MatMul: [[node("MatMul", ["t", "w1"], ["y"])], [raw("w1", [8, 5], weights(40))]],
    Add: [[node("Add", ["t", "x"], ["y"])]],
    Mul: [[node("Mul", ["t", "x"], ["y"])]],
    Concat: [[node("Concat", ["t", "x"], ["y"], { axis: 1n })]],
    Relu: [[node("Relu", ["t"], ["y"])]],
    Clip: [[node("Clip", ["t", "lo", "hi"], ["y"])], [raw("lo", [], Float32Array.of(-0.5)), raw("hi", [], Float32Array.of(0.75))]],
    Sigmoid: [[node("Sigmoid", ["t"], ["y"])]],
    HardSigmoid: [[node("HardSigmoid", ["t"], ["y"])]],
    HardSwish: [[node("HardSwish", ["t"], ["y"])]],
    MaxPool: [[node("MaxPool", ["t"], ["y"], { kernel_shape: { ints: [2, 2] } })]],
    AveragePool: [[node("AveragePool", ["t"], ["y"], { kernel_shape: { ints: [2, 2] } })]],
    GlobalAveragePool: [[node("GlobalAveragePool", ["t"], ["y"])]],
    Resize: [[node("Resize", ["t", "", "sizes"], ["y"], { mode: "nearest" })], [raw("sizes", [4], Float32Array.of(1, 1, 2, 2))]],
    Reshape: [[node("Reshape", ["t", "shape"], ["y"])], [ints("shape", [0, -1])], 2],
    Transpose: [[node("Transpose", ["t"], ["y"], { perm: { ints: [0, 2, 3, 1] } })]],
    Softmax: [[node("Softmax", ["t"], ["y"], { axis: -1n })]],
    LayerNormalization: [
      [node("LayerNormalization", ["t", "g", "h0"], ["y"], { axis: -1n })],
      [
        raw(
          "g",
          [8],
          weights(8).map((v) => v + 1),
        ),
        raw("h0", [8], weights(8)),
      ],
    ],
  };
  it.each(Object.keys(cases))("%s", async (type) => {
    const [nodes, initializer, rank] = cases[type];
    const proto = around(nodes, initializer, rank);
    for (const activations of ["uint8", "int8", "uint16"] as const) {
      const after = await agrees(proto, SHAPE, { activations, opTypes: ["Conv", type] }, activations === "uint16" ? 35 : 25);
      // Softmax reads floats
      expect(after.filter((op) => op === "QuantizeLinear").length).toBeGreaterThan(type === "Softmax" ? 0 : 1);
    }
  });
  it.each(["qdq", "qoperator"] as const)(
    "Softmax of one element is 1 at every level, whatever its neighbours are (%s)",
    async (outputs) => {
      // between pairs it would be QLinearSoftmax, which gives 0
      const proto = around([node("Softmax", ["t"], ["y"], { axis: 0n })]);
      const after = await agrees(proto, SHAPE, { outputs, opTypes: ["Conv", "Softmax", "Add", "Mul"] }, 25);
      expect(after).toContain("Softmax");
      expect(after).not.toContain("QLinearSoftmax");
    },
  );
  /** Those that onnxruntime has on integers; the others stay between pairs. */
  const onIntegers: Record<string, string> = {
    Conv: "QLinearConv",
    MatMul: "QLinearMatMul",
    Add: "QLinearAdd",
    Mul: "QLinearMul",
    Concat: "QLinearConcat",
    Sigmoid: "QLinearSigmoid",
    AveragePool: "QLinearAveragePool",
    GlobalAveragePool: "QLinearGlobalAveragePool",
  };
  it.each(Object.keys(cases))("%s as an operator on integers", async (type) => {
    const [nodes, initializer, rank] = cases[type];
    for (const activations of ["uint8", "int8"] as const) {
      const options = { activations, outputs: "qoperator" as const, opTypes: ["Conv", type] };
      const after = await agrees(around(nodes, initializer, rank), SHAPE, options, 23);
      const made = onIntegers[type];
      if (made !== undefined) expect(after).toContain(made);
      if (made !== undefined) expect(after.filter((op) => op === type)).toEqual([]);
      // moving codes needs no pair around it
      if (["MaxPool", "Reshape", "Transpose", "Resize"].includes(type))
        expect(after.indexOf(type)).toBeLessThan(after.indexOf("DequantizeLinear"));
    }
  });
  it("Gemm and a Relu behind it become one operator on integers; 16 bits are refused there", async () => {
    const proto = model(
      graph({
        input: [value("x", T.FLOAT, ["n", 16])],
        output: [value("y", T.FLOAT, ["n", 6])],
        initializer: [raw("w", [6, 16], weights(96)), raw("b", [6], weights(6, 2))],
        node: [node("Gemm", ["x", "w", "b"], ["h"], { transB: 1n }), node("Relu", ["h"], ["y"])],
      }),
    );
    const after = await agrees(proto, [3, 16], { outputs: "qoperator" }, 30);
    expect(after).toEqual(["QuantizeLinear", "QGemm", "DequantizeLinear"]);
    const wide = staticQuantize(readModelBytes(encode(proto)), feeds([3, 16]), { outputs: "qoperator", activations: "uint16" });
    await expect(wide).rejects.toThrow(/expected uint8 or int8 with outputs "qoperator"/);
  });
  it("a Relu that the ends of the codes do not say stays", async () => {
    const proto = around([node("Relu", ["t"], ["r"]), node("MatMul", ["r", "w1"], ["y"])], [raw("w1", [8, 5], weights(40))]);
    const options = { outputs: "qoperator" as const, opTypes: ["Conv", "MatMul"] };
    expect(await agrees(proto, SHAPE, options, 25)).not.toContain("Relu");
    expect(await agrees(proto, SHAPE, { ...options, symmetricActivations: true }, 25)).toContain("Relu");
  });
  it.each([
    [255, false],
    [254.5, true], // a tie goes to the even code, 254: the last code is above the bound
    [300, false],
  ])("a Clip to %d of codes with steps of 1: stays %s", async (bound, stays) => {
    const clip = node("Clip", ["t", "low", "high"], ["r"]);
    const bounds = [raw("low", [], Float32Array.of(0)), raw("high", [], Float32Array.of(bound))];
    const proto = around([clip, node("MatMul", ["r", "w1"], ["y"])], [...bounds, raw("w1", [8, 5], weights(40))]);
    const quantized = readModelBytes(encode(proto));
    const ranges = new Map([
      ["x", { min: -4, max: 4 }],
      ["r", { min: 0, max: 255 }],
      ["y", { min: -4, max: 4 }],
    ]);
    await staticQuantize(quantized, ranges, { outputs: "qoperator", opTypes: ["Conv", "MatMul"] });
    const types = quantized.proto.graph!.node.map(({ opType }) => opType);
    expect(types.includes("Clip")).toBe(stays);
    expect(types.includes("QLinearConv")).toBe(!stays);
  });
  it("types of single values, and what is left in float16", async () => {
    const proto = around([node("MatMul", ["t", "w1"], ["m"]), node("Softplus", ["m"], ["y"])], [raw("w1", [8, 5], weights(40))]);
    const after = await agrees(proto, SHAPE, { activationTypes: { t: "uint16" } }, 30);
    expect(after.filter((op) => op === "QuantizeLinear")).toHaveLength(2);
    const quantized = readModelBytes(encode(proto));
    await staticQuantize(quantized, feeds(SHAPE), { activations: "mixed", dtype: "fp16" });
    const types = new Set(quantized.proto.graph!.initializer.map(({ dataType }) => dataType));
    expect(types.has(T.UINT8)).toBe(true);
    const [want, got] = [await run(encode(proto), SHAPE, "all"), await run(writeModelBytes(quantized), SHAPE, "all")];
    expect(decibels(want, got)).toBeGreaterThan(25);
    expect(quantized.proto.graph!.node.some(({ opType }) => opType === "Cast")).toBe(true);
    const unknown = staticQuantize(readModelBytes(encode(proto)), feeds(SHAPE), { activationTypes: { u: "uint8" } });
    await expect(unknown).rejects.toThrow(/activationTypes: expected values that are quantized, got "u"/);
  });
  it("weights of 4 bits by channel and by block, also of kernels with height and width; transposed convolutions in groups", async () => {
    const [nodes, initializer] = cases.Conv;
    const proto = around(nodes, initializer);
    for (const format of ["int4_row", "int4_b12", "int8_b32", "int3_row"]) {
      const after = await agrees(proto, SHAPE, { format, opTypes: ["Conv"] }, format === "int3_row" ? 5 : 12);
      // blocks are along the row of all a channel reads: the kernel gets its shape back behind them
      expect(after.filter((op) => op === "Reshape")).toHaveLength(format.includes("_b") ? 2 : 0);
    }
    const groups = around(
      [node("ConvTranspose", ["t", "w1"], ["y"], { group: 2n, strides: { ints: [2, 2] } })],
      [raw("w1", [4, 3, 2, 2], weights(48))],
    );
    await agrees(groups, SHAPE, { opTypes: ["Conv", "ConvTranspose"] }, 25);
  });
  it("a rule that keeps a layer keeps its inputs too, and says so", async () => {
    const proto = around([node("MatMul", ["t", "w1"], ["y"], {}, "head")], [raw("w1", [8, 5], weights(40))]);
    const quantized = readModelBytes(encode(proto));
    const { layers } = await staticQuantize(quantized, feeds(SHAPE), { rules: [{ match: "head", keep: true }] });
    expect(layers.map(({ name, reason }) => [name, reason])).toEqual([
      ["conv0", undefined],
      ["head", "kept by the rule head"],
    ]);
    const { node: nodes } = quantized.proto.graph!;
    expect(nodes.filter(({ opType }) => opType === "QuantizeLinear")).toHaveLength(2);
  });
  it("Gemm with a bias; outputs keep their names; opset 21 has 16 bits in the standard", async () => {
    const proto = model(
      graph({
        input: [value("x", T.FLOAT, ["n", 16])],
        output: [value("y", T.FLOAT, ["n", 6])],
        initializer: [raw("w", [6, 16], weights(96)), raw("b", [6], weights(6, 2))],
        node: [node("Gemm", ["x", "w", "b"], ["h"], { transB: 1n }), node("Relu", ["h"], ["y"])],
      }),
      { opset: 21 },
    );
    for (const activations of ["uint8", "int16"] as const) {
      const after = await agrees(proto, [3, 16], { activations }, 30);
      // with 16 bits the product is one of floats, whose result nobody rounds
      expect(after.filter((op) => op === "DequantizeLinear")).toHaveLength(activations === "uint8" ? 4 : 3);
    }
  });
  it("says what it does not know, and what it cannot do", async () => {
    const proto = around([node("Tanh", ["t"], ["y"])]);
    await expect(staticQuantize(readModelBytes(encode(proto)), feeds(SHAPE), { opTypes: ["Tanh"] })).rejects.toThrow(
      /expected operators that static/,
    );
    const wrong = staticQuantize(readModelBytes(encode(proto)), feeds(SHAPE), { activations: "int4" as never });
    await expect(wrong).rejects.toThrow(/activations: expected uint8/);
    const nan = [{ x: { type: "float32", data: new Float32Array(256).fill(NaN), dims: SHAPE } }];
    await expect(staticQuantize(readModelBytes(encode(proto)), nan)).rejects.toMatchObject({ code: "E_CALIBRATION" });
  });
});

describe("a real model", () => {
  it("fashion-cnn keeps its accuracy in uint8", { timeout: 240_000 }, async () => {
    const file = (name: string) => readFileSync(new URL(`../fixtures/fashion-cnn/${name}`, import.meta.url));
    const images = Float32Array.from(file("calibration-images.u8").subarray(0, 784 * 96), (byte) => byte / 255);
    // batches of different sizes
    const data = [
      [0, 64],
      [64, 96],
    ].map(([from, to]) => ({
      image: { type: "float32", data: images.slice(from * 784, to * 784), dims: [to - from, 1, 28, 28] },
    }));
    const folder = mkdtempSync(join(tmpdir(), "lowbit-static-"));
    try {
      for (const observer of ["minMax", "mse"] as const) {
        const quantized = readModelBytes(new Uint8Array(file("fashion_cnn.onnx")));
        await staticQuantize(quantized, data, { observer, algorithm: "rtn" });
        const path = join(folder, `${observer}.onnx`);
        writeFileSync(path, writeModelBytes(quantized));
        expect(await fashionAccuracy(path)).toBeGreaterThanOrEqual(0.925);
      }
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

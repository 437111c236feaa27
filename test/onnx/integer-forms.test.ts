// Integer forms of every operator that has one: a small float model of each, and what onnxruntime computes of both.
import { create } from "@bufbuild/protobuf";
import * as ort from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { OperatorSetIdProtoSchema, ValueInfoProtoSchema, type NodeProto, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { floatOperators, integerOnly, readModelBytes } from "../../src/onnx/index.ts";
import { elementwise, erf, isGelu, rectifierOf, slopeOf } from "../../src/onnx/integer/expressions.ts";
import { encode, graph, model, node, raw, T, value, weights, type AttributeValue } from "./build.ts";
import { keepForm } from "./kept.ts";

const D = 16;
type Attributes = Record<string, AttributeValue>;
const op = (type: string, input: string[], output: string, attributes: Attributes = {}, domain = ""): NodeProto =>
  Object.assign(node(type, input, [output], attributes, `${output}/node`), { domain });
const scalar = (name: string, v: number): TensorProto => raw(name, [], Float32Array.of(v));
const int64 = (name: string, ...v: number[]): TensorProto => raw(name, [v.length], BigInt64Array.from(v, BigInt), T.INT64);
const wide = (name: string, dims: number[], seed = 1, by = 4): TensorProto =>
  raw(name, dims, weights(dims.reduce((a, b) => a * b, 1), seed).map((v) => by * v)); // prettier-ignore

function bytesOf(nodes: NodeProto[], initializer: TensorProto[], dims: number[] = [2, 3, D], opset = 20): Uint8Array {
  const proto = model(
    graph({ input: [value("x", T.FLOAT, dims)], output: [create(ValueInfoProtoSchema, { name: "y" })], initializer, node: nodes }),
    { opset, ir: 9 },
  );
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return encode(proto);
}
const feedsOf = (dims: number[], count: number, seed = 3) =>
  Array.from({ length: count }, (_, i) => ({ x: { type: "float32", dims, data: weights(dims.reduce((a, b) => a * b, 1), seed + i).map((v) => 6 * v) } })); // prettier-ignore
async function run(bytes: Uint8Array, x: { data: Float32Array; dims: number[] }): Promise<Float32Array> {
  const session = await ort.InferenceSession.create(bytes, {
    logSeverityLevel: 4,
    intraOpNumThreads: 1,
    graphOptimizationLevel: "disabled",
  });
  const { y } = await session.run({ x: new ort.Tensor("float32", x.data, x.dims) });
  await session.release();
  return Float32Array.from(y.data as Float32Array);
}
function decibels(want: ArrayLike<number>, got: ArrayLike<number>): number {
  expect(got.length).toBe(want.length);
  let [signal, noise] = [0, 0];
  for (let i = 0; i < want.length; i++) [signal, noise] = [signal + want[i] ** 2, noise + (want[i] - got[i]) ** 2];
  return 10 * Math.log10(signal / noise);
}

/** Operators of one value: name, attributes, further scalar operands, domain. */
const UNARY: [type: string, attributes?: Attributes, operands?: number[], domain?: string][] = [
  ["Neg"], ["Abs"], ["Exp"], ["Erf"], ["Tanh"], ["Sigmoid"], ["Softplus"], ["Relu"], ["LeakyRelu"], ["LeakyRelu", { alpha: 0.3 }],
  ["Elu"], ["Elu", { alpha: 2 }], ["HardSigmoid"], ["HardSigmoid", { alpha: 0.5, beta: 0.2 }], ["HardSwish"], ["Identity"], ["Gelu"],
  ["Gelu", { approximate: "tanh" }], ["Gelu", {}, [], "com.microsoft"], ["FastGelu", {}, [], "com.microsoft"],
  ["QuickGelu", {}, [], "com.microsoft"], ["QuickGelu", { alpha: 1 }, [], "com.microsoft"], ["Add", {}, [0.5]], ["Sub", {}, [0.5]],
  ["Mul", {}, [-1.5]], ["Div", {}, [3]], ["Pow", {}, [2]], ["Clip", {}, [-0.3, 0.4]], ["Clip", {}, [0.1]], ["Min", {}, [0.2]],
  ["Max", {}, [-0.1]], ["Dropout"],
]; // prettier-ignore

describe("functions of one value", () => {
  const points = Float32Array.from({ length: 81 }, (_, i) => (i - 40) / 8);
  test.each(UNARY)("%s %j %j %s: as onnxruntime, and as a table", async (type, attributes = {}, operands = [], domain = "") => {
    const init = operands.map((v, i) => scalar(`c${i}`, v));
    const made = op(type, ["x", ...init.map(({ name }) => name)], "y", attributes, domain);
    const float = bytesOf([made], init, [81]);
    const want = await run(float, { data: points, dims: [81] });
    const apply = elementwise(made)!;
    points.forEach((x, i) => expect(Math.abs(apply([x, ...operands]) - want[i])).toBeLessThan(2e-6 * Math.max(1, Math.abs(want[i]))));
    if (!["Exp", "Relu", "Neg", "Clip", "Abs", "FastGelu"].includes(type)) return;
    const behind = bytesOf(
      [op("MatMul", ["x", "w"], "h"), { ...made, input: ["h", ...made.input.slice(1)] }],
      [wide("w", [D, D]), ...init],
    );
    const { bytes } = await integerOnly(behind, { calibration: feedsOf([2, 3, D], 4) });
    keepForm(bytes);
    expect(floatOperators(readModelBytes(bytes)).floats).toEqual([]);
    const [{ x }] = feedsOf([2, 3, D], 1);
    expect(decibels(await run(behind, x), await run(bytes, x))).toBeGreaterThan(24);
  });

  test.each([["Sqrt"], ["Log"], ["Reciprocal"]])("%s of what is positive", async (type) => {
    const positive = points.map((v) => Math.abs(v) + 0.25);
    const want = await run(bytesOf([op(type, ["x"], "y")], [], [81]), { data: positive, dims: [81] });
    const apply = elementwise(op(type, ["x"], "y"))!;
    positive.forEach((x, i) => expect(apply([x])).toBeCloseTo(want[i], 5));
  });

  test("what is none: training, operators of more than elements", () => {
    expect(elementwise(op("Dropout", ["x"], "y", { training_mode: 1n }))).toBeUndefined();
    for (const other of ["Softmax", "MatMul", "constructor"]) expect(elementwise(op(other, ["x"], "y"))).toBeUndefined();
  });

  test("erf by its known values, beyond and below where series and fraction meet", () => {
    for (const [x, y] of [
      [0, 0],
      [0.1, 0.1124629160182849],
      [1, 0.8427007929497149],
      [2, 0.9953222650189527],
      [2.5, 0.999593047982555],
      [3, 0.9999779095030014],
      [5, 0.9999999999984626],
      [7, 1],
    ]) {
      // prettier-ignore
      expect(erf(x)).toBeCloseTo(y, 12);
      expect(erf(-x)).toBeCloseTo(-y, 12);
    }
  });

  test("lines, rectifiers and GELUs are told from what only looks so at some points", () => {
    expect([slopeOf((x) => 3 * x), slopeOf((x) => -x), slopeOf((x) => x * x), slopeOf((x) => (x > 2 ? 5 : x)), slopeOf((x) => (x < -2 ? x - 1 : x)), slopeOf((x) => (x > -2 && x < -0.5 ? x - 1 : x))]).toEqual([3, -1, undefined, undefined, undefined, undefined]); // prettier-ignore
    expect(slopeOf(() => 0)).toBeUndefined();
    expect([rectifierOf((x) => Math.max(0, x) / 2), rectifierOf((x) => Math.max(0.01 * x, x)), rectifierOf((x) => Math.min(0, -x))]).toEqual([0.5, undefined, undefined]); // prettier-ignore
    const [gelu, tanh] = [elementwise(op("Gelu", ["x"], "y"))!, elementwise(op("FastGelu", ["x"], "y", {}, "com.microsoft"))!];
    expect([isGelu((x) => gelu([x])), isGelu((x) => tanh([x])), isGelu((x) => x / (1 + Math.exp(-1.702 * x)))]).toEqual([true, true, true]);
    expect([isGelu((x) => Math.max(0, x)), isGelu((x) => x / (1 + Math.exp(-x))), isGelu((x) => (x < -2 ? 1 : gelu([x])))]).toEqual([false, false, false]); // prettier-ignore
  });
});

const product = (input: string, output: string, weight = "w"): NodeProto => op("MatMul", [input, weight], output);
const W = [wide("w", [D, D]), wide("v", [D, D], 2)];
interface Form {
  nodes: NodeProto[];
  init?: TensorProto[];
  dims?: number[];
}
/** Models of few nodes, by what they have an integer form of. */
const STRUCTURES: Record<string, Form> = {
  "products with biases on either side": {
    nodes: [product("x", "a"), op("Add", ["a", "b"], "h"), product("h", "p", "v"), op("Add", ["b", "p"], "y")],
    init: [...W, wide("b", [D], 3)],
  },
  Gemm: {
    nodes: [op("Gemm", ["x", "w", "b"], "h"), op("Gemm", ["h", "v"], "y", { transB: 1n })],
    init: [...W, wide("b", [D], 3)],
    dims: [5, D],
  },
  "Gemm with one bias for all": { nodes: [op("Gemm", ["x", "w", "b"], "y", { transB: 1n })], init: [wide("w", [1, D]), wide("b", [1], 3)], dims: [5, D] }, // prettier-ignore
  "Conv": { nodes: [op("Conv", ["x", "k", "b"], "h", { pads: { ints: [1, 1] } }), op("Conv", ["h", "l"], "y", { strides: { ints: [2] } })], init: [wide("k", [4, 3, 3]), wide("b", [4], 3), wide("l", [5, 4, 2], 4)], dims: [2, 3, 8] }, // prettier-ignore
  "sums, differences and products of two values": {
    nodes: [product("x", "a"), product("x", "b", "v"), op("Add", ["a", "b"], "s"), op("Sub", ["s", "x"], "d"), op("Mul", ["d", "b"], "y")],
    init: W,
  },
  "a sum of a value and itself": { nodes: [product("x", "a"), op("Add", ["a", "a"], "s"), op("Mul", ["s", "a"], "y")], init: W },
  "products of two values, and of what moves them": {
    nodes: [product("x", "a"), product("x", "b", "v"), op("Transpose", ["b"], "t", { perm: { ints: [0, 2, 1] } }), op("MatMul", ["a", "t"], "y")], // prettier-ignore
    init: W,
  },
  "Softmax as a result": { nodes: [product("x", "a"), op("Softmax", ["a"], "y", { axis: -1n })], init: W },
  "Softmax over its own number of the last axis, times values": {
    nodes: [product("x", "a"), op("Transpose", ["a"], "t", { perm: { ints: [0, 2, 1] } }), op("MatMul", ["x", "t"], "s"), op("Softmax", ["s"], "p", { axis: -1n }), op("MatMul", ["p", "a"], "y")], // prettier-ignore
    init: W,
  },
  "a rectifier with a slope, read by a sum and by a product": {
    nodes: [product("x", "a"), op("Relu", ["a"], "r"), op("Mul", ["r", "c"], "s"), product("s", "p", "v"), op("Add", ["s", "p"], "y")],
    init: [...W, scalar("c", 3)],
  },
  "a rectifier read by a sum": { nodes: [product("x", "a"), op("Relu", ["a"], "r"), op("Add", ["r", "x"], "y")], init: W },
  "a scaled and negated value": {
    nodes: [product("x", "a"), op("Mul", ["a", "c"], "s"), product("s", "p", "v"), op("Neg", ["s"], "n"), op("Add", ["n", "p"], "y")],
    init: [...W, scalar("c", 0.3)],
  },
  "GELU in parts": {
    nodes: [product("x", "a"), op("Div", ["a", "r2"], "o"), op("Erf", ["o"], "e"), op("Add", ["e", "one"], "f"), op("Mul", ["a", "f"], "g"), op("Mul", ["g", "half"], "y")], // prettier-ignore
    init: [...W, scalar("r2", Math.SQRT2), scalar("one", 1), scalar("half", 0.5)],
  },
  LayerNormalization: {
    nodes: [product("x", "a"), op("LayerNormalization", ["a", "g", "b"], "y")],
    init: [...W, wide("g", [D], 5, 8), wide("b", [D], 6)],
  },
  "SimplifiedLayerNormalization": { nodes: [product("x", "a"), op("SimplifiedLayerNormalization", ["a", "g"], "n", { axis: -1n }), product("n", "y", "v")], init: [...W, wide("g", [D], 5, 8)] }, // prettier-ignore
  "Flatten, Reshape, Squeeze, Unsqueeze": {
    nodes: [product("x", "a"), op("Flatten", ["a"], "f", { axis: 2n }), op("Unsqueeze", ["f", "zero"], "u"), op("Squeeze", ["u", "zero"], "q"), op("Reshape", ["q", "s"], "r"), product("r", "y", "v")], // prettier-ignore
    init: [...W, int64("zero", 0), int64("s", 2, 3, D)],
  },
  "Slice, Expand, Tile": {
    nodes: [product("x", "a"), op("Slice", ["a", "from", "to", "axes"], "s"), op("Expand", ["s", "e"], "b"), op("Tile", ["b", "n"], "t"), op("Add", ["t", "x"], "y")], // prettier-ignore
    init: [...W, int64("from", 1), int64("to", 2), int64("axes", 1), int64("e", 2, 3, D), int64("n", 1, 1, 1)],
  },
  "Gather of a value, GatherElements, GatherND": {
    nodes: [product("x", "a"), op("Gather", ["a", "i"], "g", { axis: 1n }), op("GatherElements", ["g", "j"], "h", { axis: 1n }), op("GatherND", ["h", "k"], "y")], // prettier-ignore
    init: [...W, int64("i", 2, 0), raw("j", [2, 1, D], BigInt64Array.from({ length: 2 * D }, (_, i) => BigInt(i % 2)), T.INT64), raw("k", [1, 1], BigInt64Array.of(1n), T.INT64)], // prettier-ignore
  },
  "Split and Concat of parts of different sizes": {
    nodes: [product("x", "a"), Object.assign(node("Split", ["a", "n"], ["p", "q"], { axis: 2n }, "split"), {}), op("Mul", ["q", "c"], "s"), op("Concat", ["s", "p"], "h", { axis: 2n }), product("h", "y", "v")], // prettier-ignore
    init: [...W, int64("n", 6, 10), scalar("c", 9)],
  },
  "a constant beside a value": {
    nodes: [product("x", "a"), op("Concat", ["a", "k"], "y", { axis: 1n })],
    init: [...W, wide("k", [2, 1, D], 7)],
  },
  "a sum with a constant of the shape": {
    nodes: [product("x", "a"), op("Add", ["k", "a"], "s"), op("Mul", ["s", "k"], "y")],
    init: [...W, wide("k", [3, D], 7)],
  },
  "a value that nothing reads": { nodes: [product("x", "a"), op("Exp", ["a"], "idle"), op("Neg", ["a"], "y")], init: W },
  "a choice of values": {
    nodes: [product("x", "a"), op("Where", ["b", "a", "x"], "y")],
    init: [
      ...W,
      raw(
        "b",
        [D],
        Uint8Array.from({ length: D }, (_, i) => i % 3 && 1),
        T.BOOL,
      ),
    ],
  },
};

describe("structures", () => {
  test.each(Object.entries(STRUCTURES))("%s", async (_, { nodes, init = [], dims = [2, 3, D] }) => {
    const float = bytesOf(nodes, init, dims);
    const shifted = nodes.some(({ opType }) => ["Softmax", "Erf", "LayerNormalization"].includes(opType));
    for (const functions of shifted ? (["table", "shift"] as const) : (["table"] as const)) {
      const { bytes, report } = await integerOnly(float, { calibration: feedsOf(dims, 4), functions });
      keepForm(bytes, JSON.stringify([...report.operators]), report.boundary.join());
      const opened = readModelBytes(bytes);
      expect(floatOperators(opened)).toMatchObject({ floats: [] });
      expect(report.boundary).toHaveLength(2);
      const [{ x }] = feedsOf(dims, 1);
      expect(decibels(await run(float, x), await run(bytes, x)), functions).toBeGreaterThan(functions === "shift" ? 15 : 24);
    }
  });

  test("what a rectifier cuts off is zero, and shares of alike values are alike, to the last bit", async () => {
    const exact = async (nodes: NodeProto[], functions: "table" | "shift", x: Float32Array) => {
      const { bytes, report } = await integerOnly(bytesOf(nodes, W), { calibration: feedsOf([2, 3, D], 4), functions });
      return { y: await run(bytes, { data: x, dims: [2, 3, D] }), operators: [...report.operators.keys()].join() };
    };
    const [{ x }] = feedsOf([2, 3, D], 1);
    const relu = [product("x", "a"), op("Relu", ["a"], "y")];
    const float = await run(bytesOf(relu, W), x);
    const { y } = await exact(relu, "table", x.data);
    float.forEach((v, i) => v === 0 && expect([i, y[i] < 1e-3]).toEqual([i, true]));
    expect(y.filter((v) => v === 0).length).toBeGreaterThan(20);
    const soft = [product("x", "a"), op("Softmax", ["a"], "y", { axis: -1n })];
    for (const functions of ["table", "shift"] as const) {
      const { y: shares, operators } = await exact(soft, functions, new Float32Array(6 * D));
      for (const share of shares) expect(share).toBeCloseTo(1 / D, functions === "shift" ? 9 : 4);
      expect(operators.includes("Shiftmax")).toBe(functions === "shift");
    }
    const attend = [product("x", "a"), op("Transpose", ["a"], "t", { perm: { ints: [0, 2, 1] } }), op("MatMul", ["x", "t"], "s"), op("Softmax", ["s"], "p"), op("MatMul", ["p", "a"], "y")]; // prettier-ignore
    expect((await exact(attend, "shift", x.data)).operators).toMatch(/Shiftmax.*Weigh/);
    expect((await exact(attend, "table", x.data)).operators).toMatch(/Exp.*Attend/);
  });

  test.each<[string, NodeProto[], TensorProto[]]>([
    ["Softmax over another axis", [product("x", "a"), op("Softmax", ["a"], "y", { axis: 1n })], W],
    ["Gemm with a factor", [op("Reshape", ["x", "s"], "f"), op("Gemm", ["f", "w"], "y", { alpha: 0.5 })], [...W, int64("s", -1, D)]],
    ["Gemm of a turned value", [op("Reshape", ["x", "s"], "f"), op("Gemm", ["f", "w"], "y", { transA: 1n })], [wide("w", [6, D]), int64("s", 6, D)]], // prettier-ignore
    ["a weight of three dimensions", [op("MatMul", ["x", "w"], "y")], [wide("w", [2, D, D])]],
    ["Div of two values", [product("x", "a"), op("Div", ["a", "x"], "y")], W],
    ["CumSum", [product("x", "a"), op("CumSum", ["a", "axis"], "y")], [...W, raw("axis", [], Int32Array.of(1), T.INT32)]],
  ])("%s has none, and is named", async (_, nodes, init) => {
    const last = nodes.at(-1)!;
    await expect(integerOnly(bytesOf(nodes, init), { calibration: feedsOf([2, 3, D], 1) })).rejects.toThrow(last.opType);
  });
});

describe("the check", () => {
  const check = (nodes: NodeProto[], init: TensorProto[] = [], input = [value("i", T.INT32, [2]), value("x", T.FLOAT, [2])]) => {
    const proto = model(graph({ input, output: [value("y", T.FLOAT, [2])], initializer: init, node: nodes }), { opset: 20 });
    return floatOperators(readModelBytes(encode(proto)));
  };
  const level = [scalar("s", 0.5), raw("z", [], Uint8Array.of(128), T.UINT8), raw("k", [2], Int32Array.of(1, 2), T.INT32)];
  test("floats may enter by QuantizeLinear and leave by DequantizeLinear, nowhere else", () => {
    const inside = [op("QuantizeLinear", ["x", "s", "z"], "q"), op("Cast", ["q"], "w", { to: 6n }), op("Add", ["w", "k"], "a"), op("DequantizeLinear", ["a", "s"], "y")]; // prettier-ignore
    expect(check(inside, level)).toMatchObject({ floats: [], boundary: ["q/node", "y/node"] });
    expect([...check(inside, level).operators.values()]).toEqual([1, 1, 1, 1]);
    for (const [nodes, float] of [
      [[op("Cast", ["i"], "f", { to: 1n }), op("Cast", ["f"], "y", { to: 6n })], "Cast (f/node)"],
      [[op("Add", ["x", "x"], "y")], "Add (y/node)"],
      [[op("Add", ["i", "s"], "y")], "Add (y/node)"],
      [[op("DequantizeLinear", ["i", "s"], "d"), op("QuantizeLinear", ["d", "s", "z"], "y")], "DequantizeLinear (d/node)"],
      [[op("Sqrt", ["i"], "y")], "Sqrt (y/node)"],
      [[op("ConstantOfShape", ["i"], "y", { value: raw("", [1], Float32Array.of(1)) })], "ConstantOfShape (y/node)"],
      [[op("ConstantOfShape", ["i"], "y")], "ConstantOfShape (y/node)"],
      [[op("Constant", [], "y", { value_float: 1 })], "Constant (y/node)"],
    ] as const)
      expect(check([...nodes], level).floats).toContain(float);
    const integers = [op("ConstantOfShape", ["i"], "c", { value: raw("", [1], Int32Array.of(1), T.INT32) }), op("Constant", [], "k2", { value_ints: { ints: [1] } }), op("Add", ["c", "k"], "y")]; // prettier-ignore
    expect(check(integers, level).floats).toEqual([]);
  });
  test("bodies of functions that are called, also by functions, and no others", () => {
    const body = (name: string, nodes: NodeProto[]) => ({ $typeName: "onnx.FunctionProto" as const, name, domain: "own", input: ["a"], output: ["b"], attribute: [], attributeProto: [], node: nodes, opsetImport: [], docString: "", overload: "", valueInfo: [], metadataProps: [] }); // prettier-ignore
    const proto = model(graph({ input: [value("i", T.INT32, [2])], output: [value("y", T.INT32, [2])], node: [op("Outer", ["i"], "y", {}, "own")] })); // prettier-ignore
    proto.functions.push(
      body("Outer", [op("Inner", ["a"], "b", {}, "own")]) as never,
      body("Inner", [op("Sqrt", ["a"], "b")]) as never,
      body("Idle", [op("Exp", ["a"], "b")]) as never,
    );
    proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "own", version: 1n }));
    expect(floatOperators(readModelBytes(encode(proto))).floats).toEqual(["Sqrt (b/node in own.Inner)"]);
  });
});

// What stays in float32 when a model becomes float16, node by node, and what constants become: by the rules of the
// guide (docs/onnx.md), not by those of an operator's schema (fp16-operators.test.ts).
import { create } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { AttributeProto_AttributeType as A, OperatorSetIdProtoSchema, ValueInfoProtoSchema, type NodeProto, type TensorProto, type ValueInfoProto } from "../../src/onnx/file/gen/onnx_pb.ts"; // prettier-ignore
import { BANDS } from "../../src/onnx/bands.ts";
import { encodeHalf, halfTable } from "../../src/onnx/file/half.ts";
import { buildScopes, inferTypes } from "../../src/onnx/graph/graph.ts";
import { readModelBytes, type QuantizeBytesOptions } from "../../src/onnx/index.ts";
import { clampOf, constantToHalf, toHalf } from "../../src/onnx/targets/fp16-constants.ts";
import { T, attribute, encode, graph, model, node, raw, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

type Graph = { nodes: NodeProto[]; init?: TensorProto[]; input?: ValueInfoProto[]; opset?: number };
const named = (op: string, input: string[], output: string | string[], attributes = {}, domain = ""): NodeProto =>
  Object.assign(node(op, input, [output].flat(), attributes, [output].flat()[0]), { domain });

function bytesOf({ nodes, init = [], input = [value("x", T.FLOAT, [2, 3, 4])], opset = 17 }: Graph): Uint8Array {
  const last = nodes.at(-1)!.output.filter((name) => name !== "");
  const proto = model(graph({ input, output: last.map((name) => create(ValueInfoProtoSchema, { name })), initializer: init, node: nodes }), { opset, ir: 9 }); // prettier-ignore
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return encode(proto);
}
/** Names of the nodes of the original that compute in float32. */
async function stays(given: Graph, options: Partial<QuantizeBytesOptions> = {}): Promise<string[]> {
  const { bytes } = await quantizeModelBytes(bytesOf(given), { dtype: "fp16", allowUnchanged: true, ...options });
  const opened = readModelBytes(bytes);
  const [scope] = buildScopes(opened);
  const types = inferTypes([scope, ...buildScopes(opened).slice(1)], given.opset ?? 17).get(scope)!;
  const original = new Set(given.nodes.map(({ name }) => name));
  return scope.graph.node
    .filter(({ name, output, input }) => original.has(name) && [...input, ...output].some((one) => types.get(one) === T.FLOAT))
    .map(({ name }) => name);
}
const init = (name: string, dims: number[], map: (v: number, i: number) => number = (v) => v): TensorProto =>
  raw(name, dims, weights(dims.reduce((a, b) => a * b, 1)).map(map)); // prettier-ignore
const scalar = (name: string, v: number): TensorProto => raw(name, [], Float32Array.of(v));
const ids = value("ids", T.INT64, [2, 1]);

const CASES: Record<string, [Graph, string[]]> = {
  "an angle of an input, and of what is cheap": [
    { nodes: [named("Sin", ["x"], "s"), named("Mul", ["x", "c"], "m"), named("Cos", ["m"], "y")], init: [scalar("c", 2)] },
    ["s", "m", "y"],
  ],
  "an angle of an activation": [{ nodes: [named("Relu", ["x"], "r"), named("Sin", ["r"], "y")] }, []],
  "an angle behind a Cast": [
    { nodes: [named("Cast", ["h"], "c", { to: 1n }), named("Sin", ["c"], "s"), named("Add", ["s", "x"], "y")], input: [value("x", T.FLOAT, [2]), value("h", T.FLOAT16, [2])] }, // prettier-ignore
    ["c", "s"],
  ],
  "positions times frequencies": [
    { nodes: [named("Cast", ["ids"], "p", { to: 1n }), named("MatMul", ["p", "f"], "a"), named("Sin", ["a"], "s"), named("Add", ["s", "x"], "y")], init: [init("f", [1, 4096])], input: [ids, value("x", T.FLOAT, [2, 4096])] }, // prettier-ignore
    ["p", "a", "s"],
  ],
  "ids times a weight": [
    { nodes: [named("Cast", ["ids"], "p", { to: 1n }), named("MatMul", ["p", "f"], "a"), named("Add", ["a", "x"], "y")], init: [init("f", [1, 4097])], input: [ids, value("x", T.FLOAT, [2, 4097])] }, // prettier-ignore
    ["p"],
  ],
  "counts through cheap operators, up to an activation": [
    { nodes: [named("Cast", ["ids"], "p", { to: 1n }), named("Add", ["p", "c"], "a"), named("Sqrt", ["a"], "q"), named("Sigmoid", ["q"], "g"), named("Neg", ["g"], "y")], init: [scalar("c", 2)], input: [ids] }, // prettier-ignore
    ["p", "a", "q"],
  ],
  "what becomes an integer": [
    { nodes: [named("Sigmoid", ["x"], "g"), named("Mul", ["g", "c"], "m"), named("Floor", ["m"], "f"), named("Cast", ["f"], "y", { to: 7n })], init: [scalar("c", 9)] }, // prettier-ignore
    ["m", "f", "y"],
  ],
  "what becomes a float again": [{ nodes: [named("Mul", ["x", "c"], "m"), named("Cast", ["m"], "h", { to: 10n }), named("Cast", ["h"], "y", { to: 1n })], init: [scalar("c", 9)] }, ["y"]], // prettier-ignore
  "scales of a Resize": [
    { nodes: [named("Mul", ["s", "c"], "m"), named("Relu", ["x"], "r"), named("Resize", ["r", "", "m"], "y")], init: [scalar("c", 2)], input: [value("x", T.FLOAT, [1, 1, 4, 4]), value("s", T.FLOAT, [4])] }, // prettier-ignore
    ["m", "y"],
  ],
  "statistics of a LayerNormalization, but not two outputs of another": [
    { nodes: [named("Split", ["x"], ["a", "b"], { axis: 2n }), named("LayerNormalization", ["a", "g"], ["n", "mean"]), named("LayerNormalization", ["b", "g"], "m"), named("Add", ["n", "m"], "y")], init: [init("g", [2])] }, // prettier-ignore
    ["n"],
  ],
  "a Transpose that puts the second axis first before a product": [
    { nodes: [named("Relu", ["x"], "r"), named("Transpose", ["r"], "t", { perm: { ints: [1, 0, 2] } }), named("MatMul", ["t", "w"], "y")], init: [init("w", [4, 5])] }, // prettier-ignore
    ["t"],
  ],
  "that Transpose before a sum, and another before a product": [
    { nodes: [named("Transpose", ["x"], "t", { perm: { ints: [1, 0, 2] } }), named("Add", ["t", "c"], "a"), named("Transpose", ["a"], "u", { perm: { ints: [0, 2, 1] } }), named("MatMul", ["u", "w"], "y")], init: [scalar("c", 2), init("w", [2, 5])] }, // prettier-ignore
    [],
  ],
  "constants beyond float16": [{ nodes: [named("Mul", ["x", "c"], "m"), named("Relu", ["m"], "y")], init: [raw("c", [2], Float32Array.of(1, 65505))].map((t) => Object.assign(t, { dims: [2n, 1n, 1n] })) }, ["m"]], // prettier-ignore
  "the largest of float16": [{ nodes: [named("Mul", ["x", "c"], "y")], init: [scalar("c", 65504)] }, []],
  "masks: negative in a sum, infinite anywhere": [
    { nodes: [named("Add", ["x", "c"], "a"), named("Mul", ["a", "d"], "m"), named("Where", ["b", "m", "c"], "y")], init: [scalar("c", -1e5), scalar("d", 1e9), raw("b", [], Uint8Array.of(1), T.BOOL)] }, // prettier-ignore
    [],
  ],
  "positive ones in a sum, negative ones in a product": [
    { nodes: [named("Add", ["x", "c"], "a"), named("Mul", ["a", "d"], "m"), named("Relu", ["m"], "y")], init: [scalar("c", 1e5), scalar("d", -1e5)] }, // prettier-ignore
    ["a", "m"],
  ],
  "bounds of a Clip": [{ nodes: [named("Clip", ["x", "c", "d"], "y")], init: [scalar("c", 0), scalar("d", 1e6)] }, []],
  "constants that float16 keeps apart just so, and finer ones": [
    { nodes: [named("Mul", ["x", "c"], "a"), named("Div", ["a", "d"], "b"), named("Add", ["b", "d"], "y")], init: [raw("c", [4], Float32Array.of(1, -1, 1, 1).map((v) => v * 2 ** -19)), raw("d", [4], Float32Array.of(1, -1, 1, 1).map((v) => v * 2 ** -20))] }, // prettier-ignore
    ["b"],
  ],
  "what moves a constant beyond float16, and who reads it": [
    { nodes: [named("Gather", ["t", "i"], "g"), named("Mul", ["x", "g"], "m"), named("Relu", ["m"], "y")], init: [raw("t", [2], Float32Array.of(1e5, 1)), raw("i", [], BigInt64Array.of(0n), T.INT64)] }, // prettier-ignore
    ["g", "m"],
  ],
  "sums of integer products": [
    { nodes: [named("MatMulInteger", ["q", "w"], "p"), named("Cast", ["p"], "f", { to: 1n }), named("Mul", ["f", "x"], "m"), named("Relu", ["m"], "y")], init: [raw("w", [4, 4], Uint8Array.from({ length: 16 }, (_, i) => i), T.UINT8)], input: [value("q", T.UINT8, [2, 4]), value("x", T.FLOAT, [])] }, // prettier-ignore
    ["f", "m"],
  ],
  "operators without float16, of other domains, and unknown ones": [
    { nodes: [named("Relu", ["x"], "r"), named("Celu", ["r"], "c"), named("QuickGelu", ["c"], "q", {}, "com.microsoft"), named("BiasSoftmax", ["q", "b"], "s", {}, "com.microsoft"), named("Neg", ["s"], "y")], init: [init("b", [4])] }, // prettier-ignore
    ["c", "s"],
  ],
};

test.each(Object.entries(CASES))("%s", async (_, [given, want]) => {
  expect(await stays(given)).toEqual(want);
});

test("a layer that stays says what for", async () => {
  const given: Graph = { nodes: [named("Gather", ["t", "ids"], "g"), named("Floor", ["g"], "f"), named("Cast", ["f"], "y", { to: 7n })], init: [init("t", [300, 4])], input: [value("ids", T.INT64, [2])] }; // prettier-ignore
  const { report } = await quantizeModelBytes(bytesOf(given), { dtype: "fp16", allowUnchanged: true });
  expect(report.layers.map(({ reason }) => reason)).toEqual(["what it computes becomes a shape, an index, an integer or an angle"]);
});

test("nodes and operators that the caller keeps", async () => {
  const given: Graph = { nodes: [named("Mul", ["x", "c"], "m"), named("Relu", ["m"], "r"), named("QuickGelu", ["r"], "q", {}, "com.microsoft"), named("Neg", ["q"], "y")], init: [scalar("c", 2)] }; // prettier-ignore
  expect(await stays(given, { keep: ["m"] })).toEqual(["m"]);
  expect(await stays(given, { keepOps: ["Relu"] })).toEqual(["r"]);
  expect(await stays(given, { keepOps: ["com.microsoft.QuickGelu"] })).toEqual(["q"]);
  expect(await stays(given, { blockedOps: ["Neg", "Mul"] })).toEqual(["m", "y"]);
  const clipped: Graph = { nodes: [named("Max", ["x", "c"], "a"), named("Relu", ["a"], "y")], init: [scalar("c", 2)] };
  expect(await stays(clipped)).toEqual(["a"]);
  expect(await stays(clipped, { blockedOps: [] })).toEqual([]);
});

describe("constants", () => {
  const code = (v: number): number => toHalf(Float32Array.of(v), clampOf(2, false, undefined)).codes[0];
  test("clamped to bounds that were given, however small; counted; zero and infinities stay", () => {
    const clamp = clampOf(6, false, [0.001, 0.5]);
    const values = Float32Array.of(0.7, -0.7, 0.5, 0, Infinity, -1e-4);
    const half = toHalf(values, clamp);
    expect([...half.codes].map((c) => halfTable()[c])).toEqual([0.5, -0.5, 0.5, 0, Infinity, halfTable()[encodeHalf(-0.001)]]);
    expect(half.clamped).toBe(3);
    const signal = [...values].filter(Number.isFinite).reduce((sum, v) => sum + v * v, 0);
    expect(half.signal).toBeCloseTo(signal, 12);
    expect(half.noise).toBeCloseTo(2 * 0.2 ** 2 + 0.0009 ** 2, 6);
  });
  test("alone, one that would vanish becomes the least that transformers.js keeps; a mask stops at 30000", () => {
    expect(toHalf(Float32Array.of(1e-12), clampOf(1, false, undefined)).codes[0]).toBe(encodeHalf(1e-7));
    expect(code(1e-12)).toBe(0);
    expect([...toHalf(Float32Array.of(-1e9, 7e4), clampOf(2, true, undefined)).codes].map((c) => halfTable()[c])).toEqual([-30000, 30000]);
    expect([...toHalf(Float32Array.of(-1e9, 7e4), clampOf(2, false, undefined)).codes].map((c) => halfTable()[c])).toEqual([-65504, 65504]);
  });
  test.each([1e6, 1])("in parts, of one that no array holds: the codes and figures of the whole (outliers times %d)", (outlier) => {
    const count = 3 * 2 ** 18 + 5;
    const opened = readModelBytes(bytesOf({ nodes: [named("Mul", ["x", "w"], "y")], init: [init("w", [count], (v, i) => (i % 1000 === 7 ? outlier * v : v))], input: [value("x", T.FLOAT, [count])] })); // prettier-ignore
    const [tensor] = opened.proto.graph!.initializer;
    const made = () => constantToHalf(opened, tensor, (n) => clampOf(n, false, undefined), { bytes: new Uint8Array(0) });
    const whole = made();
    const before = { ...BANDS };
    Object.assign(BANDS, { above: 1000 });
    try {
      const parts = made();
      expect(Buffer.compare(Buffer.from(parts.codes.buffer), Buffer.from(whole.codes.buffer))).toBe(0);
      expect(parts.clamped).toBe(whole.clamped);
      expect(whole.clamped > 100).toBe(outlier > 1);
      expect(parts.signal / whole.signal).toBeCloseTo(1, 10);
      expect(parts.noise / whole.noise).toBeCloseTo(1, 10);
    } finally {
      Object.assign(BANDS, before);
    }
  });
  test("the fill of ConstantOfShape, as raw or typed data; one that is no float stays", async () => {
    const fill = async (fills: TensorProto): Promise<[number, number[]]> => {
      const given: Graph = { nodes: [named("Shape", ["x"], "s"), named("ConstantOfShape", ["s"], "c", { value: fills }), named("Identity", ["c"], "y")] }; // prettier-ignore
      const { bytes } = await quantizeModelBytes(bytesOf(given), { dtype: "fp16", allowUnchanged: true });
      const made = readModelBytes(bytes).proto.graph!.node.find(({ opType }) => opType === "ConstantOfShape")!;
      expect(made.attribute.map(({ name, type }) => [name, type])).toEqual([["value", A.TENSOR]]);
      const { dataType, rawData } = made.attribute[0].t!;
      return [dataType, [...rawData!]];
    };
    const half = (v: number): number[] => [...new Uint8Array(Uint16Array.of(encodeHalf(v)).buffer)];
    expect(await fill(raw("", [1], Float32Array.of(0.25)))).toEqual([T.FLOAT16, half(0.25)]);
    expect(await fill(raw("", [1], Float32Array.of(-1e9)))).toEqual([T.FLOAT16, half(-30000)]);
    expect(await fill({ ...raw("", [1], new Uint8Array(0)), floatData: [3] })).toEqual([T.FLOAT16, half(3)]);
    expect(await fill(raw("", [1], BigInt64Array.of(5n), T.INT64))).toEqual([T.INT64, [5, 0, 0, 0, 0, 0, 0, 0]]);
  });
  test("progress counts bytes, from none to all", async () => {
    const seen: [number, number][] = [];
    const given: Graph = { nodes: [named("MatMul", ["x", "w"], "a"), named("MatMul", ["a", "v"], "b"), named("Add", ["b", "c"], "y")], init: [init("w", [4, 20_000]), init("v", [20_000, 1]), init("c", [2])] }; // prettier-ignore
    given.init![2].dims = [2n, 1n, 1n];
    await quantizeModelBytes(bytesOf(given), { dtype: "fp16", onProgress: ({ done, total }) => void seen.push([done, total]) });
    const total = 4 * (80_000 + 20_000 + 2);
    expect(seen).toEqual([
      [0, total],
      [320_000, total],
      [total, total],
    ]);
  });
});

test("of two products of one weight the one that is kept is reported so", async () => {
  const given: Graph = { nodes: [named("MatMul", ["x", "w"], "a"), named("MatMul", ["x", "w"], "b"), named("Add", ["a", "b"], "y")], init: [init("w", [4, 5])] }; // prettier-ignore
  const { report } = await quantizeModelBytes(bytesOf(given), { dtype: "fp16", keep: ["b"] });
  expect(report.layers.map(({ name, format }) => [name, format])).toEqual([
    ["a", "float16"],
    ["b", null],
  ]);
  expect(report.layers[1].reason).toContain("kept by");
});

test("an attribute of a Constant that is no tensor of floats is left as it is", async () => {
  const given: Graph = { nodes: [named("Constant", [], "k", { value_ints: { ints: [1, 2] } }), named("Cast", ["k"], "f", { to: 1n }), named("Mul", ["x", "f"], "y")], input: [value("x", T.FLOAT, [2])] }; // prettier-ignore
  const { bytes } = await quantizeModelBytes(bytesOf(given), { dtype: "fp16", allowUnchanged: true });
  const made = readModelBytes(bytes).proto.graph!.node.find(({ opType }) => opType === "Constant")!;
  expect(made.attribute).toEqual([expect.objectContaining(attribute("value_ints", { ints: [1, 2] }))]);
});

test.each([1, 2])("casts of float16 to float that nobody reads any more go, %i of them", async (count) => {
  const names = ["a", "b"].slice(0, count);
  const input = names.map((name) => value(name, T.FLOAT16, [2, 3]));
  const nodes = names.flatMap((name) => [named("Cast", [name], `${name}f`, { to: 1n }), named("Relu", [`${name}f`], `${name}r`)]);
  const last = named("Add", [`${names[0]}r`, `${names.at(-1)}r`], "y");
  const { bytes } = await quantizeModelBytes(bytesOf({ nodes: [...nodes, last], input }), {
    dtype: "fp16",
    keepIoTypes: true,
    allowUnchanged: true,
  });
  const { node: left } = readModelBytes(bytes).proto.graph!;
  expect(left.filter(({ input: [x] }) => names.includes(x)).map(({ opType }) => opType)).toEqual(names.map(() => "Relu"));
  expect(left.filter(({ opType }) => opType === "Cast").map(({ output }) => output[0])).toEqual(["y"]);
});

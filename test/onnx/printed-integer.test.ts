// Integer graphs of models whose sums are exact in float32 whatever the order (weights and inputs are multiples of
// powers of two, few enough that two products fit into float32): every byte of them is kept. That they compute what the float models do is in integer-only and
// integer-forms tests.
import { describe, expect, test } from "vitest";
import type { NodeProto, TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { integerOnly, quantizeModelBytes, type IntegerOnlyOptions } from "../../src/onnx/index.ts";
import { elementwise, erf, isGelu, rectifierOf, slopeOf } from "../../src/onnx/integer/expressions.ts";
import { T, encode, graph, model, node, raw, value, weights, type AttributeValue } from "./build.ts";
import { keep, keepForm, keepTexts } from "./kept.ts";
import { reportText } from "./printed.ts";
import { int64 } from "./zoo.ts";

const K = 8;
/** Eighths from -2.4 to 2.4. */
const eighths = (dims: number[], seed: number): Float32Array =>
  weights(
    dims.reduce((a, b) => a * b, 1),
    seed,
  ).map((v) => Math.round(64 * v) / 8);
const w = (name: string, dims: number[], seed: number): TensorProto => raw(name, dims, eighths(dims, seed));
const scalar = (name: string, v: number): TensorProto => raw(name, [], Float32Array.of(v));
const op = (type: string, input: string[], output: string, attributes: Record<string, AttributeValue> = {}): NodeProto => node(type, input, [output], attributes, `${output}/${type}`); // prettier-ignore
const ints = (...list: number[]): AttributeValue => ({ ints: list });
const first = op("MatMul", ["x", "w"], "h");
const W = w("w", [K, K], 1);

interface Case {
  nodes: NodeProto[];
  init: TensorProto[];
  x?: number[];
  ids?: boolean;
  /** An input of bools. */
  chosen?: boolean;
  /** Roots and exponentials go into it: its form alone is kept. */
  inexact?: boolean;
  opset?: number;
  /** Static codes alone: nothing of it is for integers only. */
  codes?: boolean;
}
const CASES: Record<string, Case> = {
  "a product": { nodes: [op("MatMul", ["x", "w"], "y")], init: [W] },
  "two products": { nodes: [first, op("MatMul", ["h", "v"], "y")], init: [W, w("v", [K, 4], 2)] },
  "bias, Relu": { nodes: [first, op("Add", ["h", "b"], "s"), op("Relu", ["s"], "r"), op("MatMul", ["r", "v"], "y")], init: [W, w("v", [K, 4], 2), w("b", [K], 3)] }, // prettier-ignore
  "Gemm with factors": { nodes: [op("Gemm", ["x", "w", "b"], "y", { alpha: 0.5, beta: 2, transB: 1n })], init: [W, w("b", [K], 3)], x: [6, K] }, // prettier-ignore
  "Gemm of one bias": { nodes: [op("Gemm", ["x", "w", "b"], "y")], init: [W, w("b", [1], 3)], x: [6, K] },
  convolution: { nodes: [op("Conv", ["x", "w", "b"], "c", { pads: ints(1, 1, 1, 1), strides: ints(2, 2) }), op("Relu", ["c"], "y")], init: [w("w", [6, 4, 3, 3], 1), w("b", [6], 2)], x: [1, 4, 6, 6] }, // prettier-ignore
  "convolution of groups": { nodes: [op("Conv", ["x", "w"], "y", { group: 2n })], init: [w("w", [6, 2, 2, 2], 1)], x: [1, 4, 6, 6] },
  "residual stream": { nodes: [first, op("Relu", ["h"], "r"), op("Add", ["x", "r"], "s"), op("MatMul", ["s", "v"], "t"), op("Add", ["t", "s"], "y")], init: [W, w("v", [K, K], 2)] }, // prettier-ignore
  "a difference, a product of two": { nodes: [first, op("Sub", ["x", "h"], "s"), op("Mul", ["s", "h"], "y")], init: [W] },
  "factors and shifts": { nodes: [first, op("Mul", ["h", "f"], "a"), op("Div", ["a", "g"], "b"), op("Add", ["b", "g"], "c"), op("Neg", ["c"], "d"), op("Abs", ["d"], "y")], init: [W, scalar("f", -1.5), scalar("g", 4)] }, // prettier-ignore
  "LeakyRelu, Clip, Min, Max": { nodes: [first, op("LeakyRelu", ["h"], "a", { alpha: 0.25 }), op("Clip", ["a", "f", "g"], "b"), op("Min", ["b", "g"], "c"), op("Max", ["c", "f"], "d"), op("MatMul", ["d", "w"], "y")], init: [W, scalar("f", -0.5), scalar("g", 2)] }, // prettier-ignore
  Concat: { nodes: [first, op("Concat", ["x", "h"], "c", { axis: -1n }), op("MatMul", ["c", "v"], "y")], init: [W, w("v", [2 * K, 4], 2)] },
  "moves of values": { nodes: [first, op("Transpose", ["h"], "t", { perm: ints(0, 2, 1) }), op("Reshape", ["t", "s"], "r"), op("Unsqueeze", ["r", "zero"], "u"), op("Squeeze", ["u", "zero"], "q"), op("MatMul", ["q", "w"], "y")], init: [W, int64("s", 2, -1, K), int64("zero", 0)], x: [2, 4, K] }, // prettier-ignore
  "parts of values": { nodes: [first, op("Slice", ["h", "a", "b", "c"], "p"), op("Gather", ["h", "i"], "g", { axis: -1n }), op("Add", ["p", "g"], "y")], init: [W, int64("a", 1), int64("b", 5), int64("c", -1), int64("i", 0, 2, 4, 7)] }, // prettier-ignore
  "Split into two": { nodes: [first, node("Split", ["h"], ["p", "q"], { axis: -1n, num_outputs: 2n }, "split"), op("Add", ["p", "q"], "y")], init: [W] }, // prettier-ignore
  "product of two values": { nodes: [first, op("Transpose", ["h"], "t", { perm: ints(0, 2, 1) }), op("MatMul", ["x", "t"], "y")], init: [W], x: [2, 3, K] }, // prettier-ignore
  "a table": { nodes: [op("Gather", ["w", "i"], "e"), op("Add", ["e", "x"], "s"), op("MatMul", ["s", "v"], "y")], init: [w("w", [12, K], 1), w("v", [K, 4], 2)], x: [3, K], ids: true }, // prettier-ignore
  "a table of zeros": { nodes: [op("Gather", ["w", "i"], "e"), op("Add", ["e", "x"], "y")], init: [raw("w", [12, K], new Float32Array(12 * K))], x: [3, K], ids: true }, // prettier-ignore
  "a mask that is added": { nodes: [first, op("Add", ["h", "m"], "y")], init: [W, raw("m", [K], Float32Array.from({ length: K }, (_, i) => (i > 5 ? -10000 : 0)))] }, // prettier-ignore
  "a choice": { nodes: [first, op("Greater", ["x", "f"], "c"), op("Where", ["c", "h", "x"], "y")], init: [W, scalar("f", 0.25)] },
  "a choice by an input": { nodes: [first, op("Where", ["c", "h", "x"], "z"), op("MatMul", ["z", "w"], "y")], init: [W], chosen: true },
  "a mask by an input": { nodes: [first, op("Where", ["c", "h", "f"], "y")], init: [W, scalar("f", -10000)], chosen: true },
  "a mask by an input, the other way": { nodes: [first, op("Where", ["c", "f", "h"], "y")], init: [W, scalar("f", -10000)], chosen: true },
  "a mask made of an input": { nodes: [first, op("Cast", ["c"], "k", { to: 1n }), op("Sub", ["one", "k"], "i"), op("Mul", ["i", "f"], "m"), op("Add", ["h", "m"], "y")], init: [W, scalar("one", 1), scalar("f", -10000)], chosen: true }, // prettier-ignore
  "a mask first": { nodes: [first, op("Cast", ["c"], "k", { to: 1n }), op("Mul", ["k", "f"], "m"), op("Add", ["m", "h"], "y")], init: [W, scalar("f", -10000)], chosen: true }, // prettier-ignore
  "LayerNormalization": { nodes: [first, op("LayerNormalization", ["h", "g", "b"], "n"), op("MatMul", ["n", "w"], "y")], init: [W, w("g", [K], 4), w("b", [K], 5)], inexact: true }, // prettier-ignore
  "LayerNormalization of axis 2": { nodes: [op("LayerNormalization", ["x", "g"], "n", { axis: 2n, epsilon: 0.25 }), op("MatMul", ["n", "w"], "y")], init: [W, w("g", [K], 4)], inexact: true }, // prettier-ignore
  "LayerNormalization of axis 1": { nodes: [op("LayerNormalization", ["x", "g"], "n", { axis: 1n }), op("MatMul", ["n", "w"], "y")], init: [W, w("g", [3, K], 4)], inexact: true }, // prettier-ignore
  "attention": { nodes: [first, op("MatMul", ["x", "v"], "q"), op("Transpose", ["h"], "t", { perm: ints(0, 2, 1) }), op("MatMul", ["q", "t"], "s"), op("Mul", ["s", "f"], "m"), op("Softmax", ["m"], "p", { axis: -1n }), op("MatMul", ["p", "h"], "y")], init: [W, w("v", [K, K], 2), scalar("f", 0.25)], inexact: true }, // prettier-ignore
  "Softmax of axis 2": { nodes: [first, op("Softmax", ["h"], "p", { axis: 2n }), op("MatMul", ["p", "w"], "y")], init: [W], inexact: true },
  "Softmax of axis 1": { nodes: [first, op("Softmax", ["h"], "y", { axis: 1n })], init: [W], inexact: true },
  "Softmax as it is": { nodes: [first, op("Softmax", ["h"], "y", { axis: -1n })], init: [W], inexact: true },
  "gates": { nodes: [first, op("Sigmoid", ["h"], "g"), op("Mul", ["h", "g"], "s"), op("Tanh", ["s"], "t"), op("MatMul", ["t", "w"], "y")], init: [W], inexact: true }, // prettier-ignore
  "a size of a value": { nodes: [first, op("Size", ["h"], "s"), op("Unsqueeze", ["s", "zero"], "r"), op("Reshape", ["x", "r"], "y")], init: [W, int64("zero", 0)] }, // prettier-ignore
  "a value that nothing reads": { nodes: [first, op("Relu", ["h"], "unused"), op("Neg", ["h"], "y")], init: [W] },
  "a shape of a value": {
    nodes: [first, op("Shape", ["x"], "s"), op("Reshape", ["h", "s"], "r"), op("MatMul", ["r", "w"], "y")],
    init: [W],
  },
  "a constant alone": { nodes: [first, op("Add", ["h", "b"], "y"), op("Identity", ["b"], "z")], init: [W, w("b", [K], 3)] },
  "pooled, moved, convolved": { nodes: [op("Conv", ["x", "w", "b"], "c"), op("Relu", ["c"], "r"), op("MaxPool", ["r"], "p", { kernel_shape: ints(2, 2) }), op("Transpose", ["p"], "t", { perm: ints(0, 1, 3, 2) }), op("Conv", ["t", "v"], "y")], init: [w("w", [4, 4, 1, 1], 1), w("b", [4], 2), w("v", [3, 4, 1, 1], 3)], x: [1, 4, 5, 5], codes: true }, // prettier-ignore
  "pooled at opset 11": { nodes: [op("Conv", ["x", "w"], "c"), op("MaxPool", ["c"], "p", { kernel_shape: ints(2, 2) }), op("Conv", ["p", "v"], "y")], init: [w("w", [4, 4, 1, 1], 1), w("v", [3, 4, 1, 1], 3)], x: [1, 4, 5, 5], opset: 11, codes: true }, // prettier-ignore
  "pooled with places": { nodes: [op("Conv", ["x", "w"], "c"), node("MaxPool", ["c"], ["p", "i"], { kernel_shape: ints(2, 2) }, "pool"), op("Conv", ["p", "v"], "y")], init: [w("w", [4, 4, 1, 1], 1), w("v", [3, 4, 1, 1], 3)], x: [1, 4, 5, 5], codes: true }, // prettier-ignore
  "pooled, the second output empty": { nodes: [op("Conv", ["x", "w"], "c"), node("MaxPool", ["c"], ["p", ""], { kernel_shape: ints(2, 2) }, "pool"), op("Conv", ["p", "v"], "y")], init: [w("w", [4, 4, 1, 1], 1), w("v", [3, 4, 1, 1], 3)], x: [1, 4, 5, 5], codes: true }, // prettier-ignore
  "resized, nearest and linear": { nodes: [op("Conv", ["x", "w"], "c"), op("Resize", ["c", "", "s"], "n", { mode: "nearest" }), op("Resize", ["n", "", "s"], "l", { mode: "linear" }), op("Conv", ["l", "v"], "y")], init: [w("w", [4, 4, 1, 1], 1), w("v", [3, 4, 1, 1], 3), raw("s", [4], Float32Array.of(1, 1, 2, 2))], x: [1, 4, 2, 2], codes: true }, // prettier-ignore
  "averages, sums, Concat": { nodes: [op("Conv", ["x", "w"], "c"), op("AveragePool", ["c"], "a", { kernel_shape: ints(2, 2), strides: ints(2, 2) }), op("Conv", ["x", "w"], "d", { strides: ints(2, 2) }), op("Add", ["a", "d"], "s"), op("Mul", ["s", "d"], "m"), op("Concat", ["s", "m"], "k", { axis: 1n }), op("GlobalAveragePool", ["k"], "y")], init: [w("w", [4, 4, 1, 1], 1)], x: [1, 4, 4, 4], codes: true }, // prettier-ignore
  "a bias beyond int32": { nodes: [op("Conv", ["x", "w", "b"], "y")], init: [w("w", [4, 4, 1, 1], 1), raw("b", [4], Float32Array.of(1e9, 0, 1, -1))], x: [1, 4, 4, 4], codes: true }, // prettier-ignore
  "read by codes and by floats": { nodes: [op("Conv", ["x", "w"], "c"), op("Conv", ["c", "v"], "d"), op("Abs", ["c"], "f"), op("Flatten", ["d"], "e"), op("Flatten", ["f"], "g"), op("Concat", ["e", "g"], "y", { axis: 1n })], init: [w("w", [4, 4, 1, 1], 1), w("v", [3, 4, 1, 1], 3)], x: [1, 4, 4, 4], codes: true }, // prettier-ignore
  "an unknown operator": { nodes: [first, op("Mystery", ["h"], "y")], init: [W] },
  "a sum over an axis": { nodes: [first, op("ReduceSum", ["h"], "y")], init: [W] },
};

describe.each(Object.entries(CASES))(
  "%s",
  (_, { nodes, init, x = [2, 3, K], ids = false, chosen = false, inexact = false, opset = 20, codes = false }) => {
    const bytes = encode(
      model(
        graph({
          input: [value("x", T.FLOAT, x), ...(ids ? [value("i", T.INT64, [x[0]])] : []), ...(chosen ? [value("c", T.BOOL, x)] : [])],
          output: [value("y", T.FLOAT, [])],
          initializer: init,
          node: nodes,
        }),
        { opset, ir: 9 },
      ),
    );
    const calibration = [5, 6].map((seed) => ({
      x: { type: "float32", dims: x, data: eighths(x, seed) },
      ...(ids
        ? { i: { type: "int64", dims: [x[0]], data: BigInt64Array.from({ length: x[0] }, (_v, i) => BigInt((i * seed) % 12)) } }
        : {}),
      ...(chosen ? { c: { type: "bool", dims: x, data: Uint8Array.from({ length: 6 * K }, (_v, i) => (i % 3 === 0 ? 0 : 1)) } } : {}),
    }));
    const SETTINGS: Omit<IntegerOnlyOptions, "calibration">[] = [{ observer: "minMax" }, { observer: "mse", headroom: 4 }];
    test.each((codes ? [] : SETTINGS).map((options) => [JSON.stringify(options), options] as const))(
      "integers only, %s",
      async (_name, options) => {
        const result = await integerOnly(bytes, { calibration: calibration as never, ...options }).catch((error: Error) => error.message);
        if (typeof result === "string") keepTexts(result);
        else (inexact ? keepForm : keep)(result.bytes, JSON.stringify([...result.report.operators]), result.report.boundary.join());
        expect(typeof result === "string" ? result : result.bytes.length).not.toBe("");
      },
    );
    test("static codes", async () => {
      for (const options of [
        { activations: "uint8", observer: "minMax" },
        { activations: "int8", symmetricActivations: true, outputs: "qoperator", observer: "minMax" },
        { activations: "uint16", inputsOnly: true, activationTypes: { h: "int8" } },
        {
          activations: "uint8",
          outputs: "qoperator",
          opTypes: [
            "Conv",
            "MaxPool",
            "Transpose",
            "Resize",
            "AveragePool",
            "Add",
            "Mul",
            "Concat",
            "GlobalAveragePool",
            "MatMul",
            "Gemm",
            "Relu",
          ],
          observer: "minMax",
        },
        { activations: "uint8", format: "int4_b16", observer: "minMax" },
        { activations: "int16", dtype: "fp16", observer: "percentile" },
      ] as const) {
        const result = await quantizeModelBytes(bytes, { ...options, calibration, allowUnchanged: true } as never).catch((error: Error) => error.message); // prettier-ignore
        if (typeof result === "string") keepTexts(result);
        else if (inexact) keepForm(result.bytes);
        else keep(result.bytes, reportText(result.report).replace(/"out":"[^"]*"/g, ""));
      }
    });
  },
);

test("functions of one number", () => {
  const points = [-7, -6, -3, -2.5, -1, -0.4, -1e-3, 0, 1e-3, 0.4, 1, 2.49999, 2.5, 3, 6, 6.5, 40];
  const digits = (v: number): string => (Object.is(v, -0) ? "-0" : String(Number(v.toPrecision(9))));
  const micro = (one: NodeProto): NodeProto => Object.assign(one, { domain: "com.microsoft" });
  const nodes: [NodeProto, ...number[]][] = [
    ..."Neg Abs Reciprocal Sqrt Exp Log Erf Tanh Sigmoid Softplus Relu LeakyRelu Elu HardSigmoid HardSwish Clip Identity Dropout Gelu Mystery".split(" ").map((name): [NodeProto] => [op(name, ["x"], "y")]), // prettier-ignore
    ..."Add Sub Mul Div Pow Clip Min Max".split(" ").map((name): [NodeProto, number] => [op(name, ["x", "c"], "y"), 2]),
    [op("Clip", ["x", "a", "b"], "y"), -0.5, 1.5],
    [op("LeakyRelu", ["x"], "y", { alpha: 0.3 })],
    [op("Elu", ["x"], "y", { alpha: 2 })],
    [op("HardSigmoid", ["x"], "y", { alpha: 0.5, beta: 0.1 })],
    [op("Gelu", ["x"], "y", { approximate: "tanh" })],
    [op("Gelu", ["x"], "y", { approximate: "none" })],
    [op("Dropout", ["x"], "y", { training_mode: 1n })],
    [micro(op("Gelu", ["x"], "y"))],
    [micro(op("FastGelu", ["x"], "y"))],
    [micro(op("QuickGelu", ["x"], "y"))],
    [micro(op("QuickGelu", ["x"], "y", { alpha: 1 }))],
    [micro(op("Relu", ["x"], "y"))],
  ];
  const lines = nodes.map(([one, ...rest]) => {
    const apply = elementwise(one);
    return `${one.domain} ${one.opType} ${rest}: ${apply === undefined ? "none" : points.map((x) => digits(apply([x, ...rest]))).join(" ")}`;
  });
  lines.push(`erf: ${points.map((x) => digits(erf(x))).join(" ")}`);
  const functions: [string, (x: number) => number][] = [["2x", (x) => 2 * x], ["-x", (x) => -x], ["x + 1e-9", (x) => x + 1e-9], ["1.0000001 x", (x) => x * (1 + 1e-8 * x)], ["1.00001 x^2", (x) => x * (1 + 1e-5 * x)], ["0", () => 0], ["x^2", (x) => x * x], ["1/x", (x) => 1 / x], ["relu", (x) => Math.max(0, x)], ["3 relu", (x) => 3 * Math.max(0, x)], ["-relu", (x) => -Math.max(0, x)], ["leaky", (x) => Math.max(0.01 * x, x)], ["gelu", (x) => (x * (1 + erf(x / Math.SQRT2))) / 2], ["silu", (x) => x / (1 + Math.exp(-x))], ["quick", (x) => x / (1 + Math.exp(-1.702 * x))], ["far", (x) => x / (1 + Math.exp(-2 * x))]]; // prettier-ignore
  for (const [name, f] of functions) lines.push(`${name}: ${slopeOf(f)} ${rectifierOf(f)} ${isGelu(f)}`);
  keepTexts(lines.join("\n"));
  // to 1e-15 of the series with more terms
  for (const [x, want] of [[0.5, 0.5204998778130465], [1, 0.8427007929497149], [2.4, 0.9993114861033549], [2.6, 0.9997639655834707], [4, 0.9999999845827421]]) expect(Math.abs(erf(x) - want)).toBeLessThan(1e-14); // prettier-ignore
});

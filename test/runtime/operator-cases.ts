// Inputs of every operator, for suites that compare runtimes: in other shapes too, and wrong ones.
import type { TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import type { RuntimeTensor } from "../../src/runtime/index.ts";
import type { AttributeValue } from "../onnx/build.ts";
import { raw, T } from "../onnx/build.ts";
import { attentionCases } from "./attention-cases.ts";
import { codeCases } from "./code-cases.ts";
import { expertCases } from "./expert-cases.ts";
import type { Feeds } from "./judge.ts";
import { layerCases } from "./layer-cases.ts";
import { bools, f32, i64, ids, ints, numbers, type Make } from "./make.ts";

const one =
  (low = -2, high = 2): Make =>
  (seed, a, b, c) => ({ feeds: { x: f32(seed, [a, b, c], low, high) } });
const two: Make = (seed, a, b, c) => ({ feeds: { x: f32(seed, [a, 1, c]), z: f32(seed + 1, [b, c]) } });
const big: Make = (seed, a, b) => ({
  feeds: { x: i64([a, 1], [...numbers(seed, a, -9, 9)].map(Math.floor)), z: i64([b], [...numbers(seed + 1, b, 1, 9)].map(Math.floor)) },
});
const logic: Make = (seed, a, b, c) => ({ feeds: { x: bools(seed, [a, 1, c]), z: bools(seed + 1, [b, c]) } });
const bias: Make = (seed, a, b, c) => ({ feeds: { x: f32(seed, [a, b, c]), z: f32(seed + 1, [c]) } });
const shaped =
  (attributes: Record<string, AttributeValue>): Make =>
  (seed, a, b, c) => ({ feeds: { x: f32(seed, [a, b, c]) }, attributes });
export const axes = (list: number[]): TensorProto => raw("axes", [list.length], BigInt64Array.from(list, BigInt), T.INT64);
const listed =
  (list: number[], attributes = {}): Make =>
  (seed, a, b, c) => ({ feeds: { x: f32(seed, [a, b, c]) }, initializer: [axes(list)], attributes });
const skip =
  (outputs: string[], extra: string[]): Make =>
  (seed, a, b, c) => {
    const names = ["w", ...extra];
    return {
      feeds: { x: f32(seed, [a, b, c]), s: f32(seed + 1, [a, b, c]) },
      initializer: names.map((n, i) => raw(n, [c], numbers(seed + i + 2, c))),
      outputs,
      attributes: { epsilon: 1e-4 },
    };
  };
const pool: Make = (seed, a, b, c) => ({
  feeds: { x: f32(seed, [a, b, c + 3, 5]) },
  attributes: { kernel_shape: ints(3, 2), strides: ints(2, 1), pads: ints(1, 0, 1, 1) },
});

export const cases: Record<string, Make[]> = {
  Add: [two, big],
  Sub: [two, big],
  Mul: [two, big],
  Div: [two, big],
  Min: [two, big],
  Max: [two, big],
  Pow: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c], 0.1, 2), z: f32(s + 1, [c]) } })],
  Equal: [big],
  Greater: [two, big],
  GreaterOrEqual: [two, big],
  Less: [two, big],
  LessOrEqual: [two, big],
  And: [logic],
  Or: [logic],
  Not: [(s, a, b) => ({ feeds: { x: bools(s, [a, b]) } })],
  Neg: [one()],
  Abs: [one()],
  Sqrt: [one(0, 3)],
  Exp: [one()],
  Log: [one(0.1, 3)],
  Sin: [one()],
  Cos: [one()],
  Tanh: [one()],
  Erf: [one(-5, 5)],
  Floor: [one()],
  Ceil: [one()],
  Reciprocal: [one(0.5, 2)],
  Sigmoid: [one()],
  Relu: [one()],
  HardSwish: [one(-5, 5)],
  Gelu: [
    (s, a, b, c) => ({ ...one()(s, a, b, c), opset: 20 }),
    (s, a, b, c) => ({ ...shaped({ approximate: "tanh" })(s, a, b, c), opset: 20 }),
  ],
  "com.microsoft.Gelu": [one()],
  "com.microsoft.BiasGelu": [bias],
  "com.microsoft.FastGelu": [one(), bias],
  "com.microsoft.QuickGelu": [shaped({ alpha: 1 })],
  Cast: [
    shaped({ to: 7n }),
    shaped({ to: 6n }),
    shaped({ to: 9n }),
    (s, a, b) => ({ feeds: { x: ids(s, [a, b], 9) }, attributes: { to: 1n } }),
    (s, a, b) => ({ feeds: { x: ids(s, [a, 40, b], 999) }, attributes: { to: 1n } }),
  ],
  Where: [(s, a, b, c) => ({ feeds: { q: bools(s, [a, 1, c]), x: f32(s, [b, c]), z: f32(s + 1, [1]) } })],
  Clip: [
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, b, c]) },
      initializer: [raw("lo", [], Float32Array.of(-1)), raw("hi", [], Float32Array.of(0.5))],
    }),
  ],
  Reshape: [listed([0, -1])],
  Squeeze: [(s, a, b) => ({ feeds: { x: f32(s, [a, 1, b]) }, initializer: [axes([-2])] })],
  Unsqueeze: [listed([0, -1])],
  Flatten: [shaped({ axis: 2n })],
  Identity: [one()],
  Transpose: [shaped({ perm: ints(2, 0, 1) }), shaped({})],
  Slice: [
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, b, c]) },
      initializer: [
        ["st", 9],
        ["en", -99],
        ["ax", -1],
        ["sp", -2],
      ].map(([n, v]) => raw(n as string, [1], BigInt64Array.of(BigInt(v)), T.INT64)),
    }),
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, b + 1, c]) },
      initializer: [
        ["st", 1],
        ["en", 99],
        ["ax", 1],
      ].map(([n, v]) => raw(n as string, [1], BigInt64Array.of(BigInt(v)), T.INT64)),
    }),
  ],
  Concat: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]), z: f32(s, [a, 2, c]) }, attributes: { axis: -2n } })],
  Split: [
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b + 2, c]) }, initializer: [axes([2, b])], attributes: { axis: 1n }, outputs: ["y", "y2"] }),
  ],
  Gather: [
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]), i: ids(s, [2, 3], b) }, attributes: { axis: 1n } }),
    (s, a, b, c) => ({ feeds: { i: ids(s, [a, 2], b) }, initializer: [raw("x", [b, c], f32(s, [b, c]).data)], order: ["x", "i"] }),
  ],
  Expand: [(s, a, b) => ({ feeds: { x: f32(s, [a, 1]) }, initializer: [axes([2, 1, b])] })],
  Range: [() => ({ feeds: { a: i64([], [2]), b: i64([], [11]), d: i64([], [3]) } })],
  Trilu: [shaped({ upper: 0n }), shaped({})],
  Shape: [shaped({}), shaped({ start: 1n })],
  ReduceSum: [listed([1]), listed([0, -1], { keepdims: 0n })],
  ReduceMean: [shaped({ axes: ints(1) }), shaped({})],
  ReduceMax: [shaped({ axes: ints(-1) })],
  ReduceMin: [shaped({ axes: ints(0), keepdims: 0n })],
  Softmax: [
    shaped({ axis: 1n }),
    shaped({}),
    () => ({ feeds: { x: { type: "float32", dims: [2, 2], data: Float32Array.of(-Infinity, -Infinity, -Infinity, 1) } } }),
    () => ({ feeds: { x: { type: "float32", dims: [2, 2], data: new Float32Array(4).fill(-3.4028234663852886e38) } } }),
  ],
  LayerNormalization: [
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, b, c + 1]) },
      initializer: ["w", "b"].map((n, i) => raw(n, [c + 1], numbers(s + i, c + 1))),
    }),
  ],
  SimplifiedLayerNormalization: [bias],
  RMSNormalization: [(s, a, b, c) => ({ ...bias(s, a, b, c), opset: 23 })],
  "com.microsoft.SkipLayerNormalization": [skip(["y"], ["b"]), skip(["y", "", "", "sum"], ["b", "add"])],
  "com.microsoft.SkipSimplifiedLayerNormalization": [skip(["y", "", "", "sum"], []), skip(["y"], ["add"])],
  MatMul: [
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, 1, b, c]), z: f32(s + 1, [2, c, 3]) } }),
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]) }, initializer: [raw("w", [c, 5], numbers(s + 1, c * 5))] }),
    (s, _, __, c) => ({ feeds: { x: f32(s, [c]), z: f32(s + 1, [c, 3]) } }),
  ],
  Gemm: [
    (s, a, b, c) => ({
      feeds: { x: f32(s, [b, a]) },
      initializer: [raw("w", [c, b], numbers(s, b * c)), raw("b", [c], numbers(s + 1, c))],
      attributes: { transA: 1n, transB: 1n, alpha: 0.5, beta: 2 },
    }),
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b]), w: f32(s, [b, c]) } }),
  ],
  Conv: [
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, 2 * b, c + 3, 6]) },
      initializer: [raw("w", [4, b, 3, 2], numbers(s + 1, 24 * b)), raw("b", [4], numbers(s + 2, 4))],
      attributes: { group: 2n, strides: ints(2, 1), pads: ints(1, 0, 1, 1), dilations: ints(1, 2) },
    }),
  ],
  MaxPool: [pool],
  AveragePool: [
    pool,
    (s, a, b, c) => {
      const p = pool(s, a, b, c);
      return { ...p, attributes: { ...p.attributes, count_include_pad: 1n } };
    },
  ],
  GlobalAveragePool: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c, 3]) } })],
  ...attentionCases,
  ...codeCases,
  ...expertCases,
  ...layerCases,
  ConstantOfShape: [
    (s, a, b) => ({ feeds: { d: i64([2], [a, b]) }, attributes: { value: raw("v", [1], BigInt64Array.of(BigInt(s)), T.INT64) } }),
    (_, a, b) => ({ feeds: { d: i64([2], [a, b]) } }),
  ],
  CumSum: [
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]) }, initializer: [raw("ax", [], BigInt64Array.of(-2n), T.INT64)] }),
    (s, a, b) => ({
      feeds: { x: ids(s, [a, b], 9) },
      initializer: [raw("ax", [], BigInt64Array.of(1n), T.INT64)],
      attributes: { exclusive: 1n, reverse: 1n },
    }),
  ],
  ScatterND: [
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]), i: ids(s, [1, 1], a), u: f32(s + 1, [1, b, c]) } }),
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, b, c]), i: ids(s, [3, 1], a), u: f32(s + 1, [3, b, c]) },
      attributes: { reduction: "add" },
      opset: 18,
    }),
  ],
  Tile: [(s, a, b) => ({ feeds: { x: f32(s, [a, b]), r: i64([2], [2, 3]) } })],
  Size: [one()],
};

/** Name, operator and inputs of each case. */
export const rows = Object.entries(cases).flatMap(([name, makes]) => makes.map((make, i) => [`${name} ${i}`, name, make] as const));

/** Feeds of which one has another shape, or integers of any size. */
export function spoiled(feeds: Feeds, which: number, how: number, by: number): Feeds {
  const key = Object.keys(feeds)[which % Object.keys(feeds).length];
  const { type, dims } = feeds[key];
  const data = feeds[key].data as ArrayLike<unknown>;
  const axis = by % Math.max(dims.length, 1);
  const other = [
    () => [...dims, 1 + (by % 3)],
    () => dims.slice(1),
    () => dims.toReversed(),
    () => dims.with(axis, 0),
    () => dims.with(axis, by % 9),
    () => dims.with(axis, dims[axis] + 1),
  ];
  const shape = dims.length === 0 ? [by % 3] : how < other.length ? other[how]() : dims;
  const values = Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => data[i % data.length] ?? 0);
  if (how === other.length && type.startsWith("int"))
    values.fill(type === "int64" ? BigInt([-1, 0, 2 ** 31][by % 3]) : [-1, 0, 2 ** 31 - 1][by % 3]);
  const from = data.constructor as unknown as { from(list: readonly unknown[]): RuntimeTensor["data"] };
  return { ...feeds, [key]: { type, dims: shape, data: from.from(data.length === 0 && type === "int64" ? values.map(() => 0n) : values) } };
}

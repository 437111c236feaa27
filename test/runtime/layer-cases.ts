// Operators of convolutional and recurrent networks, activations, selections: cases for the comparison with
// onnxruntime-node.
import type { AttributeValue } from "../onnx/build.ts";
import { raw, T } from "../onnx/build.ts";
import { bools, f32, i64, ids, ints, numbers, type Case, type Make } from "./make.ts";

const one =
  (low: number, high: number, attributes: Record<string, AttributeValue> = {}, opset = 17): Make =>
  (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c], low, high) }, attributes, opset });
const list = (name: string, values: number[]) => raw(name, [values.length], BigInt64Array.from(values, BigInt), T.INT64);
const real = (name: string, values: number[]) => raw(name, [values.length], Float32Array.from(values));
const strings = (...values: string[]) => ({ strings: values });

interface Recurrent {
  readonly gates: number;
  readonly direction?: string;
  readonly lengths?: boolean;
  readonly states?: number;
  readonly peepholes?: boolean;
  readonly bias?: boolean;
  /** Weights that are fed, not constant. */
  readonly fed?: boolean;
  readonly attributes?: Record<string, AttributeValue>;
}

/** `a` steps, `b` sequences, inputs of `c`, a state of 3. */
const recurrent =
  ({ gates, direction = "forward", lengths, states = 0, peepholes, bias, fed, attributes = {} }: Recurrent): Make =>
  (s, a, b, c) => {
    const [dirs, n] = [direction === "bidirectional" ? 2 : 1, 3];
    const feeds: Case["feeds"] = { x: f32(s, [a, b, c]) };
    const initializer: ReturnType<typeof raw>[] = [];
    const weight = (name: string, dims: number[], seed: number): void => {
      const data = numbers(seed, dims.reduce((p, d) => p * d, 1), -0.7, 0.7); // prettier-ignore
      if (fed) feeds[name] = { type: "float32", dims, data };
      else initializer.push(raw(name, dims, data));
    };
    weight("w", [dirs, gates * n, c], s + 1);
    weight("r", [dirs, gates * n, n], s + 2);
    if (bias) weight("b", [dirs, 2 * gates * n], s + 3);
    if (lengths)
      feeds.len = { type: "int32", dims: [b], data: Int32Array.from({ length: b }, (_, i) => (i === 0 ? a : 1 + ((s + i) % a))) };
    if (states > 0) feeds.h = f32(s + 4, [dirs, b, n], -1, 1);
    if (states > 1) feeds.c = f32(s + 5, [dirs, b, n], -1, 1);
    if (peepholes) weight("p", [dirs, 3 * n], s + 6);
    const on = (is: unknown, name: string): string => (is ? name : "");
    const order = ["x", "w", "r", on(bias, "b"), on(lengths, "len"), on(states > 0, "h"), on(states > 1, "c"), on(peepholes, "p")];
    while (order.at(-1) === "") order.pop();
    const outputs = gates === 4 ? ["y", "yh", "yc"] : ["y", "yh"];
    return { feeds, initializer, order, outputs, attributes: { hidden_size: BigInt(n), direction, ...attributes } };
  };

const scaled =
  (scales: number[], attributes: Record<string, AttributeValue>, rank = 4, opset = 19): Make =>
  (s, a, b, c) => ({
    feeds: { x: f32(s, [a, b, c + 1, 4].slice(4 - rank)) },
    initializer: [real("scales", scales)],
    order: ["x", "", "scales"],
    attributes,
    opset,
  });
const sized =
  (attributes: Record<string, AttributeValue>): Make =>
  (s, a, b, c) => ({
    feeds: { x: f32(s, [1, a, b + 1, c + 2]) },
    initializer: [list("sizes", [1, a, 5, 4])],
    order: ["x", "", "", "sizes"],
    attributes,
    opset: 19,
  });

const channels =
  (names: string[], count: (c: number) => number, attributes: Record<string, AttributeValue> = {}, opset = 17): Make =>
  (s, a, b, c) => ({
    feeds: { x: f32(s, [a, 2 * b, c + 1, 3]) },
    initializer: names.map((n, i) => raw(n, [count(2 * b)], numbers(s + i, count(2 * b), n === "var" ? 0.1 : -2, 2))),
    attributes,
    opset,
  });
const transposed =
  (attributes: Record<string, AttributeValue>, bias = true): Make =>
  (s, a, b, c) => ({
    feeds: { x: f32(s, [a, 2 * b, c + 1, 4]) },
    initializer: [raw("w", [2 * b, 2, 3, 2], numbers(s + 1, 24 * b)), ...(bias ? [raw("b", [4], numbers(s + 2, 4))] : [])],
    attributes: { group: 2n, ...attributes },
  });
const padded =
  (pads: number[], mode: string, opset = 19): Make =>
  (s, a, b, c) => ({
    feeds: { x: f32(s, [a, b + 2, c + 3]) },
    initializer: [list("pads", pads), ...(mode === "constant" ? [raw("v", [], Float32Array.of(2.5))] : [])],
    attributes: { mode },
    opset,
  });
const reduced = (low = -2, attributes = {}): Make => one(low, 2, { axes: ints(1), ...attributes }, 13);
const scattered =
  (reduction: string): Make =>
  (s, a, b, c) => ({
    feeds: { x: f32(s, [a, b, c]), i: ids(s, [a, 2, c], b), u: f32(s + 1, [a, 2, c]) },
    attributes: { axis: 1n, reduction },
    opset: 18,
  });
/** An index once only: the order of others is undefined. */
const distinct: Make = (s, a, b, c) => ({
  feeds: { x: f32(s, [a, b, c]), i: ids(s, [a, 1, c], b), u: f32(s + 1, [a, 1, c]) },
  attributes: { axis: -2n },
  opset: 18,
});
const flat =
  (axis: bigint | null): Make =>
  (s, a, b, c) => ({ ...one(-3, 3, axis === null ? {} : { axis }, 11)(s, a, b, c) });

export const layerCases: Record<string, Make[]> = {
  LeakyRelu: [one(-2, 2, { alpha: 0.3 })],
  PRelu: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]) }, initializer: [raw("s", [b, 1], numbers(s + 1, b))] })],
  Elu: [one(-2, 2, { alpha: 0.7 })],
  Celu: [one(-2, 2, { alpha: 1.5 })],
  Selu: [one(-2, 2)],
  ThresholdedRelu: [one(-2, 2, { alpha: 0.5 })],
  HardSigmoid: [one(-4, 4), one(-4, 4, { alpha: 0.3, beta: 0.4 })],
  Softplus: [one(-20, 20)],
  Swish: [one(-2, 2, { alpha: 0.7 }, 24)],
  Softsign: [one(-2, 2)],
  Mish: [one(-3, 3, {}, 18)],
  Round: [one(-4, 4), () => ({ feeds: { x: { type: "float32", dims: [4], data: Float32Array.of(-1.5, -0.5, 0.5, 2.5) } } })],
  Sign: [one(-2, 2), (s, a) => ({ feeds: { x: i64([a], [...numbers(s, a, -3, 3)].map(Math.round)) } })],
  Tan: [one(-1, 1)],
  Asin: [one(-1, 1)],
  Acos: [one(-1, 1)],
  Atan: [one(-3, 3)],
  Sinh: [one(-2, 2)],
  Cosh: [one(-2, 2)],
  Asinh: [one(-2, 2)],
  Acosh: [one(1, 3)],
  Atanh: [one(-0.9, 0.9)],
  IsNaN: [() => ({ feeds: { x: { type: "float32", dims: [3], data: Float32Array.of(1, NaN, Infinity) } } })],
  IsInf: [
    () => ({ feeds: { x: { type: "float32", dims: [4], data: Float32Array.of(1, NaN, Infinity, -Infinity) } } }),
    () => ({
      feeds: { x: { type: "float32", dims: [2], data: Float32Array.of(Infinity, -Infinity) } },
      attributes: { detect_negative: 0n },
    }),
  ],
  Mod: [
    (s, a, b) => ({ feeds: { x: i64([a, 1], [...numbers(s, a, -9, 9)].map(Math.floor)), z: i64([b], new Array(b).fill(s % 2 ? 3 : -4)) } }),
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]), z: f32(s + 1, [c], 0.5, 1) }, attributes: { fmod: 1n } }),
  ],
  Xor: [(s, a, b, c) => ({ feeds: { x: bools(s, [a, 1, c]), z: bools(s + 1, [b, c]) } })],
  Sum: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, 1, c]), z: f32(s + 1, [b, c]), w: f32(s + 2, [1]) } })],
  Mean: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, 1, c]), z: f32(s + 1, [b, c]), w: f32(s + 2, [1]) } })],
  CastLike: [(s, a, b) => ({ feeds: { x: f32(s, [a, b]), like: i64([1], [1]) }, opset: 19 })],
  Dropout: [one(-2, 2), (s, a, b, c) => ({ ...one(-2, 2)(s, a, b, c), outputs: ["y", "mask"] })],
  LogSoftmax: [one(-3, 3), one(-3, 3, { axis: 0n }), flat(1n)],
  "Softmax before opset 13": [flat(1n), flat(2n), flat(null)],
  ReduceProd: [reduced(), (s, a) => ({ feeds: { x: i64([a], [...numbers(s, a, -3, 3)].map(Math.round)) }, opset: 13 })],
  ReduceL1: [reduced()],
  ReduceL2: [reduced()],
  ReduceSumSquare: [reduced()],
  ReduceLogSum: [reduced(0.1)],
  ReduceLogSumExp: [reduced()],
  GatherElements: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]), i: ids(s, [a, 2, c], b) }, attributes: { axis: 1n } })],
  GatherND: [
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]), i: ids(s, [2, 2], Math.min(a, b)) } }),
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]), i: ids(s, [a, 1], b) }, attributes: { batch_dims: 1n } }),
  ],
  ScatterElements: [distinct, scattered("add"), scattered("mul"), scattered("max"), scattered("min")],
  ArgMax: [one(-2, 2, { axis: 1n }), one(-2, 2, { axis: -1n, keepdims: 0n })],
  ArgMin: [
    (s, a, b) => ({
      feeds: { x: { type: "float32", dims: [a, b], data: numbers(s, a * b, 0, 3).map(Math.floor) } },
      attributes: { select_last_index: 1n },
    }),
  ],
  TopK: [
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b + 1, c]) }, initializer: [list("k", [2])], attributes: { axis: 1n }, outputs: ["y", "i"] }),
    (s, a, b) => ({
      feeds: { x: { type: "float32", dims: [a, b], data: numbers(s, a * b, 0, 3).map(Math.floor) } },
      initializer: [list("k", [1])],
      attributes: { largest: 0n },
      outputs: ["y", "i"],
    }),
  ],
  OneHot: [
    (s, a, b) => ({ feeds: { i: ids(s, [a, b], 4) }, initializer: [list("d", [4]), real("v", [-1, 3])] }),
    (s, a, b) => ({ feeds: { i: i64([a], [...numbers(s, a, -3, 3)].map(Math.round)) }, initializer: [list("d", [b]), list("v", [0, 1])], attributes: { axis: 0n } }), // prettier-ignore
  ],
  NonZero: [(s, a, b) => ({ feeds: { x: bools(s, [a, b]) } })],
  Einsum: [
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]), z: f32(s + 1, [a, c, 2]) }, attributes: { equation: "bij,bjk->bik" } }),
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]), z: f32(s + 1, [c, 2]) }, attributes: { equation: "abc, cd -> dba" } }),
    (s, a, b) => ({ feeds: { x: f32(s, [a, b]), z: f32(s + 1, [a]) }, attributes: { equation: "ij,i" } }),
  ],
  LSTM: [
    recurrent({ gates: 4 }),
    recurrent({ gates: 4, bias: true, states: 2, lengths: true, direction: "reverse" }),
    recurrent({ gates: 4, bias: true, states: 2, lengths: true, peepholes: true, direction: "bidirectional", fed: true }),
    recurrent({ gates: 4, bias: true, attributes: { clip: 0.3, activations: strings("Sigmoid", "Tanh", "Relu") } }),
    recurrent({ gates: 4, bias: true, attributes: { input_forget: 1n } }),
  ],
  GRU: [
    recurrent({ gates: 3 }),
    recurrent({ gates: 3, bias: true, states: 1, direction: "bidirectional", attributes: { linear_before_reset: 1n } }),
    recurrent({ gates: 3, bias: true, states: 1, lengths: true, direction: "reverse", fed: true }),
  ],
  RNN: [
    recurrent({ gates: 1, bias: true, states: 1, direction: "bidirectional", lengths: true }),
    recurrent({ gates: 1, bias: true, attributes: { activations: strings("Relu") } }),
  ],
  Resize: [
    scaled([1, 1, 2, 1.5], {}),
    scaled([1, 1, 0.6, 2], { coordinate_transformation_mode: "asymmetric", nearest_mode: "floor" }),
    scaled([1, 1, 2, 1.5], { mode: "linear" }),
    scaled([1, 1, 1.7, 2.3], { mode: "linear", coordinate_transformation_mode: "align_corners" }),
    scaled([1, 1, 0.5, 2], { mode: "linear", coordinate_transformation_mode: "pytorch_half_pixel" }),
    scaled([1, 1, 2, 1.5], { mode: "cubic" }),
    scaled([1, 1, 1.2, 3], { mode: "cubic", cubic_coeff_a: -0.5, exclude_outside: 1n }),
    sized({ mode: "linear" }),
    sized({ mode: "nearest", nearest_mode: "ceil", coordinate_transformation_mode: "half_pixel_symmetric" }),
    // sizes other than the input's: onnxruntime crops nothing where they are equal
    (s, a, b, c) => ({
      feeds: { x: f32(s, [1, a, b + 1, c + 2]) },
      initializer: [real("roi", [0, 0, 0.2, 0.1, 1, 1, 0.9, 1.3]), list("sizes", [1, a, 7, 2])],
      order: ["x", "roi", "", "sizes"],
      attributes: { mode: "linear", coordinate_transformation_mode: "tf_crop_and_resize", extrapolation_value: 3 },
      opset: 19,
    }),
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c + 1, 3]) }, initializer: [real("scales", [1, 1, 2, 2])], opset: 10 }),
  ],
  Upsample: [
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c, 3]) }, initializer: [real("scales", [1, 1, 2, 3])], opset: 9 }),
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c, 3]) }, initializer: [real("scales", [1, 1, 2, 2])], attributes: { mode: "linear" }, opset: 9 }), // prettier-ignore
  ],
  BatchNormalization: [
    channels(["g", "b", "mean", "var"], (c) => c, { epsilon: 1e-3 }),
    // one image, large enough for a kernel
    (s, _, b, c) => channels(["g", "b", "mean", "var"], (n) => n, { epsilon: 1e-3 })(s, 1, b, 50 * c),
  ],
  InstanceNormalization: [channels(["g", "b"], (c) => c)],
  GroupNormalization: [channels(["g", "b"], (c) => c, { num_groups: 2n }, 21)],
  ConvTranspose: [
    transposed({}),
    transposed({ strides: ints(2, 3), pads: ints(1, 0, 1, 1), output_padding: ints(1, 0) }),
    transposed({ strides: ints(2, 2), dilations: ints(1, 2), auto_pad: "SAME_UPPER" }, false),
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, b, c + 2]) },
      initializer: [raw("w", [b, 3, 4], numbers(s + 1, 12 * b))],
      attributes: { strides: ints(2), pads: ints(1, 1) },
    }),
  ],
  Pad: [
    padded([0, 1, 2, 1, 0, 3], "constant"),
    padded([0, -1, 2, 1, 0, -1], "constant"),
    padded([0, 2, 1, 0, 1, 2], "reflect"),
    padded([1, 2, 4, 0, 1, 3], "edge"),
    padded([1, 2, 0, 0, 1, 3], "wrap"),
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]) }, initializer: [list("pads", [1, 2]), raw("v", [], Float32Array.of(1)), list("ax", [-1])], opset: 19 }), // prettier-ignore
    (s, a, b) => ({ feeds: { x: ids(s, [a, b], 9) }, initializer: [list("pads", [0, 1, 1, 0])], opset: 13 }),
  ],
  DepthToSpace: [
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, 4 * b, c, 2]) }, attributes: { blocksize: 2n } }),
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, 4 * b, c, 2]) }, attributes: { blocksize: 2n, mode: "CRD" } }),
  ],
  SpaceToDepth: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, b, 2 * c, 4]) }, attributes: { blocksize: 2n } })],
  GlobalMaxPool: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c, 3]) } })],
};

// One small model of every operator with float inputs: what a converter that changes element types must get through
// onnxruntime.
import type { NodeProto, TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { T, node, raw, weights } from "./build.ts";
import type { AttributeValue } from "./build.ts";

export interface Specimen {
  readonly what: string;
  readonly nodes: NodeProto[];
  readonly init: TensorProto[];
  /** Shape of the float input x. */
  readonly x: number[];
  /** The first opset that has it in this form, and the first that has not. */
  readonly from: number;
  readonly until: number;
}

const ints = (...values: number[]): AttributeValue => ({ ints: values });
export const int64 = (name: string, ...values: number[]): TensorProto =>
  raw(name, [values.length], BigInt64Array.from(values, BigInt), T.INT64);
const floats = (name: string, dims: number[], seed = 1): TensorProto =>
  raw(
    name,
    dims,
    weights(
      dims.reduce((a, b) => a * b, 1),
      seed,
    ),
  );
const scalar = (name: string, number: number): TensorProto => raw(name, [], Float32Array.of(number));

interface Init {
  attributes?: Record<string, AttributeValue>;
  inputs?: string[];
  init?: TensorProto[];
  x?: number[];
  outputs?: string[];
  domain?: string;
  from?: number;
  until?: number;
  before?: NodeProto[];
  what?: string;
}

function specimen(op: string, options: Init = {}): Specimen {
  const {
    attributes = {},
    inputs = ["x"],
    init = [],
    x = [1, 2, 4, 4],
    outputs = ["y"],
    domain,
    from = 7,
    until = 99,
    before = [],
  } = options;
  const made = node(op, inputs, outputs, attributes);
  if (domain !== undefined) made.domain = domain;
  return { what: options.what ?? op, nodes: [...before, made], init, x, from, until };
}

const list = (operators: string, options: Init = {}): Specimen[] => operators.split(/\s+/).map((op) => specimen(op, options));
const abs = [node("Abs", ["x"], ["p"])];
const positive = { before: abs, inputs: ["p"] };
const w = floats("w", [1, 2, 4, 4], 2);

export const ZOO: readonly Specimen[] = [
  ...list(
    "Abs Ceil Cos Elu Exp Floor HardSigmoid Identity LeakyRelu LogSoftmax Neg Relu Selu Sigmoid Sin Softmax Softplus Softsign Tan Tanh",
  ),
  ...list("Asinh Atan Cosh Erf Sign Sinh Shrink", { from: 9 }),
  ...list("Round", { from: 11 }),
  ...list("Celu", { from: 12 }),
  ...list("HardSwish", { from: 14 }),
  ...list("Mish", { from: 18 }),
  ...list("Gelu", { from: 20 }),
  ...list("ThresholdedRelu", { from: 10 }),
  ...list("Log Sqrt Reciprocal", positive),
  ...list("Acos Asin", { before: [node("Sin", ["x"], ["p"])], inputs: ["p"] }),
  ...list("Acosh", { from: 9, before: [...abs, node("Add", ["p", "one"], ["q"])], inputs: ["q"], init: [scalar("one", 1)] }),
  ...list("Atanh", { from: 9, before: [node("Mul", ["x", "one"], ["q"])], inputs: ["q"], init: [scalar("one", 0.1)] }),
  ...list("Add Sub Mul Max Min Mean Sum PRelu", { inputs: ["x", "w"], init: [w] }),
  specimen("Div", { inputs: ["x", "w"], init: [raw("w", [4], Float32Array.of(1.5, 2, -3, 0.7))] }),
  specimen("Pow", { ...positive, inputs: ["p", "w"], init: [scalar("w", 1.7)] }),
  specimen("Mod", { from: 10, inputs: ["x", "w"], init: [scalar("w", 0.7)], attributes: { fmod: 1n } }),
  ...["Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual"].map((op) =>
    specimen("Cast", {
      what: op,
      from: op === "Equal" ? 11 : op.endsWith("Equal") ? 12 : 9,
      before: [node(op, ["x", "w"], ["b"])],
      inputs: ["b"],
      init: [scalar("w", 0.05)],
      attributes: { to: 1n },
    }),
  ),
  ...["IsNaN", "IsInf"].map((op) =>
    specimen("Cast", { what: op, from: 10, before: [node(op, ["x"], ["b"])], inputs: ["b"], attributes: { to: 1n } }),
  ),
  specimen("Where", { from: 9, before: [node("Greater", ["x", "w"], ["b"])], inputs: ["b", "x", "w"], init: [scalar("w", 0.05)] }),
  specimen("Clip", { until: 11, attributes: { min: -0.1, max: 0.1 } }),
  specimen("Clip", { from: 11, inputs: ["x", "a", "b"], init: [scalar("a", -0.1), scalar("b", 0.1)] }),
  specimen("MatMul", { inputs: ["x", "w"], init: [floats("w", [4, 3], 2)] }),
  specimen("Gemm", { x: [3, 4], inputs: ["x", "w", "c"], init: [floats("w", [4, 3], 2), floats("c", [3])] }),
  specimen("Einsum", { from: 12, inputs: ["x", "w"], init: [floats("w", [4, 3], 2)], attributes: { equation: "abcd,de->abce" } }),
  specimen("Conv", { inputs: ["x", "w", "b"], init: [floats("w", [3, 2, 3, 3], 2), floats("b", [3])] }),
  specimen("ConvTranspose", { inputs: ["x", "w"], init: [floats("w", [2, 3, 3, 3], 2)] }),
  specimen("DeformConv", {
    from: 19,
    x: [1, 1, 3, 3],
    inputs: ["x", "w", "o"],
    init: [floats("w", [1, 1, 2, 2], 2), floats("o", [1, 8, 2, 2], 3)],
    attributes: { kernel_shape: ints(2, 2) },
  }),
  ...list("AveragePool MaxPool LpPool", { attributes: { kernel_shape: ints(2, 2) } }),
  ...list("GlobalAveragePool GlobalMaxPool GlobalLpPool"),
  specimen("MaxPool", { what: "MaxPool with indices", outputs: ["y", "i"], from: 8, attributes: { kernel_shape: ints(2, 2) } }),
  specimen("MaxUnpool", {
    from: 9,
    before: [node("MaxPool", ["x"], ["p", "i"], { kernel_shape: ints(2, 2), strides: ints(2, 2) })],
    inputs: ["p", "i"],
    attributes: { kernel_shape: ints(2, 2), strides: ints(2, 2) },
  }),
  specimen("MaxRoiPool", {
    inputs: ["x", "r"],
    init: [raw("r", [1, 5], Float32Array.of(0, 0, 0, 3, 3))],
    attributes: { pooled_shape: ints(2, 2) },
  }),
  specimen("RoiAlign", {
    from: 10,
    inputs: ["x", "r", "b"],
    init: [raw("r", [1, 4], Float32Array.of(0, 0, 3, 3)), int64("b", 0)],
    attributes: { output_height: 2n, output_width: 2n },
  }),
  specimen("BatchNormalization", {
    inputs: ["x", "s", "b", "m", "v"],
    init: [floats("s", [2]), floats("b", [2], 2), floats("m", [2], 3), raw("v", [2], Float32Array.of(1, 2))],
  }),
  specimen("InstanceNormalization", { inputs: ["x", "s", "b"], init: [floats("s", [2]), floats("b", [2], 2)] }),
  specimen("LayerNormalization", { from: 17, inputs: ["x", "s", "b"], init: [floats("s", [4]), floats("b", [4], 2)] }),
  specimen("GroupNormalization", {
    from: 21,
    inputs: ["x", "s", "b"],
    init: [floats("s", [2]), floats("b", [2], 2)],
    attributes: { num_groups: 2n },
  }),
  specimen("RMSNormalization", { from: 23, inputs: ["x", "s"], init: [floats("s", [4])] }),
  specimen("SimplifiedLayerNormalization", { from: 13, inputs: ["x", "s"], init: [floats("s", [4])] }),
  specimen("MeanVarianceNormalization", { from: 9 }),
  specimen("LRN", { attributes: { size: 3n } }),
  ...list("LpNormalization"),
  ...list("ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceSumSquare", {
    until: 18,
    attributes: { axes: ints(1, 3) },
  }),
  ...list("ReduceMax ReduceMean ReduceMin ReduceL2", { from: 18, inputs: ["x", "a"], init: [int64("a", 1, 3)] }),
  specimen("ReduceProd", { until: 18, attributes: { axes: ints(1) } }),
  specimen("ReduceSum", { until: 13, attributes: { axes: ints(1, 3) } }),
  specimen("ReduceSum", { from: 13, inputs: ["x", "a"], init: [int64("a", 1, 3)] }),
  specimen("ReduceLogSum", { until: 18, before: abs, inputs: ["p"], attributes: { axes: ints(1) } }),
  ...list("Softmax Hardmax", { from: 13, attributes: { axis: 1n } }),
  specimen("CumSum", { from: 11, inputs: ["x", "a"], init: [raw("a", [], BigInt64Array.of(1n), T.INT64)] }),
  specimen("TopK", { from: 11, inputs: ["x", "k"], outputs: ["y", "i"], init: [int64("k", 2)] }),
  specimen("Unique", { from: 11, outputs: ["y"] }),
  specimen("Concat", { inputs: ["x", "w"], init: [w], attributes: { axis: 1n } }),
  specimen("Split", { until: 13, outputs: ["y", "z"], attributes: { axis: 3n } }),
  specimen("Split", { from: 13, until: 18, outputs: ["y", "z"], attributes: { axis: 3n } }),
  specimen("Split", { from: 18, outputs: ["y", "z"], attributes: { axis: 3n, num_outputs: 2n } }),
  ...list("Transpose Flatten"),
  specimen("Reshape", { inputs: ["x", "s"], init: [int64("s", 2, -1)] }),
  specimen("Squeeze", { until: 13, attributes: { axes: ints(0) } }),
  specimen("Unsqueeze", { until: 13, attributes: { axes: ints(0) } }),
  ...list("Squeeze Unsqueeze", { from: 13, inputs: ["x", "a"], init: [int64("a", 0)] }),
  specimen("Expand", { from: 8, inputs: ["x", "s"], init: [int64("s", 3, 2, 4, 4)] }),
  specimen("Tile", { inputs: ["x", "s"], init: [int64("s", 1, 2, 1, 1)] }),
  specimen("Slice", { until: 10, attributes: { starts: ints(1), ends: ints(3), axes: ints(2) } }),
  specimen("Slice", { from: 10, inputs: ["x", "a", "b", "c"], init: [int64("a", 1), int64("b", 3), int64("c", 2)] }),
  specimen("Pad", { until: 11, attributes: { pads: ints(0, 0, 1, 0, 0, 0, 0, 1), value: 0.5 } }),
  specimen("Pad", { from: 11, inputs: ["x", "p", "v"], init: [int64("p", 0, 0, 1, 0, 0, 0, 0, 1), scalar("v", 0.5)] }),
  specimen("CenterCropPad", { from: 18, inputs: ["x", "s"], init: [int64("s", 1, 2, 2, 6)] }),
  specimen("Gather", { inputs: ["x", "i"], init: [int64("i", 1, 0)], attributes: { axis: 1n } }),
  specimen("GatherElements", { from: 11, inputs: ["x", "i"], init: [raw("i", [1, 1, 1, 2], BigInt64Array.of(0n, 0n), T.INT64)] }),
  specimen("GatherND", { from: 11, inputs: ["x", "i"], init: [raw("i", [1, 2], BigInt64Array.of(0n, 1n), T.INT64)] }),
  specimen("Scatter", {
    from: 9,
    until: 11,
    x: [2, 4],
    inputs: ["x", "i", "u"],
    init: [raw("i", [1, 2], BigInt64Array.of(1n, 0n), T.INT64), floats("u", [1, 2])],
  }),
  specimen("ScatterElements", {
    from: 11,
    x: [2, 4],
    inputs: ["x", "i", "u"],
    init: [raw("i", [1, 2], BigInt64Array.of(1n, 0n), T.INT64), floats("u", [1, 2])],
  }),
  specimen("ScatterND", {
    from: 11,
    x: [2, 4],
    inputs: ["x", "i", "u"],
    init: [raw("i", [1, 1], BigInt64Array.of(1n), T.INT64), floats("u", [1, 4])],
  }),
  specimen("TensorScatter", { from: 24, x: [1, 2, 4, 4], inputs: ["x", "u", "i"], init: [floats("u", [1, 2, 1, 4]), int64("i", 1)] }),
  specimen("ReverseSequence", { from: 10, x: [4, 2], inputs: ["x", "n"], init: [int64("n", 2, 4)] }),
  specimen("DepthToSpace", { x: [1, 8, 2, 2], attributes: { blocksize: 2n } }),
  specimen("SpaceToDepth", { attributes: { blocksize: 2n } }),
  specimen("Trilu", { from: 14 }),
  specimen("Compress", { from: 9, inputs: ["x", "c"], init: [raw("c", [4], Uint8Array.of(1, 0, 1, 1), T.BOOL)], attributes: { axis: 3n } }),
  specimen("OneHot", {
    from: 11,
    before: [node("ArgMax", ["x"], ["a"])],
    inputs: ["a", "d", "v"],
    init: [int64("d", 3), floats("v", [2])],
  }),
  specimen("Upsample", { from: 7, until: 9, attributes: { scales: { floats: [1, 1, 2, 2] } } }),
  specimen("Resize", { from: 10, until: 11, inputs: ["x", "s"], init: [raw("s", [4], Float32Array.of(1, 1, 1.5, 2))] }),
  specimen("Resize", {
    from: 11,
    inputs: ["x", "", "s"],
    init: [raw("s", [4], Float32Array.of(1, 1, 1.5, 2))],
    attributes: { mode: "linear" },
  }),
  specimen("GridSample", { from: 16, inputs: ["x", "g"], init: [floats("g", [1, 2, 2, 2])] }),
  specimen("AffineGrid", { from: 20, x: [1, 2, 3], inputs: ["x", "s"], init: [int64("s", 1, 1, 2, 2)] }),
  specimen("Col2Im", { from: 18, x: [1, 4, 9], inputs: ["x", "i", "b"], init: [int64("i", 4, 4), int64("b", 2, 2)] }),
  specimen("Det", { from: 11 }),
  specimen("Dropout", {}),
  specimen("Dropout", { what: "Dropout with its mask", until: 10, outputs: ["z", "y"] }),
  specimen("ConstantOfShape", { from: 9, before: [node("Shape", ["x"], ["s"])], inputs: ["s"] }),
  specimen("EyeLike", { from: 9, x: [3, 4] }),
  specimen("Range", {
    from: 11,
    before: [node("ReduceMax", ["x"], ["m"], { keepdims: 0n }), node("Abs", ["m"], ["n"])],
    until: 18,
    inputs: ["a", "n", "d"],
    init: [scalar("a", 0), scalar("d", 0.05)],
  }),
  specimen("LSTM", {
    x: [3, 1, 4],
    inputs: ["x", "w", "r"],
    init: [floats("w", [1, 8, 4]), floats("r", [1, 8, 2])],
    attributes: { hidden_size: 2n },
  }),
  specimen("GRU", {
    x: [3, 1, 4],
    inputs: ["x", "w", "r"],
    init: [floats("w", [1, 6, 4]), floats("r", [1, 6, 2])],
    attributes: { hidden_size: 2n },
  }),
  specimen("RNN", {
    x: [3, 1, 4],
    inputs: ["x", "w", "r"],
    init: [floats("w", [1, 2, 4]), floats("r", [1, 2, 2])],
    attributes: { hidden_size: 2n },
  }),
  specimen("DFT", { from: 17, until: 20, x: [1, 8, 1], attributes: { axis: 1n } }),
  specimen("STFT", {
    from: 17,
    x: [1, 16, 1],
    inputs: ["x", "n", "", "l"],
    init: [raw("n", [], BigInt64Array.of(4n), T.INT64), raw("l", [], BigInt64Array.of(8n), T.INT64)],
  }),
  ...["HannWindow", "HammingWindow", "BlackmanWindow"].map((op) =>
    specimen("Mul", {
      what: op,
      from: 17,
      before: [node(op, ["n"], ["h"])],
      x: [1, 8],
      inputs: ["x", "h"],
      init: [raw("n", [], BigInt64Array.of(8n), T.INT64)],
    }),
  ),
  specimen("NegativeLogLikelihoodLoss", { from: 13, x: [2, 4], inputs: ["x", "t"], init: [int64("t", 1, 3)] }),
  specimen("SoftmaxCrossEntropyLoss", { from: 13, x: [2, 4], inputs: ["x", "t"], init: [int64("t", 1, 3)] }),
  specimen("NonMaxSuppression", {
    from: 11,
    x: [1, 4, 4],
    inputs: ["x", "s", "n"],
    init: [raw("s", [1, 1, 4], Float32Array.of(0.4, 0.3, 0.2, 0.1)), int64("n", 3)],
  }),
  specimen("DynamicQuantizeLinear", { from: 11, outputs: ["y", "s", "z"] }),
  specimen("DequantizeLinear", {
    from: 10,
    before: [node("QuantizeLinear", ["x", "s", "z"], ["q"])],
    inputs: ["q", "s", "z"],
    init: [scalar("s", 0.01), raw("z", [], Uint8Array.of(128), T.UINT8)],
  }),
  specimen("RotaryEmbedding", {
    from: 23,
    inputs: ["x", "c", "s", "p"],
    init: [floats("c", [8, 2]), floats("s", [8, 2], 2), raw("p", [1, 4], BigInt64Array.of(0n, 1n, 2n, 3n), T.INT64)],
  }),
  specimen("Attention", { from: 23, inputs: ["x", "x", "x"] }),
  specimen("Swish", { from: 24 }),
  ...list("Gelu FastGelu QuickGelu", { domain: "com.microsoft", from: 17 }),
  specimen("BiasGelu", { domain: "com.microsoft", from: 17, inputs: ["x", "b"], init: [floats("b", [4])] }),
  specimen("FusedMatMul", { domain: "com.microsoft", from: 17, inputs: ["x", "b"], init: [floats("b", [4, 3])] }),
  specimen("SkipLayerNormalization", {
    domain: "com.microsoft",
    from: 17,
    x: [1, 2, 8],
    inputs: ["x", "x", "g"],
    init: [floats("g", [8])],
  }),
  specimen("SkipSimplifiedLayerNormalization", {
    domain: "com.microsoft",
    from: 17,
    x: [1, 2, 8],
    inputs: ["x", "x", "g"],
    init: [floats("g", [8])],
  }),
  specimen("RotaryEmbedding", {
    what: "com.microsoft.RotaryEmbedding",
    domain: "com.microsoft",
    from: 17,
    inputs: ["x", "p", "c", "s"],
    init: [floats("c", [8, 2]), floats("s", [8, 2], 2), raw("p", [1, 4], BigInt64Array.of(0n, 1n, 2n, 3n), T.INT64)],
  }),
  specimen("MultiHeadAttention", {
    domain: "com.microsoft",
    from: 17,
    x: [1, 2, 8],
    inputs: ["x", "x", "x"],
    attributes: { num_heads: 2n },
  }),
  specimen("GroupQueryAttention", {
    domain: "com.microsoft",
    from: 17,
    x: [1, 2, 16],
    inputs: ["x", "x", "x", "pk", "pv", "n", "t"],
    init: [
      floats("pk", [1, 2, 0, 8]),
      floats("pv", [1, 2, 0, 8]),
      raw("n", [1], Int32Array.of(1), T.INT32),
      raw("t", [], Int32Array.of(2), T.INT32),
    ],
    outputs: ["y", "k", "v"],
    attributes: { num_heads: 2n, kv_num_heads: 2n },
  }),
  specimen("MatMulNBits", {
    domain: "com.microsoft",
    from: 17,
    x: [2, 32],
    inputs: ["x", "q", "s"],
    init: [
      raw(
        "q",
        [3, 1, 16],
        Uint8Array.from({ length: 48 }, (_, i) => (i * 37) & 255),
        T.UINT8,
      ),
      raw("s", [3], Float32Array.of(0.01, 0.02, -0.015)),
    ],
    attributes: { K: 32n, N: 3n, bits: 4n, block_size: 32n },
  }),
  specimen("Add", {
    from: 17,
    x: [1, 32],
    before: [node("GatherBlockQuantized", ["q", "i", "s"], ["g"], { bits: 4n, block_size: 32n, quantize_axis: 1n, gather_axis: 0n })].map(
      (n) => ({ ...n, domain: "com.microsoft" }),
    ) as NodeProto[],
    what: "GatherBlockQuantized",
    inputs: ["x", "g"],
    init: [
      raw(
        "q",
        [3, 16],
        Uint8Array.from({ length: 48 }, (_, i) => (i * 37) & 255),
        T.UINT8,
      ),
      raw("s", [3, 1], Float32Array.of(0.01, 0.02, -0.015)),
      int64("i", 2, 0),
    ],
  }),
  specimen("EmbedLayerNormalization", {
    domain: "com.microsoft",
    from: 17,
    x: [2, 8],
    inputs: ["ids", "", "x", "pe", "", "g", "b"],
    init: [raw("ids", [1, 3], Int32Array.of(0, 1, 1), T.INT32), floats("pe", [4, 8], 2), floats("g", [8], 3), floats("b", [8], 4)],
    outputs: ["y", "m"],
  }),
];

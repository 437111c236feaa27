// Raising the opset to 11: every operator that changed between 7 and 11, run by onnxruntime before and after, bit for
// bit.
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, it } from "vitest";
import { raiseOpset } from "../../src/onnx/graph/opset.ts";
import { buildScopes, collectNames, sortNodes } from "../../src/onnx/graph/graph.ts";
import type { GraphProto, ModelProto, NodeProto, TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { readModelBytes, writeModelBytes } from "../../src/onnx/index.ts";
import { create } from "@bufbuild/protobuf";
import { OperatorSetIdProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { T, encode, graph, model, node, raw, value, weights } from "./build.ts";
import type { AttributeValue } from "./build.ts";
import { keep } from "./kept.ts";

type Case = readonly [what: string, nodes: NodeProto[], options?: { x?: number[]; init?: TensorProto[]; opsets?: number[]; type?: number }];

const ints = (...values: number[]): AttributeValue => ({ ints: values });
const int64 = (name: string, ...values: number[]): TensorProto => raw(name, [values.length], BigInt64Array.from(values, BigInt), T.INT64);
const floats = (name: string, dims: number[], ...values: number[]): TensorProto => raw(name, dims, Float32Array.from(values));
const one = (op: string, attributes: Record<string, AttributeValue> = {}, inputs = ["x"]): NodeProto[] => [
  node(op, inputs, ["y"], attributes),
];

function build(nodes: NodeProto[], { x = [1, 2, 4, 6], init = [], type = T.FLOAT }: NonNullable<Case[2]>, opset: number): ModelProto {
  const output = value("y", type, []);
  delete (output.type!.value.value as { shape?: unknown }).shape;
  // Opset 7 to 9 wants initializers among the inputs unless the IR is 4.
  return model(graph({ input: [value("x", T.FLOAT, x)], output: [output], initializer: init, node: nodes }), { opset, ir: 4 });
}

async function run(bytes: Uint8Array, dims: number[]): Promise<{ data: unknown[]; dims: readonly number[] }> {
  const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
  try {
    const data = weights(
      dims.reduce((a, b) => a * b, 1),
      3,
    ).map((v) => Math.fround(v * 8));
    const { y } = await session.run({ x: new Tensor("float32", data, dims) });
    return { data: Array.from(y.data as ArrayLike<unknown>), dims: y.dims };
  } finally {
    await session.release();
  }
}

function raised(proto: ModelProto, to = 11): { bytes: Uint8Array; reason: string | undefined } {
  const read = readModelBytes(encode(proto));
  const scopes = buildScopes(read);
  sortNodes(scopes);
  const reason = raiseOpset({ model: read, scopes, names: collectNames(scopes) }, to);
  keep(read, reason ?? "");
  return { bytes: writeModelBytes(read), reason };
}

const scales = (...values: number[]): TensorProto => floats("s", [values.length], ...values);
const branch = (name: string, nodes: NodeProto[]): GraphProto => graph({ name, output: [value("o", T.FLOAT, [])], node: nodes });
const square = { x: [3, 3] };

const CASES: readonly Case[] = [
  // Attributes that became inputs.
  ["Slice", one("Slice", { starts: ints(1, 0), ends: ints(7, -1), axes: ints(2, 3) }), { opsets: [7, 9] }],
  ["Slice without axes", one("Slice", { starts: ints(0, 1), ends: ints(1, 2) }), { opsets: [7, 9] }],
  [
    "Slice to 2^63 - 1",
    [node("Slice", ["x"], ["y"], { axes: ints(2), starts: ints(1), ends: { ints: [2n ** 63n - 1n] as unknown as number[] } })],
    { opsets: [7, 9] },
  ],
  [
    "Slice from -2^63",
    [node("Slice", ["x"], ["y"], { axes: ints(2), starts: { ints: [-(2n ** 63n)] as unknown as number[] }, ends: ints(3) })],
    { opsets: [9] },
  ],
  [
    "Slice by inputs",
    [node("Slice", ["x", "a", "b", "c", "d"], ["y"])],
    { init: [int64("a", 5), int64("b", 0), int64("c", 3), int64("d", -2)], opsets: [10] },
  ],
  ["TopK", [node("TopK", ["x"], ["y", "i"], { k: 3n })], { opsets: [7, 9] }],
  ["TopK, axis, indices", [node("TopK", ["x"], ["v", "y"], { k: 2n, axis: 1n })], { opsets: [7, 9], type: T.INT64 }],
  ["TopK by input", [node("TopK", ["x", "k"], ["y", "i"], { axis: 2n })], { init: [int64("k", 2)], opsets: [10] }],
  ["Clip", one("Clip", { min: -0.5, max: 0.25 })],
  ["Clip, one bound", one("Clip", { max: 0.25 })],
  ["Clip without bounds", one("Clip")],
  ["Pad", one("Pad", { pads: ints(0, 0, 1, 2, 0, 0, 1, 0), value: 0.5 })],
  ["Pad, reflected", one("Pad", { pads: ints(0, 0, 1, 2, 0, 0, 1, 0), mode: "reflect" })],
  ["Pad, edge", one("Pad", { pads: ints(0, 0, 1, 2, 0, 0, 1, 0), mode: "edge" })],
  ["Pad, negative", one("Pad", { pads: ints(0, 0, -1, 2, 0, 0, 0, -1) })],
  [
    "Pad of doubles",
    [
      node("Cast", ["x"], ["d"], { to: 11n }),
      node("Pad", ["d"], ["p"], { pads: ints(0, 0, 0, 0, 0, 0, 0, 1), value: 0.5 }),
      node("Cast", ["p"], ["y"], { to: 1n }),
    ],
  ],
  // Upsample and Resize: growing, shrinking, both, by constants and by values.
  ["Upsample", one("Upsample", { scales: { floats: [1, 1, 2, 3] } }), { opsets: [7, 8] }],
  ["Upsample, odd factors", one("Upsample", { scales: { floats: [1, 1, 1.7, 2.3] }, mode: "nearest" }), { opsets: [7, 8] }],
  ["Upsample, linear", one("Upsample", { scales: { floats: [1, 1, 1.7, 2.3] }, mode: "linear" }), { opsets: [7, 8] }],
  ["Upsample by input", one("Upsample", { mode: "linear" }, ["x", "s"]), { init: [scales(1, 1, 2, 2)], opsets: [9] }],
  ...(
    [
      ["grows", [1, 1, 2, 1.5]],
      ["shrinks", [1, 1, 0.5, 0.7]],
      ["shrinks and grows", [1, 1, 0.6, 1.7]],
      ["shrinks and grows along channels", [1, 2, 0.4, 1]],
      ["keeps its size", [1, 1, 1, 1]],
    ] as const
  ).flatMap(([what, by]): Case[] => [
    [`Resize ${what}`, one("Resize", {}, ["x", "s"]), { init: [scales(...by)], opsets: [10] }],
    [
      `Resize ${what}, by a value`,
      [node("Mul", ["s", "two"], ["t"]), ...one("Resize", {}, ["x", "t"])],
      { init: [scales(...by.map((v) => v / 2)), floats("two", [1], 2)], opsets: [10] },
    ],
    ...(by[1] === 1
      ? [[`Resize ${what}, linear`, one("Resize", { mode: "linear" }, ["x", "s"]), { init: [scales(...by)], opsets: [10] }] as Case]
      : []),
  ]),
  // Renamed, or with other outputs.
  [
    "Scatter",
    one("Scatter", { axis: 1n }, ["x", "i", "u"]),
    { x: [2, 4], init: [raw("i", [1, 2], BigInt64Array.of(1n, 3n), T.INT64), floats("u", [1, 2], 9, 8)], opsets: [9, 10] },
  ],
  [
    "BatchNormalization",
    one("BatchNormalization", { spatial: 1n }, ["x", "a", "b", "m", "v"]),
    { init: ["a", "b", "m", "v"].map((name, i) => floats(name, [2], 0.5 + i, 1)), opsets: [7, 8] },
  ],
  ["Dropout", one("Dropout", { ratio: 0.5 })],
  ["Dropout with its mask", [node("Dropout", ["x"], ["d", "m"]), node("Mul", ["d", "m"], ["y"])], { opsets: [7, 9] }],
  [
    "Dropout with its mask as a number of opset 10",
    [node("Dropout", ["x"], ["d", "m"]), node("Cast", ["m"], ["y"], { to: 1n })],
    { opsets: [10] },
  ],
  // The same form: what onnxruntime computes must not have changed.
  [
    "Max, Min, Mean, Sum",
    [
      node("Max", ["x", "c"], ["a"]),
      node("Min", ["a", "x"], ["b"]),
      node("Mean", ["b", "c", "x"], ["d"]),
      node("Sum", ["d", "x", "c"], ["y"]),
    ],
    { init: [floats("c", [6], 1, -1, 0, 2, 0.5, -2)], opsets: [8, 10] },
  ],
  ["MaxPool", one("MaxPool", { kernel_shape: ints(2, 3), strides: ints(2, 2), pads: ints(0, 1, 1, 0) })],
  ["MaxPool, indices", [node("MaxPool", ["x"], ["p", "y"], { kernel_shape: ints(2, 2) })], { opsets: [8, 10], type: T.INT64 }],
  [
    "MaxPool, ceil and dilations",
    one("MaxPool", { kernel_shape: ints(2, 2), strides: ints(2, 2), ceil_mode: 1n, dilations: ints(1, 2) }),
    { opsets: [10] },
  ],
  ["MaxPool, same upper", one("MaxPool", { kernel_shape: ints(3, 3), strides: ints(2, 2), auto_pad: "SAME_UPPER" })],
  ["AveragePool", one("AveragePool", { kernel_shape: ints(2, 3), strides: ints(1, 2), pads: ints(1, 0, 0, 1), count_include_pad: 1n })],
  ["AveragePool, ceil", one("AveragePool", { kernel_shape: ints(3, 3), strides: ints(2, 2), ceil_mode: 1n }), { opsets: [10] }],
  ["LpPool", one("LpPool", { kernel_shape: ints(2, 2), p: 2n })],
  ["Conv", one("Conv", { pads: ints(1, 1, 0, 0), strides: ints(2, 1) }, ["x", "w"]), { init: [raw("w", [3, 2, 2, 3], weights(36))] }],
  [
    "Conv, same lower",
    one("Conv", { auto_pad: "SAME_LOWER", strides: ints(2, 2) }, ["x", "w"]),
    { init: [raw("w", [3, 2, 2, 3], weights(36))] },
  ],
  [
    "ConvTranspose",
    one("ConvTranspose", { strides: ints(2, 2), pads: ints(0, 1, 1, 0), output_padding: ints(1, 0) }, ["x", "w"]),
    { init: [raw("w", [2, 3, 2, 3], weights(36))] },
  ],
  [
    "ConvTranspose, output shape",
    one("ConvTranspose", { strides: ints(2, 2), output_shape: ints(8, 12) }, ["x", "w"]),
    { init: [raw("w", [2, 3, 3, 3], weights(54))] },
  ],
  [
    "ConvTranspose, same upper",
    one("ConvTranspose", { strides: ints(2, 2), auto_pad: "SAME_UPPER" }, ["x", "w"]),
    { init: [raw("w", [2, 3, 3, 3], weights(54))] },
  ],
  [
    "ConvTranspose, same lower",
    one("ConvTranspose", { strides: ints(2, 2), auto_pad: "SAME_LOWER", output_shape: ints(8, 12) }, ["x", "w"]),
    { init: [raw("w", [2, 3, 3, 3], weights(54))] },
  ],
  ...["Softmax", "LogSoftmax", "Hardmax"].flatMap((op): Case[] => [
    [op, one(op)],
    [`${op}, axis 2`, one(op, { axis: 2n })],
  ]),
  ["Flatten", one("Flatten", { axis: 2n })],
  [
    "Gemm",
    one("Gemm", { alpha: 0.5, beta: 2, transB: 1n }, ["x", "w", "c"]),
    { ...square, init: [raw("w", [4, 3], weights(12)), raw("c", [4], weights(4))] },
  ],
  ["Squeeze, Unsqueeze", [node("Unsqueeze", ["x"], ["u"], { axes: ints(0, 3) }), node("Squeeze", ["u"], ["y"], { axes: ints(0) })]],
  ["Squeeze of all", one("Squeeze")],
  ["Split", [node("Split", ["x"], ["y", "z"], { axis: 3n, split: ints(2, 4) })]],
  ["Split in halves", [node("Split", ["x"], ["z", "y"], { axis: 3n })]],
  ["Concat", one("Concat", { axis: 1n }, ["x", "x"])],
  ["Gather", one("Gather", { axis: 2n }, ["x", "i"]), { init: [int64("i", 2, 0)] }],
  ["ArgMax", one("ArgMax", { axis: 3n, keepdims: 0n }), { type: T.INT64 }],
  ["ArgMin", one("ArgMin"), { type: T.INT64 }],
  ...[
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
  ].flatMap((op): Case[] => {
    const positive = op === "ReduceLogSum" ? [node("Abs", ["x"], ["p"])] : [];
    const from = [positive.length > 0 ? "p" : "x"];
    return [
      [op, [...positive, ...one(op, { axes: ints(1, 3), keepdims: 0n }, from)]],
      [`${op} of all`, [...positive, ...one(op, {}, from)]],
    ];
  }),
  ["DepthToSpace", one("DepthToSpace", { blocksize: 2n }), { x: [1, 8, 2, 3] }],
  ["SpaceToDepth", one("SpaceToDepth", { blocksize: 2n })],
  [
    "Equal, Greater, Less",
    [
      node("Greater", ["x", "c"], ["g"]),
      node("Less", ["x", "c"], ["l"]),
      node("Equal", ["g", "l"], ["e"]),
      node("Cast", ["e"], ["y"], { to: 1n }),
    ],
    { init: [floats("c", [1], 0.25)] },
  ],
  ["Cast to integers and back", [node("Cast", ["x"], ["i"], { to: 6n }), node("Cast", ["i"], ["y"], { to: 1n })]],
  ["PRelu", one("PRelu", {}, ["x", "s"]), { init: [floats("s", [2, 1, 1], 0.1, 0.3)] }],
  ["Expand", one("Expand", {}, ["x", "s"]), { init: [int64("s", 3, 2, 4, 6)], opsets: [8, 10] }],
  [
    "OneHot",
    [node("ArgMax", ["x"], ["a"], { axis: 3n, keepdims: 0n }), ...one("OneHot", { axis: 1n }, ["a", "depth", "values"])],
    { init: [int64("depth", 6), floats("values", [2], -1, 2)], opsets: [9, 10] },
  ],
  [
    "Compress",
    one("Compress", { axis: 3n }, ["x", "c"]),
    { init: [raw("c", [6], Uint8Array.of(1, 0, 1, 1, 0, 0), T.BOOL)], opsets: [9, 10] },
  ],
  [
    "NonMaxSuppression",
    [node("Reshape", ["x", "shape"], ["b"]), node("NonMaxSuppression", ["b", "scores", "n", "iou"], ["y"])],
    {
      init: [int64("shape", 1, 12, 4), floats("scores", [1, 1, 12], ...weights(12).map(Math.abs)), int64("n", 3), floats("iou", [1], 0.3)],
      opsets: [10],
      type: T.INT64,
    },
  ],
  ["ThresholdedRelu", one("ThresholdedRelu", { alpha: 0.3 }), { opsets: [10] }],
  ["MeanVarianceNormalization", one("MeanVarianceNormalization", { axes: ints(2, 3) }), { opsets: [9, 10] }],
  [
    "RoiAlign",
    one("RoiAlign", { output_height: 2n, output_width: 2n, sampling_ratio: 2n, spatial_scale: 0.5 }, ["x", "rois", "batch"]),
    { init: [floats("rois", [1, 4], 0, 0, 3, 2), int64("batch", 0)], opsets: [10] },
  ],
  [
    "TfIdfVectorizer, NonZero, Where, Shrink, EyeLike",
    [node("Shrink", ["x"], ["s"], { lambd: 0.4 }), node("NonZero", ["s"], ["n"]), node("Cast", ["n"], ["y"], { to: 1n })],
    { opsets: [9, 10] },
  ],
  [
    "MaxUnpool",
    [
      node("MaxPool", ["x"], ["p", "i"], { kernel_shape: ints(2, 2), strides: ints(2, 2) }),
      ...one("MaxUnpool", { kernel_shape: ints(2, 2), strides: ints(2, 2) }, ["p", "i"]),
    ],
    { opsets: [9, 10] },
  ],
  [
    "If",
    [
      node("ReduceSum", ["x"], ["t"], { keepdims: 0n }),
      node("Greater", ["t", "zero"], ["c"]),
      node("If", ["c"], ["y"], {
        then_branch: branch("a", [node("Clip", ["x"], ["o"], { min: 0 })]),
        else_branch: branch("b", [node("Neg", ["x"], ["o"])]),
      }),
    ],
    { init: [raw("zero", [], Float32Array.of(-1e9))] },
  ],
  [
    "Loop",
    [
      node("Loop", ["n", "go", "x"], ["y"], {
        body: graph({
          name: "body",
          input: [value("i", T.INT64, []), value("c", T.BOOL, []), value("s", T.FLOAT, [1, 2, 4, 6])],
          output: [value("d", T.BOOL, []), value("t", T.FLOAT, [1, 2, 4, 6])],
          node: [
            node("Identity", ["c"], ["d"]),
            node("Pad", ["s"], ["p"], { pads: ints(0, 0, 0, 1, 0, 0, 0, -1) }),
            node("Add", ["p", "x"], ["t"]),
          ],
        }),
      }),
    ],
    { init: [raw("n", [], BigInt64Array.of(3n), T.INT64), raw("go", [], Uint8Array.of(1), T.BOOL)] },
  ],
  [
    "LSTM, GRU",
    [
      node("LSTM", ["x", "w", "r"], ["a"], { hidden_size: 2n }),
      node("Squeeze", ["a"], ["b"], { axes: ints(1) }),
      node("GRU", ["b", "gw", "gr"], ["y"], { hidden_size: 2n }),
    ],
    {
      x: [3, 1, 4],
      init: [
        raw("w", [1, 8, 4], weights(32)),
        raw("r", [1, 8, 2], weights(16)),
        raw("gw", [1, 6, 2], weights(12)),
        raw("gr", [1, 6, 2], weights(12)),
      ],
    },
  ],
];

describe("raising to opset 11 keeps every number", () => {
  it.each(CASES.map(([what, nodes, options]) => ({ what, nodes, options: options ?? {} })))("$what", async ({ nodes, options }) => {
    for (const opset of options.opsets ?? [7, 10]) {
      const proto = build(nodes, options, opset);
      const x = options.x ?? [1, 2, 4, 6];
      const before = await run(encode(proto), x);
      const { bytes, reason } = raised(proto);
      expect(reason, `opset ${opset}`).toBeUndefined();
      expect(await run(bytes, x), `opset ${opset}`).toEqual(before);
    }
  });

  it("both spellings of the default domain are raised", async () => {
    const proto = build(one("Clip", { min: 0 }), {}, 9);
    proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "ai.onnx", version: 9n }));
    const { bytes } = raised(proto);
    expect(readModelBytes(bytes).proto.opsetImport.map(({ version }) => version)).toEqual([11n, 11n]);
    expect(await run(bytes, [1, 2, 4, 6])).toEqual(await run(encode(proto), [1, 2, 4, 6]));
  });
});

describe("what cannot be said in opset 11 is left alone, with the reason", () => {
  it.each([
    ["Affine", one("Affine", { alpha: 0.5, beta: 0.2 }), 8, /Affine \(y\) is not an operator of opset 11/],
    ["ImageScaler", one("ImageScaler", { scale: 0.5 }), 9, /ImageScaler/],
    ["MeanVarianceNormalization", one("MeanVarianceNormalization", { across_channels: 1n }), 8, /MeanVarianceNormalization of opset 8/],
    ["an operator that nobody knows", one("Wobble"), 9, /Wobble \(y\) is no operator/],
    ["an operator named like a member of every object", one("constructor"), 9, /constructor \(y\) is no operator/],
    ["spatial", one("BatchNormalization", { spatial: 0n }, ["x", "c", "c", "c", "c"]), 8, /spatial=0/],
    ["Upsample with an unknown mode", one("Upsample", { mode: "cubic", scales: { floats: [1, 1, 2, 2] } }), 8, /mode cubic/],
    ["Upsample without scales", one("Upsample"), 8, /Upsample \(y\) has no scales/],
    ["Resize with an empty name for scales", one("Resize", {}, ["x", ""]), 10, /Resize \(y\) has no scales/],
    [
      "Clip of an unknown type",
      [{ ...node("Wobble", ["x"], ["u"]), domain: "some.where" } as NodeProto, ...one("Clip", { min: 0 }, ["u"])],
      9,
      /Clip \(y\) is not known/,
    ],
    ["Scan of opset 8", one("Scan"), 8, /Scan of opset 8/],
    ["opset 6", one("Relu"), 6, /older than 7/],
  ] as [string, NodeProto[], number, RegExp][])("%s", (_, nodes, opset, expected) => {
    const proto = build(nodes, { init: [floats("c", [2, 4, 6], ...weights(48))] }, opset);
    const { bytes, reason } = raised(proto);
    expect(reason).toMatch(expected);
    expect(Buffer.compare(bytes, encode(proto))).toBe(0);
  });
});

describe("raising beyond 11 keeps every number", () => {
  const LATE: readonly (readonly [string, NodeProto[], number, number])[] = [
    [
      "Squeeze and Unsqueeze",
      [node("Unsqueeze", ["x"], ["u"], { axes: ints(0) }), node("Squeeze", ["u"], ["y"], { axes: ints(0) })],
      11,
      13,
    ],
    ["ReduceSum with axes", one("ReduceSum", { axes: ints(1, 2), keepdims: 0n }), 11, 21],
    ["ReduceSum of all", one("ReduceSum"), 11, 13],
    ["ReduceMean", one("ReduceMean", { axes: ints(-1) }), 13, 21],
    ["ReduceMax", one("ReduceMax", { axes: ints(0, 3), keepdims: 1n }), 11, 21],
    [
      "Split by sizes",
      [node("Split", ["x"], ["a", "b"], { axis: 3n, split: ints(2, 4) }), node("Concat", ["b", "a"], ["y"], { axis: 3n })],
      11,
      21,
    ],
    ["Split evenly", [node("Split", ["x"], ["a", "b"], { axis: 2n }), node("Concat", ["b", "a"], ["y"], { axis: 2n })], 13, 21],
    ["Softmax, flattened", one("Softmax"), 11, 13],
    ["Softmax from axis 2", one("Softmax", { axis: 2n }), 11, 21],
    ["Softmax of the last axis", one("Softmax", { axis: -1n }), 9, 13],
    ["LogSoftmax from axis 0", one("LogSoftmax", { axis: 0n }), 11, 13],
    ["Dropout", one("Dropout", { ratio: 0.3 }), 10, 13],
  ];
  it.each(LATE)("%s", async (_, nodes, from, to) => {
    const proto = build(nodes, {}, from);
    const { bytes, reason } = raised(proto, to);
    expect(reason).toBeUndefined();
    expect(Number(readModelBytes(bytes).proto.opsetImport[0].version)).toBe(to);
    expect(await run(bytes, [1, 2, 4, 6])).toEqual(await run(encode(proto), [1, 2, 4, 6]));
  });
});

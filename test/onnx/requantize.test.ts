// dequantizeWeights and the option requantize: the float form of a quantized model gives, in onnxruntime, what the
// quantized one gives (but for activations that are quantized at run time), for this library's own targets and for
// operators built by hand; requantized models come from those weights.
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, it } from "vitest";
import type { ModelProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { allTensors } from "../../src/onnx/file/model.ts";
import { readBytes } from "../../src/onnx/file/values.ts";
import { dequantizeWeights, readModelBytes, writeModelBytes, type QuantizeBytesOptions } from "../../src/onnx/index.ts";
import { T, encode, graph, model, node, raw, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const f32 = (dims: number[], seed: number) =>
  new Tensor(
    "float32",
    weights(
      dims.reduce((a, b) => a * b, 1),
      seed,
    ),
    dims,
  );

async function run(bytes: Uint8Array, feeds: Record<string, Tensor>): Promise<Record<string, Float32Array>> {
  const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1, graphOptimizationLevel: "disabled" });
  const out = await session.run(feeds);
  await session.release();
  return Object.fromEntries(Object.entries(out).map(([name, { data }]) => [name, Float32Array.from(data as Float32Array)]));
}

function largest(a: Float32Array, b: Float32Array): number {
  let [most, size] = [0, 0];
  a.forEach((v, i) => ([most, size] = [Math.max(most, Math.abs(v - b[i])), Math.max(size, Math.abs(v))]));
  return most / size;
}

/** The float form of a model, its operators and its notes. */
function floatForm(bytes: Uint8Array) {
  const opened = readModelBytes(bytes);
  const notes = dequantizeWeights(opened);
  return { bytes: writeModelBytes(opened), notes, operators: opened.proto.graph!.node.map(({ opType }) => opType) };
}

/** ids -> table -> MatMul -> Gemm -> y. */
const products = () =>
  model(
    graph({
      input: [value("ids", T.INT64, ["n"])],
      output: [value("y", T.FLOAT, ["n", 24])],
      initializer: [
        raw("table", [20, 64], weights(1280, 1)),
        raw("a", [64, 96], weights(64 * 96, 2)),
        raw("b", [24, 96], weights(24 * 96, 3)),
        raw("bias", [24], weights(24, 4)),
      ],
      node: [
        node("Gather", ["table", "ids"], ["h"], {}, "embed"),
        node("MatMul", ["h", "a"], ["m"], {}, "mm"),
        node("Gemm", ["m", "b", "bias"], ["y"], { transB: 1n }, "gemm"),
      ],
    }),
  );
const ids = { ids: new Tensor("int64", BigInt64Array.from([3n, 0n, 19n, 7n]), [4]) };

const convolution = () =>
  model(
    graph({
      input: [value("x", T.FLOAT, [1, 6, 9, 9])],
      output: [value("y", T.FLOAT, [1, 8, 4, 4])],
      initializer: [raw("w", [8, 3, 3, 3], weights(216, 5)), raw("c", [8], weights(8, 6))],
      node: [node("Conv", ["x", "w", "c"], ["y"], { group: 2n, strides: { ints: [2, 2] } }, "conv")],
    }),
  );

describe("this library's own targets", () => {
  it.each<[string, Partial<QuantizeBytesOptions>, number]>([
    ["q4", { dtype: "q4", opTypes: ["MatMul", "Gemm", "Gather"] }, 1e-5],
    ["q4 with zero points", { dtype: "q4", symmetric: false, opTypes: ["MatMul", "Gemm", "Gather"] }, 1e-5],
    ["q2", { dtype: "q2", blockSize: 16, accuracyLevel: 0 }, 1e-5],
    ["q8-block", { dtype: "q8-block", accuracyLevel: 0 }, 1e-5],
    ["bnb4", { dtype: "bnb4" }, 1e-5],
    ["int8", { dtype: "int8", reduceRange: true }, 3e-2],
    ["uint8, per channel", { dtype: "uint8", perChannel: true }, 3e-2],
    ["one scale for the table", { dtype: "int8", perChannel: false, reduceRange: true }, 3e-2],
  ])("%s", async (_name, options, tolerance) => {
    const made = await quantizeModelBytes(encode(products()), options as QuantizeBytesOptions);
    const { bytes, operators, notes } = floatForm(made.bytes);
    expect(new Set(operators)).toEqual(new Set(operators.filter((op) => ["Gather", "MatMul", "Add", "Gemm"].includes(op))));
    expect(notes).toHaveLength(1);
    const [want, got] = [await run(made.bytes, ids), await run(bytes, ids)];
    expect(largest(want.y, got.y)).toBeLessThan(tolerance);
    // names are those of before, so that rules and patterns of users still match
    expect(readModelBytes(bytes).proto.graph!.node.map(({ name }) => name)).toEqual(expect.arrayContaining(["mm", "gemm"]));
  });
  it("convolutions", async () => {
    const made = await quantizeModelBytes(encode(convolution()), { dtype: "uint8" });
    const { bytes, operators } = floatForm(made.bytes);
    expect(operators).toEqual(["Conv", "Add"]);
    const feeds = { x: f32([1, 6, 9, 9], 7) };
    expect(largest((await run(made.bytes, feeds)).y, (await run(bytes, feeds)).y)).toBeLessThan(3e-2);
  });
});

/** Codes with a scale and a zero point for a quantized operator. */
const level = (name: string, scales: number[], zeros: number[], type: number = T.UINT8) => [
  raw(`${name}_s`, scales.length === 1 ? [] : [scales.length], Float32Array.from(scales)),
  raw(`${name}_z`, zeros.length === 1 ? [] : [zeros.length], type === T.UINT8 ? Uint8Array.from(zeros) : Int8Array.from(zeros), type),
];
const codes = (count: number, seed: number, signed = false) => {
  const values = weights(count, seed).map((v) => Math.round(v * 200));
  return signed ? Int8Array.from(values) : Uint8Array.from(values, (v) => v + 128);
};
const byHand = (
  nodes: ModelProto["graph"] extends undefined ? never : ReturnType<typeof node>[],
  initializer: ReturnType<typeof raw>[],
  x: number[],
  y: number[],
) => {
  const proto = model(graph({ input: [value("x", T.FLOAT, x)], output: [value("y", T.FLOAT, y)], initializer, node: nodes }));
  proto.opsetImport.push({ ...proto.opsetImport[0], domain: "com.microsoft", version: 1n });
  return encode(proto);
};
const quantizeX = node("QuantizeLinear", ["x", "x_s", "x_z"], ["q"]);
const contrib = (op: string, inputs: string[], outputs: string[], attributes = {}) => ({
  ...node(op, inputs, outputs, attributes, "op"),
  domain: "com.microsoft",
});

describe("operators of others", () => {
  const cases: [string, Uint8Array, number[], number, string[]][] = [
    [
      "QLinearMatMul, per column",
      byHand(
        [
          quantizeX,
          node("QLinearMatMul", ["q", "x_s", "x_z", "w", "w_s", "w_z", "y_s", "y_z"], ["r"], {}, "op"),
          node("DequantizeLinear", ["r", "y_s", "y_z"], ["y"]),
        ],
        [
          raw("w", [16, 3], codes(48, 1, true), T.INT8),
          ...level("x", [0.01], [120]),
          ...level("w", [0.02, 0.03, 0.01], [0, 0, 0], T.INT8),
          ...level("y", [0.02], [128]),
        ],
        [5, 16],
        [5, 3],
      ),
      [5, 16],
      // a step of the output more or less
      3e-2,
      ["QuantizeLinear", "DequantizeLinear", "MatMul", "QuantizeLinear", "DequantizeLinear"],
    ],
    [
      "QLinearConv with a bias",
      byHand(
        [
          quantizeX,
          node("QLinearConv", ["q", "x_s", "x_z", "w", "w_s", "w_z", "y_s", "y_z", "b"], ["r"], { pads: { ints: [1, 1, 1, 1] } }, "op"),
          node("DequantizeLinear", ["r", "y_s", "y_z"], ["y"]),
        ],
        [
          raw("w", [4, 2, 3, 3], codes(72, 2), T.UINT8),
          raw("b", [4], Int32Array.from([100, -2000, 3000, 0]), T.INT32),
          ...level("x", [0.01], [120]),
          ...level("w", [0.01, 0.02, 0.01, 0.03], [128, 128, 128, 128]),
          ...level("y", [0.02], [128]),
        ],
        [1, 2, 6, 6],
        [1, 4, 6, 6],
      ),
      [1, 2, 6, 6],
      3e-2,
      ["QuantizeLinear", "DequantizeLinear", "Conv", "QuantizeLinear", "DequantizeLinear"],
    ],
    [
      "QGemm, transposed, alpha, float result",
      byHand(
        [quantizeX, contrib("QGemm", ["q", "x_s", "x_z", "w", "w_s", "w_z", "b"], ["y"], { transB: 1n, alpha: 0.5 }) as never],
        [
          raw("w", [3, 16], codes(48, 3, true), T.INT8),
          raw("b", [3], Int32Array.from([500, -2000, 9]), T.INT32),
          ...level("x", [0.01], [120]),
          ...level("w", [0.02, 0.03, 0.01], [0, 0, 0], T.INT8),
        ],
        [5, 16],
        [5, 3],
      ),
      [5, 16],
      1e-5,
      ["QuantizeLinear", "DequantizeLinear", "Gemm"],
    ],
    [
      "DynamicQuantizeMatMul with a bias",
      byHand(
        [contrib("DynamicQuantizeMatMul", ["x", "w", "w_s", "w_z", "b"], ["y"]) as never],
        [raw("w", [16, 3], codes(48, 4), T.UINT8), raw("b", [3], weights(3, 9)), ...level("w", [0.02], [125])],
        [5, 16],
        [5, 3],
      ),
      [5, 16],
      3e-2,
      ["MatMul", "Add"],
    ],
    [
      "MatMulIntegerToFloat",
      byHand(
        [quantizeX, contrib("MatMulIntegerToFloat", ["q", "w", "x_s", "w_s", "x_z", "w_z", "b"], ["y"]) as never],
        [
          raw("w", [16, 3], codes(48, 4), T.UINT8),
          raw("b", [3], weights(3, 9)),
          ...level("x", [0.01], [120]),
          ...level("w", [0.02], [125]),
        ],
        [5, 16],
        [5, 3],
      ),
      [5, 16],
      1e-5,
      ["QuantizeLinear", "DequantizeLinear", "MatMul", "Add"],
    ],
  ];
  it.each(cases)("%s", async (_name, bytes, dims, tolerance, operators) => {
    const float = floatForm(bytes);
    expect(float.operators).toEqual(operators);
    const feeds = { x: f32(dims, 11) };
    expect(largest((await run(bytes, feeds)).y, (await run(float.bytes, feeds)).y)).toBeLessThan(tolerance);
  });
  it("what has no float form stays and is said", () => {
    const bytes = byHand([contrib("QMoE", ["x", "x"], ["y"]) as never], [], [1, 4], [1, 4]);
    const { notes, operators } = floatForm(bytes);
    expect(notes).toEqual(["stay as they are, without a float form here: 1 com.microsoft.QMoE"]);
    expect(operators).toEqual(["QMoE"]);
  });
});

describe("the option", () => {
  it("q4 from int8 weights equals q4 from the float form; without it nothing is taken, and the error says what to do", async () => {
    const made = await quantizeModelBytes(encode(products()), { dtype: "int8", opTypes: ["MatMul"] });
    const from = floatForm(made.bytes);
    const [again, want] = [
      await quantizeModelBytes(made.bytes, { dtype: "q4", requantize: true }),
      await quantizeModelBytes(from.bytes, { dtype: "q4" }),
    ];
    expect(again.report.quantized).toBe(2);
    expect(again.report.notes[0]).toMatch(/weights dequantized: 1 MatMulInteger/);
    const tensors = (bytes: Uint8Array) => {
      const opened = readModelBytes(bytes);
      return [...allTensors(opened.proto)].map((tensor) => [tensor.name, Buffer.from(readBytes(opened, tensor)).toString("hex")]);
    };
    expect(tensors(again.bytes)).toEqual(tensors(want.bytes));
    const { report } = await quantizeModelBytes(made.bytes, { dtype: "q4", allowUnchanged: true, opTypes: ["Gemm", "MatMul"] });
    expect(report.notes.join()).toMatch(/quantized already \(dynamic 8 bit: 1 MatMulInteger\).*--requantize/);
    expect(report.quantized).toBe(1);
  });
});

describe("DynamicQuantizeLSTM", () => {
  it.each([
    ["int8", "forward"],
    ["uint8", "bidirectional"],
  ] as const)("%s, %s: becomes an LSTM with the weights that its codes stand for", async (dtype, direction) => {
    const [directions, k, h] = [direction === "forward" ? 1 : 2, 40, 16];
    const sizes = { w: directions * 4 * h * k, r: directions * 4 * h * h, b: directions * 8 * h };
    const lstm = model(
      graph({
        input: [value("x", T.FLOAT, ["t", 1, k])],
        output: [value("y", T.FLOAT, []), value("last", T.FLOAT, [])],
        initializer: [
          raw("w", [directions, 4 * h, k], weights(sizes.w, 1)),
          raw("r", [directions, 4 * h, h], weights(sizes.r, 2)),
          raw("b", [directions, 8 * h], weights(sizes.b, 3)),
        ],
        node: [node("LSTM", ["x", "w", "r", "b"], ["y", "last"], { hidden_size: BigInt(h), direction }, "lstm")],
      }),
    );
    const feeds = { x: f32([5, 1, k], 9) };
    const { bytes, report } = await quantizeModelBytes(encode(lstm), { dtype, include: ["*"] });
    expect(report.quantized).toBe(2);
    const plain = floatForm(bytes);
    expect(plain.operators).toEqual(["LSTM"]);
    expect(plain.notes).toEqual(["weights dequantized: 1 com.microsoft.DynamicQuantizeLSTM"]);
    const [made, float, original] = await Promise.all([bytes, plain.bytes, encode(lstm)].map((of) => run(of, feeds)));
    for (const name of ["y", "last"]) {
      expect(largest(original[name], float[name]), name).toBeLessThan(0.02);
      // inputs and state are quantized at run time, and int8 products may saturate
      expect(largest(float[name], made[name]), name).toBeLessThan(0.05);
      expect(largest(original[name], float[name]), name).toBeGreaterThan(0);
    }
  });
});

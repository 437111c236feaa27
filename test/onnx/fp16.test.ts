// fp16: the converted model loads and agrees, whatever the graph: subgraphs, constants in every place, operators
// without a float16 form.
import { InferenceSession } from "onnxruntime-node";
import { describe, expect, it } from "vitest";
import type { GraphProto, ModelProto, NodeProto, TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import type { QuantizeBytesOptions } from "../../src/onnx/index.ts";
import { readModelBytes, verifyModels } from "../../src/onnx/index.ts";
import { T, encode, graph, matmulModel, model, node, raw, typed, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const fp16 = (proto: ModelProto, options: Partial<QuantizeBytesOptions> = {}) =>
  quantizeModelBytes(encode(proto), { dtype: "fp16", ...options });

async function expectAgrees(proto: ModelProto, options: Partial<QuantizeBytesOptions> = {}): Promise<Uint8Array> {
  const { bytes } = await fp16(proto, options);
  const verdict = await verifyModels(encode(proto), bytes, { samples: 2, minSqnrDb: 45 });
  expect(verdict.outputs.filter(({ sqnrDb }) => sqnrDb < 45)).toEqual([]);
  return bytes;
}

const main = (nodes: NodeProto[], initializer: TensorProto[], outputs = ["y"], opset = 17): ModelProto =>
  model(
    graph({
      input: [value("x", T.FLOAT, [2, 16])],
      output: outputs.map((name) => value(name, T.FLOAT, [])).map(noShape),
      initializer,
      node: nodes,
    }),
    { opset },
  );

/** Without a shape: any will do. */
function noShape<V extends { type?: unknown }>(info: V): V {
  const type = info.type as { value: { value: { shape?: unknown } } };
  delete type.value.value.shape;
  return info;
}

const w = raw("w", [16, 16], weights(256));

describe("graphs", () => {
  it("a product: inputs and outputs keep their type, or do not", async () => {
    const proto = matmulModel(raw("w", [32, 8], weights(256)), 32, 8);
    const kept = readModelBytes(await expectAgrees(proto)).proto.graph!;
    expect(kept.node.map(({ opType }) => opType)).toEqual(["Cast", "MatMul", "Cast"]);
    expect(kept.initializer.map(({ dataType }) => dataType)).toEqual([T.FLOAT16]);
    const { bytes } = await fp16(proto, { keepIoTypes: false });
    expect(readModelBytes(bytes).proto.graph!.node.map(({ opType }) => opType)).toEqual(["MatMul"]);
    const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
    expect(session.inputMetadata.map((input) => (input as { type: string }).type)).toEqual(["float16"]);
    await session.release();
  });

  it.each([
    [
      "blocked in the middle",
      [node("MatMul", ["x", "w"], ["a"]), node("CumSum", ["a", "axis"], ["b"]), node("Relu", ["b"], ["y"])],
      [w, raw("axis", [], Int32Array.of(1), T.INT32)],
    ],
    ["blocked at the end", [node("MatMul", ["x", "w"], ["a"]), node("Max", ["a", "m"], ["y"])], [w, raw("m", [16], weights(16))]],
    [
      "blocked twice in a row",
      [node("Min", ["x", "m"], ["a"]), node("Max", ["a", "n"], ["b"]), node("MatMul", ["b", "w"], ["y"])],
      [w, raw("m", [16], weights(16)), raw("n", [16], weights(16, 2))],
    ],
    ["a constant for both precisions", [node("Max", ["x", "m"], ["a"]), node("Mul", ["a", "m"], ["y"])], [raw("m", [16], weights(16))]],
    ["an intermediate that is an output too", [node("MatMul", ["x", "w"], ["z"]), node("Relu", ["z"], ["y"])], [w], ["y", "z"]],
    [
      "a blocked intermediate that is an output too",
      [node("Max", ["x", "m"], ["z"]), node("MatMul", ["z", "w"], ["y"])],
      [w, raw("m", [16], weights(16))],
      ["y", "z"],
    ],
    ["an initializer that is an output", [node("MatMul", ["x", "w"], ["y"])], [w], ["y", "w"]],
    [
      "Cast there and back",
      [node("Cast", ["x"], ["i"], { to: 7n }), node("Cast", ["i"], ["f"], { to: 1n }), node("Add", ["f", "x"], ["y"])],
      [],
    ],
    [
      "Shape, Range and ConstantOfShape",
      [
        node("Shape", ["x"], ["s"]),
        node("ConstantOfShape", ["s"], ["c"], { value: raw("", [1], Float32Array.of(0.25)) }),
        node("ConstantOfShape", ["s"], ["c0"]),
        node("Add", ["x", "c"], ["a"]),
        node("Add", ["a", "c0"], ["y"]),
      ],
      [],
    ],
    [
      "Constant nodes of every kind",
      [
        node("Constant", [], ["k"], { value: raw("", [16], weights(16)) }),
        node("Constant", [], ["f"], { value_float: 0.5 }),
        node("Constant", [], ["g"], { value_floats: { floats: Array.from(weights(16)) } }),
        node("Add", ["x", "k"], ["a"]),
        node("Mul", ["a", "f"], ["b"]),
        node("Sub", ["b", "g"], ["y"]),
      ],
      [],
    ],
    [
      "a Constant for a blocked and a free node",
      [node("Constant", [], ["k"], { value: raw("", [16], weights(16)) }), node("Max", ["x", "k"], ["a"]), node("Add", ["a", "k"], ["y"])],
      [],
    ],
    ["comparisons and Where", [node("Greater", ["x", "m"], ["g"]), node("Where", ["g", "x", "m"], ["y"])], [raw("m", [16], weights(16))]],
    [
      "TopK: indices stay",
      [node("TopK", ["x", "k"], ["y", "i"]), node("Cast", ["i"], ["z"], { to: 1n })],
      [raw("k", [1], BigInt64Array.of(3n), T.INT64)],
      ["y", "z"],
    ],
    ["typed data", [node("MatMul", ["x", "t"], ["y"])], [typed("t", [16, 16], weights(256))]],
    [
      "QuantizeLinear and DequantizeLinear",
      [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["d"]), node("MatMul", ["d", "w"], ["y"])],
      [w, raw("s", [], Float32Array.of(0.05)), raw("z", [], Uint8Array.of(128), T.UINT8)],
    ],
    [
      "LayerNormalization",
      [node("LayerNormalization", ["x", "m", "n"], ["a"]), node("MatMul", ["a", "w"], ["y"])],
      [w, raw("m", [16], weights(16)), raw("n", [16], weights(16, 3))],
    ],
    [
      "Split, Concat, Softmax",
      [node("Split", ["x"], ["a", "b"], { axis: 1n }), node("Softmax", ["a"], ["c"]), node("Concat", ["c", "b"], ["y"], { axis: 1n })],
      [],
    ],
  ] as [string, NodeProto[], TensorProto[], string[]?][])("%s", async (_name, nodes, initializer, outputs) => {
    await expectAgrees(main(nodes, initializer, outputs));
  });

  it("results that are inputs or constants keep their type, even where the others do not", async () => {
    const proto = main(
      [node("Constant", [], ["c"], { value: raw("", [16], weights(16)) }), node("Add", ["x", "c"], ["y"])],
      [],
      ["y", "c"],
    );
    for (const keepIoTypes of [true, false]) {
      const { bytes } = await fp16(proto, { keepIoTypes });
      const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
      expect(session.outputMetadata.map((output) => (output as { type: string }).type)).toEqual([
        keepIoTypes ? "float32" : "float16",
        "float32",
      ]);
      await session.release();
    }
    await expectAgrees(proto);
  });

  it("Resize keeps its scales in float32", async () => {
    const proto = model(
      graph({
        input: [value("x", T.FLOAT, [1, 1, 4, 4])],
        output: [value("y", T.FLOAT, [1, 1, 8, 8])],
        initializer: [raw("scales", [4], Float32Array.of(1, 1, 2, 2)), raw("m", [1], weights(1))],
        node: [node("Mul", ["x", "m"], ["a"]), node("Resize", ["a", "", "scales"], ["b"], { mode: "linear" }), node("Relu", ["b"], ["y"])],
      }),
    );
    const back = readModelBytes(await expectAgrees(proto)).proto.graph!;
    expect(back.initializer.find(({ name }) => name === "scales")!.dataType).toBe(T.FLOAT);
  });

  it("BatchNormalization whose variance float16 cannot hold stays", async () => {
    const make = (variance: number): ModelProto =>
      model(
        graph({
          input: [value("x", T.FLOAT, [1, 2, 4, 4])],
          output: [value("y", T.FLOAT, [1, 2, 4, 4])],
          initializer: [
            raw("s", [2], Float32Array.of(1, 2)),
            raw("b", [2], Float32Array.of(0, 1)),
            raw("m", [2], weights(2)),
            raw("v", [2], Float32Array.of(variance, variance)),
          ],
          node: [node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], { epsilon: 1e-9 }, "bn")],
        }),
      );
    await expectAgrees(make(1));
    await expectAgrees(make(3e-8));
  });
});

describe("subgraphs", () => {
  const branch = (name: string, nodes: NodeProto[], output: string, initializer: TensorProto[] = []): GraphProto =>
    graph({ name, output: [noShape(value(output, T.FLOAT, []))], initializer, node: nodes });
  it("If: captured values, own constants, an outer value as the result", async () => {
    const thenBranch = branch("then", [node("MatMul", ["h", "w"], ["t1"]), node("Max", ["t1", "tm"], ["t2"])], "t2", [
      raw("tm", [16], weights(16)),
    ]);
    const elseBranch = branch("else", [node("Identity", ["h"], ["e1"])], "e1");
    const proto = model(
      graph({
        input: [value("c", T.BOOL, []), value("x", T.FLOAT, [2, 16])],
        output: [value("y", T.FLOAT, [2, 16])],
        initializer: [w],
        node: [
          node("Relu", ["x"], ["h"]),
          node("If", ["c"], ["r"], { then_branch: thenBranch, else_branch: elseBranch }),
          node("Add", ["r", "x"], ["y"]),
        ],
      }),
    );
    await expectAgrees(proto);
    proto.graph!.input[0].name = "c_mask"; // verify makes masks true: the other branch
    proto.graph!.node[1].input[0] = "c_mask";
    await expectAgrees(proto);
  });
  it("Loop: carried and scanned values", async () => {
    const body = graph({
      name: "body",
      input: [value("i", T.INT64, []), value("go", T.BOOL, []), value("s", T.FLOAT, [2, 16])],
      output: [value("go2", T.BOOL, []), value("s2", T.FLOAT, [2, 16]), value("each", T.FLOAT, [2, 16])],
      node: [
        node("Identity", ["go"], ["go2"]),
        node("MatMul", ["s", "w"], ["p"]),
        node("Add", ["p", "x"], ["s2"]),
        node("Identity", ["p"], ["each"]),
      ],
    });
    const proto = model(
      graph({
        input: [value("x", T.FLOAT, [2, 16])],
        output: [value("y", T.FLOAT, [2, 16]), value("all", T.FLOAT, [3, 2, 16])],
        initializer: [w, raw("n", [], BigInt64Array.of(3n), T.INT64), raw("t", [], Uint8Array.of(1), T.BOOL)],
        node: [node("Loop", ["n", "t", "x"], ["y", "all"], { body })],
      }),
    );
    await expectAgrees(proto);
  });
});

describe("weights", () => {
  it("are clamped as transformers.js does it where asked; zero, infinities and NaN stay", async () => {
    const proto = main(
      [node("Add", ["x", "m"], ["y"])],
      [raw("m", [8], Float32Array.of(1e-9, -1e-12, 1e6, -2e5, 0, Infinity, -Infinity, NaN))],
    );
    const { bytes, report } = await fp16(proto, { clamp: [1e-7, 1e4] });
    const codes = new Uint16Array(readModelBytes(bytes).proto.graph!.initializer[0].rawData!.slice().buffer);
    expect(Array.from(codes, (code) => code.toString(16))).toEqual(["2", "8002", "70e2", "f0e2", "0", "7c00", "fc00", "7e00"]);
    expect(report.notes.join()).toMatch(/^4 constants were clamped/);
  });
  it("excluded and blocked layers stay in float32 and say so", async () => {
    const proto = main(
      [node("MatMul", ["x", "w"], ["a"], {}, "first"), node("MatMul", ["a", "v"], ["y"], {}, "second")],
      [w, raw("v", [16, 16], weights(256, 2))],
    );
    const { bytes, report } = await fp16(proto, { exclude: ["second"] });
    expect(report.layers.map(({ format, reason }) => format ?? reason)).toEqual(["float16", "excluded by second"]);
    expect(
      readModelBytes(bytes)
        .proto.graph!.initializer.map(({ dataType }) => dataType)
        .sort(),
    ).toEqual([T.FLOAT, T.FLOAT16]);
    await expectAgrees(proto, { exclude: ["second"] });
    await expectAgrees(proto, { blockedOps: ["MatMul"] });
  });
});

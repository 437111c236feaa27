// Small parts of the quantizer by their contracts: biases, sizes of random inputs, names of checkpoints, groups of the
// wire format, words of reasons.
import { create, toBinary } from "@bufbuild/protobuf";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { OperatorSetIdProtoSchema, TensorProtoSchema, type NodeProto, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { halfTable } from "../../src/onnx/file/half.ts";
import { readFloats } from "../../src/onnx/file/values.ts";
import { modelLayers, readBias, readModelBytes, summarizeModel, writeBias, writeModelBytes } from "../../src/onnx/index.ts"; // prettier-ignore
import { layerBands } from "../../src/onnx/bands.ts";
import { buildScopes } from "../../src/onnx/graph/graph.ts";
import { findLayers } from "../../src/onnx/layers.ts";
import { layerMatrix } from "../../src/onnx/weights.ts";
import { commonStride } from "../../src/onnx/matrix.ts";
import { matchNames } from "../../src/onnx/place/names.ts";
import { openRun, randomFeeds } from "../../src/onnx/run.ts";
import { ACTIVATION_TYPES, activationParameters } from "../../src/onnx/targets/static/parameters.ts";
import { encode, graph, matmulModel, model, node, raw, T, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const K = 6;
const gemm = (bias: number[], beta: number, n = 4) =>
  readModelBytes(
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, ["b", K])],
          output: [value("y", T.FLOAT, ["b", n])],
          initializer: [raw("w", [K, n], weights(K * n)), raw("c", [bias.length], Float32Array.from(bias))],
          node: [node("Gemm", ["x", "w", "c"], ["y"], { beta }, "g")],
        }),
      ),
    ),
  );
describe("biases of Gemm", () => {
  test("one for all, or one each, times beta", () => {
    const read = (bias: number[], beta: number, n?: number) => {
      const opened = gemm(bias, beta, n);
      return [...readBias(opened, modelLayers(opened)[0])!];
    };
    expect(read([3], 1)).toEqual([3, 3, 3, 3]);
    expect(read([1, 2, 3, 4], 0.5)).toEqual([0.5, 1, 1.5, 2]);
    expect(read([1, 2], 1, 2)).toEqual([1, 2]);
  });
  test.each([[0], [1], [0.5]])("written where beta is %d: the outputs have it", async (beta) => {
    const opened = gemm([9, 9, 9, 9], beta);
    writeBias(opened, modelLayers(opened)[0], [1, 2, 3, 4]);
    const session = await InferenceSession.create(writeModelBytes(opened), { logSeverityLevel: 4 });
    const { y } = await session.run({ x: new Tensor("float32", new Float32Array(K), [1, K]) });
    await session.release();
    expect([...(y.data as Float32Array)]).toEqual([1, 2, 3, 4]);
  });
});

test("random inputs: the first size with which a model runs, one where nothing is open", async () => {
  const dims = async (input: (number | string)[], nodes: NodeProto[] = [node("Relu", ["x"], ["y"])], init: TensorProto[] = []) => {
    const opened = readModelBytes(encode(model(graph({ input: [value("x", T.FLOAT, input)], output: [value("y", T.FLOAT, [])], initializer: init, node: nodes })))); // prettier-ignore
    const session = await openRun(opened);
    const [a, b] = await randomFeeds(session, opened, 2);
    await session.release();
    expect(b.x.dims).toEqual(a.x.dims);
    expect(b.x.data).not.toEqual(a.x.data);
    return a.x.dims;
  };
  expect(await dims([2, 3])).toEqual([2, 3]);
  expect((await dims(["b", "s"])).at(-1)).toBe(16);
  expect((await dims(["b", 3, "h", "w"])).slice(1)).toEqual([3, 64, 64]);
  const w = raw("w", [320, 2], weights(640));
  expect((await dims(["b", "s"], [node("MatMul", ["x", "w"], ["y"])], [w])).at(-1)).toBe(320);
});

describe("names of a checkpoint", () => {
  const targets = ["model.layers.0.attn.q", "model.layers.1.attn.q", "model.layers.0.mlp.up", "head"].map((name) => ({ names: [name] }));
  const found = (names: string[], rules: { match: string | RegExp; to: string | null }[] = []) => {
    const matched = matchNames(names, targets as never, rules as never);
    return { found: Object.fromEntries([...matched.found].map(([name, target]) => [name, (target as { names: string[] }).names[0]])), left: [...matched.left.keys()] }; // prettier-ignore
  };
  test("by the parts that they share: the last and all numbers must be the same", () => {
    expect(found(["layers.0.attn.q", "layers.1.attn.q", "layers.2.attn.q", "layers.0.mlp.up"])).toEqual({
      found: { "layers.0.attn.q": "model.layers.0.attn.q", "layers.1.attn.q": "model.layers.1.attn.q", "layers.0.mlp.up": "model.layers.0.mlp.up" }, // prettier-ignore
      left: ["layers.2.attn.q"],
    });
  });
  test("by rules with stars and question marks, which are no more than one character", () => {
    expect(found(["blk.0.wq", "blk.1.wq"])).toEqual({ found: {}, left: ["blk.0.wq", "blk.1.wq"] });
    expect(found(["a1.w", "a12.w"], [{ match: "a?.w", to: "head" }]).found).toEqual({ "a1.w": "head" });
    expect(found(["a.w", "axw"], [{ match: "a.w", to: "head" }]).found).toEqual({ "a.w": "head" });
    expect(found(["blk.0.wq", "blk.1.wq"], [{ match: "blk.*.wq", to: "model.layers.$1.attn.q" }]).found).toEqual({
      "blk.0.wq": "model.layers.0.attn.q",
      "blk.1.wq": "model.layers.1.attn.q",
    });
  });
  test("two that are alike leave both", () => {
    expect(found(["a.layers.0.attn.q", "b.layers.0.attn.q"]).found).toEqual({});
    expect(found(["a.layers.0.attn.q", "b.layers.0.attn.q"]).left).toEqual(["a.layers.0.attn.q", "b.layers.0.attn.q"]);
  });
});

describe("the wire format", () => {
  const varint = (n: number): number[] => (n < 128 ? [n] : [(n & 127) | 128, ...varint(n >>> 7)]);
  const tag = (field: number, type: number): number[] => varint(field * 8 + type);
  const fields = (inner: number[]): number[] => [...tag(900, 3), ...inner, ...tag(900, 4)];
  const plain = encode(matmulModel(raw("w", [64, 32], weights(2048)), 64, 32));
  const opened = (front: number[]) => readModelBytes(Uint8Array.from([...front, ...plain]));
  test.each<[string, number[]]>([
    ["eight bytes", [...tag(1, 1), 1, 2, 3, 4, 5, 6, 7, 8]],
    ["four bytes", [...tag(2, 5), 1, 2, 3, 4]],
    ["a number", [...tag(3, 0), 200, 1]],
    ["bytes", [...tag(4, 2), 3, 9, 9, 9]],
    ["groups", [...tag(5, 3), ...tag(6, 3), ...tag(1, 1), 1, 2, 3, 4, 5, 6, 7, 8, ...tag(6, 4), ...tag(5, 4)]],
  ])("an unknown group of %s, in front and inside another group: the model behind it is whole", (_, inner) => {
    for (const front of [fields(inner), fields(fields(inner)), [...fields(inner), ...fields(inner)]]) {
      const { layers } = summarizeModel(opened(front));
      expect(layers.map(({ name, shape }) => [name, shape])).toEqual([["mm", [64, 32]]]);
    }
    expect(() => opened(fields(inner).slice(0, -2))).toThrow(/expected/);
  });
  test("fields of eight bytes outside of groups", () => {
    expect(summarizeModel(opened([...tag(901, 1), 1, 2, 3, 4, 5, 6, 7, 8, ...tag(902, 5), 1, 2, 3, 4])).layers).toHaveLength(1);
  });
  test("doubles one by one", () => {
    const tensor = toBinary(TensorProtoSchema, create(TensorProtoSchema, { name: "d", dataType: T.DOUBLE, dims: [2n] }));
    const one = (v: number): number[] => [...tag(10, 1), ...new Uint8Array(Float64Array.of(v).buffer)];
    const bytes = [...tensor, ...one(0.5), ...one(-3)];
    const proto = matmulModel(raw("w", [64, 32], weights(2048)), 64, 32);
    const main = [...tag(5, 2), ...varint(bytes.length), ...bytes];
    const read = readModelBytes(Uint8Array.from([...encode(proto), ...tag(7, 2), ...varint(main.length), ...main]));
    expect([...readFloats(read, read.proto.graph!.initializer.at(-1)!)]).toEqual([0.5, -3]);
  });
});

test("tables, strides and codes", () => {
  expect(halfTable()).toHaveLength(65536);
  expect([commonStride(Float64Array.of(5)), commonStride(Float64Array.of(5, 8, 11)), commonStride(Float64Array.of(5, 8, 12))]).toEqual([1, 3, undefined]); // prettier-ignore
  const { scale, zeroPoint } = activationParameters({ min: -127.75, max: 127.25 }, ACTIVATION_TYPES.get("int8")!, false);
  expect([scale, Object.is(zeroPoint, 0)]).toEqual([1, true]);
});

test("bands of a weight: rows by sixteen within the bytes, at least sixteen, no more than there are", () => {
  const rows = (n: number, k: number, bytes: number): number => {
    const opened = readModelBytes(encode(model(graph({ input: [value("ids", T.INT64, [1])], output: [value("y", T.FLOAT, [1, k])], initializer: [raw("t", [n, k], weights(n * k))], node: [node("Gather", ["t", "ids"], ["y"], {}, "e")] })))); // prettier-ignore
    const [layer] = findLayers(buildScopes(opened), opened);
    return layerBands(opened, layer, layerMatrix(layer) as never, bytes).bandRows;
  };
  expect(rows(300, 64, 4 * 64 * 100)).toBe(96);
  expect(rows(300, 64, 4 * 64 * 96)).toBe(96);
  expect(rows(300, 64, 1)).toBe(16);
  expect(rows(70, 64, 2 ** 20)).toBe(70);
});

test("experts that are quantized already say so", async () => {
  const moe = Object.assign(node("QMoE", ["x", "p", "u", "s", "", "d", "s"], ["y"], { k: 1n }, "experts"), { domain: "com.microsoft" });
  const proto = model(graph({ input: [value("x", T.FLOAT, ["t", 32]), value("p", T.FLOAT, ["t", 2])], output: [value("z", T.FLOAT, ["t", 8])], initializer: [raw("u", [2, 16, 16], new Uint8Array(512), T.UINT8), raw("d", [2, 32, 8], new Uint8Array(512), T.UINT8), raw("s", [2, 16, 64], weights(2048)), raw("w", [32, 8], weights(256))], node: [moe, node("MatMul", ["y", "w"], ["z"], {}, "mm")] })); // prettier-ignore
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  const { report } = await quantizeModelBytes(encode(proto), { dtype: "q8" });
  const reasons = report.layers.filter(({ opType }) => opType === "QMoE").map(({ reason }) => reason);
  expect(reasons.length).toBeGreaterThan(0);
  for (const reason of reasons) expect(reason).toBe("the experts of QMoE are quantized already");
});

// Contracts of the parts that read, name, reshape and judge: each on the smallest case, in all of its arms.
import { create } from "@bufbuild/protobuf";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { checkFeeds } from "../../src/onnx/calibrate/feeds.ts";
import { addFloats } from "../../src/onnx/dequantize/rewriting.ts";
import { plainBytes } from "../../src/onnx/file/bytes.ts";
import { spillFile } from "../../src/onnx/file/disk/spill.ts";
import { SparseTensorProtoSchema, type NodeProto, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { encodeHalf } from "../../src/onnx/file/half.ts";
import { buildScopes, collectNames, constantInts, constantResolver, removeUnused } from "../../src/onnx/graph/graph.ts";
import { dequantizeWeights, quantizeModelBytes, readModelBytes } from "../../src/onnx/index.ts";
import { findLayers } from "../../src/onnx/layers.ts";
import { matchNames } from "../../src/onnx/place/names.ts";
import { expertsReason } from "../../src/onnx/targets/experts.ts";
import { lstmReason } from "../../src/onnx/targets/dynamic-lstm.ts";
import { quantizedInputs } from "../../src/onnx/targets/static/activations.ts";
import { STATIC_OPERATORS } from "../../src/onnx/targets/static/operators.ts";
import { addSample, finish, newSums } from "../../src/onnx/verify/compare.ts";
import type { InputMetadata } from "../../src/onnx/verify/feeds.ts";
import { greedyTokens } from "../../src/onnx/verify/generate.ts";
import { kindsByGraph } from "../../src/onnx/verify/kinds.ts";
import { weightLayout } from "../../src/onnx/matrix.ts";
import { layerMatrix } from "../../src/onnx/weights.ts";
import { temporaryFolder } from "../../src/onnx/calibrate/node.ts";
import { encode, graph, matmulModel, model, node, raw, T, value, weights, type AttributeValue } from "./build.ts";

const opened = (nodes: NodeProto[], initializer: TensorProto[] = [], opset = 17) =>
  readModelBytes(encode(model(graph({ input: [value("x", T.FLOAT, [2, 4])], output: [value("y", T.FLOAT, [])], initializer, node: nodes }), { opset }))); // prettier-ignore
const ints = (name: string, values: number[]) => raw(name, [values.length], BigInt64Array.from(values, BigInt), T.INT64);

describe("bytes and feeds", () => {
  test("buffers that stay as they are, are read in place; those that may change are copied", () => {
    const plain = Uint8Array.of(1, 2, 3).buffer;
    expect(plainBytes(plain, "m").buffer).toBe(plain);
    expect(plainBytes(new DataView(plain, 1), "m")).toEqual(Uint8Array.of(2, 3));
    for (const unsteady of [
      new SharedArrayBuffer(3),
      new (ArrayBuffer as unknown as new (n: number, o: object) => ArrayBuffer)(3, { maxByteLength: 8 }),
    ])
      // prettier-ignore
      for (const given of [unsteady, new Uint8Array(unsteady)]) {
        new Uint8Array(unsteady).set([4, 5, 6]);
        const read = plainBytes(given, "m");
        new Uint8Array(unsteady).fill(9);
        expect(read).toEqual(Uint8Array.of(4, 5, 6));
      }
  });
  test("dimensions of the model are asked for, those of 0 too; open and unknown ones take any size", () => {
    const input = (shape: InputMetadata["shape"]): InputMetadata[] => [{ name: "past", type: "float32", shape }];
    const feed = (dims: number[]) => ({ past: { type: "float32", data: new Float32Array(dims.reduce((a, b) => a * b, 1)), dims } });
    const given = (shape: InputMetadata["shape"], dims: number[]) => checkFeeds(feed(dims), input(shape), "sample 1").past.dims;
    expect(given([1, 0, 4], [1, 0, 4])).toEqual([1, 0, 4]);
    expect(() => given([1, 0, 4], [1, 2, 4])).toThrow(/expected shape \[1, 0, 4\], got \[1, 2, 4\]. Dimension 1 is 0 in the model/);
    expect(() => given([1, 3, 4], [1, 2, 4])).toThrow(/Dimension 1 is 3 in the model/);
    for (const open of ["s", "", -1]) expect(given([1, open, 4], [1, 2, 4])).toEqual([1, 2, 4]);
  });
  test("what went to disk is read into the bytes that are given, whatever their size", () => {
    const folder = temporaryFolder("lowbit-spill-");
    const spill = spillFile(folder.file("out.onnx"), 0);
    try {
      const payloads = [1, 2].map((seed) => spill.keep(Uint8Array.from({ length: 70_000 }, (_, i) => (i * seed) & 255)));
      const { source, offset } = payloads[1];
      expect([source.size, offset, payloads[0].source]).toEqual([140_000, 70_000, source]);
      for (const room of [3, 4, 5]) {
        const into = new Uint8Array(room);
        const read = source.read(offset + 1, 4, into);
        expect(read).toEqual(Uint8Array.of(2, 4, 6, 8));
        expect(read.buffer === into.buffer).toBe(room >= 4);
      }
      expect(source.read(offset, 2)).toEqual(Uint8Array.of(0, 2));
    } finally {
      spill.close();
      folder.remove();
    }
  });
});

describe("constants and what reads them", () => {
  test("whole numbers of a constant: INT64 and INT32 that are stored in order, nothing else", () => {
    const init = [ints("long", [3, -1]), raw("int", [2], Int32Array.of(5, 6), T.INT32), raw("float", [2], Float32Array.of(1, 2)), raw("small", [2], Uint8Array.of(7, 8), T.UINT8), ints("table", [1, 2, 3, 4])]; // prettier-ignore
    init[4].dims = [2n, 2n];
    const nodes = [
      node("Identity", ["long"], ["same"]),
      node("Transpose", ["table"], ["turned"]),
      node("Slice", ["long", "one", "two"], ["part"]),
      node("Cast", ["float"], ["cast"], { to: BigInt(T.INT64) }),
      node("ConstantOfShape", ["int"], ["filled"], { value: raw("", [1], BigInt64Array.of(9n), T.INT64) }),
    ];
    const m = opened([...nodes, node("Relu", ["x"], ["y"])], [...init, ints("one", [1]), ints("two", [2])]);
    const [scope] = buildScopes(m);
    const resolve = constantResolver(m);
    const read = (name: string): number[] | null => {
      const constant = resolve(scope, name);
      return constant === null ? null : constantInts(m, constant);
    };
    const names = ["long", "same", "int", "float", "small", "turned", "cast", "filled", "x"];
    expect(names.map(read)).toEqual([[3, -1], [3, -1], [5, 6], null, null, null, null, null, null]);
  });
  test("sparse constants go with their last reader, and only then", () => {
    const sparse = (name: string) => create(SparseTensorProtoSchema, { values: raw(name, [1], Float32Array.of(2)), indices: ints(`${name}_at`, [3]), dims: [8n] }); // prettier-ignore
    const m = opened([node("Add", ["x", "used"], ["y"])], [raw("dense", [1], Float32Array.of(1))]);
    const main = m.proto.graph!;
    main.sparseInitializer.push(sparse("used"), sparse("idle"), sparse("other"));
    removeUnused(buildScopes(m), new Set(["used", "idle", "dense"]));
    expect(main.sparseInitializer.map((one) => one.values!.name)).toEqual(["used", "other"]);
    expect(main.initializer).toEqual([]);
  });
  test("values that static quantization takes: computed ones, none that are constant or left out", () => {
    const m = opened([node("Relu", ["x"], ["h"]), node("Conv", ["h", "w", "b"], ["y"], {}, "c")], [raw("w", [1, 1, 1, 1], weights(1)), raw("b", [1], weights(1))]); // prettier-ignore
    const [scope] = buildScopes(m);
    const of = (op: string, input: string[], inputs: "all" | number[]): string[] =>
      quantizedInputs(scope, node(op, input, ["z"]), { ...STATIC_OPERATORS.get("Conv")!, inputs } as never);
    expect(of("Conv", ["h", "w", "b"], [0])).toEqual(["h"]);
    expect(of("Conv", ["h", "w", "b"], "all")).toEqual(["h"]);
    expect(of("MatMul", ["w", "h"], [0, 1])).toEqual(["h"]);
    expect(of("Concat", ["h", "", "x", "b"], "all")).toEqual(["h", "x"]);
    expect(of("Conv", ["h"], [0, 1, 2])).toEqual(["h"]);
  });
  test("a weight as a matrix: tables and convolutions keep their dimensions, products have outputs first", () => {
    const shape = (made: NodeProto, dims: number[]) => {
      const m = opened([made], [raw("w", dims, weights(dims.reduce((a, b) => a * b)))]);
      const [layer] = findLayers(buildScopes(m), m);
      const matrix = layerMatrix(layer);
      return typeof matrix === "string" ? matrix : [matrix.shape, matrix.rows, matrix.k];
    };
    expect(shape(node("MatMul", ["x", "w"], ["y"]), [4, 6])).toEqual([[6, 4], 6, 4]);
    expect(shape(node("MatMul", ["x", "w"], ["y"]), [4, 4])).toEqual([[4, 4], 4, 4]);
    expect(shape(node("Gemm", ["x", "w"], ["y"], { transB: 1n }), [6, 4])).toEqual([[6, 4], 6, 4]);
    expect(shape(node("Conv", ["x", "w"], ["y"]), [6, 2, 3, 3])).toEqual([[6, 2, 3, 3], 6, 18]);
    expect(shape(node("Gather", ["w", "x"], ["y"]), [9, 2, 3])).toEqual([[9, 2, 3], 9, 6]);
  });
});

test("where the entries of a weight's matrix are stored, its groups, and what belongs to one channel", () => {
  const layout = (op: string, shape: number[], attributes: Record<string, AttributeValue> = {}, input = 1) => {
    const { rows, k, groups, rowSpan, columnSpan, rowOffsets, columnOffsets } = weightLayout({ node: node(op, [], [], attributes), input, shape }); // prettier-ignore
    expect([rowOffsets.length, columnOffsets.length]).toEqual([rows, k]);
    return { sizes: [rows, k], groups, spans: [rowSpan, columnSpan], at: [...rowOffsets].map((r) => [...columnOffsets].map((c) => r + c)) };
  };
  const flat = (rows: number, k: number) => Array.from({ length: rows }, (_, r) => Array.from({ length: k }, (_, j) => r * k + j));
  const columns = (rows: number, k: number) => Array.from({ length: rows }, (_, r) => Array.from({ length: k }, (_, j) => j * rows + r));
  const plain = { groups: 1, spans: [1, 1] };
  expect(layout("MatMul", [3, 2])).toEqual({ ...plain, sizes: [2, 3], at: columns(2, 3) });
  expect(layout("MatMul", [2, 3], {}, 0)).toEqual({ ...plain, sizes: [2, 3], at: flat(2, 3) });
  expect(layout("MatMul", [2, 3, 1])).toEqual({ ...plain, sizes: [2, 3], at: flat(2, 3) });
  for (const transB of [0n, 1n]) expect(layout("Gemm", transB ? [2, 3] : [3, 2], { transB, transA: 1n - transB })).toEqual({ ...plain, sizes: [2, 3], at: transB ? flat(2, 3) : columns(2, 3) }); // prettier-ignore
  for (const transA of [0n, 1n]) expect(layout("Gemm", transA ? [3, 2] : [2, 3], { transA, transB: 1n - transA }, 0)).toEqual({ ...plain, sizes: [2, 3], at: transA ? columns(2, 3) : flat(2, 3) }); // prettier-ignore
  expect(layout("Conv", [4, 2, 3], { group: 2n })).toEqual({ groups: 2, spans: [1, 3], sizes: [4, 6], at: flat(4, 6) });
  expect(layout("Conv", [4, 2, 3])).toMatchObject({ groups: 1, spans: [1, 3] });
  // [inputs, outputs of a group, kernel]: a row is an output of a group at one place of the kernel
  const kernel = (at: number, group: number, inputs: number) => Array.from({ length: inputs }, (_, i) => (group * inputs + i) * 6 + at);
  const rows = (groups: number) =>
    Array.from({ length: groups }, (_, g) => Array.from({ length: 6 }, (_, at) => kernel(at, g, 4 / groups))).flat();
  for (const groups of [1, 2, 4])
    expect(layout("ConvTranspose", [4, 2, 3], groups === 1 ? {} : { group: BigInt(groups) })).toEqual({ groups, spans: [3, 1], sizes: [6 * groups, 4 / groups], at: rows(groups) }); // prettier-ignore
  expect(layout("Gather", [3, 2, 2], {}, 0)).toEqual({ ...plain, sizes: [3, 4], at: flat(3, 4) });
  expect(layout("LSTM", [1, 8, 3])).toEqual({ ...plain, sizes: [8, 3], at: flat(8, 3) });
});

describe("names and reasons", () => {
  test("the float form of a weight has the name that it had; another where that was its own", () => {
    const m = opened([node("Relu", ["x"], ["y"])]);
    const [scope] = buildScopes(m);
    const rewriting = { model: m, scope, names: collectNames([scope]) } as never;
    const names = ["a.weight_Q4", "b_Q2", "c_Q8", "d_Bnb4", "e_quantized", "f", "f_Q4x"].map((base) => addFloats(rewriting, base, [1], [1], T.FLOAT)); // prettier-ignore
    expect(names).toEqual(["a.weight", "b", "c", "d", "e", "f_float", "f_Q4x_float"]);
    expect(names.every((name) => scope.initializers.has(name))).toBe(true);
  });
  test("why a name of a checkpoint has no place: each in words that name both sides", () => {
    const left = (names: string[], targets: string[][], rules: object[] = []) =>
      Object.fromEntries(matchNames(names, targets.map((one) => ({ names: one })), rules as never).left); // prettier-ignore
    expect(left(["z"], [["a.q"]])).toEqual({ z: "nothing in the graph has a name like it" });
    expect(left(["a.q"], [["a.q"]], [{ match: "a.*", to: "keep" }])).toEqual({ "a.q": "a rule says keep" });
    expect(left(["m.q"], [["a.q", "also"], ["b.q"]])).toEqual({ "m.q": "several of the graph are like it (a.q, b.q): give a rule" });
    const alike = "a.m.q, b.m.q are all like c.m.q: give a rule";
    expect(left(["a.m.q", "b.m.q"], [["c.m.q", "also"]])).toEqual({ "a.m.q": alike, "b.m.q": alike });
    expect(left(["a.m.q", "q"], [["c.m.q", "also"]])).toEqual({ q: "c.m.q is more like a.m.q" });
    const four = [..."abcd"].map((one) => [`${one}.q`]);
    expect(left(["m.q"], four)["m.q"]).toBe("several of the graph are like it (a.q, b.q, c.q, ... 4 in all): give a rule");
  });
  test("rows of experts are whole blocks, with zero points whole bytes of them", () => {
    const moe = (k: number) => {
      const m = opened([node("Relu", ["x"], ["h"]), Object.assign(node("MoE", ["h", "r", "w"], ["y"]), { domain: "com.microsoft" })], [raw("w", [2, 3, k], weights(6 * k))]); // prettier-ignore
      return findLayers(buildScopes(m), m).find(({ shape }) => shape.length === 3)!;
    };
    const of = (k: number, zeroPoints: boolean) => expertsReason(moe(k), { bits: 4, blockSize: 16 }, zeroPoints);
    expect([of(48, false), of(64, true), of(32, true)]).toEqual([undefined, undefined, undefined]);
    expect(of(40, false)).toBe("QMoE takes rows of whole blocks: 40 is no multiple of 16");
    expect(of(48, true)).toBe("QMoE takes rows of whole blocks: 48 is no multiple of 32 (16, and zero points in whole bytes)");
  });
  test.each<[Record<string, AttributeValue>, string | undefined]>([
    [{}, undefined],
    [{ layout: 0n }, undefined],
    [{ layout: 1n }, "DynamicQuantizeLSTM has no layout 1"],
  ])("LSTM with %o", (attributes, reason) => {
    const m = opened([node("LSTM", ["x", "w", "r"], ["y"], { hidden_size: 4n, ...attributes })], [raw("w", [1, 16, 4], weights(64)), raw("r", [1, 16, 4], weights(64))]); // prettier-ignore
    const layers = findLayers(buildScopes(m), m).filter(({ node: { opType } }) => opType === "LSTM");
    expect(layers.map(lstmReason)).toEqual([reason, reason]);
  });
});

describe("forms that stay", () => {
  const [experts, rows, k] = [2, 8, 32];
  const init = [1, 2].flatMap((i) => [
    raw(
      `q${i}`,
      [experts, i === 1 ? rows : k, (i === 1 ? k : rows) / 2],
      Uint8Array.from({ length: 256 }, (_, j) => j),
      T.UINT8,
    ),
    raw(`s${i}`, [experts, i === 1 ? rows : k], weights(experts * (i === 1 ? rows : k)).map(Math.abs)),
  ]);
  const usual = ["x", "p", "q1", "s1", "", "q2", "s2"];
  const of = (inputs: string[], attributes: Record<string, AttributeValue> = {}): string => {
    const made = Object.assign(node("QMoE", inputs, ["y"], { k: 1n, ...attributes }, "m"), { domain: "com.microsoft" });
    const m = opened([node("Softmax", ["x"], ["p"]), made], init);
    dequantizeWeights(m);
    return m.proto.graph!.node.at(-1)!.opType;
  };
  const without = (i: number) => usual.map((name, at) => (at === i ? "" : name));
  test.each<[string, string[], Record<string, AttributeValue>, string]>([
    ["the usual one goes", usual, {}, "MoE"],
    ["integers by name", usual, { quant_type: "int" }, "MoE"],
    ["not packed before", usual, { weights_prepacked: 0n }, "MoE"],
    ["another type", usual, { quant_type: "fp4" }, "QMoE"],
    ["packed before", usual, { weights_prepacked: 1n }, "QMoE"],
    ["another type, packed before", usual, { quant_type: "fp4", weights_prepacked: 1n }, "QMoE"],
    ["no first weight", without(2), {}, "QMoE"],
    ["no second weight", without(5), {}, "QMoE"],
    ["no scales", without(3), {}, "QMoE"],
    ["weights of the router that something else makes", [...usual, "", "", "", "", "", "", "", "x"], {}, "QMoE"],
    ["3 bits", usual, { expert_weight_bits: 3n }, "QMoE"],
  ])("QMoE: %s", (_, inputs, attributes, op) => expect(of(inputs, attributes)).toBe(op));
});

describe("opset 9", () => {
  test.each([["int3_b32"], ["int5_b32"], ["float6_e2m3_b32"]])(
    "%s with a tail is stored and read as it is in later opsets",
    async (name) => {
      const [kk, n] = [35, 3];
      const run = async (opset: number) => {
        const bytes = encode(matmulModel(raw("w", [kk, n], weights(kk * n)), kk, n, { opset }));
        const { bytes: stored, report } = await quantizeModelBytes(bytes, { format: name, target: "stored" });
        expect(report.layers.map(({ reason }) => reason)).toEqual([undefined]);
        const session = await InferenceSession.create(stored, { logSeverityLevel: 4, intraOpNumThreads: 1 });
        const { y } = await session.run({ x: new Tensor("float32", weights(2 * kk, 5), [2, kk]) });
        await session.release();
        const slices = readModelBytes(stored).proto.graph!.node.filter(({ opType }) => opType === "Slice");
        return { y: [...(y.data as Float32Array)], inputs: new Set(slices.map(({ input }) => input.length)) };
      };
      const [old, now] = [await run(9), await run(17)];
      expect(old.y).toEqual(now.y);
      expect([...old.inputs]).toEqual([1]);
      expect([...now.inputs]).toEqual([3]);
    },
  );
});

describe("judgements", () => {
  test("agreement is asked only of outputs that have one", () => {
    const judged = (name: string, a: number[], b: number[], minAgreement?: number) => {
      const sums = newSums(name);
      addSample(sums, { type: "float32", data: Float32Array.from(a), dims: [1, a.length] }, { type: "float32", data: Float32Array.from(b), dims: [1, b.length] }); // prettier-ignore
      const { ok, agreement } = finish(sums, undefined, { minSqnrDb: 10, ...(minAgreement === undefined ? {} : { minAgreement }) });
      return [agreement?.value, ok];
    };
    expect(judged("y", [1, 2, 3], [1, 2, 3.01], 0.99)).toEqual([undefined, true]);
    expect(judged("y", [1, 2, 3], [1, 2, -3], 0.99)).toEqual([undefined, false]);
    expect(judged("logits", [1, 2, 3], [1, 2, 3.01], 0.99)).toEqual([1, true]);
    expect(judged("logits", [1, 3, 3.01], [1, 3.01, 3], 0.99)).toEqual([0, false]);
    expect(judged("logits", [1, 3, 3.01], [1, 3.01, 3])).toEqual([0, true]);
  });
  test("the kind of an If is that of its first branch, whichever is written first", () => {
    const branch = (op: string) => graph({ output: [value(op, T.FLOAT, [])], node: [node(op, ["x"], [op])] });
    const kind = (attributes: Record<string, AttributeValue>) => kindsByGraph(opened([node("If", ["c"], ["y"], attributes)])).get("y");
    expect(kind({ then_branch: branch("Softmax"), else_branch: branch("Sigmoid") })).toBe("probabilities");
    expect(kind({ else_branch: branch("Sigmoid"), then_branch: branch("Softmax") })).toBe("probabilities");
    expect(kind({ else_branch: branch("Sigmoid") })).toBeUndefined();
  });
  test.each<[string, (values: number[]) => ArrayLike<unknown>]>([
    ["float32", (v) => Float32Array.from(v, (x) => x - 2.5)],
    ["float16", (v) => Uint16Array.from(v, (x) => encodeHalf(x - 2.5))],
    ["float16", (v) => Float64Array.from(v, (x) => x - 2.5)], // as numbers, where the runtime has Float16Array
    ["uint16", (v) => Uint16Array.from(v, (x) => Math.min(x, 3) * 16384)], // as float16 the larger ones would be negative
    ["int64", (v) => BigInt64Array.from(v, (x) => BigInt(x - 2))],
  ])("tokens are read from logits of %s: the largest of the last position", async (type, make) => {
    const model = {
      label: "m",
      inputs: [{ name: "input_ids", type: "int64", shape: ["b", "s"] }],
      outputNames: ["logits"],
      run: async ({ input_ids: { dims } }: Record<string, { dims: readonly number[] }>) => {
        const logits = Array.from({ length: 4 * dims[1] }, (_, i) => (i < 4 * (dims[1] - 1) ? 9 : (i + dims[1]) % 4));
        return new Map([["logits", { type, data: make(logits), dims: [1, dims[1], 4] }]]);
      },
    };
    // after n tokens the largest is 3 - n modulo 4
    const tokens = await greedyTokens(model as never, new Map(), 5);
    expect(tokens).toEqual([3, 2, 1, 0, 3]);
  });
});

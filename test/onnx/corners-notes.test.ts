// Corners of inputs, notes and names that other tests pass by: each says what is read, and what is said of it.
import { create } from "@bufbuild/protobuf";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { OperatorSetIdProtoSchema, SparseTensorProtoSchema, ValueInfoProtoSchema, type NodeProto, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts"; // prettier-ignore
import { buildScopes } from "../../src/onnx/graph/graph.ts";
import { applyPasses, calibrateToFile, measureSensitivity, modelLayers, quantizeFolder, quantizeModelBytes, readBias, readModelBytes, summarizeModel, verifyModels, type Feeds } from "../../src/onnx/index.ts"; // prettier-ignore
import { T, encode, graph, matmulModel, model, node, raw, value, weights } from "./build.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-corners-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const K = 32;
const count = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);
const w = (name: string, seed: number, dims = [K, K]): TensorProto => raw(name, dims, weights(count(dims), seed));
const built = (node: NodeProto[], initializer: TensorProto[], x: (number | string)[], opset = 17) => {
  const proto = model(graph({ input: [value("x", T.FLOAT, x)], output: [create(ValueInfoProtoSchema, { name: "y" })], initializer, node }), { opset }); // prettier-ignore
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return proto;
};
const feed = (dims: number[], seed = 7): Feeds => ({ x: { type: "float32", data: weights(count(dims), seed), dims } });
const plain = encode(matmulModel(w("w", 1), K, K));

describe("passes that find nothing need no data", () => {
  test.each(["awq", "smooth", "gather-outliers", "fold-norm", "equalize", "rotate"])("%s", async (pass) => {
    const read = readModelBytes(encode(built([node("Relu", ["x"], ["y"])], [], [2, K])));
    const notes = await applyPasses(read, [pass]);
    expect(notes.length).toBeGreaterThan(0);
    expect(notes.every((note) => note.startsWith(`${pass}: `))).toBe(true);
    expect(notes.join()).toMatch(/nothing changed|no /);
  });
});

describe("data and abortion", () => {
  test("statistics are of the batches that were asked for", async () => {
    const input = join(folder, "in.onnx");
    writeFileSync(input, plain);
    const batches = [feed([4, K]), feed([4, K], 8), feed([4, K], 9)];
    expect(await calibrateToFile(input, batches, join(folder, "all.stats"))).toMatchObject({ batches: 3, of: 3 });
    expect(await calibrateToFile(input, batches, join(folder, "two.stats"), { maxBatches: 2 })).toMatchObject({ batches: 2, of: 2 });
  });
  test("a search that is aborted says which", async () => {
    const options = { layers: ["mm"], feeds: [feed([2, K])], signal: AbortSignal.abort() };
    await expect(measureSensitivity(plain, async () => plain, options)).rejects.toMatchObject({ code: "E_ABORTED", message: expect.stringContaining("sensitivity") }); // prettier-ignore
  });
  test("a metric is told whose figures it makes", async () => {
    const seen: string[] = [];
    await verifyModels(plain, plain, { metric: ({ which }: { which: string }) => seen.push(which) } as never);
    expect(seen).toEqual(["reference", "model"]);
  });
  test("models of other inputs or outputs are no two forms of one: which, and their names", async () => {
    const other = (x: string, y: string): Uint8Array =>
      encode(model(graph({ input: [value(x, T.FLOAT, ["batch", K])], output: [value(y, T.FLOAT, ["batch", K])], initializer: [w("w", 1)], node: [node("MatMul", [x, "w"], [y])] }))); // prettier-ignore
    await expect(verifyModels(plain, other("z", "y"), {})).rejects.toThrow(/inputs.*x.*z/);
    await expect(verifyModels(plain, other("x", "z"), {})).rejects.toThrow(/outputs.*y.*z/);
  });
  test.each([[undefined], ["q4"], [[]]])("dtypes of a folder are a list of some: %j", async (dtypes) => {
    await expect(quantizeFolder(folder, { dtypes } as never)).rejects.toThrow("dtypes: expected a list of ");
  });
});

describe("what a summary and a note say", () => {
  test("a size that nothing is known of is a question mark", () => {
    const proto = matmulModel(w("w", 1), K, K);
    const type = proto.graph!.input[0].type!.value;
    if (type.case === "tensorType") type.value.shape!.dim[0].value = { case: undefined };
    expect(summarizeModel(readModelBytes(encode(proto))).inputs[0].dims).toEqual(["?", K]);
  });
  test.each([1, 3, 4, 5])("weights that could be fed and no longer can, %i of them", async (n) => {
    const names = Array.from({ length: n }, (_, i) => `w${i}`);
    const proto = built([...names.map((name, i) => node("MatMul", [i === 0 ? "x" : `h${i - 1}`, name], [i === n - 1 ? "y" : `h${i}`], {}, `mm${i}`))], names.map((name, i) => w(name, i + 1)), ["n", K]); // prettier-ignore
    for (const name of names) proto.graph!.input.push(value(name, T.FLOAT, [K, K]));
    const { report } = await quantizeModelBytes(encode(proto), { dtype: "q4" });
    const said = `${names.slice(0, 3).join(", ")}${n > 3 ? `, ... (${n} in all)` : ""}`;
    expect(report.notes).toContain(`weights that were graph inputs with a default can no longer be fed: ${said}`);
  });
  test("a BatchNormalization whose variance is too small for float16 stays, one that fits does not", async () => {
    const of = async (variance: number): Promise<boolean> => {
      const vector = (name: string, v: number): TensorProto => raw(name, [4], new Float32Array(4).fill(v));
      const nodes = [node("Relu", ["x"], ["r"]), node("BatchNormalization", ["r", "s", "b", "m", "v"], ["n"], { epsilon: 1e-12 }, "bn"), node("Relu", ["n"], ["y"])]; // prettier-ignore
      const { bytes } = await quantizeModelBytes(encode(built(nodes, [vector("s", 1), vector("b", 0), vector("m", 0), raw("v", [4], Float32Array.of(1, variance, 1, 1))], [1, 4, 8])), { dtype: "fp16", allowUnchanged: true }); // prettier-ignore
      return readModelBytes(bytes).proto.graph!.initializer.every(({ dataType }) => dataType === T.FLOAT16);
    };
    expect([await of(1), await of(4e-7)]).toEqual([true, false]);
  });
});

describe("what is found in a graph", () => {
  test("a third weight of experts is a layer", () => {
    const moe = node("MoE", ["x", "router", "up", "", "down", "", "gate"], ["y"], { k: 1n }, "experts");
    moe.domain = "com.microsoft";
    const read = readModelBytes(encode(built([moe], [w("router", 9, [2, 4]), ...["up", "gate"].map((name, i) => w(name, i + 1, [4, 16, K])), w("down", 3, [4, K, 16])], [2, K]))); // prettier-ignore
    expect(modelLayers(read).map(({ name, shape }) => [name, shape.join()])).toEqual([
      ["experts.fc1", "4,16,32"],
      ["experts.fc2", "4,32,16"],
      ["experts.fc3", "4,16,32"],
    ]);
  });
  test("a bias behind a product has one row, in any number of dimensions", () => {
    const of = (...dims: number[]): number[] | null => {
      const read = readModelBytes(encode(built([node("MatMul", ["x", "w"], ["p"], {}, "mm"), node("Add", ["b", "p"], ["y"])], [w("w", 1, [4, 3]), w("b", 2, dims)], [2, 4]))); // prettier-ignore
      const bias = readBias(read, modelLayers(read)[0]);
      return bias === null ? null : [...bias].map(Math.fround);
    };
    const row = [...weights(3, 2)];
    expect([of(3), of(1, 3), of(1, 1, 3)]).toEqual([row, row, row]);
    expect([of(2, 3), of(2, 1, 3), of(1)]).toEqual([null, null, null]);
  });
  test("a sparse initializer without values is none", () => {
    const proto = built([node("Relu", ["x"], ["y"])], [], [2]);
    proto.graph!.sparseInitializer.push(create(SparseTensorProtoSchema, { dims: [2n] }));
    expect(buildScopes({ ...readModelBytes(plain), proto })[0].sparse.size).toBe(0);
  });
});

test.each([9, 10, 11, 13])("codes that end within a byte, at opset %i: the file runs and decodes to the codes' values", async (opset) => {
  const bytes = encode(built([node("MatMul", ["x", "w"], ["y"], {}, "mm")], [w("w", 1, [33, 5])], [2, 33], opset));
  const { bytes: made, report } = await quantizeModelBytes(bytes, { format: "int3_row", target: "stored" });
  expect(report.quantized).toBe(1);
  const run = async (model: Uint8Array): Promise<Float32Array> => {
    const session = await InferenceSession.create(model, { logSeverityLevel: 4, intraOpNumThreads: 1 });
    const { y } = await session.run({ x: new Tensor("float32", weights(66, 3), [2, 33]) });
    await session.release();
    return y.data as Float32Array;
  };
  const [want, got] = [await run(bytes), await run(made)];
  const [signal, noise] = [want.reduce((s, v) => s + v * v, 0), want.reduce((s, v, i) => s + (v - got[i]) ** 2, 0)];
  expect(10 * Math.log10(signal / noise)).toBeGreaterThan(6);
});

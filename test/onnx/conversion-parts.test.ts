// Conversions in parts: what happens around the weights, whose algorithms do not suit a layer, and what the report says.
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { hadamardRotation } from "../../src/quantize/rotation.ts";
import { hqq, rtn } from "../../src/quantize/index.ts";
import { decideWeights, modelLayers, quantizeModel, readModelBytes, writeModel, type Feeds, type QuantizeBytesOptions } from "../../src/onnx/index.ts"; // prettier-ignore
import { firstReaders } from "../../src/onnx/shared-weights.ts";
import { basisOf } from "../../src/onnx/targets/basis.ts";
import { CrashError, resolvePackage, startChild } from "../../src/onnx/verify/process.ts";
import { encode, graph, matmulModel, model, node, raw, T, value, weights } from "./build.ts";
import { quantizeModelBytes, verifyModels } from "./kept.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-conversion-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const at = (name: string): string => join(folder, name);
const K = 32;
/** x -> mm -> Relu -> fc -> y. */
const two = () =>
  model(
    graph({
      input: [value("x", T.FLOAT, ["b", K])],
      output: [value("y", T.FLOAT, ["b", 8])],
      initializer: [raw("w", [K, K], weights(K * K)), raw("v", [8, K], weights(8 * K, 2))],
      node: [
        node("MatMul", ["x", "w"], ["h"], {}, "mm"),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "v"], ["y"], { transB: 1n }, "fc"),
      ],
    }),
  );
const feeds: Feeds[] = [1, 2, 3, 4].map((seed) => ({ x: { type: "float32", data: weights(24 * K, seed), dims: [24, K] } }));

test("a model before IR 4 is raised where a weight was quantized, and only there", async () => {
  const old = () => {
    const proto = two();
    proto.irVersion = 3n;
    proto.graph!.input.push(value("w", T.FLOAT, [K, K]), value("v", T.FLOAT, [8, K]));
    return encode(proto);
  };
  const of = async (options: QuantizeBytesOptions) => {
    const { bytes, report } = await quantizeModelBytes(old(), { allowUnchanged: true, ...options });
    const { graph: main, irVersion } = readModelBytes(bytes).proto;
    return [Number(irVersion), main!.input.map(({ name }) => name), report.notes.some((note) => note.includes("IR version raised"))];
  };
  expect(await of({ dtype: "q4" })).toEqual([4, ["x"], true]);
  expect(await of({ dtype: "q4", include: ["mm"] })).toEqual([4, ["x"], true]);
  expect(await of({ dtype: "q4", exclude: ["*"] })).toEqual([3, ["x", "w", "v"], false]);
});

test("passes look at the calibration data of the model", async () => {
  const { report } = await quantizeModelBytes(encode(two()), { dtype: "q4", passes: ["smooth"], calibration: feeds });
  expect(report.notes.join()).toMatch(/smooth: scales of [1-9]\d* products in [1-9]\d* groups folded/);
});

test("fp16 of some operators only; q4f16 asks no operator for its other half", async () => {
  const reasons = async (options: QuantizeBytesOptions) => (await quantizeModelBytes(encode(two()), options)).report.layers.map(({ format: made, reason }) => made ?? reason); // prettier-ignore
  expect(await reasons({ dtype: "fp16", opTypes: ["Gemm"] })).toEqual(["not among opTypes", "float16"]);
  expect(await reasons({ dtype: "q4f16", opTypes: ["MatMul"] })).toEqual([expect.stringMatching(/^int4_b32/), "float16"]);
});

describe("algorithms that do not suit a layer", () => {
  const grouped = encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["b", 8, 6, 6])],
        output: [value("y", T.FLOAT, [])],
        initializer: [raw("w", [8, 4, 3, 3], weights(288))],
        node: [node("Conv", ["x", "w"], ["y"], { group: 2n }, "conv")],
      }),
    ),
  );
  const images: Feeds[] = [1, 2].map((seed) => ({ x: { type: "float32", data: weights(4 * 288, seed), dims: [4, 8, 6, 6] } }));
  test.each(["awq", "mrgptq"] as const)("%s of groups, which need a basis each: their scales are searched", async (algorithm) => {
    const { report } = await quantizeModelBytes(grouped, { format: "int4_b4", target: "stored", algorithm, calibration: images });
    expect(report.layers[0].format).toBe("int4_b4");
    expect(report.notes.join()).toContain(`${algorithm} would give every group a basis of its own`);
  });
  test.each([24, 25, 40, 128])("blocks that go on in the next row are rounded to nearest, K = %i", async (k) => {
    const bytes = encode(matmulModel(raw("w", [k, 9], weights(k * 9)), k, 9));
    const calibration = [{ x: { type: "float32", data: weights(300 * k, 5), dims: [300, k] } }];
    const plain = await quantizeModelBytes(bytes, { dtype: "bnb4" });
    for (const algorithm of ["mse", "gptq", (() => rtn()) as never] as const) {
      const { bytes: made, report } = await quantizeModelBytes(bytes, { dtype: "bnb4", algorithm, calibration });
      const { outputs } = await verifyModels(bytes, made, { inputs: calibration });
      expect(outputs[0].sqnrDb).toBeGreaterThan(18);
      expect(report.notes.join().includes("mm: rounded to nearest: its rows are no whole blocks")).toBe(k % 64 !== 0);
      if (k % 64 !== 0) expect(made).toEqual(plain.bytes);
    }
  });
  test("experts are not calibrated in sequence, by the name of the layer", async () => {
    const moe = Object.assign(node("MoE", ["x", "p", "u", "", "d"], ["y"], { k: 2n, activation_type: "relu" }, "experts"), { domain: "com.microsoft" }); // prettier-ignore
    const proto = model(graph({ input: [value("x", T.FLOAT, ["t", K]), value("p", T.FLOAT, ["t", 2])], output: [value("y", T.FLOAT, ["t", K])], initializer: [raw("u", [2, 16, K], weights(2 * 16 * K)), raw("d", [2, K, 16], weights(2 * 16 * K))], node: [moe] })); // prettier-ignore
    proto.opsetImport.push({ ...proto.opsetImport[0], domain: "com.microsoft", version: 1n });
    const opened = readModelBytes(encode(proto));
    const both: Feeds[] = feeds.map((feed) => ({ ...feed, p: { type: "float32", data: weights(48), dims: [24, 2] } }));
    const decide = () => ({ format: format("int4_b16"), algorithm: "gptq" as const });
    await expect(decideWeights(opened, modelLayers(opened), decide, both, { sequential: true })).rejects.toThrow(/experts are calibrated on the float model only/); // prettier-ignore
  });
  test("layers share a weight only where one function makes it", () => {
    const proto = matmulModel(raw("w", [K, 8], weights(8 * K)), K, 8);
    proto.graph!.node.push(node("MatMul", ["x", "w"], ["z"], {}, "second"));
    const layers = modelLayers(readModelBytes(encode(proto)));
    const by = (...algorithms: unknown[]) => {
      const first = firstReaders(layers, (layer) => ({
        format: format("int4_b16"),
        algorithm: algorithms[layers.indexOf(layer as never)] as never,
      }));
      return first.get(layers[1]) === layers[0];
    };
    const [one, other] = [() => rtn(), () => hqq()];
    expect([by(one, one), by(one, other), by("mse", "mse"), by("mse", "rtn"), by({ name: "hqq", iterations: 3 }, { name: "hqq", iterations: 3 })]).toEqual([true, false, true, false, true]); // prettier-ignore
  });
});

test.each([[null], [0], [7]])("the basis of a rotated weight, seed %j: signs in the scale, one block of the rest", (seed) => {
  const [k, block] = [16, 8];
  const rotation = hadamardRotation(k, { block, seed });
  const { scale, matrix, block: size } = basisOf({ k, recipe: { rotation: { kind: "hadamard", n: k, block, seed } } } as never)!;
  expect(size).toBe(block);
  const x = Float64Array.from(weights(k, 5));
  const turned = x.slice();
  rotation.apply(turned);
  for (let i = 0; i < k; i++) {
    let sum = 0;
    for (let j = 0; j < block; j++) {
      const from = Math.floor(i / block) * block + j;
      sum += x[from] * (scale?.[from] ?? 1) * matrix![j * block + (i % block)];
    }
    expect(sum).toBeCloseTo(turned[i], 6);
  }
});

test("tables of other floats: bfloat16 is gathered in float32 and cast back, doubles stay", async () => {
  const of = async (type: number, data: ArrayBufferView) => {
    const proto = model(graph({ input: [value("ids", T.INT64, [2])], output: [value("y", type, [2, K])], initializer: [raw("t", [6, K], data, type)], node: [node("Gather", ["t", "ids"], ["y"], {}, "e")] })); // prettier-ignore
    const { bytes, report } = await quantizeModelBytes(encode(proto), { dtype: "q4", opTypes: ["Gather"], allowUnchanged: true });
    return [
      report.layers[0].reason,
      readModelBytes(bytes)
        .proto.graph!.node.map(({ opType }) => opType)
        .filter((op) => op !== "Reshape"),
    ];
  };
  const wide = new Uint32Array(weights(6 * K).buffer);
  expect(
    await of(
      T.BFLOAT16,
      Uint16Array.from(wide, (v) => v >>> 16),
    ),
  ).toEqual([undefined, ["GatherBlockQuantized", "Cast"]]);
  expect(await of(T.DOUBLE, Float64Array.from(weights(6 * K)))).toEqual(["a table of double", ["Gather"]]);
});

test("the report counts the bytes of all files", async () => {
  await writeModel(readModelBytes(encode(two())), at("in.onnx"), { externalData: true });
  const report = await quantizeModel(at("in.onnx"), at("out.onnx"), { dtype: "q4", externalData: true });
  const size = (...names: string[]): number => names.reduce((sum, name) => sum + statSync(at(name)).size, 0);
  expect(report.fileBytesBefore).toBe(size("in.onnx", "in.onnx_data"));
  expect(report.fileBytesAfter).toBe(report.outputs.reduce((sum, path) => sum + statSync(path).size, 0));
});

test("what a process said last is in the error of its crash: three lines", async () => {
  writeFileSync(at("ends.mjs"), 'console.error(["one", "two", "three", "four"].join("\\n")); await new Promise((r) => setTimeout(r, 50)); process.exit(3);'); // prettier-ignore
  const child = startChild(at("ends.mjs"), { versionOf: "none" });
  const error = await child.request("hello").then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(CrashError);
  expect((error as Error).message).toBe("exit code 3: two three four");
  expect(child.alive).toBe(false);
  await child.stop();
});

test("a process that ends takes the one it started along", async () => {
  writeFileSync(at("waits.mjs"), "await new Promise((r) => setTimeout(r, 60_000));");
  const before = new Set(process.listeners("exit"));
  const child = startChild(at("waits.mjs"), { versionOf: "none" });
  const added = process.listeners("exit").filter((listener) => !before.has(listener));
  expect(added).toHaveLength(1);
  const answer = expect(child.request("hello")).rejects.toThrow("SIGKILL");
  (added[0] as (code: number) => void)(0);
  await answer;
  expect([child.alive, process.listeners("exit").includes(added[0])]).toEqual([false, false]);
});

test("packages are looked for from the main script, from the working folder where there is none", () => {
  const { argv } = process;
  const found = (script: string | undefined) => {
    process.argv = script === undefined ? argv.slice(0, 1) : [argv[0], script];
    try {
      return resolvePackage("onnxruntime-node")?.replaceAll("\\", "/");
    } finally {
      process.argv = argv;
    }
  };
  const here = found(join(process.cwd(), "package.json"));
  expect(here).toMatch(/node_modules\/onnxruntime-node\//);
  expect(found(undefined)).toBe(here);
  expect(found(at("waits.mjs"))).toBeUndefined();
  expect(found(at("nowhere.mjs"))).toBeUndefined();
});

test.each(["first", "second"])("the %s of two models of bytes is named where it does not load", async (which) => {
  const [good, bad] = [encode(two()), encode(Object.assign(two(), { irVersion: 9999n }))];
  await expect(which === "first" ? verifyModels(bad, good) : verifyModels(good, bad)).rejects.toThrow(`${which} model`);
});

test("DequantizeLinear of a weight of doubles is cast back to them", async () => {
  const dims = { input: [value("x", T.DOUBLE, [2, 64])], output: [value("y", T.DOUBLE, [2, 8])] };
  const w = raw("w", [64, 8], Float64Array.from(weights(512)), T.DOUBLE);
  const bytes = encode(model(graph({ ...dims, initializer: [w], node: [node("MatMul", ["x", "w"], ["y"], {}, "m")] })));
  const { bytes: made } = await quantizeModelBytes(bytes, { format: "int8_row", target: "qdq" });
  expect(readModelBytes(made).proto.graph!.node.map(({ opType }) => opType)).toEqual(["DequantizeLinear", "Cast", "MatMul"]);
  expect((await verifyModels(bytes, made)).outputs[0].sqnrDb).toBeGreaterThan(35);
});

test("greedy tokens need logits", async () => {
  const flat = encode(
    model(
      graph({
        input: [value("input_ids", T.INT64, ["batch", "sequence"])],
        output: [value("logits", T.FLOAT, ["batch"])],
        node: [node("Cast", ["input_ids"], ["f"], { to: 1n }), node("ReduceMax", ["f"], ["logits"], { axes: { ints: [1] }, keepdims: 0n })],
      }),
    ),
  );
  await expect(verifyModels(flat, flat, { generate: 2 })).rejects.toThrow(/expected logits \[batch, sequence, vocabulary\], got/);
});

// Models of TensorFlow.js in files: tfjs's own loaders are the judges of what is written, numbers of
// tensorflowjs_converter's quantization (NumPy 2) those of its rule.
import * as tf from "@tensorflow/tfjs-core";
import "@tensorflow/tfjs-backend-cpu";
import { loadGraphModel } from "@tensorflow/tfjs-converter";
import * as tfl from "@tensorflow/tfjs-layers";
import { setWasmPaths } from "@tensorflow/tfjs-backend-wasm";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { isLowbitError } from "../../src/index.ts";
import { loadTfjsModel, quantizeTfjsModel } from "../../src/tfjs/index.ts";
import { converterQuantize } from "../../src/tfjs/model/affine.ts";
import { isPacked } from "../../src/tfjs/model/stand-in.ts";
import { random } from "../helpers/random.ts";

const rng = random(31);
const normal = (n: number): Float32Array => Float32Array.from({ length: n }, () => rng.normal());
const refuse = (code: string) => expect.objectContaining({ code });
let dir = "";
const at = (...names: string[]): string => join(dir, ...names);

/** tfjs's own reading of a folder: artifacts as its file handlers give them. */
const files = (folder: string): tf.io.IOHandler => ({
  load: () => {
    const { weightsManifest, ...rest } = JSON.parse(readFileSync(join(folder, "model.json"), "utf8")) as tf.io.ModelJSON;
    const specs = weightsManifest.flatMap((group) => group.weights);
    const parts = weightsManifest.flatMap((group) => group.paths.map((path) => readFileSync(join(folder, path))));
    const bytes = new Uint8Array(Buffer.concat(parts));
    return Promise.resolve({ ...rest, weightSpecs: specs, weightData: bytes.buffer } as tf.io.ModelArtifacts);
  },
});

function write(folder: string, json: object, bytes: Uint8Array): void {
  mkdirSync(folder);
  writeFileSync(join(folder, "model.json"), JSON.stringify(json));
  writeFileSync(join(folder, "group1-shard1of1.bin"), bytes);
}

const bytesOf = (...arrays: Float32Array[]): Uint8Array => new Uint8Array(Buffer.concat(arrays.map((a) => Buffer.from(a.buffer))));

/** x [-1, 64] -> relu(x A + b) B^T, and rows of a table by ids: a GraphDef as the converter writes it. */
function writeGraph(folder: string): void {
  const node = (name: string, op: string, input: string[] = [], attr: object = {}) => ({ name, op, input, attr });
  const dtype = { dtype: { type: "DT_FLOAT" } };
  const weight = (name: string, shape: number[]) => ({ name, shape, dtype: "float32" });
  const modelTopology = {
    node: [
      node("x", "Placeholder", [], { dtype: { type: "DT_FLOAT" }, shape: { shape: { dim: [{ size: "-1" }, { size: "64" }] } } }),
      node("ids", "Placeholder", [], { dtype: { type: "DT_INT32" }, shape: { shape: { dim: [{ size: "-1" }] } } }),
      ...["A", "b", "B", "table", "scale"].map((name) => node(name, "Const", [], dtype)),
      node("axis", "Const", [], { dtype: { type: "DT_INT32" } }),
      node("fused", "_FusedMatMul", ["x", "A", "b"], { fused_ops: { list: { s: [btoa("BiasAdd"), btoa("Relu")] } }, num_args: { i: "1" }, transpose_a: { b: false }, transpose_b: { b: false }, epsilon: { f: 0 } }), // prettier-ignore
      node("y", "MatMul", ["fused", "B"], { transpose_a: { b: false }, transpose_b: { b: true } }),
      node("rows", "GatherV2", ["table", "ids", "axis"], { batch_dims: { i: "0" } }),
      node("out", "Mul", ["rows", "scale"]),
    ],
    versions: { producer: 1 },
  };
  const weights = [weight("A", [64, 48]), weight("b", [48]), weight("B", [40, 48]), weight("table", [80, 32]), weight("scale", [1]), { name: "axis", shape: [], dtype: "int32" }]; // prettier-ignore
  const json = { format: "graph-model", modelTopology, weightsManifest: [{ paths: ["group1-shard1of1.bin"], weights }] };
  const data = bytesOf(normal(64 * 48), normal(48), normal(40 * 48), normal(80 * 32), Float32Array.of(2), new Float32Array(1));
  write(folder, json, data);
}

async function writeLayers(folder: string): Promise<void> {
  const model = tfl.sequential({
    layers: [
      tfl.layers.embedding({ inputDim: 50, outputDim: 32, inputLength: 4 }),
      tfl.layers.flatten(),
      tfl.layers.dense({ units: 64, activation: "relu", kernelInitializer: "randomNormal" }),
      tfl.layers.dense({ units: 5, kernelInitializer: "randomNormal", useBias: false }),
    ],
  });
  await model.save({
    save: ({ modelTopology, weightSpecs, weightData }) => {
      const data = weightData as ArrayBuffer;
      write(folder, { format: "layers-model", modelTopology, weightsManifest: [{ paths: ["group1-shard1of1.bin"], weights: weightSpecs }] }, new Uint8Array(data)); // prettier-ignore
      return Promise.resolve({ modelArtifactsInfo: { dateSaved: new Date(0), modelTopologyType: "JSON" } });
    },
  });
}

const values = (t: tf.Tensor): Float32Array => t.dataSync() as Float32Array;
const distance = (a: tf.Tensor, b: tf.Tensor): number => {
  expect(a.shape).toEqual(b.shape);
  const [x, y] = [values(a), values(b)];
  return Math.sqrt(x.reduce((s, v, i) => s + (v - y[i]) ** 2, 0) / y.reduce((s, v) => s + v * v, 0));
};

beforeAll(async () => {
  setWasmPaths(fileURLToPath(new URL("../../node_modules/@tensorflow/tfjs-backend-wasm/wasm-out/", import.meta.url)));
  dir = mkdtempSync(join(tmpdir(), "lowbit-tfjs-"));
  await tf.setBackend("cpu");
  writeGraph(at("graph"));
  await writeLayers(at("layers"));
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

test("uint8, uint16 and float16 are the converter's bytes, min and scale", () => {
  type Row = { name: string; values: string } & Record<"uint8" | "uint16" | "float16", { bytes: string; min?: number; scale?: number }>;
  const rows = JSON.parse(readFileSync(new URL("../fixtures/tfjs/converter.json", import.meta.url), "utf8")) as Row[];
  expect(rows.length).toBe(10);
  for (const row of rows)
    for (const dtype of ["uint8", "uint16", "float16"] as const) {
      const x = new Float32Array(new Uint8Array(Buffer.from(row.values, "base64")).buffer);
      const { bytes, quantization } = converterQuantize(row.name, x, dtype);
      const { bytes: want, ...meta } = row[dtype];
      expect(Buffer.from(bytes).toString("base64"), `${row.name} ${dtype}`).toBe(want);
      expect({ ...quantization }, `${row.name} ${dtype}`).toEqual({
        dtype,
        original_dtype: "float32",
        ...(meta.min === undefined ? {} : { min: meta.min + 0, scale: meta.scale }),
      });
    }
  expect(() => converterQuantize("w", Float32Array.of(NaN), "uint8")).toThrow(refuse("E_VALUE"));
});

describe.each(["cpu", "wasm"])("on %s", (backend) => {
  beforeAll(async () => {
    expect(await tf.setBackend(backend)).toBe(true);
  });
  const inputs = () => ({ x: tf.tensor2d(normal(3 * 64), [3, 64]), ids: tf.tensor1d([7, 0, 79, 7], "int32") });
  const run = (model: { execute(inputs: tf.NamedTensorMap, outputs: string[]): tf.Tensor | tf.Tensor[] }, feeds: tf.NamedTensorMap) =>
    model.execute(feeds, ["y", "out"]) as tf.Tensor[];

  test.each(["uint8", "uint16", "float16"] as const)("graph model in %s loads by tfjs's own loader", async (dtype) => {
    const out = at(`graph-${dtype}-${backend}`);
    const report = await quantizeTfjsModel(at("graph"), out, { dtype });
    expect(report.weights.find((w) => w.name === "axis")?.stored).toBe("int32");
    expect(report.bytes / report.bytesBefore).toBeLessThan(dtype === "uint8" ? 0.26 : 0.51);
    const feeds = inputs();
    const want = run(await loadGraphModel(files(at("graph"))), feeds);
    const got = run(await loadGraphModel(files(out)), feeds);
    got.forEach((t, i) => expect(distance(t, want[i])).toBeLessThan(dtype === "uint8" ? 0.03 : 1e-3));
    // ours reads it too
    const ours = run(await loadTfjsModel(loadGraphModel, out), feeds);
    ours.forEach((t, i) => expect(distance(t, got[i])).toBeLessThan(1e-6));
  });

  test("graph model packed: the numbers of the decoded weights, and packed while it runs", async () => {
    const out = at(`graph-int8-${backend}`);
    const report = await quantizeTfjsModel(at("graph"), out, { format: format("int8_b32"), dtype: "float16" });
    expect(report.weights.map((w) => w.stored)).toEqual(["lowbit", "float16", "lowbit", "lowbit", "float16", "int32"]);
    const dense = at(`graph-dense-${backend}`);
    await quantizeTfjsModel(out, dense, { dtype: "float32" });
    const feeds = inputs();
    const model = await loadTfjsModel(loadGraphModel, at(`graph-int8-${backend}`, "model.json"), { activations: "float32" });
    const got = run(model, feeds);
    const want = run(await loadGraphModel(files(dense)), feeds);
    got.forEach((t, i) => expect(distance(t, want[i])).toBeLessThan(1e-5));
    const exact = run(await loadGraphModel(files(at("graph"))), feeds);
    got.forEach((t, i) => expect(distance(t, exact[i])).toBeLessThan(0.02));
    const { weightMap } = (model as unknown as { executor: { weightMap: Record<string, tf.Tensor[]> } }).executor;
    for (const name of ["A", "B", "table"]) expect(isPacked(weightMap[name][0]), name).toBe(true);
    const before = tf.memory().numTensors;
    tf.dispose(run(model, feeds));
    expect(tf.memory().numTensors).toBe(before);
    // an operation that has no packed kernel: decoded, the same values
    const doubled = tf.tidy(() => values(tf.mul(weightMap.A[0], 2)));
    expect(isPacked(weightMap.A[0])).toBe(false);
    expect(Math.abs(doubled[1] / 2 - values(weightMap.A[0])[1])).toBeLessThan(1e-6);
    run(model, feeds).forEach((t, i) => expect(distance(t, want[i])).toBeLessThan(1e-5));
    model.dispose();
  });

  test("layers model: converter's rule and packed", async () => {
    const [plain, packed] = [at(`layers-uint8-${backend}`), at(`layers-int4-${backend}`)];
    await quantizeTfjsModel(at("layers"), plain, { dtype: "uint8" });
    const report = await quantizeTfjsModel(at("layers"), packed, { format: format("int4_b32"), minimum: 200 });
    expect(report.weights.map((w) => w.stored)).toEqual(["lowbit", "lowbit", "float32", "lowbit"]);
    const x = tf.tensor2d([1, 2, 3, 4, 49, 0, 7, 7], [2, 4], "int32");
    const want = (await tfl.loadLayersModel(files(at("layers")))).predict(x) as tf.Tensor;
    expect(distance((await tfl.loadLayersModel(files(plain))).predict(x) as tf.Tensor, want)).toBeLessThan(0.05);
    const model = await loadTfjsModel(tfl.loadLayersModel, packed);
    expect(distance(model.predict(x) as tf.Tensor, want)).toBeLessThan(0.35);
    for (const layer of [0, 2, 3]) {
      const [weight] = model.layers[layer].weights;
      expect(isPacked((weight as unknown as { val: tf.Tensor }).val)).toBe(true);
    }
    await expect(tfl.loadLayersModel(files(packed))).rejects.toThrow(/quantization/);
  });
});

test("shards, force, and nothing half-written", async () => {
  const out = at("shards");
  const report = await quantizeTfjsModel(at("graph"), out, { dtype: "float16", shardBytes: 5000, skip: ["A"] });
  expect(report.weights[0].stored).toBe("float32");
  expect(readdirSync(out).length).toBe(Math.ceil(report.bytes / 5000) + 1);
  expect((await loadTfjsModel(loadGraphModel, out)).inputs.length).toBe(2);
  await expect(quantizeTfjsModel(at("graph"), out, { dtype: "float16" })).rejects.toThrow(refuse("E_EXISTS"));
  await quantizeTfjsModel(at("graph"), out, { dtype: "float16", force: true });
  await expect(quantizeTfjsModel(at("graph"), at("graph"), { dtype: "uint8", force: true })).rejects.toThrow(refuse("E_EXISTS"));
});

describe("bad input", () => {
  test("options and paths", async () => {
    const to = at("never");
    for (const options of [{}, { dtype: "int8" }, { dtyp: "uint8" }, null])
      await expect(quantizeTfjsModel(at("graph"), to, options as never)).rejects.toThrow(TypeError);
    await expect(quantizeTfjsModel(at("graph"), to, { dtype: "uint8", shardBytes: 0 })).rejects.toThrow(RangeError);
    await expect(quantizeTfjsModel(at("none"), to, { dtype: "uint8" })).rejects.toThrow(refuse("E_IO"));
    await expect(loadTfjsModel(null as never, at("graph"))).rejects.toThrow(TypeError);
    expect(existsSync(to)).toBe(false);
  });

  const good = () => JSON.parse(readFileSync(at("graph", "model.json"), "utf8")) as { weightsManifest: { paths: string[]; weights: Record<string, unknown>[] }[] }; // prettier-ignore
  const wrong: Record<string, (json: ReturnType<typeof good>) => unknown> = {
    "no manifest": (j) => ({ ...j, weightsManifest: undefined }),
    "a list": () => [],
    "a group that is none": (j) => ({ ...j, weightsManifest: [null] }),
    "a path out of the folder": (j) => ((j.weightsManifest[0].paths = ["../graph/group1-shard1of1.bin"]), j),
    "an absolute path": (j) => ((j.weightsManifest[0].paths = ["/etc/hostname"]), j),
    "a file twice": (j) => (j.weightsManifest[0].paths.push("group1-shard1of1.bin"), j),
    "a name twice": (j) => ((j.weightsManifest[0].weights[1].name = "A"), j),
    "a huge shape": (j) => ((j.weightsManifest[0].weights[0].shape = [2 ** 40, 2 ** 40]), j),
    "a negative shape": (j) => ((j.weightsManifest[0].weights[0].shape = [-1, 3072]), j),
    "a dtype unknown": (j) => ((j.weightsManifest[0].weights[0].dtype = "float64"), j),
    "too few weights": (j) => (j.weightsManifest[0].weights.pop(), j),
    "a string weight beyond the end": (j) => ((j.weightsManifest[0].weights[0].dtype = "string"), j),
    "a quantization unknown": (j) => ((j.weightsManifest[0].weights[0].quantization = { dtype: "int2" }), j),
    "no scale": (j) => ((j.weightsManifest[0].weights[0].quantization = { dtype: "uint8", min: 0 }), j),
    "packed bytes that are none": (j) => ((j.weightsManifest[0].weights[0].quantization = { dtype: "lowbit", bytes: 64 * 48 * 4, rows: 1 }), j), // prettier-ignore
  };
  test.each(Object.keys(wrong))("model.json with %s", async (what) => {
    const folder = mkdtempSync(at("bad-"));
    writeFileSync(join(folder, "model.json"), JSON.stringify(wrong[what](good())));
    writeFileSync(join(folder, "group1-shard1of1.bin"), readFileSync(at("graph", "group1-shard1of1.bin")));
    await expect(loadTfjsModel(loadGraphModel, folder)).rejects.toThrow(refuse("E_CONTAINER"));
  });

  test("files cut short, and damaged packed weights", async () => {
    const packed = at("damaged");
    await quantizeTfjsModel(at("graph"), packed, { format: format("int4_b32") });
    const [json, bytes] = ["model.json", "group1-shard1of1.bin"].map((name) => readFileSync(join(packed, name)));
    const attempt = async (j: Uint8Array, b: Uint8Array): Promise<unknown> => {
      writeFileSync(join(packed, "model.json"), j);
      writeFileSync(join(packed, "group1-shard1of1.bin"), b);
      // a model that takes weights as GraphModel does
      const load = async (handler: tf.io.IOHandler) => {
        const { weightSpecs } = await handler.load!();
        return { executor: { weightMap: Object.fromEntries(weightSpecs!.map(({ name }) => [name, [tf.zeros([1])]])) } };
      };
      return loadTfjsModel(load, packed).then(
        () => null,
        (error: unknown) => error,
      );
    };
    expect(await attempt(json, bytes)).toBeNull();
    for (const cut of [0, 1, 100, json.length - 1]) expect(await attempt(json.subarray(0, cut), bytes)).toEqual(refuse("E_CONTAINER"));
    for (const cut of [0, 7, 1000, bytes.length - 1]) expect(await attempt(json, bytes.subarray(0, cut))).toEqual(refuse("E_CONTAINER"));
    const change = random(3);
    for (let i = 0; i < 120; i++) {
      const damaged = Buffer.from(i % 2 === 0 ? json : bytes);
      for (let n = 0; n < 3; n++) damaged[Math.floor(change.next() * Math.min(damaged.length, 3000))] = Math.floor(change.next() * 256);
      const error = i % 2 === 0 ? await attempt(damaged, bytes) : await attempt(json, damaged);
      // whole, or refused in words
      if (error !== null) expect(isLowbitError(error), String(error)).toBe(true);
    }
  });
});

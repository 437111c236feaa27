// What a budget looks at and says: which layers and outputs count, and how, against sums of this test's own; the rules that
// it becomes, and those of a target.
import { describe, expect, test } from "vitest";
import { create } from "@bufbuild/protobuf";
import { format } from "../../formats/index.ts";
import { dequantize, quantize } from "../../src/index.ts";
import { plannedLayers } from "../../src/onnx/budget.ts";
import { encodeHalf } from "../../src/onnx/file/half.ts";
import { ValueInfoProtoSchema, type NodeProto, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { measureImportance, modelLayers, planBudget, quantizeModelBytes, readModelBytes, readWeight, writeModelBytes, writeWeight, type Feeds, type OnnxModel } from "../../src/onnx/index.ts"; // prettier-ignore
import { referenceRun } from "../../src/onnx/passes/check.ts";
import { relativeLoss } from "../../src/quantize/index.ts";
import { T, encode, graph, model, node, raw, value, weights } from "./build.ts";

const K = 32;
const count = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);
const w = (name: string, dims: number[], seed: number): TensorProto => raw(name, dims, weights(count(dims), seed));
const opened = (node: NodeProto[], initializer: TensorProto[], x: (number | string)[], output: string[]): OnnxModel =>
  readModelBytes(encode(model(graph({ input: [value("x", T.FLOAT, x)], output: output.map((name) => create(ValueInfoProtoSchema, { name })), initializer, node })))); // prettier-ignore
const feeds: Feeds[] = [3, 4].map((seed) => ({ x: { type: "float32", data: weights(6 * K, seed).map((v) => 20 * v), dims: [6, K] } }));
const MM = (x: string, weight: string, y: string): NodeProto => node("MatMul", [x, weight], [y], {}, y);

/** x -> one -> Tanh -> two -> `ends`. */
const chain = (ends: string[], more: NodeProto[] = [], init: TensorProto[] = []): OnnxModel =>
  opened([MM("x", "a", "one"), node("Tanh", ["one"], ["t"]), MM("t", "b", ends[0]), ...more], [w("a", [K, K], 1), w("b", [K, K], 2), ...init], ["n", K], ends); // prettier-ignore

/** Values of outputs, a batch at a time, with one layer rounded to int2 blocks, or none. */
async function valuesOf(of: OnnxModel, name?: string): Promise<Map<string, Float32Array>[]> {
  const copy = readModelBytes(writeModelBytes(of));
  for (const layer of modelLayers(copy)) if (layer.name === name) writeWeight(copy, layer, dequantize(quantize(readWeight(copy, layer), format("int2_b32")))); // prettier-ignore
  const { outputs } = await referenceRun(copy, feeds);
  return outputs.map((one) => new Map([...one].map(([key, { data }]) => [key, Float32Array.from(data)])));
}
const lossOf = (of: OnnxModel, name: string): number => {
  const weight = readWeight(
    of,
    modelLayers(of).find((layer) => layer.name === name)!,
  );
  return relativeLoss({ name, weight }, quantize(weight, format("int2_b32")));
};
const noise = (a: Float32Array, b: Float32Array): number =>
  a.reduce((s, v, i) => s + (Number.isFinite(v) ? (v - b[i]) ** 2 : 0), 0) / a.reduce((s, v) => s + (Number.isFinite(v) ? v * v : 0), 0);
function kl(a: Float32Array, b: Float32Array): number {
  const softmax = (row: Float32Array): number[] => {
    const e = [...row].map((v) => Math.exp(v));
    const sum = e.reduce((x, y) => x + y);
    return e.map((v) => v / sum);
  };
  let sum = 0;
  for (let at = 0; at < a.length; at += K) {
    const [p, q] = [softmax(a.subarray(at, at + K)), softmax(b.subarray(at, at + K))];
    sum += p.reduce((s, v, i) => s + v * Math.log(v / q[i]), 0);
  }
  return sum / (a.length / K);
}

describe("importance", () => {
  const candidates = ["int8_b32", "int2_b32", "int4_b32"];
  const both = (): OnnxModel => chain(["logits", "cache"], [MM("t", "c", "cache")], [w("c", [K, K], 5)]);
  test("logits count alone, by the divergence of their distributions", async () => {
    const found = await measureImportance(both(), feeds, { candidates });
    for (const name of ["one", "logits"]) {
      const [want, got] = [await valuesOf(both()), await valuesOf(both(), name)];
      const damage = want.reduce((sum, outputs, f) => sum + kl(outputs.get("logits")!, got[f].get("logits")!) / 2, 0);
      expect(found.get(name)! / (damage / lossOf(both(), name))).toBeCloseTo(1, 3);
    }
    // no logit depends on it: it counts a thousandth of what counts most
    expect(found.get("cache")! / Math.max(...found.values())).toBeCloseTo(1e-3, 9);
  });
  test("other outputs count all, by noise over signal; one that is named counts alone", async () => {
    const named = (): OnnxModel => chain(["y", "cache"], [MM("t", "c", "cache")], [w("c", [K, K], 5)]);
    const of = (options: object) => measureImportance(named(), feeds, { candidates, ...options });
    const [all, y, cache] = [await of({}), await of({ output: "y" }), await of({ output: "cache" })];
    expect(all.get("one")! / (y.get("one")! + cache.get("one")!)).toBeCloseTo(1, 6);
    const [want, got] = [await valuesOf(named()), await valuesOf(named(), "one")];
    const damage = want.reduce((sum, outputs, f) => sum + noise(outputs.get("y")!, got[f].get("y")!) / 2, 0);
    expect(y.get("one")! / (damage / lossOf(named(), "one"))).toBeCloseTo(1, 3);
    const logits = await measureImportance(both(), feeds, { candidates, measure: "noise" });
    expect(logits.get("one")! / y.get("one")!).toBeCloseTo(1, 6);
  });
  test("what is forbidden in the float model does not count", async () => {
    const mask = raw(
      "mask",
      [K],
      Float32Array.from({ length: K }, (_, i) => (i % 4 === 0 ? -Infinity : 0)),
    );
    const masked = (): OnnxModel => chain(["p", "y"], [node("Add", ["p", "mask"], ["y"], {}, "add")], [mask]);
    const found = await measureImportance(masked(), feeds, { candidates, output: "y" });
    const [want, got] = [await valuesOf(masked()), await valuesOf(masked(), "p")];
    const damage = want.reduce((sum, outputs, f) => sum + noise(outputs.get("y")!, got[f].get("y")!) / 2, 0);
    expect(found.get("p")! / (damage / lossOf(masked(), "p"))).toBeCloseTo(1, 3);
  });
  test("progress names each layer", async () => {
    const seen: unknown[] = [];
    await measureImportance(both(), feeds, { candidates, onProgress: (one) => void seen.push(one) });
    expect(seen).toEqual(["one", "logits", "cache"].map((layer, done) => ({ stage: "importance", done, total: 3, layer })));
  });
});

test("layers of a budget: products of 1024 weights and more", () => {
  const nodes = [
    node("Conv", ["x", "conv"], ["c"], {}, "conv"),
    node("ConvTranspose", ["c", "turned"], ["t"], {}, "turned"),
    node("Flatten", ["t"], ["f"]),
    node("Gemm", ["f", "gemm"], ["g"], {}, "gemm"),
    MM("g", "m1", "least"),
    MM("least", "m2", "little"),
    node("Gather", ["rows", "ids"], ["e"], {}, "table"),
    node("LSTM", ["x3", "w3", "r3"], ["h"], { hidden_size: 16n }, "rnn"),
  ];
  const init = [w("conv", [16, 8, 3, 3], 1), w("turned", [16, 8, 3, 3], 2), w("gemm", [512, 32], 3), w("m1", [32, 32], 4), w("m2", [32, 31], 5), w("rows", [64, 32], 6), raw("ids", [1], BigInt64Array.of(1n), T.INT64), w("w3", [1, 64, 32], 7), w("r3", [1, 64, 16], 8)]; // prettier-ignore
  expect(plannedLayers(opened(nodes, init, [1, 8, 8, 8], ["little"])).map(({ name }) => name)).toEqual(["conv", "turned", "gemm", "least"]);
});

describe("rules", () => {
  const importance = new Map([["one", 1e6], ["y", 1]]); // prettier-ignore
  test("the more important layer gets more bits; the note counts formats", async () => {
    const candidates = ["int2_b32", "int4_b32"];
    const { rules, notes, bitsPerWeight } = await planBudget(chain(["y"]), feeds, { bitsPerWeight: 4.01, candidates, importance });
    expect(rules).toEqual([
      { match: "one", format: "int4_b32" },
      { match: "y", format: "int2_b32" },
    ]);
    expect(notes).toEqual([`${bitsPerWeight.toFixed(3)} stored bits per weight (budget 4.01): 1 x int4_b32, 1 x int2_b32`]);
    const wide = await planBudget(chain(["y"]), feeds, { bitsPerWeight: 6, candidates, importance });
    expect(wide.notes[0]).toMatch(/: 2 x int4_b32$/);
    expect(wide.importance).toBe(importance);
  });
  test("scales of 16 bits are of the target stored, unless the weights are float16 too", async () => {
    const half = raw("a", [K, K], Uint16Array.from(weights(K * K), encodeHalf), T.FLOAT16);
    const mixed = opened([node("Cast", ["x"], ["h"], { to: 10n }), MM("h", "a", "one"), node("Cast", ["one"], ["t"], { to: 1n }), MM("t", "b", "y")], [half, w("b", [K, K], 2)], ["n", K], ["y"]); // prettier-ignore
    const of = async (name: string) => (await planBudget(mixed, feeds, { bitsPerWeight: 16, candidates: [name], importance })).rules.map(({ target }) => target); // prettier-ignore
    expect(await of("int4_b32_float16")).toEqual([undefined, "stored"]);
    expect(await of("int4_b32")).toEqual([undefined, undefined]);
  });
  test("of a whole model: GPTQ for what calibration sees, a search for the rest, the others stay with the reason", async () => {
    const inner = graph({ output: [create(ValueInfoProtoSchema, { name: "r" })], node: [MM("t", "c", "r")] });
    const made = chain(["p", "y", "few"], [node("If", ["yes"], ["y"], { then_branch: inner, else_branch: graph({ output: [create(ValueInfoProtoSchema, { name: "q" })], node: [node("Identity", ["t"], ["q"])] }) }, "if"), MM("t", "d", "few")], [w("c", [K, K], 5), w("d", [K, 8], 6), raw("yes", [], Uint8Array.of(1), T.BOOL)]); // prettier-ignore
    const budget = { bitsPerWeight: 5, candidates: ["int4_b32"] };
    const bytes = writeModelBytes(made);
    const { report } = await quantizeModelBytes(bytes, { budget, calibration: feeds });
    const byName = new Map(report.layers.map((layer) => [layer.name, layer]));
    expect(["one", "p", "r"].map((name) => byName.get(name)?.format)).toEqual(["int4_b32", "int4_b32", "int4_b32"]);
    expect(["one", "p", "r"].map((name) => byName.get(name)?.algorithm)).toEqual(["gptq", "gptq", "rtn"]); // a search is rounding with scales of its own
    expect(byName.get("few")).toMatchObject({ format: null, reason: expect.stringContaining("outside the budget") });
    expect(report.rules!.map(({ match, algorithm }) => [match, algorithm])).toEqual([["one", undefined], ["p", undefined], ["r", "mse"], ["*", undefined]]); // prettier-ignore
    const nearest = await quantizeModelBytes(bytes, { budget, calibration: feeds, algorithm: "rtn" });
    expect(nearest.report.rules!.some(({ algorithm }) => algorithm !== undefined)).toBe(false);
    expect(nearest.report.dtype).toBe("5 bits per weight");
  });
  test("formats whose blocks are not open are compared too", async () => {
    const bytes = writeModelBytes(opened([MM("x", "a", "one"), node("Tanh", ["one"], ["t"]), MM("t", "b", "y")], [w("a", [K, 256], 1), w("b", [256, K], 2)], ["n", K], ["y"])); // prettier-ignore
    const many = [1, 2, 3].map((seed): Feeds => ({ x: { type: "float32", data: weights(256 * K, seed), dims: [256, K] } }));
    const budget = { bitsPerWeight: 6, candidates: ["ggml_q4_0", "int8_b32"] };
    const { report } = await quantizeModelBytes(bytes, { budget, target: "stored", calibration: many } as never);
    for (const { format: made } of report.layers) expect(budget.candidates).toContain(made);
    expect(report.notes[0]).toMatch(/stored bits per weight \(budget 6\)/);
  });
  test("a target raises blocks to 8 bits, and leaves others out", async () => {
    const bytes = writeModelBytes(chain(["y"]));
    const of = async (options: object) => (await quantizeModelBytes(bytes, { calibration: feeds, ...options } as never)).report.rules!.map(({ match, keep, format: to }) => [match, keep, to]); // prettier-ignore
    expect(await of({ dtype: "q2", targetSqnr: 30 })).toEqual(expect.arrayContaining([["one", undefined, "int8_b32"], ["y", undefined, "int8_b32"]])); // prettier-ignore
    expect(await of({ format: "int2_row", target: "stored", targetSqnr: 30 })).toEqual(expect.arrayContaining([["one", undefined, "int8_b32"]])); // prettier-ignore
    for (const options of [{ dtype: "int8" }, { activations: "uint8", format: "int8_row", allowUnchanged: true }]) {
      const left = await of({ ...options, targetSqnr: 55 });
      expect(left).not.toEqual([]);
      expect(left).toEqual(left.map(([match]) => [match, true, undefined]));
    }
  });
});

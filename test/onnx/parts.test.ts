// Small parts that whole models rarely reach: shapes, options, what makes two runs differ, elementwise functions,
// constants of rare types, words of findings.
import { create } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { SparseTensorProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { buildScopes, constantResolver, readConstant } from "../../src/onnx/graph/graph.ts";
import { flattened } from "../../src/onnx/graph/views.ts";
import { DTYPES } from "../../src/onnx/dtypes.ts";
import { summarizeModel, readModelBytes, type QuantizeModelOptions } from "../../src/onnx/index.ts";
import { elementwise, rectifierOf, slopeOf } from "../../src/onnx/integer/expressions.ts";
import { differenceOf, type Identity } from "../../src/onnx/journal/identity.ts";
import { checkOptions } from "../../src/onnx/option-table.ts";
import { neighbourAgreement } from "../../src/onnx/verify/compare.ts";
import { explained } from "../../src/onnx/verify/explain.ts";
import { CrashError } from "../../src/onnx/verify/process.ts";
import { rangeWarning } from "../../src/onnx/verify/range.ts";
import { T, encode, graph, model, node, raw, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

test("Flatten counts its axis from either end", () => {
  const shape = [2, 3, 4];
  expect([-3, -2, -1, 0, 1, 2, 3].map((axis) => flattened(shape, axis))).toEqual([
    [1, 24],
    [2, 12],
    [6, 4],
    [1, 24],
    [2, 12],
    [6, 4],
    [24, 1],
  ]);
  expect([flattened(shape, -4), flattened(shape, 4)]).toEqual([null, null]);
});

describe("options", () => {
  const wrong = (options: object): boolean => {
    try {
      checkOptions(("budget" in options ? options : { dtype: "q4", ...options }) as QuantizeModelOptions);
      return false;
    } catch {
      return true;
    }
  };
  test.each([
    ["budget", [{ bitsPerWeight: 4 }, { bitsPerWeight: 3.5, candidates: ["int4_b32", "int8_row"] }]],
    ["targetSqnr", [20, -3.5, 0]],
    ["calibrate", [{}, { maxBatches: 3 }, { holdOut: 0 }]],
  ])("%s is taken", (name, values) => {
    for (const one of values) expect([one, wrong({ [name]: one })]).toEqual([one, false]);
  });
  test.each([
    ["budget", [{}, { bitsPerWeight: 0 }, { bitsPerWeight: "4" }, { bitsPerWeight: 4, bits: 3 }, { candidates: ["int4_b32"] }, 4]],
    ["targetSqnr", ["20", NaN, Infinity, null]],
    ["calibrate", [{ maxBatches: -1 }, { maxBatches: "3" }, { batches: 3 }, 3]],
  ])("%s is refused", (name, values) => {
    for (const one of values) expect([one, wrong({ [name]: one })]).toEqual([one, true]);
  });
});

test("two runs differ by version, model, data or an option, in words", () => {
  const run: Identity = { kind: "run", version: "1.0.0", recipe: { dtype: "q4", force: true }, model: "m", calibration: "c" };
  expect(differenceOf(run, run)).toBeUndefined();
  expect(differenceOf({ ...run, version: "0.9.0" }, run)).toBe("version 0.9.0 instead of 1.0.0");
  expect(differenceOf({ ...run, model: "n" }, run)).toBe("another model");
  expect(differenceOf({ ...run, calibration: "" }, run)).toBe("other calibration data");
  expect(differenceOf({ ...run, recipe: { dtype: "q8" } }, run)).toBe('another recipe: dtype "q8" instead of "q4"');
  expect(differenceOf({ ...run, recipe: {} }, run)).toBe('another recipe: dtype none instead of "q4"');
  expect(differenceOf({ ...run, recipe: { ...run.recipe, symmetric: false } }, run)).toBe(
    "another recipe: symmetric false instead of none",
  );
  // where and how, not what
  expect(differenceOf({ ...run, recipe: { dtype: "q4" } }, run)).toBeUndefined();
});

test("neighbours are compared from eight vectors on, a third of the others each", () => {
  const vectors = (n: number): { a: Float64Array; b: Float64Array }[] =>
    Array.from({ length: n }, (_, i) => {
      const a = Float64Array.of(Math.cos(i / 4), Math.sin(i / 4));
      return { a, b: a.slice() };
    });
  expect(neighbourAgreement(vectors(7))).toBeNull();
  expect(neighbourAgreement(vectors(8))).toMatchObject({ count: 8, value: 1 });
});

test("what an arithmetic explains is no more than the file has, and never below zero", () => {
  const bound = explained("8-bit activations", Infinity).db;
  expect(explained("8-bit activations", NaN).db).toBe(bound);
  expect(explained("8-bit activations", -20).db).toBe(0);
  expect(explained("8-bit activations", bound).db).toBeLessThan(bound);
  expect(explained("float32", 3).db).toBeGreaterThan(explained("float16", 3).db);
});

test("a crash has its name, and the last words of the process", () => {
  expect(new CrashError("SIGSEGV", "")).toMatchObject({ name: "CrashError", message: "SIGSEGV" });
  expect(new CrashError("exit code 134", "no memory").message).toBe("exit code 134: no memory");
});

test("values beyond float16: three by name, then how many more", () => {
  const finding = (i: number, what: "value" | "sum") => ({ value: `v${i}`, node: `n${i}`, opType: "Mul", magnitude: 1e5 * (i + 1), what });
  expect(rangeWarning([finding(0, "value"), finding(1, "sum")])).toMatch(
    /: n0 \(Mul, 1\.000e\+5\), n1 \(Mul, terms of a sum add up to 2\.000e\+5\)\. The CPU/,
  );
  expect(rangeWarning([0, 1, 2, 3, 4].map((i) => finding(i, "value")))).toContain("n2 (Mul, 3.000e+5) and 2 more.");
});

test("elementwise functions by their definitions, with the defaults of their attributes", () => {
  const f = (op: string, attributes = {}) => {
    const apply = elementwise(node(op, ["x"], ["y"], attributes))!;
    return (x: number): number => apply([x]);
  };
  const clip = (x: number): number => Math.min(1, Math.max(0, x));
  for (const x of [-5, -1.5, -0.3, 0, 0.4, 1, 2.5, 6]) {
    expect(f("HardSigmoid")(x)).toBeCloseTo(clip(0.2 * x + 0.5), 12);
    expect(f("HardSigmoid", { alpha: 0.5, beta: 0.25 })(x)).toBeCloseTo(clip(0.5 * x + 0.25), 6);
    expect(f("HardSwish")(x)).toBeCloseTo(x * clip(x / 6 + 0.5), 12);
    expect(f("LeakyRelu")(x)).toBeCloseTo(x < 0 ? 0.01 * x : x, 12);
    expect(f("Elu", { alpha: 2 })(x)).toBeCloseTo(x < 0 ? 2 * (Math.exp(x) - 1) : x, 12);
    expect(f("Softplus")(x)).toBeCloseTo(Math.log(1 + Math.exp(x)), 12);
  }
  expect(rectifierOf((x) => 3 * Math.max(0, x))).toBe(3);
  expect(rectifierOf((x) => Math.max(0, x) - 1e-3)).toBeUndefined();
  expect(rectifierOf(() => 0)).toBeUndefined();
  expect(slopeOf((x) => -2 * x)).toBe(-2);
  expect(slopeOf((x) => x + 1)).toBeUndefined();
});

test("constants of wide integers, and sparse ones by position or by coordinates", () => {
  const sparse = (name: string, indices: bigint[], dims: number[]) =>
    create(SparseTensorProtoSchema, {
      values: raw(name, [3], Float32Array.of(5, 6, 7)),
      indices: raw("", dims, BigInt64Array.from(indices), T.INT64),
      dims: [2n, 3n],
    });
  const main = graph({
    input: [value("x", T.FLOAT, [1])],
    output: [value("y", T.FLOAT, [1])],
    initializer: [
      raw("u64", [3], BigUint64Array.of(7n, 1n << 40n, 9n), T.UINT64),
      raw("i64", [2], BigInt64Array.of(-3n, 1n << 33n), T.INT64),
      raw("u32", [2], Uint32Array.of(4e9, 3), T.UINT32),
      raw("f64", [3], Float64Array.of(0.5, -2, 1e5), T.DOUBLE),
    ],
    node: [node("Identity", ["x"], ["y"])],
  });
  main.sparseInitializer = [sparse("by_position", [1n, 3n, 5n], [3]), sparse("by_coordinates", [0n, 1n, 1n, 0n, 1n, 2n], [3, 2])];
  const read = readModelBytes(encode(model(main)));
  const [scope] = buildScopes(read);
  const of = (name: string): number[] => [...readConstant(read, constantResolver(read)(scope, name)!)];
  expect(of("u64")).toEqual([7, 2 ** 40, 9]);
  expect(of("i64")).toEqual([-3, 2 ** 33]);
  expect(of("u32")).toEqual([4e9, 3]);
  expect(of("f64")).toEqual([0.5, -2, 1e5]);
  expect(of("by_position")).toEqual([0, 5, 0, 6, 0, 7]);
  expect(of("by_coordinates")).toEqual([0, 5, 0, 6, 0, 7]);
});

test("axes and shapes as attributes, which older opsets have", () => {
  const layout = (op: string, attributes: Record<string, { ints: number[] }>) => {
    const nodes = [node(op, ["w"], ["v"], attributes), node("Add", ["x", "v"], ["y"])];
    const main = graph({ input: [value("x", T.FLOAT, [1])], output: [value("y", T.FLOAT, [])], initializer: [raw("w", [1, 4, 1, 6], weights(24))], node: nodes }); // prettier-ignore
    const opened = readModelBytes(encode(model(main, { opset: 11 })));
    const found = constantResolver(opened)(buildScopes(opened)[0], "v");
    return found && [found.shape, [...readConstant(opened, found)]];
  };
  const data = [...weights(24)];
  const ints = (...values: number[]) => ({ ints: values });
  expect(layout("Squeeze", { axes: ints(0) })).toEqual([[4, 1, 6], data]);
  expect(layout("Squeeze", { axes: ints(2) })).toEqual([[1, 4, 6], data]);
  expect(layout("Squeeze", { axes: ints(-4, 2) })).toEqual([[4, 6], data]);
  expect(layout("Squeeze", { axes: ints(1) })).toBeNull();
  expect(layout("Unsqueeze", { axes: ints(0) })).toEqual([[1, 1, 4, 1, 6], data]);
  expect(layout("Unsqueeze", { axes: ints(1, 5) })).toEqual([[1, 1, 4, 1, 6, 1], data]);
  expect(layout("Unsqueeze", {})).toBeNull();
  expect(layout("Reshape", { shape: ints(6, -1) })).toEqual([[6, 4], data]);
  expect(layout("Reshape", {})).toBeNull();
});

test("a summary sorts operators, and shows sizes that are not known", () => {
  const x = value("x", T.FLOAT, ["batch", 4]);
  const unnamed = value("y", T.FLOAT, ["", 4]);
  const read = readModelBytes(
    encode(model(graph({ input: [x], output: [unnamed], node: ["Tanh", "Abs", "Relu", "Abs"].map((op, i, all) => node(op, [i ? `v${i}` : "x"], [i + 1 < all.length ? `v${i + 1}` : "y"])) }))), // prettier-ignore
  );
  const { operators, inputs, outputs } = summarizeModel(read);
  expect(Object.entries(operators)).toEqual([
    ["Abs", 2],
    ["Relu", 1],
    ["Tanh", 1],
  ]);
  expect([inputs[0].dims, outputs[0].dims]).toEqual([
    ["batch", 4],
    ["?", 4],
  ]);
});

test("8-bit formats by operator: rows for LSTM and tables, one scale where a convolution bears it", () => {
  const facts = { symmetric: undefined, perChannel: undefined, unsigned: false, half: false, blockSize: undefined };
  const of = (dtype: string, opType: string, scale: number, more = {}): string => {
    const row = DTYPES.find(({ name }) => name === dtype)!;
    const made = (row.format as (facts: object) => { name: string })({ ...facts, opType, oneScale: () => scale, ...more });
    return made.name;
  };
  expect(of("int8", "MatMul", 20)).toMatch(/^int8_tensor/);
  expect(of("int8", "Conv", 20)).toMatch(/^int8_row/);
  expect(of("int8", "Conv", 40)).toMatch(/^int8_tensor/);
  expect(of("uint8", "LSTM", 40)).toMatch(/^uint8_row/);
  expect(of("int8", "Gather", 40)).toMatch(/^int8_row/);
  expect(of("int8", "Gather", 40, { perChannel: false })).toMatch(/^uint8_tensor.*zp/);
  expect(of("int8", "MatMul", 40, { perChannel: true })).toMatch(/^int8_row/);
  for (const { name, half } of DTYPES) expect([name, half]).toEqual([name, ["fp16", "q4f16", "q2f16"].includes(name)]);
});

test("a model with two versions of the default opset is not raised", async () => {
  const proto = model(
    graph({
      input: [value("x", T.FLOAT, [2, 64])],
      output: [value("y", T.FLOAT, [2, 8])],
      initializer: [raw("w", [64, 8], weights(512))],
      node: [node("MatMul", ["x", "w"], ["y"])],
    }),
    { opset: 13 },
  );
  proto.opsetImport.push({ ...proto.opsetImport[0], domain: "ai.onnx", version: 12n });
  const { report } = await quantizeModelBytes(encode(proto), { format: "int4_b32", target: "qdq", allowUnchanged: true }); // prettier-ignore
  expect(report.layers.map(({ reason }) => reason).join()).toContain("it imports two versions of the default opset");
});

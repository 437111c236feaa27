// What held-back models showed: a weight that several layers read stays one weight whatever makes it, a budget looks at
// every output, inspect knows stored codes and all weights of a node, and reasons name what works.
import { describe, expect, test } from "vitest";
import { measureImportance, readModelBytes, type Feeds, type QuantizeModelOptions } from "../../src/onnx/index.ts";
import { summarizeModel } from "../../src/onnx/inspect.ts";
import { encode, graph, model, node, raw, T, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const K = 64;

const feedsOf = (dims: number[], count = 8): Feeds[] =>
  Array.from({ length: count }, (_, i) => ({
    x: {
      type: "float32",
      data: weights(
        dims.reduce((a, b) => a * b),
        100 + i,
      ).map((v) => 5 * v),
      dims,
    },
  }));

/** One square weight, read twice, by inputs that differ. */
const twice = encode(
  model(
    graph({
      input: [value("x", T.FLOAT, ["n", K])],
      output: [value("y", T.FLOAT, ["n", K])],
      initializer: [raw("w", [K, K], weights(K * K, 1))],
      node: [node("MatMul", ["x", "w"], ["a"], {}, "one"), node("Relu", ["a"], ["ar"]), node("MatMul", ["ar", "w"], ["y"], {}, "two")],
    }),
    { opset: 17 },
  ),
);

/** A convolution by groups and a Gemm. */
const grouped = encode(
  model(
    graph({
      input: [value("x", T.FLOAT, ["n", 8, 8, 8])],
      output: [value("y", T.FLOAT, ["n", 32])],
      initializer: [raw("d", [8, 1, 3, 3], weights(72, 2)), raw("w", [288, 32], weights(288 * 32, 3))],
      node: [
        node("Conv", ["x", "d"], ["a"], { group: 8n }, "depthwise"),
        node("Flatten", ["a"], ["f"]),
        node("Gemm", ["f", "w"], ["y"], {}, "head"),
      ],
    }),
    { opset: 17 },
  ),
);

const recurrent = encode(
  model(
    graph({
      input: [value("x", T.FLOAT, [4, 1, 32])],
      output: [value("y", T.FLOAT, [4, 1, 16])],
      initializer: [
        raw("W", [1, 64, 32], weights(2048, 4)),
        raw("R", [1, 64, 16], weights(1024, 5)),
        raw("axis", [1], new BigInt64Array([1n]), T.INT64),
        raw("w", [16, 16], weights(256, 6)),
      ],
      node: [
        node("LSTM", ["x", "W", "R"], ["s"], { hidden_size: 16n }, "lstm"),
        node("Squeeze", ["s", "axis"], ["q"]),
        node("MatMul", ["q", "w"], ["y"], {}, "out"),
      ],
    }),
    { opset: 17 },
  ),
);

describe("a weight that two layers read", () => {
  const cases: [string, QuantizeModelOptions][] = [
    ["gptq", { format: "int4_b32", target: "stored", algorithm: "gptq" }],
    ["awq", { dtype: "q4", algorithm: "awq" }],
    ["refit", { dtype: "q4", algorithm: "refit", sequential: true }],
    ["static", { activations: "uint8" }],
  ];
  for (const [name, options] of cases)
    test(`is one in the file: ${name}`, async () => {
      const { bytes, report } = await quantizeModelBytes(twice, { ...options, calibration: feedsOf([16, K]) });
      expect(report.layers.map(({ sharedWith }) => sharedWith)).toEqual([undefined, "one"]);
      const large = readModelBytes(bytes).proto.graph!.initializer.filter(({ dims }) => dims.reduce((n, d) => n * Number(d), 1) >= K * 16);
      // one tensor of codes (and the table that decodes stored ones)
      expect(large.filter(({ name: of }) => !of.startsWith("lowbit_"))).toHaveLength(1);
    });

  test("is made from what both inputs say", async () => {
    const asked: QuantizeModelOptions = { dtype: "q4", algorithm: { name: "gptq", damp: 0.01, actOrder: true, polish: 0 } };
    const { report } = await quantizeModelBytes(twice, { ...asked, calibration: feedsOf([16, K]) });
    const one = await quantizeModelBytes(twice, { ...asked, calibration: feedsOf([16, K]), exclude: ["two"] });
    const [both, alone] = [report.layers[0], one.report.layers[0]];
    expect(both.format).toBe("int4_b32");
    expect(both.sqnrDb).not.toBe(alone.sqnrDb);
  });
});

test("importances count every output, not the first alone", async () => {
  const two = encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["n", K])],
        output: [value("boxes", T.FLOAT, ["n", K]), value("scores", T.FLOAT, ["n", K])],
        initializer: [raw("u", [K, K], weights(K * K, 7)), raw("v", [K, K], weights(K * K, 8))],
        node: [node("MatMul", ["x", "u"], ["boxes"], {}, "box"), node("MatMul", ["x", "v"], ["scores"], {}, "score")],
      }),
      { opset: 17 },
    ),
  );
  const found = await measureImportance(readModelBytes(two), feedsOf([16, K], 2), { candidates: ["int3_b32"] });
  expect(found.get("score")! / found.get("box")!).toBeGreaterThan(0.2);
});

test("awq of a whole model leaves convolutions in groups to a search, and says so", async () => {
  const asked: QuantizeModelOptions = { format: "int4_b32", target: "stored", algorithm: "awq", calibration: feedsOf([1, 8, 8, 8]) };
  const { report } = await quantizeModelBytes(grouped, asked);
  expect(report.layers.map(({ algorithm }) => algorithm)).toEqual(["rtn", "awq"]); // its scales are searched
  expect(report.notes.join()).toMatch(/depthwise: .*awq would give every group a basis of its own/);
});

test("a budget says which layers it is not for", async () => {
  const { report } = await quantizeModelBytes(grouped, {
    budget: { bitsPerWeight: 5.5, candidates: ["int4_b32"] },
    calibration: feedsOf([1, 8, 8, 8]),
  });
  expect(report.layers.map(({ reason }) => reason)).toEqual([expect.stringMatching(/outside the budget.*1024/), undefined]);
});

test("a dtype with float16 says where no layer got its codes", async () => {
  const conv = encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["n", 8, 8, 8])],
        output: [value("y", T.FLOAT, ["n", 8, 6, 6])],
        initializer: [raw("d", [8, 8, 3, 3], weights(576, 2))],
        node: [node("Conv", ["x", "d"], ["y"], {}, "conv")],
      }),
      { opset: 17 },
    ),
  );
  const { report } = await quantizeModelBytes(conv, { dtype: "q4f16" });
  expect(report.notes.join()).toMatch(/q4f16: no layer got its codes \(q4f16 has no form of Conv\)/);
  const other = await quantizeModelBytes(twice, { dtype: "q4f16" });
  expect(other.report.notes.join()).not.toMatch(/no layer/);
});

describe("inspect", () => {
  test("lists both weights of a recurrent node", () => {
    const { layers } = summarizeModel(readModelBytes(recurrent));
    expect(layers.map(({ name, weight }) => [name, weight])).toEqual([
      ["lstm.W", "W"],
      ["lstm.R", "R"],
      ["out", "w"],
    ]);
  });

  test("shows stored codes as the layers' weights, and no node that decodes them", async () => {
    const { bytes } = await quantizeModelBytes(grouped, { format: "int4_b32", target: "stored" });
    const { layers } = summarizeModel(readModelBytes(bytes));
    expect(layers.map(({ name, opType, format }) => [name, opType, format])).toEqual([
      ["depthwise", "Conv", "int4_b32"],
      ["head", "Gemm", "int4_b32"],
    ]);
    // 4 bits a weight and a float32 scale for 32 of them (the float16 of a small file is none of its business)
    expect(layers[1].bytes).toBe((288 * 32) / 2 + ((288 * 32) / 32) * 4);
  });
});

test("static quantization names what holds the weights of an operator that it does not know", async () => {
  const feeds = feedsOf([4, 1, 32], 4);
  const { report } = await quantizeModelBytes(recurrent, { activations: "uint8", calibration: feeds });
  expect(report.layers.find(({ name }) => name === "lstm.R")!.reason).toMatch(/static quantization has no form of LSTM: the target stored/);
});

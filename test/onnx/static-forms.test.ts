// Static quantization in parts: what becomes an operator on integers and what stays between pairs, where 16 bits are of
// the standard, and what the notes say.
import { create } from "@bufbuild/protobuf";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { ValueInfoProtoSchema, type NodeProto, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { readModelBytes, type QuantizeBytesOptions } from "../../src/onnx/index.ts";
import { staticWeights } from "../../src/onnx/targets/static/weights.ts";
import { encode, graph, model, node, raw, T, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const count = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);
const X = [1, 4, 6, 6];
const bytesOf = (nodes: NodeProto[], initializer: TensorProto[], opset = 17, x = X): Uint8Array =>
  encode(model(graph({ input: [value("x", T.FLOAT, x)], output: [create(ValueInfoProtoSchema, { name: "y" })], initializer, node: nodes }), { opset, ir: 10 })); // prettier-ignore
const feeds = (x = X) => [1, 2].map((seed) => ({ x: { type: "float32", dims: x, data: weights(count(x), seed).map((v) => 10 * v) } }));
async function run(bytes: Uint8Array, x = X): Promise<Float32Array> {
  const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1, graphOptimizationLevel: "disabled" });
  const { y } = await session.run({ x: new Tensor("float32", feeds(x)[0].x.data, x) });
  await session.release();
  return Float32Array.from(y.data as Float32Array);
}
async function made(bytes: Uint8Array, options: Partial<QuantizeBytesOptions>, x = X) {
  const { bytes: quantized, report } = await quantizeModelBytes(bytes, { activations: "uint8", calibration: feeds(x), ...options } as QuantizeBytesOptions); // prettier-ignore
  const nodes = readModelBytes(quantized).proto.graph!.node;
  const [want, got] = [await run(bytes, x), await run(quantized, x)];
  let [signal, noise] = [0, 0];
  want.forEach((v, i) => ([signal, noise] = [signal + v * v, noise + (v - got[i]) ** 2]));
  return {
    nodes,
    operators: nodes.map(({ opType }) => opType),
    notes: report.notes,
    layers: report.layers,
    db: 10 * Math.log10(signal / noise),
  };
}
const CONV = [raw("w", [5, 4, 3, 3], weights(180, 3)), raw("b", [5], weights(5, 4))];
const conv = (out: string): NodeProto => node("Conv", ["x", "w", "b"], [out], { pads: { ints: [1, 1, 1, 1] } }, "conv");
const scalar = (name: string, v: number): TensorProto => raw(name, [], Float32Array.of(v));

test("layers that stay say why: by rule, pattern, operator, place and weight", async () => {
  const inner = (out: string): NodeProto => node("MatMul", ["r5", "wi"], [out], {}, "inside");
  const branch = (nodes: NodeProto[], out: string) => graph({ output: [create(ValueInfoProtoSchema, { name: out })], node: nodes });
  const chain = ["one", "two", "three", "four", "five"].flatMap((name, i) => [
    node(name === "four" ? "Gemm" : "MatMul", [i === 0 ? "x" : `r${i}`, "w"], [`m${i + 1}`], {}, name),
    node("Tanh", [`m${i + 1}`], [`r${i + 1}`]),
  ]);
  const nodes = [
    ...chain,
    node("If", ["yes"], ["c"], { then_branch: branch([inner("p")], "p"), else_branch: branch([node("Identity", ["r5"], ["q"])], "q") }),
    node("Relu", ["w"], ["computed"]),
    node("MatMul", ["c", "computed"], ["d"], {}, "made"),
    node("Gather", ["table", "ids"], ["e"], {}, "table"),
    node("Add", ["d", "e"], ["y"]),
  ];
  const [w, wi, table] = ["w", "wi", "table"].map((name, i) => raw(name, [8, 8], weights(64, i + 1)));
  const init = [w, wi, table, raw("yes", [], Uint8Array.of(1), T.BOOL), raw("ids", [3], BigInt64Array.of(0n, 1n, 2n), T.INT64)];
  const rules = [{ match: "one", keep: true, reason: "it is the first" }, { match: "two", keep: true }]; // prettier-ignore
  const options = { rules, keep: ["three"], keepOps: ["Gemm"] } as const;
  const of = async (more: object) => Object.fromEntries((await made(bytesOf(nodes, init, 17, [3, 8]), { ...options, ...more } as never, [3, 8])).layers.map(({ name, reason }) => [name, reason])); // prettier-ignore
  const reasons = {
    one: "it is the first",
    two: "kept by the rule two",
    three: "kept by three",
    four: "kept: Gemm is among keepOps",
    inside: expect.stringMatching(/^it lies in .*then_branch: activations inside If, Loop and Scan cannot be watched$/),
    made: "the weight is not constant",
    table: expect.stringContaining("Gather"),
  };
  expect(await of({})).toEqual({ ...reasons, five: undefined });
  expect(await of({ opTypes: ["MatMul", "Gemm"] })).toMatchObject({ ...reasons, five: undefined });
  expect(await of({ exclude: ["five"], opTypes: ["MatMul", "Add"] })).toMatchObject({ four: "Gemm is not quantized unless opTypes (--op-types) names it", five: expect.stringContaining("five") }); // prettier-ignore
});

describe("operators on integers", () => {
  const qoperator = { outputs: "qoperator" } as const;
  test.each<[string, NodeProto[], TensorProto[], string[]]>([
    ["Conv", [conv("y")], [], ["QLinearConv"]],
    ["Conv, its bias left out", [node("Conv", ["x", "w", ""], ["y"], { pads: { ints: [1, 1, 1, 1] } }, "conv")], [], ["QLinearConv"]],
    ["Conv and Relu", [conv("c"), node("Relu", ["c"], ["y"])], [], ["QLinearConv"]],
    ["Conv and Clip from above", [conv("c"), node("Clip", ["c", "", "top"], ["y"])], [scalar("top", 0.5)], ["QLinearConv"]],
    ["Conv and Clip from below", [conv("c"), node("Clip", ["c", "low"], ["y"])], [scalar("low", 0)], ["QLinearConv"]],
    ["Conv and Sigmoid", [conv("c"), node("Sigmoid", ["c"], ["y"])], [], ["QLinearConv", "QLinearSigmoid"]],
    ["Conv, pooled", [conv("c"), node("GlobalAveragePool", ["c"], ["y"])], [], ["QLinearConv", "QLinearGlobalAveragePool"]],
    ["Conv, averages of windows", [conv("c"), node("AveragePool", ["c"], ["y"], { kernel_shape: { ints: [2, 2] } })], [], ["QLinearConv", "QLinearAveragePool"]], // prettier-ignore
    ["Conv and a sum of it", [conv("c"), node("Sigmoid", ["c"], ["s"]), node("Add", ["c", "s"], ["y"])], [], ["QLinearConv", "QLinearSigmoid", "QLinearAdd"]], // prettier-ignore
    ["Conv and a product of it", [conv("c"), node("Sigmoid", ["c"], ["s"]), node("Mul", ["c", "s"], ["y"])], [], ["QLinearConv", "QLinearSigmoid", "QLinearMul"]], // prettier-ignore
    ["Conv and both beside each other", [conv("c"), node("Sigmoid", ["c"], ["s"]), node("Concat", ["c", "s"], ["y"], { axis: 1n })], [], ["QLinearConv", "QLinearSigmoid", "QLinearConcat"]], // prettier-ignore
    ["Conv, the largest of windows", [conv("c"), node("MaxPool", ["c"], ["y"], { kernel_shape: { ints: [2, 2] } })], [], ["QLinearConv", "MaxPool"]], // prettier-ignore
    ["Conv, moved", [conv("c"), node("Transpose", ["c"], ["t"], { perm: { ints: [0, 2, 3, 1] } }), node("Reshape", ["t", "s"], ["y"])], [raw("s", [2], BigInt64Array.of(1n, -1n), T.INT64)], ["QLinearConv", "Transpose", "Reshape"]], // prettier-ignore
  ])("%s", async (_, nodes, init, wanted) => {
    const { operators, notes, db } = await made(bytesOf(nodes, [...CONV, ...init]), {
      ...qoperator,
      opTypes: nodes.map(({ opType }) => opType).filter((op) => op !== "Relu" && op !== "Clip"),
    });
    expect(operators).toEqual(["QuantizeLinear", ...wanted, "DequantizeLinear"]);
    expect(db).toBeGreaterThan(25);
    const own = wanted.filter((op) => !["MaxPool", "Transpose", "Reshape"].includes(op)).length;
    expect(notes.join()).toMatch(new RegExp(`(${own}|${wanted.length}) operators on integers \\(QOperator\\)`));
    expect(notes.join()).not.toContain("as QDQ pairs");
  });

  test.each<[string, NodeProto, TensorProto[], boolean]>([
    ["Relu", node("Relu", ["c"], ["y"]), [], false],
    ["Clip from below", node("Clip", ["c", "low"], ["y"]), [scalar("low", -0.2)], false],
    ["Relu of symmetric codes", node("Relu", ["c"], ["y"]), [], true],
  ])("int8 activations behind a Conv, %s: part of its codes where they end there", async (_, after, init, symmetric) => {
    const options = { ...qoperator, activations: "int8", symmetricActivations: symmetric, opTypes: ["Conv"] } as const;
    const { operators, db } = await made(bytesOf([conv("c"), after], [...CONV, ...init]), options);
    const kinds = ["Conv", "QLinearConv", after.opType];
    expect(operators.filter((op) => kinds.includes(op))).toEqual(symmetric ? ["Conv", "Relu"] : ["QLinearConv"]);
    expect(db).toBeGreaterThan(25);
  });

  const sizes = raw("sizes", [4], BigInt64Array.of(1n, 5n, 12n, 12n), T.INT64);
  const resize = (mode: string): NodeProto => node("Resize", ["c", "", "", "sizes"], ["y"], { mode, coordinate_transformation_mode: "asymmetric", nearest_mode: "floor" }); // prettier-ignore
  const pool = (outputs: string[]): NodeProto => node("MaxPool", ["c"], outputs, { kernel_shape: { ints: [2, 2] } });
  test.each<[string, NodeProto[], TensorProto[], string[]]>([
    ["Resize to the nearest", [resize("nearest")], [sizes], ["QLinearConv", "Resize"]],
    ["Resize between", [resize("linear")], [sizes], ["QLinearConv", "DequantizeLinear", "Resize", "QuantizeLinear"]],
    ["MaxPool with indices", [pool(["m", "i"]), node("Cast", ["i"], ["f"], { to: 1n }), node("ReduceMax", ["f"], ["t"]), node("Mul", ["t", "zero"], ["z"]), node("Add", ["m", "z"], ["y"])], [scalar("zero", 0)], ["QLinearConv", "DequantizeLinear", "MaxPool"]], // prettier-ignore
    ["an operator without a form", [node("HardSwish", ["c"], ["y"])], [], ["QLinearConv", "DequantizeLinear", "HardSwish", "QuantizeLinear"]], // prettier-ignore
    ["Relu and Clip", [node("Relu", ["c"], ["r"]), node("Clip", ["r", "", "top"], ["y"])], [scalar("top", 9)], ["QLinearConv", "DequantizeLinear"]], // prettier-ignore
    ["Clip to a bound that is computed", [node("Abs", ["low"], ["bound"]), node("Clip", ["c", "bound"], ["y"])], [scalar("low", 0)], ["Conv", "Clip"]], // prettier-ignore
    ["Clip inside of the range", [node("Clip", ["c", "low", "top"], ["k"]), node("Add", ["k", "c"], ["y"])], [scalar("low", -0.1), scalar("top", 0.1)], ["Clip"]], // prettier-ignore
  ])("%s behind a Conv: what there is no operator for stays", async (_, after, init, wanted) => {
    const opTypes = ["Conv", "Resize", "MaxPool", "HardSwish", "Add"].filter((op) => op === "Conv" || after.some(({ opType }) => opType === op)); // prettier-ignore
    const { operators, db } = await made(bytesOf([conv("c"), ...after], [...CONV, ...init]), { ...qoperator, opTypes });
    const at = operators.indexOf(wanted[0]);
    expect(at).toBeGreaterThanOrEqual(0);
    expect(operators.filter((op) => wanted.includes(op))).toEqual(expect.arrayContaining(wanted));
    if (wanted[0] === "QLinearConv") expect(operators.slice(at, at + wanted.length)).toEqual(wanted);
    expect(db).toBeGreaterThan(25);
  });

  test("Gemm and MatMul, and what keeps them from it", async () => {
    const x = [3, 8];
    const init = [raw("w", [8, 5], weights(40, 3)), raw("b", [5], weights(5, 4))];
    const gemm = await made(bytesOf([node("Gemm", ["x", "w", "b"], ["y"], { alpha: 0.5 }, "g")], [init[0]].concat(init[1]), 17, x), qoperator, x); // prettier-ignore
    expect(gemm.operators.filter((op) => op.includes("Gemm"))).toHaveLength(1);
    const plain = await made(bytesOf([node("Gemm", ["x", "w", "b"], ["y"], {}, "g")], init, 17, x), qoperator, x);
    expect(plain.operators).toEqual(["QuantizeLinear", "QGemm", "DequantizeLinear"]);
    const matmul = await made(bytesOf([node("MatMul", ["x", "w"], ["y"], {}, "m")], [init[0]], 17, x), qoperator, x);
    expect(matmul.operators).toEqual(["QuantizeLinear", "QLinearMatMul", "DequantizeLinear"]);
    expect(matmul.layers[0]).toMatchObject({ target: "qoperator" });
    for (const one of [gemm, plain, matmul]) expect(one.db).toBeGreaterThan(25);
  });

  test.each([0.5, -2, 1e6])("Gemm's alpha of %d is in the weight or stays, never both", async (alpha) => {
    const x = [3, 64];
    const bytes = bytesOf([node("Gemm", ["x", "w", "b"], ["y"], { alpha }, "g")], [raw("w", [64, 5], weights(320, 3)), raw("b", [5], weights(5, 4))], 21, x); // prettier-ignore
    for (const outputs of ["qdq", "qoperator"] as const) expect((await made(bytes, { outputs }, x)).db).toBeGreaterThan(25);
    for (const options of [
      { format: "int8_row", target: "qdq" },
      { format: "int8_b32", target: "qdq" },
      { format: "int8_row", target: "stored" },
      { dtype: "q8-block" },
      { dtype: "int8" },
    ])
      expect([options, (await made(bytes, { activations: undefined, calibration: undefined, ...options } as never, x)).db > 30]).toEqual([options, true]); // prettier-ignore
  });

  test("weights in blocks stay between pairs, which the notes name", async () => {
    const x = [3, 64];
    const bytes = bytesOf([node("MatMul", ["x", "w"], ["y"], {}, "m")], [raw("w", [64, 5], weights(320, 3))], 21, x);
    const { operators, notes, db } = await made(bytes, { ...qoperator, format: "int8_b32" }, x);
    expect(operators).toContain("MatMul");
    expect(operators).not.toContain("QLinearMatMul");
    expect(notes.join()).toMatch(/as QDQ pairs, because no integer operator takes them: 1 MatMul/);
    expect(db).toBeGreaterThan(25);
  });

  test("a value that something else reads as floats keeps its pair", async () => {
    const nodes = [conv("c"), node("Erf", ["c"], ["e"]), node("Sigmoid", ["c"], ["s"]), node("Add", ["e", "s"], ["y"])];
    const { operators, db } = await made(bytesOf(nodes, CONV), qoperator);
    expect(operators).toEqual(expect.arrayContaining(["QLinearConv", "Erf"]));
    expect(db).toBeGreaterThan(25);
  });
});

describe("types of activations", () => {
  test.each([
    [17, "uint8", ""],
    [17, "uint16", "com.microsoft"],
    [21, "uint16", ""],
    [21, "int16", ""],
    [17, "int16", "com.microsoft"],
    [17, "int8", ""],
  ] as const)("opset %i, %s: operators of %j", async (opset, activations, domain) => {
    const { nodes, notes, db } = await made(bytesOf([conv("y")], CONV, opset), { activations });
    const pairs = nodes.filter(({ opType, input }) => opType === "QuantizeLinear" || (opType === "DequantizeLinear" && input[0].startsWith("x_"))); // prettier-ignore
    expect(pairs.length).toBeGreaterThan(1);
    for (const one of pairs) expect([one.opType, one.domain]).toEqual([one.opType, domain]);
    expect(notes.join()).toContain(`activations quantized to ${activations}; ranges by mse`);
    expect(db).toBeGreaterThan(25);
  });

  test("types of single values and the observer are in the notes, the most frequent first", async () => {
    const nodes = [conv("c"), node("Sigmoid", ["c"], ["s"]), node("Mul", ["c", "s"], ["y"])];
    const { notes } = await made(bytesOf(nodes, CONV, 21), {
      activationTypes: { s: "uint16" },
      observer: "minMax",
      opTypes: ["Conv", "Sigmoid", "Mul"],
    });
    expect(notes.join()).toContain("3 activations quantized to 2 to uint8, 1 to uint16; ranges by minMax");
  });
});

test("weights are fitted to data of two vectors for each input, and rounded to nearest on fewer", () => {
  const algorithm = (rows: number, heldOut: object | null = null) =>
    staticWeights({ statistics: { rows, hessian: new Float64Array(100) }, heldOut, name: "l", rows: 1, k: 10 } as never).algorithm;
  expect([algorithm(19), algorithm(20), algorithm(21)]).toEqual(["rtn", "gptq", "gptq"]);
  expect([algorithm(20, { hessian: null }), algorithm(20, { hessian: new Float64Array(100) })]).toEqual(["rtn", "gptq"]);
  expect(staticWeights({ statistics: null, heldOut: null, name: "l", rows: 1, k: 10 } as never).algorithm).toBe("rtn");
});

test.each<[string, NodeProto, number[], number[], Partial<QuantizeBytesOptions>, boolean]>([
  ["a convolution", node("Conv", ["x", "w"], ["y"], {}, "l"), [5, 4, 3, 3], X, {}, true],
  ["a product", node("MatMul", ["x", "w"], ["y"], {}, "l"), [12, 5], [30, 12], {}, true],
  ["an algorithm of its own", node("Conv", ["x", "w"], ["y"], {}, "l"), [5, 4, 3, 3], X, { algorithm: "rtn" }, false],
  ["groups", node("Conv", ["x", "w"], ["y"], { group: 2n }, "l"), [6, 2, 3, 3], X, {}, false],
  ["depthwise", node("Conv", ["x", "w"], ["y"], { group: 4n }, "l"), [4, 1, 3, 3], X, {}, false],
  ["one input", node("Conv", ["x", "w"], ["y"], {}, "l"), [5, 1, 1, 1], [1, 1, 6, 6], {}, false],
  ["too many inputs", node("MatMul", ["x", "w"], ["y"], {}, "l"), [2049, 2], [3, 2049], {}, false],
  ["ConvTranspose", node("ConvTranspose", ["x", "w"], ["y"], {}, "l"), [4, 5, 3, 3], X, { opTypes: ["ConvTranspose"] }, false],
])("%s: is the weight fitted to what it multiplies?", async (_, one, dims, x, options, fitted) => {
  const { layers, db } = await made(bytesOf([one], [raw("w", dims, weights(count(dims), 3))], 17, x), options, x);
  // the error of outputs is known where the vectors were looked at
  expect([layers[0].format !== null, layers[0].outputSqnrDb !== undefined]).toEqual([true, fitted]);
  expect(db).toBeGreaterThan(25);
});

describe("Gemm", () => {
  const x = [3, 32];
  const init = [raw("w", [32, 16], weights(512, 3)), raw("c", [16], weights(16, 4))];
  test.each<[string, Record<string, number>, bias: boolean, form: "int32" | "float" | "none", op: string]>([
    ["with a bias", {}, true, "int32", "QGemm"],
    ["with a bias, defaults written out", { alpha: 1, beta: 1 }, true, "int32", "QGemm"],
    ["with a bias times beta", { beta: -3 }, true, "float", "Gemm"],
    ["of a product times alpha, which goes into the weight", { alpha: 0.5 }, true, "int32", "QGemm"],
    ["of a product times an alpha too large for that", { alpha: 2 ** 20 }, true, "float", "Gemm"],
    ["without a bias", {}, false, "none", "QGemm"],
    ["without a bias that beta could multiply", { beta: -3 }, false, "none", "QGemm"],
    ["without a bias, times alpha", { alpha: 0.5 }, false, "none", "QGemm"],
    ["without a bias, times a large alpha", { alpha: 2 ** 20 }, false, "none", "QGemm"],
  ])("%s: an int32 bias between pairs, or none; and as an operator", async (_, attributes, bias, form, op) => {
    const bytes = bytesOf([node("Gemm", bias ? ["x", "w", "c"] : ["x", "w"], ["y"], attributes, "g")], init.slice(0, bias ? 2 : 1), 17, x);
    const { bytes: pairs } = await quantizeModelBytes(bytes, { activations: "uint8", calibration: feeds(x) });
    const kept = readModelBytes(pairs).proto.graph!.initializer;
    const [codes, floats] = [kept.some(({ dataType }) => dataType === T.INT32), kept.some(({ name }) => name === "c")];
    expect([codes, floats]).toEqual([form === "int32", form === "float"]);
    const { operators, db } = await made(bytes, { outputs: "qoperator" }, x);
    expect([operators.includes(op), db > 25]).toEqual([true, true]);
  });
});

// Targets and what they cannot hold: every format and operator is either written, and then onnxruntime computes what
// its codes stand for, or left with a reason that names what stands in the way.
import { create } from "@bufbuild/protobuf";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { allFormats, format } from "../../formats/index.ts";
import { ValueInfoProtoSchema, type NodeProto, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { encodeHalf, halfTable } from "../../src/onnx/file/half.ts";
import { modelLayers, readModelBytes, type QuantizeBytesOptions } from "../../src/onnx/index.ts";
import { nbitsPlan, withScaleFormat } from "../../src/onnx/targets/nbits.ts";
import { inFormat, oneScaleDecibels } from "../../src/onnx/weights.ts";
import { T, encode, graph, matmulModel, model, node, raw, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const count = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);
function single(made: NodeProto, x: number[], initializer: TensorProto[], type: number = T.FLOAT, opset = 17): Uint8Array {
  const input = made.opType === "Gather" ? value("x", T.INT64, x) : value("x", type, x);
  const proto = model(graph({ input: [input], output: [create(ValueInfoProtoSchema, { name: "y" })], initializer, node: [made] }), { opset, ir: 10 }); // prettier-ignore
  return encode(proto);
}
const w = (dims: number[], type: number = T.FLOAT): TensorProto =>
  type === T.FLOAT
    ? raw("w", dims, weights(count(dims), 2))
    : raw("w", dims, Uint16Array.from(weights(count(dims), 2), encodeHalf), T.FLOAT16);
async function run(bytes: Uint8Array, dims: number[], type: number): Promise<number[]> {
  const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1, graphOptimizationLevel: "disabled" });
  const ids = type === T.INT64;
  const data = weights(count(dims), 7);
  const x = ids ? new Tensor("int64", BigInt64Array.from({ length: count(dims) }, (_, i) => BigInt(i)), dims) : type === T.FLOAT16 ? new Tensor("float16", Uint16Array.from(data, encodeHalf), dims) : new Tensor("float32", data, dims); // prettier-ignore
  const { y } = await session.run({ x });
  await session.release();
  return Array.from(y.data as Float32Array, (v) => (y.type === "float16" ? halfTable()[v] : v));
}
const decibels = (a: number[], b: number[]): number => {
  expect(a.length).toBe(b.length);
  let [signal, noise] = [0, 0];
  a.forEach((v, i) => ([signal, noise] = [signal + v * v, noise + (v - b[i]) ** 2]));
  return 10 * Math.log10(signal / noise);
};

describe("products in every form become MatMulNBits, 8 bits keep them", () => {
  const [m, k, n] = [5, 64, 7];
  const forms: Record<string, [NodeProto, number[], TensorProto[], number?]> = {
    MatMul: [node("MatMul", ["x", "w"], ["y"], {}, "p"), [m, k], [w([k, n])]],
    "MatMul of float16": [node("MatMul", ["x", "w"], ["y"], {}, "p"), [m, k], [w([k, n], T.FLOAT16)], T.FLOAT16],
    "MatMul with more in front": [node("MatMul", ["x", "w"], ["y"], {}, "p"), [2, m, k], [w([k, n])]],
    Gemm: [node("Gemm", ["x", "w", "c"], ["y"], { alpha: 0.5, beta: 3 }, "p"), [m, k], [w([k, n]), raw("c", [n], weights(n, 3))]],
    "Gemm, beta 0": [node("Gemm", ["x", "w", "c"], ["y"], { beta: 0 }, "p"), [m, k], [w([k, n]), raw("c", [n], weights(n, 3))]],
    "Gemm of a turned input": [node("Gemm", ["x", "w"], ["y"], { transA: 1n }, "p"), [k, m], [w([k, n])]],
    "Gemm, weight on the left": [node("Gemm", ["w", "x"], ["y"], {}, "p"), [k, m], [w([n, k])]],
    "Gemm, weight on the left, turned input": [node("Gemm", ["w", "x", "c"], ["y"], { transB: 1n, transA: 1n }, "p"), [m, k], [w([k, n]), raw("c", [n, 1], weights(n, 3))]], // prettier-ignore
  };
  /** Nodes in all: what turns, scales and adds beside the product. */
  const NODES: Record<string, number> = { Gemm: 3, "Gemm of a turned input": 2, "Gemm, weight on the left": 3, "Gemm, weight on the left, turned input": 3 }; // prettier-ignore
  test.each(Object.entries(forms))("%s", async (what, [made, x, init, type = T.FLOAT]) => {
    const bytes = single(made, x, init, type);
    const { bytes: quantized, report } = await quantizeModelBytes(bytes, { dtype: "q8-block", accuracyLevel: 0 });
    expect(report.layers.map(({ reason }) => reason)).toEqual([undefined]);
    const operators = readModelBytes(quantized).proto.graph!.node.map(({ opType }) => opType);
    expect(operators).toContain("MatMulNBits");
    // nothing around the product that it does not need
    expect(operators.length).toBe(NODES[what] ?? 1);
    expect(decibels(await run(bytes, x, type), await run(quantized, x, type))).toBeGreaterThan(35);
  });
  test("a weight on the left of a MatMul stays", async () => {
    const { report } = await quantizeModelBytes(single(node("MatMul", ["w", "x"], ["y"], {}, "p"), [k, m], [w([n, k])]), { dtype: "q4", allowUnchanged: true }); // prettier-ignore
    expect(report.layers[0].reason).toBe("the weight is the left operand");
  });
  test("Gemm of opset 6 stays", async () => {
    const { report } = await quantizeModelBytes(single(node("Gemm", ["x", "w"], ["y"], {}, "p"), [m, k], [w([k, n])], T.FLOAT, 6), { dtype: "q4", allowUnchanged: true }); // prettier-ignore
    expect(report.layers[0].reason).toMatch(/opset 6/);
  });
});

describe("embeddings", () => {
  const table = (dims: number[], type: number = T.FLOAT, axis = 0n) => single(node("Gather", ["w", "x"], ["y"], { axis }, "e"), [3], [w(dims, type)]); // prettier-ignore
  const opTypes = ["Gather"];
  test.each([[T.FLOAT], [T.FLOAT16]])("of type %i become GatherBlockQuantized", async (type) => {
    const bytes = table([9, 64], type);
    const { bytes: quantized } = await quantizeModelBytes(bytes, { dtype: "q8-block", opTypes });
    expect(readModelBytes(quantized).proto.graph!.node.map(({ opType }) => opType).filter((op) => op !== "Reshape")).toEqual(["GatherBlockQuantized"]); // prettier-ignore
    expect(decibels(await run(bytes, [3], T.INT64), await run(quantized, [3], T.INT64))).toBeGreaterThan(35);
  });
  test.each<[Uint8Array, QuantizeBytesOptions, RegExp]>([
    [table([9, 64], T.FLOAT, 1n), { dtype: "q4" }, /rows \(axis 0\) only|axis 1/],
    [table([9, 4, 64]), { dtype: "q4" }, /the table has 3 dimensions, not 2/],
    [table([9, 64]), { dtype: "q2" }, /4 and 8 bits, not 2/],
    [table([9, 40]), { dtype: "q4" }, /the width 40 is no multiple of the block size 32/],
    [table([9, 4, 64]), { format: "int4_b32", target: "qdq" }, /blocks along one axis, and the weight has 3 dimensions/],
  ])("%#: stays with a reason", async (bytes, options, reason) => {
    const { report } = await quantizeModelBytes(bytes, { ...options, opTypes, allowUnchanged: true });
    expect(report.layers[0].reason).toMatch(reason);
  });
});

describe("DequantizeLinear", () => {
  const conv = (op: string, dims: number[], attributes = {}) => single(node(op, ["x", "w"], ["y"], attributes, "c"), [1, dims[op === "Conv" ? 1 : 0] * ((attributes as { group?: bigint }).group === undefined ? 1 : 2), 6, 6], [w(dims)], T.FLOAT, 21); // prettier-ignore
  const x = (dims: number[], op: string): number[] => [1, op === "Conv" ? dims[1] : dims[0], 6, 6];
  test.each<[string, number[], string]>([
    ["Conv", [4, 16, 3, 3], "int8_row"],
    ["Conv", [4, 16, 3, 3], "int8_tensor"],
    ["Conv", [4, 16, 2, 2], "int8_b16"],
    ["ConvTranspose", [16, 4, 3, 3], "int8_row"],
    ["ConvTranspose", [16, 4, 3, 3], "int8_tensor"],
  ])("%s %j in %s", async (op, dims, name) => {
    const bytes = conv(op, dims);
    const { bytes: quantized, report } = await quantizeModelBytes(bytes, { format: name, target: "qdq" });
    expect(report.layers[0].reason).toBeUndefined();
    expect(decibels(await run(bytes, x(dims, op), T.FLOAT), await run(quantized, x(dims, op), T.FLOAT))).toBeGreaterThan(35);
  });
  test.each(["int8_row", "int8_b16", "int8_tensor", "uint8_b32_uint8_zp", "int16_row"])(
    "MatMul in %s, the weight turned in the file",
    async (name) => {
      const bytes = single(node("MatMul", ["x", "w"], ["y"], {}, "p"), [3, 64], [w([64, 10])], T.FLOAT, 21);
      const { bytes: quantized } = await quantizeModelBytes(bytes, { format: name, target: "qdq" });
      const made = readModelBytes(quantized).proto.graph!.initializer.find(({ dims }) => dims.length === 2 && Number(dims[0]) === 64)!;
      expect(made.dims.map(Number)).toEqual([64, 10]);
      expect(decibels(await run(bytes, [3, 64], T.FLOAT), await run(quantized, [3, 64], T.FLOAT))).toBeGreaterThan(35);
    },
  );
  test.each<[Uint8Array, string, RegExp]>([
    [conv("ConvTranspose", [16, 4, 3, 3]), "int8_b16", /no blocks of a ConvTranspose \(scales per row can\)/],
    [single(node("MatMul", ["x", "w"], ["y"], {}, "p"), [2, 3, 64], [w([2, 64, 10])]), "int8_row", /the weight has 3 dimensions, not 2/],
    [single(node("MatMul", ["x", "w"], ["y"], {}, "p"), [3, 64], [w([64, 10])], T.FLOAT, 6), "int8_row", /opset 6/],
    [encode(matmulModel(w([64, 10]), 64, 10)), "nvfp4", /holds integers of at most 16 bits with scales/],
    [encode(matmulModel(w([64, 10]), 64, 10)), "int4_b32_float8_e8m0fnu", /one level of float scales/],
  ])("%#: stays with a reason", async (bytes, name, reason) => {
    const { report } = await quantizeModelBytes(bytes, { format: name, target: "qdq", allowUnchanged: true });
    expect(report.layers[0].reason).toMatch(reason);
    // with a dimension of one in front
    const deep = single(node("MatMul", ["x", "w"], ["y"], {}, "p"), [3, 64], [w([1, 64, 10])], T.FLOAT, 21);
    const { bytes: again } = await quantizeModelBytes(deep, { format: name, target: "qdq" });
    expect(decibels(await run(deep, [3, 64], T.FLOAT), await run(again, [3, 64], T.FLOAT))).toBeGreaterThan(35);
  });
});

describe("stored", () => {
  test("every format is stored, or says why not", async () => {
    const bytes = encode(matmulModel(raw("w", [256, 4], weights(1024).map(Math.abs)), 256, 4));
    const left: string[] = [];
    for (const { name } of allFormats) {
      const { report } = await quantizeModelBytes(bytes, { format: name, target: "stored", allowUnchanged: true });
      const [{ format: made, reason }] = report.layers;
      expect([name, made === null]).toEqual([name, reason !== undefined]);
      if (reason !== undefined) left.push(`${name}: ${reason}`);
    }
    for (const line of left) expect(line).toMatch(/are no codes of one format|bits|opset|no whole blocks|cannot/);
    expect(left.length).toBeLessThan(allFormats.length / 2);
  });
  test("tensors are named after what they hold", async () => {
    const names = async (name: string): Promise<string[]> => {
      const { bytes } = await quantizeModelBytes(encode(matmulModel(w([256, 4]), 256, 4)), { format: name, target: "stored" });
      return readModelBytes(bytes).proto.graph!.initializer.map((one) => one.name).filter((one) => one.startsWith("w_")).sort(); // prettier-ignore
    };
    expect(await names("uint4_b32_float16_zp")).toEqual(expect.arrayContaining(["w_codes", "w_offsets", "w_scales"]));
    expect(await names("nvfp4")).toEqual(expect.arrayContaining(["w_codes", "w_scales", "w_super_scales"]));
  });
});

test("plans of blocks: sizes that the operator has, spans of two dimensions by their width", () => {
  const plan = (name: string, k = 256) => nbitsPlan(format(name), k);
  expect(plan("int4_b32")).toEqual({ bits: 4, blockSize: 32, asIs: true });
  expect(plan("int4_b32_float16")).toEqual({ bits: 4, blockSize: 32, asIs: true });
  expect(plan("int3_b96")).toEqual({ bits: 4, blockSize: 32, asIs: false });
  expect(plan("int4_b24")).toBe("blocks of 24 are no multiple of 16");
  expect(plan("int6_row")).toMatchObject({ bits: 8, blockSize: 128 });
  expect(plan("int6_row", 20)).toMatchObject({ blockSize: 16 });
  expect(plan("float8_e4m3fn")).toBe("float8_e4m3fn has no scales by block");
  const tile = (span: [number, number]) => {
    const int4 = format("int4_b32");
    if (int4.kind !== "block") throw new Error("block");
    return nbitsPlan({ ...int4, scales: [{ ...int4.scales[0], span }] } as never, 256);
  };
  expect(tile([4, 32])).toEqual({ bits: 4, blockSize: 32, asIs: false });
  expect(tile([4, 48])).toMatchObject({ blockSize: 16 });
  expect(tile([4, 24])).toBe("blocks of [4,24] are no multiple of 16");
  const half = withScaleFormat(format("uint4_b32_uint4_zp") as never, (format("int4_b32_float16") as never as { scales: [{ format: never }] }).scales[0].format); // prettier-ignore
  expect(half.name).toMatch(/uint4_b32_float16/);
});

test("what one scale leaves of a weight, by its range with zero in it", () => {
  const of = (values: number[]): number => {
    const opened = readModelBytes(encode(matmulModel(raw("w", [values.length, 1], Float32Array.from(values)), values.length, 1)));
    return oneScaleDecibels(opened, modelLayers(opened)[0]);
  };
  const by = (values: number[], low: number, high: number): number => {
    const step = (high - low) / 255;
    return 10 * Math.log10(values.reduce((s, v) => s + v * v, 0) / values.length / ((step * step) / 12));
  };
  for (const [values, low, high] of [
    [[0.25, 0.5, 0.75, 0.875], 0, 0.875],
    [[-0.5, -0.25], -0.5, 0],
    [[3, -1, 2], -1, 3],
    [[0.5, -2, 0.25], -2, 0.5],
  ] as const)
    // prettier-ignore
    expect(of([...values])).toBeCloseTo(by([...values], low, high), 5);
});

test("a weight of a journal takes this run's object of its format, and no other", () => {
  const [mine, theirs] = [format("int4_b32"), { ...format("int4_b32") }];
  const weight = { packed: { format: theirs } as never };
  expect(inFormat<{ packed: never }>(weight, mine as never).packed).toEqual({ format: mine });
  expect((inFormat(weight, mine as never).packed as { format: unknown }).format).toBe(mine);
  expect(inFormat(weight, format("int8_b32") as never)).toBe(weight);
  expect(inFormat(weight, theirs as never)).toBe(weight);
});

// The vectors that layers multiply: their products with the rows of the weight are what onnxruntime computes, for every
// operator and attribute; what is no such layer says why.
import { create } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { vectorView } from "../../src/onnx/calibrate/vectors.ts";
import { ValueInfoProtoSchema, type NodeProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { modelLayers, readModelBytes } from "../../src/onnx/index.ts";
import { referenceRun } from "../../src/onnx/passes/check.ts";
import { readMatrix } from "../../src/onnx/primitives.ts";
import { encode, graph, model, node, raw, T, value, weights, type AttributeValue } from "./build.ts";

const count = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);
const opened = (made: NodeProto, x: number[], w: number[]) => {
  const input = value("x", made.opType === "Gather" ? T.INT64 : T.FLOAT, x);
  const proto = model(graph({ input: [input], output: [create(ValueInfoProtoSchema, { name: "y" })], initializer: [raw("w", w, weights(count(w), 2))], node: [made] })); // prettier-ignore
  const read = readModelBytes(encode(proto));
  return { read, layer: modelLayers(read)[0] };
};

/** Rows of the weight times vectors, sorted: tokens and channels lie in the output in another order for each operator. */
async function agree(made: NodeProto, x: number[], w: number[]): Promise<void> {
  const { read, layer } = opened(made, x, w);
  const view = vectorView(layer);
  if (typeof view === "string") throw new Error(view);
  const data = weights(count(x), 3);
  const [outputs] = (await referenceRun(read, [{ x: { type: "float32", data, dims: x } }])).outputs;
  const want = Float64Array.from(outputs.get("y")!.data as Float32Array).sort();
  const matrix = readMatrix(read, layer);
  const [k, rows] = [view.k, layer.rows / view.groups];
  expect([k, view.groups]).toEqual([layer.k, layer.groups]);
  const got: number[] = [];
  for (let g = 0; g < view.groups; g++) {
    const vectors = view.read(data, x, g, 1);
    expect(vectors.length).toBe(view.tokens(x) * k);
    for (let t = 0; t < vectors.length / k; t++)
      for (let r = 0; r < rows; r++) {
        let sum = 0;
        for (let j = 0; j < k; j++) sum += vectors[t * k + j] * matrix[(g * rows + r) * k + j];
        got.push(sum);
      }
    // every n-th of them
    for (const every of [2, 3]) {
      const some = view.read(data, x, g, every);
      const all = Array.from({ length: Math.ceil(vectors.length / k / every) }, (_, i) => [...vectors.subarray(i * every * k, (i * every + 1) * k)]); // prettier-ignore
      expect([...some]).toEqual(all.flat());
    }
  }
  expect(got).toHaveLength(want.length);
  Float64Array.from(got).sort().forEach((v, i) => expect(v).toBeCloseTo(want[i], 5)); // prettier-ignore
}

const ints = (...list: number[]): AttributeValue => ({ ints: list });
const conv = (attributes: Record<string, AttributeValue>): NodeProto => node("Conv", ["x", "w"], ["y"], attributes, "l");

describe("products", () => {
  test.each<[string, NodeProto, number[], number[]]>([
    ["x W", node("MatMul", ["x", "w"], ["y"]), [5, 7], [7, 4]],
    ["x W of more dimensions", node("MatMul", ["x", "w"], ["y"]), [2, 3, 7], [7, 4]],
    ["W x", node("MatMul", ["w", "x"], ["y"]), [7, 5], [4, 7]],
    ["W x of more dimensions", node("MatMul", ["w", "x"], ["y"]), [3, 7, 5], [4, 7]],
    ["Gemm", node("Gemm", ["x", "w"], ["y"]), [5, 7], [7, 4]],
    ["Gemm, transB", node("Gemm", ["x", "w"], ["y"], { transB: 1n }), [5, 7], [4, 7]],
    ["Gemm, transA", node("Gemm", ["x", "w"], ["y"], { transA: 1n }), [7, 5], [7, 4]],
    ["Gemm, both", node("Gemm", ["x", "w"], ["y"], { transA: 1n, transB: 1n }), [7, 5], [4, 7]],
    ["Gemm, weight on the left", node("Gemm", ["w", "x"], ["y"]), [7, 5], [4, 7]],
    ["Gemm, weight on the left, transA", node("Gemm", ["w", "x"], ["y"], { transA: 1n }), [7, 5], [7, 4]],
    ["Gemm, weight on the left, transB", node("Gemm", ["w", "x"], ["y"], { transB: 1n }), [5, 7], [4, 7]],
    ["Gemm, weight on the left, both", node("Gemm", ["w", "x"], ["y"], { transA: 1n, transB: 1n }), [5, 7], [7, 4]],
  ])("%s", (_, made, x, w) => agree(made, x, w));
});

describe("convolutions", () => {
  const X = [2, 4, 7, 6];
  test.each<[Record<string, AttributeValue>, number[], number[]]>([
    [{}, X, [3, 4, 3, 2]],
    [{ pads: ints(1, 0, 2, 1) }, X, [3, 4, 3, 2]],
    [{ strides: ints(2, 3) }, X, [3, 4, 2, 3]],
    [{ dilations: ints(2, 1), pads: ints(0, 1, 0, 1) }, X, [3, 4, 2, 3]],
    [{ group: 2n, strides: ints(1, 2) }, X, [6, 2, 3, 3]],
    [{ group: 4n, pads: ints(1, 1, 1, 1) }, X, [4, 1, 3, 3]],
    [{ auto_pad: "SAME_UPPER" }, X, [3, 4, 2, 4]],
    [{ auto_pad: "SAME_LOWER" }, X, [3, 4, 2, 4]],
    [{ auto_pad: "SAME_UPPER", strides: ints(2, 3) }, X, [3, 4, 3, 2]],
    [{ auto_pad: "SAME_LOWER", strides: ints(3, 2) }, X, [3, 4, 4, 3]],
    [{ auto_pad: "VALID", strides: ints(2, 2) }, X, [3, 4, 3, 3]],
    [{ auto_pad: "NOTSET", pads: ints(1, 2, 0, 1) }, X, [3, 4, 3, 3]],
    [{}, [2, 4, 9], [3, 4, 3]],
    [{ pads: ints(2, 1), strides: ints(2), dilations: ints(2) }, [2, 4, 9], [3, 4, 3]],
    [{ auto_pad: "SAME_LOWER", strides: ints(2) }, [2, 4, 8], [3, 4, 3]],
    [{ group: 2n }, [1, 4, 9], [4, 2, 2]],
  ])("form %#", (attributes, x, w) => agree(conv(attributes), x, w));
  test.each<[Record<string, AttributeValue>, number[], number[]]>([
    [{}, X, [4, 3, 1, 1]],
    [{ group: 2n }, X, [4, 3, 1, 1]],
  ])("transposed, of one pixel, form %#", (attributes, x, w) => agree(node("ConvTranspose", ["x", "w"], ["y"], attributes), x, w));
});

test("what reads no vectors says why, and inputs of other shapes are refused", () => {
  const why = (made: NodeProto, x: number[], w: number[]) => vectorView(opened(made, x, w).layer);
  expect(why(node("Gather", ["w", "x"], ["y"]), [2], [8, 4])).toBe("an embedding looks its rows up, it multiplies no vectors");
  expect(why(conv({}), [1, 2, 4, 4, 4], [3, 2, 2, 2, 2])).toBe("calibration has no patches of a convolution in 3 dimensions");
  expect(why(node("Add", ["x", "w"], ["y"]), [32, 32], [32, 32])).toBe("calibration does not know what Add multiplies");
  const tokens = (made: NodeProto, x: number[], w: number[], dims: number[]) => () => (why(made, x, w) as { tokens(dims: number[]): number }).tokens(dims); // prettier-ignore
  expect(tokens(node("MatMul", ["x", "w"], ["y"], {}, "l"), [5, 7], [7, 4], [5, 6])).toThrow("layer l: expected an input [.., 7], got [5, 6]"); // prettier-ignore
  expect(tokens(conv({}), [1, 4, 7, 6], [3, 4, 3, 2], [1, 3, 7, 6])).toThrow("layer l: expected an input [n, 4, ..] of 4 dimensions, got [1, 3, 7, 6]"); // prettier-ignore
  expect(tokens(conv({}), [1, 4, 7, 6], [3, 4, 3, 2], [4, 7, 6])).toThrow("of 4 dimensions, got [4, 7, 6]");
  expect(tokens(conv({}), [1, 4, 7, 6], [3, 4, 3, 2], [1, 4, 2, 6])()).toBe(0);
});

// Layers as matrices: what readWeight gives is what the operator multiplies by, as onnxruntime-node computes it;
// writing changes one layer only.
import { create } from "@bufbuild/protobuf";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize } from "../../src/index.ts";
import {
  addOutputs,
  modelLayers,
  readBias,
  readModelBytes,
  readWeight,
  writeBias,
  writeModelBytes,
  writeWeight,
  type OnnxModel,
} from "../../src/onnx/index.ts";
import { NodeProtoSchema, type NodeProto, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { readFloats } from "../../src/onnx/file/values.ts";
import { encode, graph, model, node, raw, T, typed, value, weights } from "./build.ts";

/** A model of one node x -> y with these initializers. */
const single = (made: NodeProto, initializer: TensorProto[], dims: (number | string)[]): OnnxModel =>
  readModelBytes(
    encode(model(graph({ input: [value("x", T.FLOAT, dims)], output: [value("y", T.FLOAT, [])], initializer, node: [made] }))),
  );

async function run(m: OnnxModel, x: Float32Array, dims: number[], outputs = ["y"]): Promise<Float32Array[]> {
  const session = await InferenceSession.create(writeModelBytes(m), { logSeverityLevel: 4, intraOpNumThreads: 1 });
  const result = await session.run({ x: new Tensor("float32", x, dims) }, outputs);
  await session.release();
  return outputs.map((name) => result[name].data as Float32Array);
}

/** Rows of the weight times the vector x of each group, plus the bias of each output channel. */
function product(m: OnnxModel, x: Float32Array, span = 1): number[] {
  const [layer] = modelLayers(m);
  const w = readWeight(m, layer);
  const bias = readBias(m, layer);
  const part = layer.rows / layer.groups;
  return Array.from({ length: layer.rows }, (_, r) => {
    let sum = bias?.[Math.floor(r / span)] ?? 0;
    for (let j = 0; j < layer.k; j++) sum += w.data[w.offset + r * w.stride[0] + j * w.stride[1]] * x[Math.floor(r / part) * layer.k + j];
    return sum;
  });
}

const close = (got: ArrayLike<number>, want: ArrayLike<number>): void => {
  expect(got.length).toBe(want.length);
  for (let i = 0; i < got.length; i++) expect(Math.abs(got[i] - want[i])).toBeLessThan(1e-5);
};

const k = 6;
const cases: Record<string, { make: () => OnnxModel; dims: number[]; inputs: number; span?: number; bias: boolean }> = {
  MatMul: {
    make: () => single(node("MatMul", ["x", "w"], ["y"], {}, "n"), [raw("w", [k, 4], weights(24))], ["b", k]),
    dims: [1, k],
    inputs: k,
    bias: true,
  },
  "MatMul, weight on the left": {
    make: () => single(node("MatMul", ["w", "x"], ["y"], {}, "n"), [raw("w", [4, k], weights(24))], [k, "b"]),
    dims: [k, 1],
    inputs: k,
    bias: false,
  },
  Gemm: {
    make: () =>
      single(
        node("Gemm", ["x", "w", "b"], ["y"], { beta: 0.5 }, "n"),
        [typed("w", [k, 4], weights(24)), raw("b", [4], weights(4, 3))],
        ["b", k],
      ),
    dims: [1, k],
    inputs: k,
    bias: true,
  },
  "Gemm transB": {
    make: () => single(node("Gemm", ["x", "w"], ["y"], { transB: 1n }, "n"), [raw("w", [4, k], weights(24))], ["b", k]),
    dims: [1, k],
    inputs: k,
    bias: true,
  },
  "Gemm, weight on the left, transA": {
    make: () => single(node("Gemm", ["w", "x"], ["y"], { transA: 1n }, "n"), [raw("w", [k, 4], weights(24))], [k, "b"]),
    dims: [k, 1],
    inputs: k,
    bias: false,
  },
  "Conv of 2 groups": {
    make: () => single(node("Conv", ["x", "w"], ["y"], { group: 2n }, "n"), [raw("w", [6, 2, 3, 3], weights(108))], [1, 4, 3, 3]),
    dims: [1, 4, 3, 3],
    inputs: 36,
    bias: true,
  },
  "ConvTranspose of 2 groups": {
    make: () =>
      single(
        node("ConvTranspose", ["x", "w", "b"], ["y"], { group: 2n }, "n"),
        [raw("w", [4, 3, 2, 2], weights(48)), raw("b", [6], weights(6, 9))],
        [1, 4, 1, 1],
      ),
    dims: [1, 4, 1, 1],
    inputs: 4,
    span: 4,
    bias: true,
  },
};

describe.each(Object.entries(cases))("%s", (_, { make, dims, inputs, span, bias }) => {
  test("weight, write and bias are those of the operator", async () => {
    const m = make();
    const x = weights(inputs, 7);
    close((await run(m, x, dims))[0], product(m, x, span));
    const [layer] = modelLayers(m);
    writeWeight(m, layer, weights(layer.rows * layer.k, 99));
    const [stored, written] = [readWeight(m, layer), weights(layer.rows * layer.k, 99)];
    for (let r = 0; r < layer.rows; r++)
      for (let j = 0; j < layer.k; j++)
        expect(stored.data[stored.offset + r * stored.stride[0] + j * stored.stride[1]]).toBe(written[r * layer.k + j]);
    close((await run(m, x, dims))[0], product(m, x, span));
    if (!bias) return expect(() => writeBias(m, layer, [0, 0, 0, 0])).toThrow(/operator with a bias/);
    for (const seed of [5, 6]) {
      const want = weights(layer.rows / (span ?? 1), seed);
      writeBias(m, layer, want);
      close(readBias(m, layer)!, want);
      close((await run(m, x, dims))[0], product(m, x, span));
    }
    return undefined;
  });
});

/** y = x w, z = (x w) twice as two nodes that read one weight. */
const shared = (): OnnxModel =>
  readModelBytes(
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, ["b", 4])],
          output: [value("y", T.FLOAT, []), value("z", T.FLOAT, [])],
          initializer: [raw("w", [4, 4], weights(16), T.FLOAT)],
          node: [
            node("MatMul", ["x", "w"], ["y"], {}, "first"),
            node("Identity", ["w"], ["same"]),
            node("MatMul", ["x", "same"], ["z"], {}, "second"),
          ],
        }),
      ),
    ),
  );

test("a shared weight gets a copy, the other reader keeps its values", async () => {
  for (const at of [0, 1]) {
    const m = shared();
    const x = weights(4, 7);
    const before = await run(m, x, [1, 4], ["y", "z"]);
    writeWeight(m, modelLayers(m)[at], new Float32Array(16));
    const after = await run(m, x, [1, 4], ["y", "z"]);
    expect(Array.from(after[at])).toEqual([0, 0, 0, 0]);
    expect(after[1 - at]).toEqual(before[1 - at]);
    // Now it is alone: the next write needs no third constant.
    const count = m.proto.graph!.initializer.length;
    writeWeight(m, modelLayers(m)[at], weights(16, 3));
    writeWeight(m, modelLayers(m)[1 - at], weights(16, 4));
    expect(m.proto.graph!.initializer.length).toBe(count);
  }
});

test("packed weights and views are written as their values; float16 stays float16", () => {
  const half = Uint16Array.from({ length: 32 * 8 }, (_, i) => 0x3000 + (i % 512));
  const m = single(node("MatMul", ["x", "w"], ["y"], {}, "n"), [raw("w", [32, 8], half, T.FLOAT16)], ["b", 32]);
  const [layer] = modelLayers(m);
  const packed = quantize(readWeight(m, layer), format("int4_b32"));
  writeWeight(m, layer, packed);
  expect(m.proto.graph!.initializer[0].dataType).toBe(T.FLOAT16);
  const got = readWeight(m, layer);
  const want = dequantize(packed);
  for (let r = 0; r < 8; r++)
    for (let j = 0; j < 32; j++) expect(got.data[r * got.stride[0] + j * got.stride[1]]).toBeCloseTo(want[r * 32 + j], 3);
  const stored = Array.from(readFloats(m, m.proto.graph!.initializer[0]));
  writeWeight(m, layer, readWeight(m, layer));
  expect(Array.from(readFloats(m, m.proto.graph!.initializer[0]))).toEqual(stored);
});

test("outputs: activations and layer outputs, unknown and inner names refused", async () => {
  const m = shared();
  expect(addOutputs(m, ["y", "same", "same"])).toEqual(["same"]);
  const [same] = await run(m, weights(4, 7), [1, 4], ["same"]);
  expect(Array.from(same)).toEqual(Array.from(weights(16)));
  expect(() => addOutputs(m, ["nothing"])).toThrow(/expected the name of a value/);
  const branch = graph({ output: [value("inner", T.FLOAT, [])], node: [node("Identity", ["y"], ["inner"])] });
  m.proto.graph!.node.push(create(NodeProtoSchema, node("If", ["cond"], ["out"], { then_branch: branch, else_branch: branch }, "if")));
  m.proto.graph!.initializer.push(raw("cond", [1], Uint8Array.of(1), T.BOOL));
  expect(() => addOutputs(m, ["inner"])).toThrow(/main graph.*if\.then_branch/);
});

test("wrong sizes and values are refused", () => {
  const m = shared();
  const [layer] = modelLayers(m);
  expect(() => writeWeight(m, layer, new Float32Array(15))).toThrow(/4 x 4 values, got 15/);
  expect(() => writeWeight(m, layer, new Float32Array(16).fill(NaN))).toThrow(/finite/);
  expect(() => writeBias(m, layer, [1])).toThrow(/4 biases, got 1/);
});

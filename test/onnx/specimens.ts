// Small models with a weight in every place that a quantizer knows: products, convolutions, tables, recurrent nodes,
// constants behind nodes, subgraphs. Weights and inputs are multiples of powers of two, so that a runtime's sums are
// exact on every machine.
import { create } from "@bufbuild/protobuf";
import { OperatorSetIdProtoSchema, type ModelProto, type NodeProto, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { T, graph, model, node, raw, value, weights } from "./build.ts";
import { int64 } from "./zoo.ts";

const count = (dims: number[]): number => dims.reduce((a, b) => a * b, 1);
/** Multiples of 1/256. */
export const dyadic = (dims: number[], seed: number, scale = 1): Float32Array =>
  weights(count(dims), seed).map((v) => Math.round(v * 256 * scale) / 256);
export const w = (dims: number[], seed = 1, name = "w"): TensorProto => raw(name, dims, dyadic(dims, seed));

interface Init {
  init?: TensorProto[];
  x?: (number | string)[];
  y?: (number | string)[];
  opset?: number;
  type?: number;
  inputs?: [name: string, type: number, dims: (number | string)[]][];
  outputs?: string[];
}

function made(
  nodes: NodeProto[],
  { init = [], x = ["batch", 64], y = [], opset = 17, type = T.FLOAT, inputs = [], outputs = ["y"] }: Init,
): ModelProto {
  const proto = model(
    graph({
      input: [value("x", type, x), ...inputs.map(([name, t, dims]) => value(name, t, dims))],
      output: outputs.map((name) => value(name, type, y)),
      initializer: init,
      node: nodes,
    }),
    { opset, ir: opset < 11 ? 4 : 8 },
  );
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return proto;
}

const half = (values: Float32Array, dims: number[], name = "w"): TensorProto => raw(name, dims, Float16(values), T.FLOAT16);
/** Halves of multiples of 1/256 below 4, whose float16 is the top of their float32. */
function Float16(values: Float32Array): Uint16Array {
  const bits = new Uint32Array(values.buffer.slice(0));
  return Uint16Array.from(bits, (b) => ((b & 0x7fffffff) === 0 ? 0 : ((b >>> 16) & 0x8000) | ((((b >>> 23) & 255) - 112) << 10) | ((b >>> 13) & 1023))); // prettier-ignore
}
const bfloat = (values: Float32Array, dims: number[]): TensorProto =>
  raw(
    "w",
    dims,
    Uint16Array.from(new Uint32Array(values.buffer.slice(0)), (b) => b >>> 16),
    T.BFLOAT16,
  );

const product = (attributes = {}, dims = [64, 32], more: Init = {}): ModelProto =>
  made([node("Gemm", ["x", "w", ...(more.init ?? []).slice(0, 1).map((t) => t.name)], ["y"], attributes, "fc")], {
    ...more,
    init: [...(more.init ?? []), w(dims)],
  });
const conv = (dims: number[], x: number[], attributes = {}, bias = true, op = "Conv"): ModelProto =>
  made([node(op, ["x", "w", ...(bias ? ["b"] : [])], ["y"], attributes, "conv")], {
    init: [w(dims), ...(bias ? [w([op === "Conv" ? dims[0] : dims[1]], 2, "b")] : [])],
    x,
  });
const ints = (...list: number[]) => ({ ints: list });
const behind = (nodes: NodeProto[], init: TensorProto[], of = "v"): ModelProto => made([...nodes, node("MatMul", ["x", of], ["y"], {}, "mm")], { init }); // prettier-ignore
const branch = (name: string, from: string, to: string, init: TensorProto[] = []) =>
  graph({ name, output: [value(to, T.FLOAT, ["batch", 32])], initializer: init, node: [node("MatMul", ["x", from], [to], {}, `${name}/mm`)] }); // prettier-ignore
const recurrent = (op: string, gates: number, attributes = {}, more: string[] = []): ModelProto =>
  made([node(op, ["x", "w", "r", "b", ...more], ["y"], { hidden_size: 16n, ...attributes }, "rnn")], {
    x: [5, 1, 32],
    init: [w([1, gates * 16, 32]), w([1, gates * 16, 16], 2, "r"), w([1, gates * 32], 3, "b"), ...(more.includes("h") ? [w([1, 1, 16], 4, "h")] : [])], // prettier-ignore
  });
const micro = (op: string, inputs: string[], outputs: string[], attributes = {}): NodeProto => {
  const one = node(op, inputs, outputs, attributes, op.toLowerCase());
  one.domain = "com.microsoft";
  return one;
};

/** By name. */
export const SPECIMENS: ReadonlyMap<string, () => ModelProto> = new Map<string, () => ModelProto>([
  ["product", () => made([node("MatMul", ["x", "w"], ["y"], {}, "mm")], { init: [w([64, 32])] })],
  ["product of 72 by 7", () => made([node("MatMul", ["x", "w"], ["y"])], { init: [w([72, 7])], x: ["batch", 72] })],
  ["product of 3 axes", () => made([node("MatMul", ["x", "w"], ["y"], {}, "mm")], { init: [w([1, 64, 32])], x: ["batch", 3, 64] })],
  ["batch of products", () => made([node("MatMul", ["x", "w"], ["y"], {}, "mm")], { init: [w([2, 64, 32])], x: [2, 3, 64] })],
  ["weight on the left", () => made([node("MatMul", ["w", "x"], ["y"], {}, "mm")], { init: [w([32, 64])], x: [64, "n"] })],
  ["two constants", () => made([node("MatMul", ["w", "v"], ["u"], {}, "mm"), node("Add", ["x", "u"], ["y"])], { init: [w([8, 64]), w([64, 64], 2, "v")] })], // prettier-ignore
  ["Gemm", () => product()],
  ["Gemm, transposed, bias", () => product({ transB: 1n }, [32, 64], { init: [w([32], 2, "b")] })],
  ["Gemm with factors", () => product({ alpha: 0.5, beta: 2 }, [64, 32], { init: [w([32], 2, "b")] })],
  ["Gemm, beta alone", () => product({ beta: 0.25, transB: 1n }, [32, 64], { init: [w([1], 2, "b")] })],
  ["Gemm of transA", () => product({ transA: 1n }, [64, 32], { x: [64, 4] })],
  ["Gemm with a bias that is computed", () => made([node("Relu", ["c"], ["b"]), node("Gemm", ["x", "w", "b"], ["y"], { transB: 1n, alpha: 2 }, "fc")], { init: [w([32, 64])], inputs: [["c", T.FLOAT, [32]]] })], // prettier-ignore
  ["convolution", () => conv([16, 8, 3, 3], [1, 8, 9, 9], { pads: ints(1, 1, 1, 1), strides: ints(2, 2) })],
  ["convolution of groups", () => conv([16, 4, 3, 3], [1, 8, 6, 6], { group: 2n, dilations: ints(2, 2), auto_pad: "SAME_UPPER" }, false)],
  ["depthwise convolution", () => conv([8, 1, 3, 3], [1, 8, 6, 6], { group: 8n, kernel_shape: ints(3, 3) })],
  ["convolution of 1 by 1", () => conv([32, 64, 1, 1], [1, 64, 4, 4])],
  ["convolution of one axis", () => conv([16, 8, 5], [1, 8, 20], { pads: ints(2, 2) })],
  ["convolution of three axes", () => conv([8, 4, 2, 2, 2], [1, 4, 4, 4, 4], {}, false)],
  ["convolution with a bias that is computed", () => made([node("Relu", ["c"], ["b"]), node("Conv", ["x", "w", "b"], ["y"], {}, "conv")], { init: [w([16, 8, 3, 3])], x: [1, 8, 6, 6], inputs: [["c", T.FLOAT, [16]]] })], // prettier-ignore
  ["two convolutions of one bias", () => made([node("Conv", ["x", "w", "b"], ["u"], { pads: ints(1, 1, 1, 1) }, "one"), node("Conv", ["u", "v", "b"], ["y"], {}, "two")], { init: [w([8, 8, 3, 3]), w([8, 8, 1, 1], 2, "v"), w([8], 3, "b")], x: [1, 8, 6, 6] })], // prettier-ignore
  ["transposed convolution", () => conv([8, 6, 3, 3], [1, 8, 4, 4], { strides: ints(2, 2), output_padding: ints(1, 1) }, true, "ConvTranspose")], // prettier-ignore
  ["transposed convolution of groups", () => conv([8, 6, 2, 2], [1, 8, 4, 4], { group: 2n }, false, "ConvTranspose")],
  ["table", () => made([node("Gather", ["w", "x"], ["y"], {}, "emb")], { init: [w([40, 64])], type: T.INT64, x: ["n"] })],
  ["table by columns", () => made([node("Gather", ["w", "i"], ["u"], { axis: 1n }, "emb"), node("Add", ["u", "x"], ["y"])], { init: [w([32, 40])], x: [32, 1], inputs: [["i", T.INT64, ["n"]]] })], // prettier-ignore
  ["table of 3 axes", () => made([node("Gather", ["w", "i"], ["u"], {}, "emb"), node("Add", ["u", "x"], ["y"])], { init: [w([20, 4, 32])], x: [1], inputs: [["i", T.INT64, ["n"]]] })], // prettier-ignore
  ["table and head", () => made([node("Gather", ["w", "i"], ["e"], {}, "emb"), node("Add", ["e", "x"], ["u"]), node("Transpose", ["w"], ["t"], { perm: ints(1, 0) }), node("MatMul", ["u", "t"], ["y"], {}, "head")], { init: [w([40, 64])], x: [1, 64], inputs: [["i", T.INT64, ["n"]]] })], // prettier-ignore
  ["table and Gemm", () => made([node("Gather", ["w", "i"], ["e"], {}, "emb"), node("Add", ["e", "x"], ["u"]), node("Gemm", ["u", "w"], ["y"], { transB: 1n }, "head")], { init: [w([40, 64])], x: [1, 64], inputs: [["i", T.INT64, ["n"]]] })], // prettier-ignore
  ["LSTM", () => recurrent("LSTM", 4)],
  ["LSTM with a state", () => recurrent("LSTM", 4, { direction: "reverse" }, ["", "h", "h"])],
  ["GRU", () => recurrent("GRU", 3, { linear_before_reset: 1n })],
  ["RNN", () => recurrent("RNN", 1)],
  ["experts", () => made([micro("MoE", ["x", "p", "w", "", "v"], ["y"], { k: 2n, activation_type: "relu" })], { init: [w([4, 64, 32]), w([4, 32, 64], 2, "v")], inputs: [["p", T.FLOAT, ["batch", 4]]] })], // prettier-ignore
  ["experts, outputs first", () => made([micro("MoE", ["x", "p", "w", "b", "v", "c"], ["y"], { k: 2n, activation_type: "relu", normalize_routing_weights: 1n })], { init: [w([4, 32, 64]), w([4, 64, 32], 2, "v"), w([4, 32], 3, "b"), w([4, 64], 4, "c")], inputs: [["p", T.FLOAT, ["batch", 4]]] })], // prettier-ignore
  ["experts that all weigh", () => made([micro("MoE", ["x", "p", "w", "", "v"], ["y"], { k: 2n, activation_type: "silu", normalize_routing_weights: 0n })], { init: [w([4, 32, 64]), w([4, 64, 32], 2, "v")], inputs: [["p", T.FLOAT, ["batch", 4]]] })], // prettier-ignore
  ["float16 product", () => made([node("MatMul", ["x", "w"], ["y"], {}, "mm")], { init: [half(dyadic([64, 32], 1), [64, 32])], type: T.FLOAT16 })], // prettier-ignore
  ["float16 convolution", () => made([node("Conv", ["x", "w", "b"], ["y"], {}, "conv")], { init: [half(dyadic([16, 8, 3, 3], 1), [16, 8, 3, 3]), half(dyadic([16], 2), [16], "b")], x: [1, 8, 6, 6], type: T.FLOAT16 })], // prettier-ignore
  ["float16 table", () => made([node("Gather", ["w", "i"], ["u"], {}, "emb"), node("Add", ["u", "x"], ["y"])], { init: [half(dyadic([40, 64], 1), [40, 64])], x: [1, 64], type: T.FLOAT16, inputs: [["i", T.INT64, ["n"]]] })], // prettier-ignore
  [
    "weight behind Cast of bfloat16",
    () => behind([node("Cast", ["w"], ["v"], { to: 1n }, "cast")], [bfloat(dyadic([64, 32], 1), [64, 32])]),
  ],
  ["weight behind Cast of float16", () => behind([node("Cast", ["w"], ["v"], { to: 1n }, "cast")], [half(dyadic([64, 32], 1), [64, 32])])],
  ["weight behind Transpose and Identity", () => behind([node("Transpose", ["w"], ["t"]), node("Identity", ["t"], ["v"])], [w([32, 64])])],
  ["weight behind Reshape, Squeeze, Unsqueeze", () => behind([node("Reshape", ["w", "s"], ["a"]), node("Unsqueeze", ["a", "zero"], ["b"]), node("Squeeze", ["b", "zero"], ["v"])], [w([2048]), int64("s", 64, -1), int64("zero", 0)])], // prettier-ignore
  ["weight behind Flatten", () => behind([node("Flatten", ["w"], ["v"], { axis: 2n })], [w([8, 8, 32])])],
  ["weight behind DequantizeLinear", () => behind([node("DequantizeLinear", ["w", "s", "z"], ["v"], { axis: 1n })], [raw("w", [64, 32], Int8Array.from(dyadic([64, 32], 1), (v) => v * 100), T.INT8), raw("s", [32], dyadic([32], 2).map(() => 0.0625)), raw("z", [32], new Int8Array(32).fill(3), T.INT8)])], // prettier-ignore
  ["weight in a Constant", () => behind([node("Constant", [], ["v"], { value: w([64, 32]) }, "constant")], [])],
  ["weight in floats of a Constant", () => behind([node("Constant", [], ["u"], { value_floats: { floats: [...dyadic([128], 1)] } }, "constant"), node("Reshape", ["u", "s"], ["v"])], [int64("s", 64, 2)])], // prettier-ignore
  ["weight behind Slice", () => behind([node("Slice", ["w", "a", "b", "c"], ["v"])], [w([64, 64]), int64("a", 8), int64("b", 40), int64("c", 1)])], // prettier-ignore
  ["two readers of a weight", () => made([node("MatMul", ["x", "w"], ["u"], {}, "one"), node("MatMul", ["u", "w"], ["y"], {}, "two")], { init: [w([64, 64])] })], // prettier-ignore
  ["weight that is an output too", () => made([node("MatMul", ["x", "w"], ["y"], {}, "mm")], { init: [w([64, 32])], outputs: ["y", "w"] })],
  ["weight that is an input too", () => made([node("MatMul", ["x", "w"], ["y"], {}, "mm")], { init: [w([64, 32])], inputs: [["w", T.FLOAT, [64, 32]]] })], // prettier-ignore
  ["branches", () => made([node("If", ["c"], ["y"], { then_branch: branch("then", "w", "p"), else_branch: branch("else", "v", "q", [w([64, 32], 2, "v")]) }, "if")], { init: [w([64, 32])], inputs: [["c", T.BOOL, []]] })], // prettier-ignore
  ["old opset", () => made([node("MatMul", ["x", "w"], ["a"], {}, "mm"), node("Softmax", ["a"], ["b"], { axis: 1n }), node("Slice", ["b"], ["y"], { starts: ints(0), ends: ints(4), axes: ints(1) })], { init: [w([64, 32])], opset: 8 })], // prettier-ignore
  ["opset 12", () => made([node("MatMul", ["x", "w"], ["a"], {}, "mm"), node("Unsqueeze", ["a"], ["b"], { axes: ints(0) }), node("Softmax", ["b"], ["y"], { axis: 2n })], { init: [w([64, 32])], opset: 12 })], // prettier-ignore
  ["zeros", () => made([node("MatMul", ["x", "w"], ["y"], {}, "mm")], { init: [raw("w", [64, 32], new Float32Array(2048))] })],
  ["a row of zeros", () => made([node("Conv", ["x", "w"], ["y"], {}, "conv")], { init: [raw("w", [8, 8, 3, 3], dyadic([8, 8, 3, 3], 1).fill(0, 72, 144))], x: [1, 8, 5, 5] })], // prettier-ignore
  ["no negative weights", () => made([node("MatMul", ["x", "w"], ["y"], {}, "mm")], { init: [raw("w", [64, 32], dyadic([64, 32], 1).map(Math.abs))] })], // prettier-ignore
  ["an infinite weight", () => made([node("MatMul", ["x", "w"], ["y"], {}, "mm")], { init: [raw("w", [64, 32], dyadic([64, 32], 1).fill(-Infinity, 3, 4))] })], // prettier-ignore
  ["nothing constant", () => made([node("MatMul", ["x", "z"], ["y"], {}, "mm")], { inputs: [["z", T.FLOAT, [64, 8]]] })],
  ["an unknown operator", () => made([micro("Mystery", ["x", "w"], ["y"])], { init: [w([64, 64])] })],
  ["a wide Add", () => made([node("Add", ["x", "w"], ["u"], {}, "add"), node("MatMul", ["u", "v"], ["y"], {}, "mm")], { init: [w([64, 64]), w([64, 32], 2, "v")] })], // prettier-ignore
  ["Einsum", () => made([node("Einsum", ["x", "w"], ["y"], { equation: "bk,kn->bn" }, "ein")], { init: [w([64, 32])] })],
]);

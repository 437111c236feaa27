// A product with a constant operand as nodes: what the targets with an operator of their own share. MatMul and Gemm
// become a product x [.., K] * W^T; Gemm's beta C becomes an Add. A weight on the left goes by transposing: W x = (x^T
// W^T)^T.
// Source: ONNX operators MatMul, Gemm (opset 7 and later).
import { create } from "@bufbuild/protobuf";
import { bfloat16 } from "../../../formats/bfloat16.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import type { NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import { TensorProtoSchema, TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { encodeHalf } from "../file/half.ts";
import { attributeFloat, attributeInt, intAttribute, intsAttribute, makeNode } from "../graph/graph.ts";
import type { Layer } from "../layers.ts";
import { gemmAlpha, layerMatrix, layerType, singleMatrixReason } from "../weights.ts";
import { inputInBasis } from "./basis.ts";
import type { TargetContext } from "./target.ts";

/** Why a Gemm or MatMul cannot become a product with a constant right side; undefined where it can. */
export function productReason(layer: Layer, context: TargetContext): string | undefined {
  const matrix = layerMatrix(layer);
  if (typeof matrix === "string") return matrix;
  const single = singleMatrixReason(layer);
  if (single !== undefined) return single;
  const { node } = layer;
  if (layer.input === 0 && node.opType === "MatMul") return "the weight is the left operand";
  if (node.opType === "Gemm" && context.opset() < 7)
    return `Gemm of opset ${context.opset()} (its broadcast is another; 7 or later is needed)`;
  return undefined;
}

/** A scalar initializer of the layer's type, pushed into its graph. */
function scalar(layer: Layer, context: TargetContext, base: string, value: number): string {
  const name = context.names.take(base);
  const type = layerType(layer);
  const bytes =
    type === T.FLOAT16
      ? Uint16Array.of(encodeHalf(value))
      : type === T.BFLOAT16
        ? Uint16Array.of(bfloat16.encode(value))
        : type === T.DOUBLE
          ? Float64Array.of(value)
          : Float32Array.of(value);
  const tensor: TensorProto = create(TensorProtoSchema, { name, dataType: type, rawData: new Uint8Array(bytes.buffer) });
  layer.scope.graph.initializer.push(tensor);
  return name;
}

const transposeNode = (context: TargetContext, input: string, output: string, name: string): NodeProto =>
  makeNode("Transpose", [input], [output], {
    name: context.names.take(name),
    attributes: [intsAttribute("perm", [1, 0])],
  });

export const castNode = (context: TargetContext, input: string, output: string, to: number, name: string): NodeProto =>
  makeNode("Cast", [input], [output], { name: context.names.take(name), attributes: [intAttribute("to", to)] });

/**
 * The nodes of a product: `product(x, output)` builds its core for an input [.., K] and an output [.., N] of type
 * `type` (default: the layer's); around it stand what MatMul and Gemm add (transposition, casts, alpha, beta C) and the
 * basis in which the weight is quantized.
 */
export function productNodes(
  layer: Layer,
  context: TargetContext,
  packed: PackedTensor,
  product: (x: string, output: string) => NodeProto[],
  type: number = layerType(layer),
): NodeProto[] {
  const { node } = layer;
  const { names } = context;
  const gemm = node.opType === "Gemm";
  const left = layer.input === 0;
  const casts = type !== layerType(layer);
  const beta = gemm ? Math.fround(attributeFloat(node, "beta", 1)) : 1;
  const bias = gemm && beta !== 0 ? (node.input[2] ?? "") : "";
  const { rest } = gemmAlpha(node);
  const output = node.output[0];

  // The steps after the product, each from one value to the next; the last one ends in the node's output.
  const after: ((from: string, to: string) => NodeProto[])[] = [];
  if (casts) after.push((from, to) => [castNode(context, from, to, layerType(layer), `${layer.name}_cast_back`)]);
  if (left) after.push((from, to) => [transposeNode(context, from, to, `${layer.name}_transpose_back`)]);
  if (rest !== 1)
    after.push((from, to) => [
      makeNode("Mul", [from, scalar(layer, context, `${output}_alpha`, rest)], [to], { name: names.take(`${layer.name}_alpha`) }),
    ]);
  if (bias !== "")
    after.push((from, to) => {
      const nodes: NodeProto[] = [];
      let term = bias;
      if (beta !== 1) {
        term = names.take(`${output}_beta_c`);
        nodes.push(
          makeNode("Mul", [bias, scalar(layer, context, `${output}_beta`, beta)], [term], { name: names.take(`${layer.name}_beta`) }),
        );
      }
      nodes.push(makeNode("Add", [from, term], [to], { name: names.take(`${layer.name}_bias`) }));
      return nodes;
    });

  const nodes: NodeProto[] = [];
  let x = node.input[left ? 1 : 0];
  const transposed = gemm && attributeInt(node, left ? "transB" : "transA", 0) !== 0;
  // x must come as [M, K]: the right operand of a left weight is [K, M] unless Gemm transposes it
  if (left !== transposed) {
    const flipped = names.take(`${x}_transposed`);
    nodes.push(transposeNode(context, x, flipped, `${layer.name}_transpose`));
    x = flipped;
  }
  if (casts) {
    const cast = names.take(`${x}_cast`);
    nodes.push(castNode(context, x, cast, type, `${layer.name}_cast`));
    x = cast;
  }
  const basis = inputInBasis(layer, context, packed, x, type);
  nodes.push(...basis.nodes);
  x = basis.x;
  const steps = after.length;
  const values = [...Array.from({ length: steps }, () => names.take(`${output}_product`)), output];
  nodes.push(...product(x, values[0]));
  after.forEach((step, i) => nodes.push(...step(values[i], values[i + 1])));
  return nodes;
}

// Gemm as a matrix product and an Add: what q4 and the dynamic modes share. Y = alpha A' B' + beta C (ONNX Gemm, opset 7 and later).
import { create } from "@bufbuild/protobuf";
import type { NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import { TensorProtoSchema, TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { attributeFloat, attributeInt, makeNode } from "../graph/graph.ts";
import { encodeHalf } from "../file/half.ts";
import type { Layer } from "../layers.ts";
import type { ModeContext } from "./mode.ts";

/** Why a Gemm or MatMul cannot become a product with a constant right side; undefined where it can. */
export function productReason(layer: Layer, context: ModeContext): string | undefined {
  const { node, weight } = layer;
  if (weight === null) return "no operand is constant";
  if (layer.input === 0) return "the weight is the left operand";
  if (layer.shape.length !== 2) return `the weight has ${layer.shape.length} dimensions, not 2`;
  if (layer.shape[0] === 0 || layer.shape[1] === 0) return "the weight is empty";
  if (node.opType === "Gemm") {
    if (attributeInt(node, "transA", 0) !== 0) return "Gemm with transA";
    if (context.opset() < 7) return `Gemm of opset ${context.opset()} (its broadcast is another; 7 or later is needed)`;
  }
  return undefined;
}

/** The matrix of a layer: K, N, the strides of its values over k and n, and a factor (Gemm's alpha) to multiply them by. */
export interface ProductShape {
  readonly k: number;
  readonly n: number;
  readonly strideK: number;
  readonly strideN: number;
  readonly alpha: number;
}

export function productShape(layer: Layer): ProductShape {
  const [rows, columns] = layer.shape;
  const gemm = layer.node.opType === "Gemm";
  const alpha = gemm ? Math.fround(attributeFloat(layer.node, "alpha", 1)) : 1;
  return gemm && attributeInt(layer.node, "transB", 0) !== 0
    ? { k: columns, n: rows, strideK: 1, strideN: columns, alpha }
    : { k: rows, n: columns, strideK: columns, strideN: 1, alpha };
}

/** The values times alpha (float32); the array itself where alpha is 1. */
export const scaled = (values: Float32Array, alpha: number): Float32Array => (alpha === 1 ? values : values.map((value) => value * alpha));

/** A scalar initializer of the weight's type, pushed into the layer's graph. */
function scalar(layer: Layer, context: ModeContext, base: string, value: number): string {
  const name = context.names.take(base);
  const half = layer.weight!.tensor.dataType === T.FLOAT16;
  const bytes = half ? new Uint8Array(Uint16Array.of(encodeHalf(value)).buffer) : new Uint8Array(Float32Array.of(value).buffer);
  const tensor: TensorProto = create(TensorProtoSchema, { name, dataType: half ? T.FLOAT16 : T.FLOAT, rawData: bytes });
  layer.scope.graph.initializer.push(tensor);
  return name;
}

/** The nodes after a product: Gemm's beta C. `product` builds the product's nodes for a given output name. */
export function withBias(layer: Layer, context: ModeContext, product: (output: string) => NodeProto[]): NodeProto[] {
  const { node } = layer;
  const output = node.output[0];
  const bias = node.opType === "Gemm" ? (node.input[2] ?? "") : "";
  const beta = Math.fround(attributeFloat(node, "beta", 1));
  if (bias === "" || beta === 0) return product(output);
  const inner = context.names.take(`${output}_product`);
  const nodes = product(inner);
  let term = bias;
  if (beta !== 1) {
    term = context.names.take(`${output}_beta_c`);
    nodes.push(
      makeNode("Mul", [bias, scalar(layer, context, `${output}_beta`, beta)], [term], { name: context.names.take(`${layer.name}_beta`) }),
    );
  }
  nodes.push(makeNode("Add", [inner, term], [output], { name: context.names.take(`${layer.name}_bias`) }));
  return nodes;
}

// fold-batchnorm: BatchNormalization in inference, and products and sums with one number per channel, move into the
// Conv, ConvTranspose or Gemm before them. Exporters that leave them apart cost a pass over memory each, and weights
// that are quantized without them fit worse.
import { removeNode, renameOutput } from "../edit.ts";
import { tensorDims } from "../file/model.ts";
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { isFloatType, readFloats } from "../file/values.ts";
import { attributeFloat, attributeInt, isDefaultDomain, nodeName, resolveConstant } from "../graph/graph.ts";
import { weightLayout } from "../matrix.ts";
import { readBias, readMatrix, writeBias, writeWeight, type ModelLayer } from "../primitives.ts";
import { readOnce } from "./attention.ts";
import type { Pass, PassContext } from "./types.ts";

/** y = factor x + shift, per channel. */
interface Affine {
  readonly factor: Float64Array;
  readonly shift: Float64Array;
}

const LAYERS: ReadonlySet<string> = new Set(["Conv", "ConvTranspose", "Gemm"]);

/** One number per channel (axis 1) at an input of a node behind a layer; null where it is something else. */
function perChannel(context: PassContext, layer: ModelLayer, node: NodeProto, input: number, channels: number): Float64Array | null {
  const constant = resolveConstant(layer.scope, node.input[input] ?? "");
  if (constant === null || !isFloatType(constant.tensor.dataType)) return null;
  const dims = tensorDims(constant.tensor);
  const count = dims.reduce((a, b) => a * b, 1);
  const rank = layer.shape.length;
  if (dims.length > rank || (count !== 1 && (count !== channels || dims[dims.length - (rank - 1)] !== channels))) return null;
  const values = readFloats(context.model, constant.tensor);
  return Float64Array.from({ length: channels }, (_, c) => values[count === 1 ? 0 : c]);
}

function affineOf(context: PassContext, layer: ModelLayer, node: NodeProto, input: number, channels: number): Affine | null {
  if (!isDefaultDomain(node)) return null;
  const ones = new Float64Array(channels).fill(1);
  const zeros = new Float64Array(channels);
  if (node.opType === "BatchNormalization") {
    if (input !== 0 || attributeInt(node, "training_mode", 0) !== 0 || node.output.slice(1).some((name) => name !== "")) return null;
    const [gamma, beta, mean, variance] = [1, 2, 3, 4].map((i) => vector(context, layer, node, i, channels));
    if (gamma === null || beta === null || mean === null || variance === null) return null;
    const factor = gamma.map((g, c) => g / Math.sqrt(variance[c] + attributeFloat(node, "epsilon", 1e-5)));
    return { factor, shift: beta.map((b, c) => b - mean[c] * factor[c]) };
  }
  if (!["Mul", "Div", "Add", "Sub"].includes(node.opType)) return null;
  const other = perChannel(context, layer, node, 1 - input, channels);
  if (other === null || (input === 1 && (node.opType === "Div" || node.opType === "Sub"))) return null;
  if (node.opType === "Mul") return { factor: other, shift: zeros };
  if (node.opType === "Div") return { factor: other.map((v) => 1 / v), shift: zeros };
  return { factor: ones, shift: node.opType === "Add" ? other : other.map((v) => -v) };
}

/** A constant [channels]; null where it is computed. */
function vector(context: PassContext, layer: ModelLayer, node: NodeProto, input: number, channels: number): Float64Array | null {
  const constant = resolveConstant(layer.scope, node.input[input] ?? "");
  if (constant === null || !isFloatType(constant.tensor.dataType)) return null;
  const values = Float64Array.from(readFloats(context.model, constant.tensor));
  return values.length === channels ? values : null;
}

/** Takes the nodes behind a layer in, as far as they are per channel. Returns their names. */
function foldBehind(context: PassContext, layer: ModelLayer): string[] {
  const { model } = context;
  const { scope, rows, k } = layer;
  const { rowSpan } = weightLayout(layer);
  const channels = rows / rowSpan;
  const folded: string[] = [];
  let weight: Float64Array | undefined;
  let bias: Float64Array | undefined;
  while (readOnce(context, scope, layer.output)) {
    const { node, input } = context.readers(scope, layer.output)[0];
    const affine = affineOf(context, layer, node!, input, channels);
    if (affine === null) break;
    weight ??= readMatrix(model, layer);
    bias ??= readBias(model, layer) ?? new Float64Array(channels);
    for (let i = 0; i < weight.length; i++) weight[i] *= affine.factor[Math.floor(i / k / rowSpan)];
    bias = bias.map((b, c) => b * affine.factor[c] + affine.shift[c]);
    const output = node!.output[0];
    removeNode(scope, node!);
    renameOutput(scope, layer.node, 0, output);
    folded.push(nodeName(node!));
    context.refresh();
  }
  if (weight !== undefined && bias !== undefined) {
    writeWeight(model, layer, weight);
    writeBias(model, layer, bias);
  }
  return folded;
}

export const foldBatchNormPass: Pass = {
  name: "fold-batchnorm",
  options: [],
  run(context) {
    const before = context.scopes
      .flatMap(({ graph }) => graph.node)
      .filter((node) => node.opType === "BatchNormalization" && isDefaultDomain(node)).length;
    let nodes = 0;
    let layers = 0;
    for (const layer of context.layers) {
      if (!LAYERS.has(layer.opType) || layer.input !== 1 || !isDefaultDomain(layer.node)) continue;
      const folded = foldBehind(context, layer);
      nodes += folded.length;
      if (folded.length > 0) layers++;
    }
    const left = context.scopes
      .flatMap(({ graph }) => graph.node)
      .filter((node) => node.opType === "BatchNormalization" && isDefaultDomain(node)).length;
    if (nodes === 0)
      context.note(
        before === 0
          ? "no BatchNormalization was found; nothing changed"
          : `${before} BatchNormalizations, none behind a layer alone; nothing changed`,
      );
    else context.note(`${nodes} nodes folded into ${layers} layers, ${before - left} of ${before} BatchNormalizations among them`);
    return nodes;
  },
};

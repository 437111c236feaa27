// A model with its weights replaced by what their packed form decodes to: what a quantized file must compute. Made with
// the public primitives and the tensor layer alone, not with the targets that it judges.
import { readModelBytes, writeModelBytes, type QuantizeBytesOptions } from "../../src/onnx/index.ts";
import type { ModelProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { buildScopes, collectNames, opsetVersion } from "../../src/onnx/graph/graph.ts";
import { decider } from "../../src/onnx/choose.ts";
import { nearestOf } from "../../src/onnx/convert.ts";
import { findLayers } from "../../src/onnx/layers.ts";
import { modelLayers, writeWeight } from "../../src/onnx/primitives.ts";
import { dequantize } from "../../src/tensor/dequantize.ts";
import { gemmAlpha, layerWeights } from "../../src/onnx/weights.ts";
import { encode } from "../onnx/build.ts";

export async function dequantizedModel(proto: ModelProto, options: QuantizeBytesOptions): Promise<Uint8Array> {
  const opened = readModelBytes(encode(proto));
  const scopes = buildScopes(opened);
  const context = {
    model: opened,
    scopes,
    names: collectNames(scopes),
    options,
    opset: () => opsetVersion(opened),
    notes: [],
    formatOf: () => {
      throw new Error("not asked");
    },
    before: () => undefined,
  };
  const found = findLayers(scopes, opened);
  const decide = decider(context, found);
  const weights = layerWeights(opened, found);
  const decoded = found.flatMap((layer) => {
    const decision = decide.of(layer);
    if (typeof decision === "string") return [];
    const flat = decision.target.isFlat?.(layer, decision.format) ?? false;
    const { packed } = weights.quantize({ layer, format: decision.format, quantizer: nearestOf(decision, options), flat });
    const { factor } = gemmAlpha(layer.node);
    return [{ name: layer.name, values: dequantize(packed).map((v) => v / factor) }];
  });
  for (const { name, values } of decoded) {
    const layer = modelLayers(opened).find((l) => l.name === name)!;
    writeWeight(opened, layer, values);
  }
  return writeModelBytes(opened);
}

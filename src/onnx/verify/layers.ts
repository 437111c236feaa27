// compareLayers: where two forms of a model part. The outputs of the layers that both have become outputs of the
// models, and verifyModels does the rest. Node only (onnxruntime-node). Only the main graph: values inside If and Loop
// cannot be asked for. An output that is asked for keeps the runtime from fusing across it, so figures may differ in
// the last digits from a plain run.
import { create } from "@bufbuild/protobuf";
import { LowbitError } from "../../../formats/core/errors.ts";
import { payloadBytes } from "../file/encode.ts";
import { ValueInfoProtoSchema } from "../file/gen/onnx_pb.ts";
import { buildScopes } from "../graph/graph.ts";
import { readModel, readModelBytes, writeModelBytes } from "../file/io.ts";
import type { OnnxModel } from "../file/model.ts";
import { findLayers } from "../layers.ts";
import type { VerifyOptions } from "./verify.ts";
import { verifyModels } from "./verify.ts";

/** The output of one layer in both models. Errors of the layers before it are part of its own. */
export interface LayerComparison {
  readonly name: string;
  readonly opType: string;
  /** The value compared. */
  readonly output: string;
  readonly sqnrDb: number;
  readonly cosine: number;
}

/** Both models are held in memory, with all their data. */
const BYTES_MAX = 1e9;

const open = (model: string | Uint8Array): OnnxModel & { close?: () => void } =>
  typeof model === "string" ? readModel(model) : readModelBytes(model);

/**
 * Compares the outputs of the layers of two models on one input, in the order of the graph: where the SQNR falls, the
 * damage is done.
 * @param a path or bytes of the reference
 * @param b path or bytes of the model to judge
 * @param options as verifyModels; `samples` is 1 unless inputs are given
 * @throws LowbitError as verifyModels; E_UNSUPPORTED for models of more than 1 GB
 * @example
 * const layers = await compareLayers("model.onnx", "quantized.onnx");
 * layers.find(({ sqnrDb }) => sqnrDb < 20)?.name // the first layer that loses much
 */
export async function compareLayers(
  a: string | Uint8Array,
  b: string | Uint8Array,
  options: Omit<VerifyOptions, "minSqnrDb"> = {},
): Promise<LayerComparison[]> {
  const models: (OnnxModel & { close?: () => void })[] = [];
  let names: { name: string; opType: string; output: string }[];
  let bytes: Uint8Array[];
  try {
    models.push(open(a), open(b));
    for (const model of models) {
      const size = payloadBytes(model);
      if (size > BYTES_MAX)
        throw new LowbitError(
          "E_UNSUPPORTED",
          `compareLayers: expected models of at most 1 GB, got ${size} bytes of tensors in ${model.source.label}. Compare the outputs only.`,
        );
    }
    const [main, ...inner] = buildScopes(models[0]);
    const other = buildScopes(models[1])[0].producers;
    const outputs = new Set(main.graph.output.map((value) => value.name));
    names = findLayers(
      [main, ...inner].filter((scope) => scope.parent === null),
      models[0],
    )
      .map((layer) => ({ name: layer.name, opType: layer.node.opType, output: layer.node.output[0] }))
      .filter(({ output }) => output !== "" && other.has(output));
    for (const { proto } of models)
      for (const { output } of names) if (!outputs.has(output)) proto.graph!.output.push(create(ValueInfoProtoSchema, { name: output }));
    bytes = models.map(writeModelBytes);
  } finally {
    for (const model of models) model.close?.();
  }
  const report = await verifyModels(bytes[0], bytes[1], { samples: 1, ...options, minSqnrDb: -Infinity });
  const byName = new Map(report.outputs.map((output) => [output.name, output]));
  return names.map((layer) => ({ ...layer, sqnrDb: byName.get(layer.output)!.sqnrDb, cosine: byName.get(layer.output)!.cosine }));
}

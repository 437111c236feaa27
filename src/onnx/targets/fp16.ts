// fp16: every float32 value becomes float16, weights and activations, except around nodes that stay in float32
// (fp16-float32.ts says which and why). Graph inputs and outputs keep their type (a Cast is put there). Works on any
// graph, also one whose weights were quantized before.
import type { NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { checkAborted, pause } from "../file/files.ts";
import { dataTypeName } from "../file/types.ts";
import type { Scratch } from "../file/values.ts";
import { ARRAY_MAX, tensorBytes } from "../file/values.ts";
import { buildScopes, inferTypes, sortNodes } from "../graph/graph.ts";
import type { Layer } from "../layers.ts";
import type { LayerReport } from "../options.ts";
import { clampOf, constantToHalf } from "./fp16-constants.ts";
import { planFloat32 } from "./fp16-float32.ts";
import type { Fp16Graph } from "./fp16-graph.ts";
import { fp16Graph } from "./fp16-graph.ts";
import type { TargetContext } from "./target.ts";
import { decibels } from "../weights.ts";
import { baseReport, leftAlone } from "../write-layers.ts";

export { FP16_BLOCKED_OPS } from "./fp16-float32.ts";

/** Cast has no float16 before. */
const OPSET = 6;

/** What became of a constant. */
interface Figure {
  readonly bytes: number;
  readonly sqnrDb: number;
}

/**
 * Converts a model in place. `layers` are those to report; `chosen` gives a reason for a layer to stay in float32.
 * @throws LowbitError E_ONNX where a pattern of `keep` matches no node, E_ABORTED
 */
export async function convertFp16(
  context: TargetContext,
  layers: readonly Layer[],
  chosen: (layer: Layer) => string | undefined,
): Promise<LayerReport[]> {
  const { model, names, options } = context;
  const weighted = layers.filter((layer) => layer.weight !== null);
  if (context.opset() < OPSET) {
    const reason = `float16 needs opset ${OPSET}, the model has ${context.opset()}`;
    return weighted.map((layer) => leftAlone(layer, reason));
  }
  // The graph as it is now: weights may have been quantized since the scopes of the context were built.
  const scopes = buildScopes(model);
  sortNodes(scopes);
  const types = inferTypes(scopes, context.opset());
  const left = new Map<NodeProto, string>();
  for (const layer of weighted) {
    const reason = chosen(layer);
    if (reason !== undefined) left.set(layer.node, reason);
  }
  const { reasons, masks } = await planFloat32(context, scopes, types, left);
  const { constants } = fp16Graph({
    model,
    scopes,
    types,
    blocked: (node) => reasons.has(node),
    unique: names.take,
    keepIo: options.keepIoTypes ?? true,
  });
  const figures = await convertConstants(context, constants, masks);
  const owners = new Map<TensorProto, string>();
  return weighted.map((layer): LayerReport => {
    const { tensor } = layer.weight!;
    const figure = figures.get(tensor);
    const reason = reasons.get(layer.node) ?? (figure === undefined ? staysReason(tensor, layer.bytes) : undefined);
    if (reason !== undefined || figure === undefined) return leftAlone(layer, reason!);
    const owner = owners.get(tensor);
    if (owner === undefined) owners.set(tensor, layer.name);
    return {
      ...baseReport(layer),
      format: "float16",
      bytesAfter: figure.bytes,
      sqnrDb: figure.sqnrDb,
      ...(owner === undefined ? {} : { sharedWith: owner }),
    };
  });
}

/** Why a weight was not converted although its node was. */
function staysReason(tensor: TensorProto, bytes: number): string {
  if (tensor.dataType === T.FLOAT16) return "the weight is float16 already";
  if (tensor.dataType !== T.FLOAT) return `fp16 converts float weights, and this one is ${dataTypeName(tensor.dataType)}`;
  return bytes / 2 > ARRAY_MAX ? "the weight passes 2 GiB as float16" : "the weight is sparse: only dense constants become float16";
}

async function convertConstants(
  { model, options, notes }: TargetContext,
  constants: Fp16Graph["constants"],
  masks: ReadonlySet<TensorProto>,
): Promise<Map<TensorProto, Figure>> {
  const total = constants.reduce((sum, { tensor }) => sum + tensorBytes(tensor), 0);
  let done = 0;
  let clamped = 0;
  const scratch: Scratch = { bytes: new Uint8Array(0) };
  const figures = new Map<TensorProto, Figure>();
  for (const { tensor, place } of constants) {
    const bytes = tensorBytes(tensor);
    if (bytes > 1 << 16) {
      options.onProgress?.({ done, total, layer: tensor.name });
      await pause();
    }
    checkAborted(options.signal);
    const half = constantToHalf(model, tensor, (count) => clampOf(count, masks.has(tensor), options.clamp), scratch);
    place(new Uint8Array(half.codes.buffer));
    figures.set(tensor, { bytes: bytes / 2, sqnrDb: decibels(half.signal, half.noise) });
    clamped += half.clamped;
    done += bytes;
  }
  if (clamped > 0) {
    const what = options.clamp === undefined ? "what float16 holds" : `magnitudes ${options.clamp.join("..")}`;
    notes.push(`${clamped} constants were clamped to ${what}`);
  }
  options.onProgress?.({ done: total, total, layer: "" });
  return figures;
}

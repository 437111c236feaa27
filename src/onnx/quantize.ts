// quantizeModel (files, Node) and quantizeModelBytes (anywhere): find the layers, convert them one by one, write the model, report.
import { LowbitError } from "../../formats/core/errors.ts";
import { segmentsLength } from "./file/encode.ts";
import { checkAborted, checkOutput, fileSize, pause, spillFile, writeFiles } from "./file/files.ts";
import { buildScopes, collectNames, opsetVersion, removeUnused, sortNodes } from "./graph/graph.ts";
import { inputPaths, outputFiles, readModel, readModelBytes, writeModelBytes } from "./file/io.ts";
import { dynamicMode } from "./targets/dynamic.ts";
import { convertFp16 } from "./targets/fp16.ts";
import type { Layer } from "./layers.ts";
import type { Mode, ModeContext } from "./targets/mode.ts";
import { findLayers, unknownReason } from "./layers.ts";
import { q4Mode } from "./targets/q4.ts";
import type { OnnxModel } from "./file/model.ts";
import type { LayerReport, OnnxDtype, QuantizeModelOptions, QuantizeOptions, QuantizeReport } from "./options.ts";
import { checkOptions, nameFilter } from "./options.ts";
import { ARRAY_MAX } from "./file/values.ts";

/** New tensors stay in memory up to this many bytes, then go to a temporary file beside the output. */
const MEMORY_BUDGET = 192 << 20;

type LayerMode = Exclude<OnnxDtype, "fp16">;

const MODES: Readonly<Record<LayerMode, () => Mode>> = { q4: q4Mode, int8: dynamicMode, uint8: dynamicMode, q8: dynamicMode };

/** Layers and notes of a conversion; the model has been changed in place. */
export interface ConvertResult {
  readonly layers: LayerReport[];
  readonly notes: string[];
}

/**
 * Quantizes a model in place. @throws LowbitError E_ONNX on a damaged graph, E_VALUE on weights that are not finite, E_ABORTED
 */
export async function convertModel(model: OnnxModel, options: QuantizeOptions): Promise<ConvertResult> {
  checkOptions(options);
  const scopes = buildScopes(model);
  const notes: string[] = [];
  if (sortNodes(scopes)) notes.push("nodes sorted: a value was used before the node that makes it");
  const names = collectNames(scopes);
  const context: ModeContext = { model, scopes, names, options, opset: () => opsetVersion(model), notes };
  const found = findLayers(scopes);
  const filter = nameFilter(options, [...new Set(found.map((layer) => layer.name))]);
  const types = options.opTypes === undefined ? undefined : new Set(options.opTypes);
  const chosen = (layer: Layer): string | undefined =>
    types !== undefined && !types.has(layer.node.opType)
      ? "not among opTypes"
      : layer.bytes > ARRAY_MAX
        ? "the weight passes 2 GiB"
        : filter(layer.name);
  for (const type of types ?? []) {
    if (!found.some((layer) => layer.node.opType === type)) {
      throw new LowbitError(
        "E_ONNX",
        `opTypes: expected operators with a weight in this model, got ${type}. It has: ${[...new Set(found.map((layer) => layer.node.opType))].join(", ") || "none"}.`,
      );
    }
  }
  const result =
    options.dtype === "fp16"
      ? await convertFp16(context, found, chosen)
      : await convertLayers(MODES[options.dtype](), context, found, chosen);
  if (model.proto.functions.length > 0) notes.push(`${model.proto.functions.length} model-local functions were left alone`);
  if (result.some((layer) => layer.format !== null)) modernizeInputs(model, notes);
  return { layers: result, notes };
}

/** Before IR version 4 every initializer had to be a graph input too; new ones are not, so the model becomes IR 4 with plain initializers. */
function modernizeInputs(model: OnnxModel, notes: string[]): void {
  if (model.proto.irVersion >= 4n) return;
  const graph = model.proto.graph!;
  const initializers = new Set(graph.initializer.map((tensor) => tensor.name));
  graph.input = graph.input.filter((input) => !initializers.has(input.name));
  notes.push(`IR version raised from ${model.proto.irVersion} to 4: weights are no longer graph inputs`);
  model.proto.irVersion = 4n;
}

async function convertLayers(
  mode: Mode,
  context: ModeContext,
  found: readonly Layer[],
  chosen: (layer: Layer) => string | undefined,
): Promise<LayerReport[]> {
  const { options, scopes } = context;
  const reasons = new Map<Layer, string>();
  for (const layer of found) {
    const reason = mode.opTypes.includes(layer.node.opType)
      ? (chosen(layer) ?? mode.reason(layer, context))
      : unknownReason(layer, options.dtype);
    if (reason !== undefined) reasons.set(layer, reason);
  }
  const convertible = found.filter((layer) => !reasons.has(layer));
  const late = convertible.length > 0 ? mode.prepare?.(convertible, context) : undefined;
  const total = convertible.reduce((sum, layer) => sum + layer.bytes, 0);
  let done = 0;
  let yielded = 0;
  const replaced = new Map<Layer["node"], Layer["node"][]>();
  const unused = new Set<string>();
  const owners = new Map<string, string>();
  const reports: LayerReport[] = [];
  for (const layer of found) {
    const base = {
      name: layer.name,
      opType: layer.node.opType,
      weight: layer.weight?.name ?? "",
      shape: layer.shape,
      bytesBefore: layer.bytes,
    };
    const reason = reasons.get(layer) ?? late?.(layer);
    if (reason !== undefined) {
      reports.push({ ...base, format: null, bytesAfter: layer.bytes, sqnrDb: null, reason });
      continue;
    }
    options.onProgress?.({ done, total, layer: layer.name });
    if (yielded++ === 0 || layer.bytes > 1 << 16) await pause();
    checkAborted(options.signal);
    const conversion = mode.convert(layer, context);
    replaced.set(layer.node, conversion.nodes);
    unused.add(layer.weight!.name);
    const owner = owners.get(conversion.codes);
    if (owner === undefined) owners.set(conversion.codes, layer.name);
    reports.push({
      ...base,
      format: conversion.format,
      bytesAfter: conversion.bytesAfter,
      sqnrDb: conversion.sqnrDb,
      ...(owner === undefined ? {} : { sharedWith: owner }),
    });
    done += layer.bytes;
  }
  for (const scope of scopes) {
    if (scope.graph.node.some((node) => replaced.has(node)))
      scope.graph.node = scope.graph.node.flatMap((node) => replaced.get(node) ?? [node]);
  }
  // A bias that was given a new shape is no longer read in its old one.
  for (const nodes of replaced.keys()) for (const name of nodes.input) unused.add(name);
  const inputs = removeUnused(scopes, unused);
  // Before IR version 4 initializers had to be inputs, and nobody could feed them.
  if (inputs.length > 0 && context.model.proto.irVersion >= 4n) {
    context.notes.push(
      `weights that were graph inputs with a default can no longer be fed: ${inputs.slice(0, 3).join(", ")}${inputs.length > 3 ? `, ... (${inputs.length} in all)` : ""}`,
    );
  }
  options.onProgress?.({ done: total, total, layer: "" });
  return reports;
}

function summarize(
  options: QuantizeOptions,
  result: ConvertResult,
  sizes: { before: number; after: number; started: number; outputs: string[] },
): QuantizeReport {
  const quantized = result.layers.filter((layer) => layer.format !== null);
  // A weight that two operators read in different forms is one before and two after.
  const before = new Map(quantized.map((layer) => [layer.weight, layer.bytesBefore]));
  const after = quantized.filter((layer) => layer.sharedWith === undefined).reduce((sum, layer) => sum + layer.bytesAfter, 0);
  return {
    dtype: options.dtype,
    layers: result.layers,
    quantized: quantized.length,
    leftAlone: result.layers.length - quantized.length,
    weightBytesBefore: [...before.values()].reduce((sum, bytes) => sum + bytes, 0),
    weightBytesAfter: after,
    fileBytesBefore: sizes.before,
    fileBytesAfter: sizes.after,
    seconds: (performance.now() - sizes.started) / 1000,
    outputs: sizes.outputs,
    notes: result.notes,
  };
}

/**
 * Quantizes the model file `input` to `output`. The output appears whole or not at all; the input is only read. Node only.
 * @returns a report of every layer with a weight: format, bytes, SQNR, or why it was left alone
 * @throws LowbitError E_IO, E_EXISTS, E_ONNX, E_VALUE, E_ABORTED; TypeError and RangeError for options
 * @example const report = await quantizeModel("model.onnx", "model_q4.onnx", { dtype: "q4" });
 */
export async function quantizeModel(input: string, output: string, options: QuantizeModelOptions): Promise<QuantizeReport> {
  const started = performance.now();
  checkOptions(options);
  checkAborted(options.signal);
  const force = options.force ?? false;
  const model = readModel(input);
  const spill = spillFile(output, MEMORY_BUDGET);
  try {
    const inputs = inputPaths(model);
    checkOutput(output, inputs, force);
    model.payloads.keep = spill.keep;
    const result = await convertModel(model, options);
    const outputs = outputFiles(model, output, options);
    for (const file of outputs) checkOutput(file.path, inputs, force);
    await writeFiles(outputs, force, options.signal);
    return summarize(options, result, {
      before: inputs.reduce((sum, path) => sum + fileSize(path), 0),
      after: outputs.reduce((sum, file) => sum + segmentsLength(file.segments), 0),
      started,
      outputs: outputs.map((file) => file.path),
    });
  } finally {
    spill.close();
    model.close();
  }
}

export interface QuantizeBytesOptions extends QuantizeOptions {
  /** Bytes of external data files, by the location that tensors name. */
  external?: Readonly<Record<string, Uint8Array>>;
}

/**
 * Quantizes a model in memory: browsers, workers, tests. At most 2 GiB.
 * @throws LowbitError E_ONNX, E_VALUE, E_ABORTED; TypeError and RangeError for options
 */
export async function quantizeModelBytes(
  bytes: Uint8Array,
  options: QuantizeBytesOptions,
): Promise<{ bytes: Uint8Array; report: QuantizeReport }> {
  const started = performance.now();
  const model = readModelBytes(bytes, options.external);
  const result = await convertModel(model, options);
  const out = writeModelBytes(model);
  const before = bytes.length + Object.values(options.external ?? {}).reduce((sum, data) => sum + data.length, 0);
  return { bytes: out, report: summarize(options, result, { before, after: out.length, started, outputs: [] }) };
}

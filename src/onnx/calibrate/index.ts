// Calibration of models: data in, statistics and ranges by layer out. `calibrateModel` is for those who write
// quantizers of their own; `decideWeights` (src/onnx/decide.ts) does the same group by group, for less memory.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { OnnxModel } from "../file/model.ts";
import { readModel } from "../file/io.ts";
import { buildScopes } from "../graph/graph.ts";
import { nameFilter, type NamePattern } from "../patterns.ts";
import { layersOf, type ModelLayer } from "../primitives.ts";
import { readFeeds, type CalibrationData } from "./sources.ts";
import { collectPasses, inputGroups, type CollectOptions, type InputStatistics } from "./statistics.ts";

export { readFeeds, type CalibrationData, type FeedsSource, type ReadFeedsOptions, type TextSource } from "./sources.ts";
export { cutModel, modelValues, type BatchValues, type RunnerOptions } from "./taps.ts";
export type { CollectOptions, InputStatistics } from "./statistics.ts";

/** Layers and batches that `calibrateModel` looks at. */
export interface CalibrateModelOptions extends CollectOptions {
  /** Layers by name (globs or /regex/); default: all that multiply vectors. */
  readonly layers?: readonly NamePattern[];
  /** Batches of the data, at most. */
  readonly maxBatches?: number;
}

/** The statistics of one layer's inputs. Layers that read the same value share them. */
export interface ModelLayerStatistics extends InputStatistics {
  readonly layer: ModelLayer;
}

/** Statistics of layers' inputs, by layer, and why the others have none. */
export interface ModelCalibration {
  /** By name of the layer. */
  readonly layers: ReadonlyMap<string, ModelLayerStatistics>;
  /** Layers that cannot be calibrated, by name, with the reason. */
  readonly refused: ReadonlyMap<string, string>;
}

/**
 * Runs a model on calibration data and collects the statistics of its layers' inputs: Hessians, channel sums, ranges.
 * Nothing is held out unless asked for. Memory: 8 k^2 bytes for each different input; `hessian: false` keeps the
 * channel sums only. Node only (onnxruntime-node).
 * @param model a path, or a model that was read
 * @throws LowbitError E_CALIBRATION for data that do not fit the model or are not finite, and for layers beyond
 * `memory`; E_ONNX for a pattern that matches no layer; E_RUNTIME; E_ABORTED
 * @example
 * const { layers } = await calibrateModel("model.onnx", "data.npz");
 * layers.get("/14/Gemm")!.statistics[0].hessian!.length // 16384: of its 128 inputs
 */
export async function calibrateModel(
  model: string | OnnxModel,
  data: CalibrationData,
  options: CalibrateModelOptions = {},
): Promise<ModelCalibration> {
  if (typeof model === "string") {
    const file = readModel(model);
    try {
      return await calibrateModel(file, data, options);
    } finally {
      file.close();
    }
  }
  const all = layersOf(buildScopes(model), model);
  const filter = nameFilter(options.layers === undefined ? {} : { include: options.layers }, [...new Set(all.map((layer) => layer.name))]);
  const chosen = all.filter((layer) => filter(layer.name) === undefined);
  const { groups, refused } = inputGroups(model, chosen);
  if (groups.length === 0)
    throw new LowbitError(
      "E_CALIBRATION",
      `calibrateModel: expected layers that multiply vectors, got none. ${[...refused]
        .slice(0, 3)
        .map(([layer, reason]) => `${layer.name}: ${reason}.`)
        .join(" ")}`,
    );
  const { maxBatches, signal } = options;
  const feeds = await readFeeds(model, data, {
    ...(maxBatches === undefined ? {} : { maxBatches }),
    ...(signal === undefined ? {} : { signal }),
  });
  const layers = new Map<string, ModelLayerStatistics>();
  for await (const pass of collectPasses(model, feeds, groups, { holdOut: 0, ...options, memory: options.memory ?? Infinity }))
    for (const [group, statistics] of pass)
      for (const layer of group.layers) layers.set(layer.name, { layer: layer as ModelLayer, ...statistics });
  return { layers, refused: new Map([...refused].map(([layer, reason]) => [layer.name, reason])) };
}

// decideWeights: the packed weight of every chosen layer of a model, by any algorithm, from calibration data. Nothing
// in the model changes. One-shot: all layers see the inputs of the float model. Sequential: front to back, each layer
// sees the inputs of the model quantized so far; layers that share an input go together.
import { clone } from "./file/copy.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format } from "../../formats/core/types.ts";
import { dequantizeOriginal } from "../quantize/mrgptq.ts";
import type { Algorithm } from "./algorithm-types.ts";
import { resolveAlgorithm } from "./algorithms.ts";
import { isLarge } from "./bands.ts";
import { openStatistics } from "./calibrate/file.ts";
import { sequentialReason } from "./calibrate/experts.ts";
import { readFeeds, type CalibrationData } from "./calibrate/sources.ts";
import {
  collect,
  collectPasses,
  heldOutBatches,
  inputGroups,
  passesOf,
  type InputGroup,
  type InputStatistics,
} from "./calibrate/statistics.ts";
import { modelRunner } from "./calibrate/taps.ts";
import { ModelProtoSchema } from "./file/gen/onnx_pb.ts";
import type { OnnxModel } from "./file/model.ts";
import { payloadStore, type PayloadStore } from "./file/source.ts";
import type { Scratch } from "./file/values.ts";
import type { Layer } from "./layers.ts";
import { quantizeLayer, type DecideOptions, type Job, type WeightBasis } from "./layer-weight.ts";
import { modelLayers, readBias, takesBias, writeBias, writeWeight } from "./primitives.ts";
import type { Feeds } from "./verify/feeds.ts";
import { firstReaders, mergeInputs } from "./shared-weights.ts";
import { gemmAlpha } from "./weights.ts";
import { memoryStore, type DecidedWeight, type WeightStore } from "./journal/store.ts";

/** What becomes of a layer's weight. */
export interface WeightDecision {
  readonly format: Format;
  readonly algorithm: Algorithm;
}

export type { DecideOptions, DecidedWeight, WeightBasis };

/**
 * Quantizes the weights of layers. Layers that cannot be calibrated (embeddings, layers inside If and Loop) must have
 * an algorithm without data.
 * @param decide format and algorithm of a layer
 * @param calibration data, needed by every algorithm that looks at inputs
 * @throws LowbitError E_CALIBRATION where data are missing, do not fit or a layer cannot have statistics, naming the
 * layer; E_UNSUPPORTED, E_VALUE, E_RUNTIME, E_ABORTED; TypeError and RangeError for options
 * @example
 * const [last] = modelLayers(model).slice(-1);
 * const choice = { format: format("int4_b32"), algorithm: "gptq" } as const;
 * const packed = await decideWeights(model, [last], () => choice, "data.npz");
 */
export async function decideWeights(
  model: OnnxModel,
  layers: readonly Layer[],
  decide: (layer: Layer) => WeightDecision,
  calibration?: CalibrationData,
  options: DecideOptions = {},
): Promise<Map<Layer, DecidedWeight>> {
  const store = memoryStore();
  await decideInto(store, model, layers, decide, calibration, options);
  const first = firstReaders(layers, decide);
  return new Map(layers.map((layer) => [layer, store.get(first.get(layer)!)!]));
}

/**
 * decideWeights into a store: what is there already is not made again, and what another run makes is left out. A weight
 * that several layers read is there for the first of them (`firstReaders`).
 */
export async function decideInto(
  store: WeightStore,
  model: OnnxModel,
  layers: readonly Layer[],
  decide: (layer: Layer) => WeightDecision,
  calibration: CalibrationData | undefined,
  options: DecideOptions,
): Promise<void> {
  const readers = firstReaders(layers, decide);
  const firstOf = (layer: Layer): Layer => readers.get(layer)!;
  const isOpen = (layer: Layer): boolean => store.takes(firstOf(layer)) && !store.has(firstOf(layer));
  const jobs = layers.map((layer): Job => {
    const { format, algorithm } = decide(layer);
    return { layer, format, algorithm: resolveAlgorithm(algorithm) };
  });
  const looking = jobs.filter((job) => job.algorithm.takes);
  const { groups, refused } = inputGroups(
    model,
    looking.map((job) => job.layer),
  );
  const sequential = options.sequential ?? looking.some((job) => job.algorithm.needs === "drift");
  for (const job of sequential ? looking : []) {
    const reason = sequentialReason(job.layer);
    if (reason !== undefined) refused.set(job.layer, reason);
  }
  for (const job of looking)
    if (isOpen(job.layer)) checkCalibrated(job, refused.get(job.layer), calibration !== undefined || options.statistics !== undefined);
  const byLayer = new Map(jobs.map((job) => [job.layer, job]));
  if (sequential && layers.some((layer) => !store.takes(layer)))
    throw new LowbitError(
      "E_UNSUPPORTED",
      "shard: expected layers that can be made apart, got sequential calibration, where each waits for the one before. Leave sequential (and refit) out, or make the model in one run with resume.",
    );
  const scratch: Scratch = { bytes: new Uint8Array(0) };
  const wanted = (group: InputGroup): boolean => group.layers.some(isOpen);
  const firsts = new Set(readers.values());
  const make = (layer: Layer, statistics: InputStatistics | null): Promise<DecidedWeight> => {
    const done = [...firsts].filter((one) => store.has(one)).length;
    options.onProgress?.({ stage: "quantize", done, total: firsts.size, layer: layer.name });
    return quantizeLayer(model, byLayer.get(layer)!, statistics, options, scratch);
  };
  // inputs that a weight still waits for, and the sums of those that it has seen
  const waiting = new Map<Layer, { readonly inputs: Set<InputGroup>; sums: InputStatistics | null }>();
  for (const group of groups)
    for (const layer of group.layers.map(firstOf)) {
      if (!waiting.has(layer)) waiting.set(layer, { inputs: new Set(), sums: null });
      waiting.get(layer)!.inputs.add(group);
    }
  const learn = async (group: InputGroup, found: InputStatistics): Promise<void> => {
    for (const layer of new Set(group.layers.filter(isOpen).map(firstOf))) {
      const own = waiting.get(layer)!;
      own.inputs.delete(group);
      own.sums = own.sums === null ? found : mergeInputs(own.sums, found);
      if (own.inputs.size > 0) continue;
      store.put(layer, await make(layer, own.sums));
      own.sums = null;
    }
  };
  if (options.statistics !== undefined && groups.some(wanted)) {
    if (sequential)
      throw new LowbitError(
        "E_UNSUPPORTED",
        "statistics: expected one-shot calibration, got sequential, which needs the data themselves. Give them with calibration (--calibrate).",
      );
    const file = openStatistics(options.statistics, model);
    try {
      for (const group of groups.filter(wanted)) await learn(group, file.of(group));
    } finally {
      file.close();
    }
  } else if (calibration !== undefined && groups.some(wanted)) {
    const { maxBatches, signal } = options;
    const feeds = await readFeeds(model, calibration, {
      ...(maxBatches === undefined ? {} : { maxBatches }),
      ...(signal === undefined ? {} : { signal }),
    });
    if (sequential) await decideInSequence(model, feeds, groups, { make, firstOf }, options, store);
    else
      for await (const pass of collectPasses(model, feeds, groups, options, wanted))
        for (const [group, statistics] of pass) await learn(group, statistics);
  }
  for (const layer of firsts) if (isOpen(layer)) store.put(layer, await make(layer, null));
}

function checkCalibrated({ layer, algorithm }: Job, reason: string | undefined, hasData: boolean): void {
  if (algorithm.needs === "nothing") return;
  if (!hasData)
    throw new LowbitError(
      "E_CALIBRATION",
      `layer ${layer.name}: expected calibration data for ${algorithm.name}, got none. Give them (--calibrate), or take an algorithm without (rtn, mse, hqq).`,
    );
  if (reason !== undefined)
    throw new LowbitError(
      "E_CALIBRATION",
      `layer ${layer.name}: expected inputs that calibration can look at for ${algorithm.name}, got none: ${reason}. Give the layer an algorithm without data (rtn, mse, hqq), or leave it out.`,
    );
}

/**
 * A copy of a model whose weights can be written; the payloads of the original stay where they are, new ones are
 * dropped with the copy.
 */
function workingCopy(model: OnnxModel): OnnxModel {
  const own = payloadStore();
  // to where new weights of this run go: a file, where there are many
  own.keep = model.payloads.keep;
  const payloads: PayloadStore = { ...own, get: (raw) => own.get(raw) ?? model.payloads.get(raw) };
  return { ...model, payloads, proto: clone(ModelProtoSchema, model.proto) };
}

interface Making {
  make(layer: Layer, statistics: InputStatistics): Promise<DecidedWeight>;
  firstOf(layer: Layer): Layer;
}

/**
 * Layer by layer through the model, quantized so far, and the float model beside it. A weight that several layers read
 * is that of the first which is reached.
 */
async function decideInSequence(
  model: OnnxModel,
  feeds: readonly Feeds[],
  groups: readonly InputGroup[],
  { make, firstOf }: Making,
  options: DecideOptions,
  store: WeightStore,
): Promise<void> {
  const copy = workingCopy(model);
  const places = new Map(modelLayers(model).map((layer, i) => [layer.node, i]));
  const copies = modelLayers(copy);
  const { threads, signal } = options;
  const [quantized, float] = [modelRunner(copy, feeds, { threads, signal }), modelRunner(model, feeds, { threads, signal })];
  // Each group alone must fit: drift takes two matrices.
  passesOf(groups, options.memory ?? 2 ** 31, heldOutBatches(feeds.length, options.holdOut).size > 0 ? 4 : 2);
  try {
    for (const [i, group] of groups.entries()) {
      const large = group.layers.find(({ weight }) => weight !== null && isLarge(weight));
      if (large !== undefined)
        throw new LowbitError(
          "E_UNSUPPORTED",
          `layer ${large.name}: expected a weight of at most 2 GiB with sequential calibration, got ${large.bytes} bytes. Leave sequential (and refit) out, or the layer (exclude).`,
        );
      const later = groups.slice(i + 1).map((next) => next.input);
      // Layers made before are run through all the same: what they give is what the next ones see.
      const isOpen = group.layers.some((layer) => !store.has(firstOf(layer)));
      const statistics = (await collect(quantized, [group], options, later, float, isOpen ? [group] : [])).get(group);
      for (const layer of group.layers) {
        const target = copies[places.get(layer.node)!];
        const first = firstOf(layer);
        const decided = store.get(first) ?? withoutShift(await make(layer, statistics!), takesBias(target) && first === layer);
        if (!store.has(first)) store.put(first, decided);
        const { factor } = gemmAlpha(layer.node);
        const values = dequantizeOriginal(decided.packed);
        writeWeight(copy, target, factor === 1 ? values : values.map((value) => value / factor));
        if (decided.biasShift !== undefined && first === layer) writeBias(copy, target, shifted(readBias(copy, target), decided.biasShift));
      }
    }
  } finally {
    quantized.close();
    float.close();
  }
}

/** Without a shift where the layer has no place for one. */
function withoutShift({ biasShift, ...decided }: DecidedWeight, takes: boolean): DecidedWeight {
  return biasShift === undefined || !takes ? decided : { ...decided, biasShift };
}

function shifted(bias: Float64Array | null, shift: Float64Array): Float64Array {
  return shift.map((value, i) => value + (bias?.[i] ?? 0));
}

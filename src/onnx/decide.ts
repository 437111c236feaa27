// decideWeights: the packed weight of every chosen layer of a model, by any algorithm, from calibration data. Nothing
// in the model changes. One-shot: all layers see the inputs of the float model. Sequential: front to back, each layer
// sees the inputs of the model quantized so far; layers that share an input go together.
import { clone } from "@bufbuild/protobuf";
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, PackedTensor, ScaleLevel } from "../../formats/core/types.ts";
import { dequantizeOriginal } from "../quantize/mrgptq.ts";
import { correctDriftBias } from "../quantize/refit.ts";
import { outputError } from "../quantize/statistics.ts";
import { quantize } from "../tensor/quantize/index.ts";
import { matrixView, readRows } from "../tensor/tensor.ts";
import { resolveAlgorithm, type Algorithm, type AlgorithmInput, type ResolvedAlgorithm } from "./algorithms.ts";
import { openStatistics } from "./calibrate/file.ts";
import { readFeeds, type CalibrationData } from "./calibrate/sources.ts";
import {
  collect,
  collectPasses,
  heldOutBatches,
  inputGroups,
  passesOf,
  type CollectOptions,
  type InputGroup,
  type InputStatistics,
} from "./calibrate/statistics.ts";
import { modelRunner } from "./calibrate/taps.ts";
import { checkAborted, pause } from "./file/files.ts";
import { ModelProtoSchema } from "./file/gen/onnx_pb.ts";
import type { OnnxModel } from "./file/model.ts";
import { payloadStore, type PayloadStore } from "./file/source.ts";
import type { Layer } from "./layers.ts";
import { weightLayout, type WeightLayout } from "./matrix.ts";
import { modelLayers, readBias, takesBias, writeBias, writeWeight } from "./primitives.ts";
import type { Feeds } from "./verify/feeds.ts";
import { decibels, gemmAlpha, layerMatrix, matrixTensor } from "./weights.ts";
import { memoryStore, type DecidedWeight, type WeightStore } from "./journal/store.ts";

/** What becomes of a layer's weight. */
export interface WeightDecision {
  readonly format: Format;
  readonly algorithm: Algorithm;
}

export type { DecidedWeight };

/** What options chosen on held-out data left there, in a recipe. */
interface HeldOut {
  readonly signal: number;
  readonly error: number;
}

/** A basis other than the model's, in which a packed weight may be: the recipe says which. */
export type WeightBasis = "rotation" | "channelScales";

export interface DecideOptions extends CollectOptions {
  /** Each layer sees the inputs of the model quantized so far; default false. */
  readonly sequential?: boolean;
  /** Sequential: shift biases so that means of outputs stay; default true. Outputs say by how much. */
  readonly biasCorrection?: boolean;
  /**
   * Bases that the target can undo (`recipe.rotation`, `recipe.channelScales`); a weight in another one is refused.
   * Default: none.
   */
  readonly undoes?: readonly WeightBasis[];
  /** Batches of the data, at most. */
  readonly maxBatches?: number;
  /** A file of lowbit calibrate instead of calibration data. */
  readonly statistics?: string;
}

interface Job {
  readonly layer: Layer;
  readonly format: Format;
  readonly algorithm: ResolvedAlgorithm;
}

/**
 * Quantizes the weights of layers. Layers that cannot be calibrated (embeddings, layers inside If and Loop) must have
 * an algorithm without data.
 * @param decide format and algorithm of a layer
 * @param calibration data, needed by every algorithm that looks at inputs
 * @throws LowbitError E_CALIBRATION where data are missing, do not fit or a layer cannot have statistics, naming the
 * layer; E_UNSUPPORTED, E_VALUE, E_RUNTIME, E_ABORTED; TypeError and RangeError for options
 * @example
 * const packed = await decideWeights(model, modelLayers(model), () => ({ format: format("int4_b32"), algorithm: "gptq"
 * }), "data.npz");
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
  return new Map(layers.map((layer) => [layer, store.get(layer)!]));
}

/** decideWeights into a store: what is there already is not made again, and what another run makes is left out. */
export async function decideInto(
  store: WeightStore,
  model: OnnxModel,
  layers: readonly Layer[],
  decide: (layer: Layer) => WeightDecision,
  calibration: CalibrationData | undefined,
  options: DecideOptions,
): Promise<void> {
  const isOpen = (layer: Layer): boolean => store.takes(layer) && !store.has(layer);
  const jobs = layers.map((layer): Job => {
    const { format, algorithm } = decide(layer);
    return { layer, format, algorithm: resolveAlgorithm(algorithm) };
  });
  const looking = jobs.filter((job) => job.algorithm.takes);
  const { groups, refused } = inputGroups(
    model,
    looking.map((job) => job.layer),
  );
  for (const job of looking)
    if (isOpen(job.layer)) checkCalibrated(job, refused.get(job.layer), calibration !== undefined || options.statistics !== undefined);
  const byLayer = new Map(jobs.map((job) => [job.layer, job]));
  const sequential = options.sequential ?? looking.some((job) => job.algorithm.needs === "drift");
  if (sequential && layers.some((layer) => !store.takes(layer)))
    throw new LowbitError(
      "E_UNSUPPORTED",
      "shard: expected layers that can be made apart, got sequential calibration, where each waits for the one before. Leave sequential (and refit) out, or make the model in one run with resume.",
    );
  const wanted = (group: InputGroup): boolean => group.layers.some(isOpen);
  if (options.statistics !== undefined && groups.some(wanted)) {
    if (sequential)
      throw new LowbitError(
        "E_UNSUPPORTED",
        "statistics: expected one-shot calibration, got sequential, which needs the data themselves. Give them with calibration (--calibrate).",
      );
    const file = openStatistics(options.statistics, model);
    try {
      for (const group of groups.filter(wanted)) {
        const found = file.of(group);
        for (const layer of group.layers.filter(isOpen)) store.put(layer, await quantizeLayer(model, byLayer.get(layer)!, found, options));
      }
    } finally {
      file.close();
    }
  } else if (calibration !== undefined && groups.some(wanted)) {
    const { maxBatches, signal } = options;
    const feeds = await readFeeds(model, calibration, {
      ...(maxBatches === undefined ? {} : { maxBatches }),
      ...(signal === undefined ? {} : { signal }),
    });
    if (sequential) await decideInSequence(model, feeds, groups, byLayer, options, store);
    else
      for await (const pass of collectPasses(model, feeds, groups, options, wanted))
        for (const [group, statistics] of pass)
          for (const layer of group.layers.filter(isOpen))
            store.put(layer, await quantizeLayer(model, byLayer.get(layer)!, statistics, options));
  }
  for (const job of jobs) if (isOpen(job.layer)) store.put(job.layer, await quantizeLayer(model, job, null, options));
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

/** The weight as it multiplies (Gemm's alpha in it), row-major. */
function readLayer(model: OnnxModel, layer: Layer): Float64Array<ArrayBuffer> {
  const matrix = layerMatrix(layer);
  if (typeof matrix === "string")
    throw new LowbitError("E_UNSUPPORTED", `layer ${layer.name}: expected a weight to quantize, got none: ${matrix}.`);
  const view = matrixView(matrixTensor(model, layer, matrix));
  const values = new Float64Array(view.rows * view.k);
  readRows(view, 0, view.rows, values);
  const at = values.findIndex((value) => !Number.isFinite(value));
  if (at >= 0)
    throw new LowbitError(
      "E_VALUE",
      `layer ${layer.name}: expected finite weights, got ${values[at]} in row ${Math.floor(at / view.k)}. Repair the model, or leave the layer out.`,
    );
  return values;
}

async function quantizeLayer(
  model: OnnxModel,
  job: Job,
  statistics: InputStatistics | null,
  options: DecideOptions,
): Promise<DecidedWeight> {
  await pause();
  checkAborted(options.signal);
  const { layer, format, algorithm } = job;
  const layout = weightLayout(layer);
  const { rows, k } = layout;
  const w = readLayer(model, layer);
  const shared = options.backend === undefined ? {} : { backend: options.backend };
  const parts = statistics?.statistics.length ?? 1;
  const each = rows / parts;
  const made: PackedTensor[] = [];
  for (let g = 0; g < parts; g++) {
    const input: AlgorithmInput = {
      layer,
      name: layer.name,
      rows: each,
      k,
      statistics: statistics?.statistics[g] ?? null,
      heldOut: statistics?.heldOut?.[g] ?? null,
      drift: statistics?.drift?.[g] ?? null,
      heldOutDrift: statistics?.heldOutDrift?.[g] ?? null,
    };
    const part = { data: w.subarray(g * each * k, (g + 1) * each * k), shape: [each, k], stride: [k, 1], offset: 0 };
    made.push(quantize(part, format, algorithm.make(input, shared)));
  }
  const packed = joinRows(made, layer.name);
  for (const basis of ["rotation", "channelScales"] as const)
    if (packed.recipe[basis] !== undefined && !(options.undoes ?? []).includes(basis))
      throw new LowbitError(
        "E_UNSUPPORTED",
        `layer ${layer.name}: expected an algorithm that keeps the model's basis, got ${algorithm.name}, whose weight needs its ${basis} undone, which this target cannot. Take gptq, or a target that can.`,
      );
  return measure(w, packed, layout, statistics, options);
}

function measure(
  w: Float64Array<ArrayBuffer>,
  packed: PackedTensor,
  { rows, k, rowSpan }: WeightLayout,
  statistics: InputStatistics | null,
  options: DecideOptions,
): DecidedWeight {
  const values = dequantizeOriginal(packed);
  let [signal, noise] = [0, 0];
  for (let i = 0; i < w.length; i++) {
    signal += w[i] * w[i];
    noise += (w[i] - values[i]) ** 2;
  }
  if (statistics === null) return { packed, signal, noise };
  const judges = statistics.heldOut ?? statistics.statistics;
  const each = rows / judges.length;
  const zero = new Float64Array(each * k);
  let [out, error] = [0, 0];
  const shift = new Float64Array(rows);
  judges.forEach((judge, g) => {
    if (judge.hessian === null) return;
    const part = w.subarray(g * each * k, (g + 1) * each * k);
    const q = values.subarray(g * each * k, (g + 1) * each * k);
    out += outputError(part, zero, each, judge.hessian);
    error += outputError(part, q, each, judge.hessian);
    const drift = statistics.drift?.[g];
    if (drift !== undefined) shift.set(correctDriftBias({ weight: part, rows: each, k }, q, drift), g * each);
  });
  // Where options were chosen on data held out, the weight was then fitted to all of them: the figure is of the choice,
  // before.
  const chosen = packed.recipe.heldOut as HeldOut | undefined;
  const outputSqnr = chosen === undefined ? decibels(out, error) : decibels(chosen.signal, chosen.error);
  // A transposed convolution has a bias for several rows.
  const shifts = statistics.drift !== null && rowSpan === 1 && (options.biasCorrection ?? true);
  return { packed, signal, noise, outputSqnr, ...(shifts ? { biasShift: shift } : {}) };
}

/** Packed tensors one below the other. @throws LowbitError E_UNSUPPORTED where a scale covers rows of several */
function joinRows(parts: readonly PackedTensor[], name: string): PackedTensor {
  const [first] = parts;
  if (parts.length === 1) return first;
  const { format } = first;
  const levels: ScaleLevel[] = format.kind === "block" ? [...format.scales, ...(format.offset?.levels ?? [])] : [];
  const apart = ({ span }: ScaleLevel): boolean =>
    Array.isArray(span) ? first.rows % (span as readonly number[])[0] === 0 : span !== "tensor";
  if (!levels.every(apart))
    throw new LowbitError(
      "E_UNSUPPORTED",
      `layer ${name}: expected a format whose scales stay within one of its ${parts.length} groups, got ${format.name}. Take a format with blocks or rows only, or an algorithm without data.`,
    );
  const join = (plane: "codes" | "scales" | "superScales" | "offsets"): Uint8Array | null => {
    if (first[plane] === null) return null;
    const out = new Uint8Array(parts.reduce((n, part) => n + part[plane]!.length, 0));
    let at = 0;
    for (const part of parts) {
      out.set(part[plane]!, at);
      at += part[plane]!.length;
    }
    return out;
  };
  const rows = parts.reduce((n, part) => n + part.rows, 0);
  const heldOut = parts.map(({ recipe }) => recipe.heldOut as HeldOut | undefined).filter((part) => part !== undefined);
  const sum = (what: keyof HeldOut): number => heldOut.reduce((n, part) => n + part[what], 0);
  const recipe =
    heldOut.length < parts.length ? first.recipe : { ...first.recipe, heldOut: { signal: sum("signal"), error: sum("error") } };
  return {
    ...first,
    recipe,
    shape: [rows, ...first.shape.slice(1)],
    rows,
    codes: join("codes")!,
    scales: join("scales"),
    superScales: join("superScales"),
    offsets: join("offsets"),
  };
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

/** Layer by layer through the model, quantized so far, and the float model beside it. */
async function decideInSequence(
  model: OnnxModel,
  feeds: readonly Feeds[],
  groups: readonly InputGroup[],
  jobs: ReadonlyMap<Layer, Job>,
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
      const later = groups.slice(i + 1).map((next) => next.input);
      // Layers made before are run through all the same: what they give is what the next ones see.
      const isOpen = group.layers.some((layer) => !store.has(layer));
      const statistics = (await collect(quantized, [group], options, later, float, isOpen ? [group] : [])).get(group);
      for (const layer of group.layers) {
        const target = copies[places.get(layer.node)!];
        const decided =
          store.get(layer) ?? withoutShift(await quantizeLayer(model, jobs.get(layer)!, statistics!, options), takesBias(target));
        if (!store.has(layer)) store.put(layer, decided);
        const { factor } = gemmAlpha(layer.node);
        const values = dequantizeOriginal(decided.packed);
        writeWeight(copy, target, factor === 1 ? values : values.map((value) => value / factor));
        if (decided.biasShift !== undefined) writeBias(copy, target, shifted(readBias(copy, target), decided.biasShift));
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

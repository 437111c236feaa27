// Formats per layer within a budget of stored bits per weight. The planner adds up losses of layers; how much a layer's
// loss matters for the model is measured by running it. Node only (onnxruntime-node runs the models).
import type { Format } from "../../formats/core/types.ts";
import { format as formatNamed } from "../../formats/registry.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import { dequantizeOriginal } from "../quantize/mrgptq.ts";
import { storedBits } from "../quantize/advise.ts";
import { plan, relativeLoss, type Plan, type PlanLayer } from "../quantize/plan.ts";
import type { LayerStatistics } from "../quantize/statistics.ts";
import { checkAborted, type RunOptions } from "../quantize/steps.ts";
import { quantize, type WeightQuantizer } from "../tensor/quantize/index.ts";
import { clone } from "./file/copy.ts";
import { ModelProtoSchema, TensorProto_DataType as T } from "./file/gen/onnx_pb.ts";
import type { OnnxModel } from "./file/model.ts";
import { modelLayers, readWeight, writeWeight, type ModelLayer } from "./primitives.ts";
import { openRun, type RunValue } from "./run.ts";
import { exactPattern, type SingleRule } from "./sensitivity.ts";
import type { Feeds } from "./verify/feeds.ts";

/** A quantizer for a layer in a format, e.g. GPTQ with its statistics; default round-to-nearest. */
export type LayerQuantizer = (layer: PlanLayer, format: Format) => WeightQuantizer;

/** Layers whose weight in the loss is measured, and on what. */
export interface ImportanceOptions extends RunOptions {
  /** Names of layers; default: the products (MatMul, Gemm, Conv, ConvTranspose) with at least 1024 weights. */
  readonly layers?: readonly string[];
  /** Formats that the budget will choose among; the one with the fewest bits is what layers are probed with. */
  readonly candidates: readonly string[];
  /** Statistics of layers' inputs, by name: losses are then those of the outputs of the layer. */
  readonly statistics?: ReadonlyMap<string, LayerStatistics>;
  readonly quantizer?: LayerQuantizer;
  /** The one output that is compared; default: those called logits, else all, their damages added up. */
  readonly output?: string;
  /**
   * `kl`: divergence of the distributions that an output gives by softmax over its last axis; `noise`: noise over
   * signal. Default: kl where the outputs are called logits, else noise.
   */
  readonly measure?: "kl" | "noise";
}

const LEAST_WEIGHTS = 1024;
/** Operators whose weights a budget is for; tables that are read by Gather or Slice are none. */
const PRODUCTS: ReadonlySet<string> = new Set(["MatMul", "Gemm", "Conv", "ConvTranspose"]);

/** The layers that a budget is for. */
export const plannedLayers = (model: OnnxModel): ModelLayer[] => chosenLayers(model, undefined);

const chosenLayers = (model: OnnxModel, names: readonly string[] | undefined): ModelLayer[] => {
  const all = modelLayers(model);
  if (names === undefined) return all.filter((layer) => layer.rows * layer.k >= LEAST_WEIGHTS && PRODUCTS.has(layer.opType));
  const wanted = new Set(names);
  const found = all.filter((layer) => wanted.delete(layer.name));
  if (wanted.size > 0)
    throw new LowbitError(
      "E_ONNX",
      `layers: expected names of layers with a weight, got ${JSON.stringify([...wanted][0])}. Run lowbit inspect to see them.`,
    );
  return found;
};

const planLayer = (model: OnnxModel, layer: ModelLayer, statistics: ReadonlyMap<string, LayerStatistics> | undefined): PlanLayer => {
  const own = statistics?.get(layer.name);
  return { name: layer.name, weight: readWeight(model, layer), ...(own?.k === layer.k ? { statistics: own } : {}) };
};

/** Stored bits of a weight in a format, by making it. */
const byBits = (formats: readonly Format[], sample: PlanLayer): Format[] =>
  [...formats].sort((a, b) => bitsOf(a, sample) - bitsOf(b, sample));
const bitsOf = (format: Format, { weight }: PlanLayer): number => {
  const rows = { ...weight, shape: [1, weight.shape[1]] };
  const packed = quantize(rows, format);
  return packed.codes.length + (packed.scales?.length ?? 0) + (packed.superScales?.length ?? 0) + (packed.offsets?.length ?? 0);
};

/**
 * How much a unit of each layer's relative loss costs at the output of the model: every layer is quantized alone, in
 * the smallest candidate, and the model run. One run for each layer and one of the float model. The factors go into
 * `plan` as `importance`; only their ratios count.
 * @throws LowbitError E_RUNTIME, E_ONNX, E_ABORTED; TypeError without feeds or candidates
 * @example
 * const measured = { candidates: ["int2_b32", "int4_b32"], layers: ["/14/Gemm"] };
 * const importance = await measureImportance(model, feeds, measured); // by layer
 */
export async function measureImportance(
  model: OnnxModel,
  feeds: readonly Feeds[],
  options: ImportanceOptions,
): Promise<Map<string, number>> {
  if (feeds.length === 0) throw new TypeError("measureImportance, feeds: expected at least one input, got none.");
  if (options.candidates.length === 0) throw new TypeError("measureImportance, candidates: expected at least one format, got none.");
  const layers = chosenLayers(model, options.layers);
  if (layers.length === 0) throw new LowbitError("E_ONNX", "measureImportance: expected layers with a weight, got none.");
  const probes = layers.map((layer) => planLayer(model, layer, options.statistics));
  const [format] = byBits(
    options.candidates.map((name) => formatNamed(name)),
    probes[0],
  );
  const session = await openRun(model);
  const outputs = comparedOutputs(session.outputNames, options.output);
  const measure = options.measure ?? (LOGITS.test(outputs[0]) ? "kl" : "noise");
  const reference: ReadonlyMap<string, RunValue>[] = [];
  try {
    for (const feed of feeds) reference.push(await session.run(feed, outputs));
  } finally {
    await session.release();
  }
  const original = model.proto;
  const found = new Map<string, number>();
  try {
    for (const [i, layer] of layers.entries()) {
      checkAborted(options.signal, "measureImportance");
      options.onProgress?.({ stage: "importance", done: i, total: layers.length, layer: layer.name });
      const packed = quantize(probes[i].weight, format, options.quantizer?.(probes[i], format) ?? {});
      model.proto = clone(ModelProtoSchema, original);
      const copy = modelLayers(model).find(({ name, weight }) => name === layer.name && weight.name === layer.weight.name)!;
      writeWeight(model, copy, dequantizeOriginal(packed));
      const probe = await openRun(model);
      let damage = 0;
      try {
        for (const [f, feed] of feeds.entries()) {
          const got = await probe.run(feed, outputs);
          for (const [name, want] of reference[f]) damage += damageOf(want, got.get(name)!, measure) / feeds.length;
        }
      } finally {
        await probe.release();
      }
      const loss = relativeLoss(probes[i], packed);
      found.set(layer.name, loss > 0 ? damage / loss : 0);
    }
  } finally {
    model.proto = original;
  }
  // A layer that the probe leaves unhurt still counts a little.
  const floor = 1e-3 * Math.max(...found.values());
  for (const [name, value] of found) found.set(name, Math.max(value, floor, Number.MIN_VALUE));
  return found;
}

const LOGITS = /logits/i;

/** All outputs of a detector: one left out of the sum would be ruined. Of a decoder the logits, not its caches. */
function comparedOutputs(names: readonly string[], given: string | undefined): string[] {
  if (given !== undefined) return [given];
  const logits = names.filter((name) => LOGITS.test(name));
  return logits.length > 0 ? logits : [...names];
}

/** Mean divergence of softmax distributions over the last axis, or noise over signal. */
function damageOf(want: RunValue, got: RunValue, measure: "kl" | "noise"): number {
  const [a, b] = [want.data, got.data];
  if (measure === "noise") {
    let [signal, noise] = [0, 0];
    for (let i = 0; i < a.length; i++) {
      if (!Number.isFinite(a[i])) continue; // masks
      signal += a[i] * a[i];
      noise += (a[i] - b[i]) ** 2;
    }
    return signal > 0 ? noise / signal : noise;
  }
  const width = want.dims.at(-1) ?? 1;
  let sum = 0;
  for (let row = 0; row < a.length; row += width) sum += divergence(a, b, row, width);
  return (sum * width) / a.length;
}

/** KL(softmax a || softmax b) of one row. */
function divergence(a: ArrayLike<number>, b: ArrayLike<number>, row: number, width: number): number {
  let [topA, topB] = [-Infinity, -Infinity];
  for (let i = row; i < row + width; i++) [topA, topB] = [Math.max(topA, a[i]), Math.max(topB, b[i])];
  let [sumA, sumB] = [0, 0];
  for (let i = row; i < row + width; i++) {
    sumA += Math.exp(a[i] - topA);
    sumB += Math.exp(b[i] - topB);
  }
  let kl = 0;
  for (let i = row; i < row + width; i++) {
    const logA = a[i] - topA - Math.log(sumA);
    kl += Math.exp(logA) * (logA - (b[i] - topB - Math.log(sumB)));
  }
  return Math.max(0, kl);
}

/** Bits for the weights of all layers together, and the formats to choose among. */
export interface BudgetOptions extends Omit<ImportanceOptions, "candidates"> {
  /** Stored bits per weight of the layers together: codes, scales and zero points. */
  readonly bitsPerWeight: number;
  /** Default: those of `BUDGET_CANDIDATES` around the budget, three from below and three from above. */
  readonly candidates?: readonly string[];
  /** Importance of layers by name, e.g. of `measureImportance`; measured on `feeds` where it is not given. */
  readonly importance?: ReadonlyMap<string, number>;
}

/** Rules that keep to a budget, with what they cost and why. */
export interface BudgetReport {
  /** A rule for each layer: the formats, for a recipe. */
  readonly rules: readonly SingleRule[];
  readonly bitsPerWeight: number;
  readonly plan: Plan;
  readonly importance: ReadonlyMap<string, number>;
  readonly notes: readonly string[];
}

/**
 * Formats to choose from, from narrow to wide: zero points and float16 scales, which the target `stored` holds at that
 * width.
 */
export const BUDGET_CANDIDATES: readonly string[] = [
  "uint2_b64_float16_zp",
  "uint2_b32_float16_zp",
  "uint3_b128_float16_zp",
  "uint3_b64_float16_zp",
  "uint4_b128_float16_zp",
  "uint4_b32_float16_zp",
  "uint6_b128_float16_zp",
  "int8_b128_float16",
];
/** Candidates on either side of the budget. */
const AROUND = 3;

/** The candidates whose stored bits are nearest to the budget. */
function candidatesAround(bitsPerWeight: number): string[] {
  const bits = (name: string): number => storedBits(formatNamed(name), 256, 256);
  const below = BUDGET_CANDIDATES.filter((name) => bits(name) <= bitsPerWeight);
  const above = BUDGET_CANDIDATES.filter((name) => bits(name) > bitsPerWeight);
  return [...below.slice(-AROUND), ...above.slice(0, AROUND)];
}

/** The rule of a layer. A target whose scales have the activations' type would store more than was planned. */
function ruleOf(layer: ModelLayer | undefined, name: string, format: Format): SingleRule {
  const scale = format.kind === "block" ? format.scales[0].format.bits : 32;
  const stored = scale < 32 && layer?.weight.dataType !== T.FLOAT16;
  return { match: exactPattern(name), format: format.name, ...(stored ? { target: "stored" as const } : {}) };
}

/**
 * Chooses a format for each layer so that all together stay within the budget and the sum of losses, weighted by
 * importance, is least.
 * @param feeds calibration inputs, on which importances are measured
 * @throws LowbitError E_CALIBRATION for a budget below the smallest candidate (with what that needs); as
 * `measureImportance`
 * @example
 * const { rules } = await planBudget(model, feeds, { bitsPerWeight: 6, candidates: ["int4_b32", "int8_row"] });
 */
export async function planBudget(model: OnnxModel, feeds: readonly Feeds[], options: BudgetOptions): Promise<BudgetReport> {
  const candidates = options.candidates ?? candidatesAround(options.bitsPerWeight);
  const importance = options.importance ?? (await measureImportance(model, feeds, { ...options, candidates }));
  const found = chosenLayers(model, options.layers);
  const byName = new Map(found.map((layer) => [layer.name, layer]));
  const layers = found.map((layer): PlanLayer => ({
    ...planLayer(model, layer, options.statistics),
    importance: importance.get(layer.name) ?? 1,
  }));
  const formats = candidates.map((name) => formatNamed(name));
  const chosen = await plan(layers, {
    candidates: formats,
    bitsPerWeight: options.bitsPerWeight,
    ...(options.quantizer ? { quantizer: options.quantizer } : {}),
    ...(options.signal ? { signal: options.signal } : {}),
    ...(options.onProgress ? { onProgress: options.onProgress } : {}),
  });
  const counts = new Map<string, number>();
  for (const { format } of chosen.layers) counts.set(format.name, (counts.get(format.name) ?? 0) + 1);
  return {
    rules: chosen.layers.map(({ name, format }) => ruleOf(byName.get(name), name, format)),
    bitsPerWeight: chosen.bitsPerWeight,
    plan: chosen,
    importance,
    notes: [
      `${chosen.bitsPerWeight.toFixed(3)} stored bits per weight (budget ${options.bitsPerWeight}): ${[...counts].map(([name, count]) => `${count} x ${name}`).join(", ")}`,
    ],
  };
}

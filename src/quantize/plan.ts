// plan: formats per layer under a budget of bytes, bits per weight or loss, from measured losses. The losses add up
// over layers: what is minimised is their sum. Never worse than any single format for all layers within the same
// budget, on that sum: those are among the candidates. Policies (spec B9, B10, B13): XR-NPE takes per layer the
// cheapest format within a bound, FlexQ raises only sensitive layers, COMET raises blocks of channels with outliers.
import { isLowbitError, LowbitError } from "../../formats/core/errors.ts";
import { dequantize } from "../../formats/core/packed.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import { quantize, type WeightQuantizer } from "../tensor/quantize/index.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { weightMatrix } from "./grid.ts";
import { dequantizeOriginal } from "./mrgptq.ts";
import { outputError, type LayerStatistics } from "./statistics.ts";
import { checkAborted, type RunOptions } from "./steps.ts";
import { leastMaximum, minimise, withinBound, type ChoiceRow } from "./choose.ts";
import { dequantizeMixed, mixedBytes, outlierSplit, quantizeMixed, storedBytes, type ChannelSplit, type MixedTensor } from "./mixed.ts";

/** A layer that a plan chooses a format for. */
export interface PlanLayer {
  readonly name: string;
  readonly weight: Tensor;
  /** Inputs of the layer; without, the loss is the plain weight error. */
  readonly statistics?: LayerStatistics;
  /** Factor of this layer's loss in the sum; default 1. */
  readonly importance?: number;
}

/** How bits are shared out: `balanced` by loss for each byte, or as a published system does. */
export type PlanPolicy = "balanced" | "xr-npe" | "flexq" | "comet";

/** Formats to choose among, and the budget. */
export interface PlanOptions extends RunOptions {
  readonly candidates: readonly Format[];
  /** Exactly one of the four. Bytes count codes, scales and offsets (and the order of channels of a split layer). */
  readonly budgetBytes?: number;
  readonly bitsPerWeight?: number;
  /** Bound on the sum of losses; the smallest plan within it is returned. Not for xr-npe. */
  readonly maxLoss?: number;
  /** Bound on the loss of each layer, before its importance. Not for balanced. */
  readonly layerLoss?: number;
  /**
   * `balanced` (default): least sum of losses. `xr-npe`: per layer the cheapest format within `layerLoss`; with a
   * budget, the least bound that the budget allows. `flexq`: candidates [narrow, wide]; the wide one for layers whose
   * loss in the narrow one exceeds `layerLoss`, or by loss saved per byte within a budget. `comet`: candidates [narrow,
   * wide]; within a layer, 0, 1, 2, 4 ... blocks of the channels with the largest inputs in the wide one (statistics
   * needed).
   */
  readonly policy?: PlanPolicy;
  /** Channels per block of the policy comet; default 128. */
  readonly channelBlock?: number;
  /** How a layer (or its part, for comet) is quantized; default round-to-nearest. */
  readonly quantizer?: (layer: PlanLayer, format: Format) => WeightQuantizer;
  /** Loss of a layer in a format, instead of the relative output error. `format` is the wide one for a split weight. */
  readonly loss?: (layer: PlanLayer, format: Format, packed: PackedTensor | MixedTensor) => number | Promise<number>;
}

/** What a plan chose for one layer. */
export interface PlannedLayer {
  readonly name: string;
  /** The format of all channels, or of those at the back of `split`. */
  readonly format: Format;
  /** Policy comet: `quantizeMixed(weight, split.channels, [split.wide, format])`. */
  readonly split?: { readonly channels: ChannelSplit; readonly wide: Format };
  readonly bytes: number;
  readonly loss: number;
}

/** A format for each layer within the budget, with bytes and losses. */
export interface Plan {
  readonly layers: readonly PlannedLayer[];
  readonly bytes: number;
  readonly bitsPerWeight: number;
  /** Sum of the losses. */
  readonly loss: number;
  /**
   * Loss and bytes of every layer in every candidate, in the order given; for comet with 0, 1, 2, 4 ... and all blocks
   * in the wide one.
   */
  readonly table: readonly ChoiceRow[];
}

function valuesOf(packed: PackedTensor | MixedTensor): Float64Array | Float32Array {
  if ("parts" in packed) return dequantizeMixed(packed);
  return packed.recipe.rotation || packed.recipe.channelScales ? dequantizeOriginal(packed) : dequantize(packed, { dtype: "float64" });
}

/**
 * Loss relative to the output without quantization: ||X (W - Q)^T||^2 / ||X W^T||^2, or of the weights where there are
 * no statistics.
 * @throws LowbitError E_CALIBRATION where the statistics are of another number of inputs
 * @example relativeLoss({ name: "fc1", weight: w, statistics: stats }, quantize(w, format("int4_b32"))) // .01 is 20 dB
 */
export function relativeLoss(layer: PlanLayer, packed: PackedTensor | MixedTensor): number {
  return lossOf(layer)(packed);
}

type Loss = (packed: PackedTensor | MixedTensor) => number;

/** `relativeLoss` of a layer's candidates: what all of them are compared with is computed once. */
function lossOf({ name, weight, statistics }: PlanLayer): Loss {
  const w = weightMatrix(weight, `plan of layer "${name}"`);
  const hessian = statistics?.hessian;
  if (hessian && statistics!.k !== w.k)
    throw new LowbitError("E_CALIBRATION", `plan of layer "${name}": expected inputs of ${w.k}, got ${statistics!.k}.`);
  const error = (q: Float64Array | Float32Array | null): number => {
    if (hessian) return outputError(w.data, q, w.rows, hessian);
    let sum = 0;
    for (let i = 0; i < w.data.length; i++) sum += (w.data[i] - (q === null ? 0 : q[i])) ** 2;
    return sum;
  };
  const power = error(null);
  return (packed) => (power === 0 ? 0 : error(valuesOf(packed)) / power);
}

/** One way to store a layer. */
interface Choice {
  readonly format: Format;
  readonly split?: PlannedLayer["split"];
}

/**
 * Assigns formats.
 * @throws LowbitError E_CALIBRATION for a budget that no plan meets (with what the smallest needs); TypeError,
 * RangeError for options; E_ABORTED
 * @example
 * const layers = [
 *   { name: "fc1", weight: w, statistics: stats },
 *   { name: "fc2", weight: w },
 * ];
 * const chosen = await plan(layers, { candidates: [format("int3_b64"), format("int4_b32")], bitsPerWeight: 4.5 });
 * chosen.bitsPerWeight <= 4.5 // true
 */
export async function plan(layers: readonly PlanLayer[], options: PlanOptions): Promise<Plan> {
  checkOptions(layers, options);
  const table: ChoiceRow[] = [];
  const choices: Choice[][] = [];
  let weights = 0;
  for (const [index, layer] of layers.entries()) {
    const k = layer.weight.shape.slice(1).reduce((n, d) => n * d, 1);
    weights += layer.weight.shape[0] * k;
    const own = choicesOf(layer, k, options);
    const loss: number[] = [];
    const bytes: number[] = [];
    let relative: Loss | undefined;
    const lossIn: Loss = (packed) => (relative ??= lossOf(layer))(packed);
    for (const choice of own) {
      checkAborted(options.signal, "plan");
      const measured = await measure(layer, choice, options, lossIn).catch((error: unknown) => {
        throw ofLayer(error, layer.name);
      });
      loss.push(measured.loss * (layer.importance ?? 1));
      bytes.push(measured.bytes);
    }
    choices.push(own);
    table.push({ name: layer.name, loss, bytes });
    options.onProgress?.({ stage: "plan", done: index + 1, total: layers.length, layer: layer.name });
  }
  const picked = choose(table, layers, weights, options);
  const planned = table.map((row, i): PlannedLayer => ({
    name: row.name,
    ...choices[i][picked[i]],
    bytes: row.bytes[picked[i]],
    loss: row.loss[picked[i]],
  }));
  const bytes = planned.reduce((n, p) => n + p.bytes, 0);
  return { layers: planned, bytes, bitsPerWeight: (8 * bytes) / weights, loss: planned.reduce((n, p) => n + p.loss, 0), table };
}

/** Errors of quantizers and formats, with the layer that they are about. */
function ofLayer(error: unknown, name: string): unknown {
  if (!isLowbitError(error) || error.code === "E_ABORTED" || error.message.includes(`"${name}"`)) return error;
  return new LowbitError(error.code, `plan of layer "${name}", ${error.message}`, { cause: error });
}

function choicesOf(layer: PlanLayer, k: number, o: PlanOptions): Choice[] {
  if (o.policy !== "comet") return o.candidates.map((format) => ({ format }));
  const [narrow, wide] = o.candidates;
  if (!layer.statistics)
    throw new LowbitError(
      "E_CALIBRATION",
      `plan of layer "${layer.name}": expected statistics for policy "comet", got none. Calibrate the layer.`,
    );
  if (layer.statistics.k !== k)
    throw new LowbitError("E_CALIBRATION", `plan of layer "${layer.name}": expected inputs of ${k}, got ${layer.statistics.k}.`);
  const block = o.channelBlock ?? 128;
  const out: Choice[] = [{ format: narrow }];
  for (let wideBlocks = 1; wideBlocks * block < k; wideBlocks *= 2)
    out.push({ format: narrow, split: { channels: outlierSplit(layer.statistics, { block, wideBlocks }), wide } });
  return [...out, { format: wide }];
}

async function measure(
  layer: PlanLayer,
  { format, split }: Choice,
  o: PlanOptions,
  lossIn: Loss,
): Promise<{ loss: number; bytes: number }> {
  const { quantizer } = o;
  const packed = split
    ? quantizeMixed(layer.weight, split.channels, [split.wide, format], {
        statistics: layer.statistics!,
        ...(quantizer ? { quantizer: (part, f) => quantizer({ ...layer, ...part }, f) } : {}),
      })
    : quantize(layer.weight, format, quantizer ? quantizer(layer, format) : {});
  const loss = o.loss ? await o.loss(layer, split?.wide ?? format, packed) : lossIn(packed);
  if (!Number.isFinite(loss))
    throw new LowbitError("E_CALIBRATION", `plan of layer "${layer.name}": expected a finite loss in ${format.name}, got ${loss}.`);
  return { loss, bytes: "parts" in packed ? mixedBytes(packed) : storedBytes(packed) };
}

const POLICIES = ["balanced", "xr-npe", "flexq", "comet"];

function checkOptions(layers: readonly PlanLayer[], o: PlanOptions): void {
  if (layers.length === 0) throw new TypeError("plan: expected at least one layer, got none.");
  if (!Array.isArray(o.candidates) || o.candidates.length === 0) throw new TypeError("plan: expected candidate formats, got none.");
  const names = new Set<string>();
  for (const { name, importance = 1 } of layers) {
    if (names.has(name)) throw new TypeError(`plan: expected layers of different names, got "${name}" twice.`);
    names.add(name);
    if (!(importance >= 0 && importance < Infinity))
      throw new RangeError(`plan of layer "${name}": expected an importance >= 0, got ${importance}.`);
  }
  const policy = o.policy ?? "balanced";
  if (!POLICIES.includes(policy)) throw new RangeError(`plan policy: expected ${POLICIES.join(", ")}, got "${String(policy)}".`);
  const { budgetBytes, bitsPerWeight, maxLoss, layerLoss } = o;
  const bounds = {
    budgetBytes,
    bitsPerWeight,
    ...(policy === "xr-npe" ? {} : { maxLoss }),
    ...(policy === "balanced" ? {} : { layerLoss }),
  };
  const given = Object.entries({ budgetBytes, bitsPerWeight, maxLoss, layerLoss }).filter(([, v]) => v !== undefined);
  if (given.length !== 1 || !(given[0][0] in bounds))
    throw new TypeError(
      `plan: expected one of ${Object.keys(bounds).join(", ")} for policy "${policy}", got ${given.map(([n]) => n).join(" and ") || "none"}.`,
    );
  const value = given[0][1]!;
  if (!(value > 0 && value < Infinity)) throw new RangeError(`plan ${given[0][0]}: expected a number above 0, got ${value}.`);
  if ((policy === "flexq" || policy === "comet") && o.candidates.length !== 2)
    throw new TypeError(`plan: expected two candidates, narrow and wide, for policy "${policy}", got ${o.candidates.length}.`);
  const block = o.channelBlock ?? 128;
  if (!Number.isSafeInteger(block) || block < 1) throw new RangeError(`plan channelBlock: expected a positive integer, got ${block}.`);
}

function choose(table: readonly ChoiceRow[], layers: readonly PlanLayer[], weights: number, o: PlanOptions): number[] {
  const importance = layers.map((l) => l.importance ?? 1);
  if (o.layerLoss !== undefined) {
    if (o.policy !== "flexq") return withinBound(table, o.layerLoss, importance);
    // Raised where that helps at all: never worse than the narrow format everywhere.
    return table.map(({ loss }, i) => (loss[0] > o.layerLoss! * importance[i] && loss[1] < loss[0] ? 1 : 0));
  }
  const budget = o.budgetBytes ?? Math.floor(((o.bitsPerWeight ?? 0) * weights) / 8);
  if (o.policy === "xr-npe") return leastMaximum(table, budget, importance);
  const uniform = o.candidates.map((_, c) => table.map((row) => (o.policy === "comet" && c === 1 ? row.loss.length - 1 : c)));
  return o.maxLoss === undefined ? minimise(table, "loss", "bytes", budget, uniform) : minimise(table, "bytes", "loss", o.maxLoss, uniform);
}

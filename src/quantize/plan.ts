// plan: formats per layer under a budget of bytes, bits per weight or loss, from measured losses. The losses add up over layers: what is minimised
// is their sum. Never worse than any single format for all layers within the same budget, on that sum: those are among the candidates. Policies:
// XR-NPE takes per layer the cheapest format within a bound, FlexQ raises only sensitive layers. COMET's permutation of activations is not here.
import { LowbitError } from "../../formats/core/errors.ts";
import { dequantize } from "../../formats/core/packed.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import { quantize, type WeightQuantizer } from "../tensor/quantize.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { storedBits } from "./advise.ts";
import { weightMatrix } from "./grid.ts";
import { dequantizeOriginal } from "./mrgptq.ts";
import { outputError, type LayerStatistics } from "./statistics.ts";
import { checkAborted, type RunOptions } from "./steps.ts";

export interface PlanLayer {
  readonly name: string;
  readonly weight: Tensor;
  /** Inputs of the layer; without, the loss is the plain weight error. */
  readonly statistics?: LayerStatistics;
  /** Factor of this layer's loss in the sum; default 1. */
  readonly importance?: number;
}

export interface PlanOptions extends RunOptions {
  readonly candidates: readonly Format[];
  /** Exactly one of the three. Bytes count codes, scales and offsets. */
  readonly budgetBytes?: number;
  readonly bitsPerWeight?: number;
  /** Bound on the sum of losses; the smallest plan within it is returned. */
  readonly maxLoss?: number;
  /**
   * `balanced` (default): least sum of losses. `xr-npe`: per layer the cheapest format whose loss is within `layerLoss`. `flexq`: the first
   * candidate for all layers, the second for those whose loss in the first exceeds `layerLoss`.
   */
  readonly policy?: "balanced" | "xr-npe" | "flexq";
  /** Relative loss per layer for the policies xr-npe and flexq. */
  readonly layerLoss?: number;
  /** How a layer is quantized; default round-to-nearest. */
  readonly quantizer?: (layer: PlanLayer, format: Format) => WeightQuantizer;
  /** Loss of a layer in a format, instead of the relative output error. */
  readonly loss?: (layer: PlanLayer, format: Format, packed: PackedTensor) => number | Promise<number>;
}

export interface PlannedLayer {
  readonly name: string;
  readonly format: Format;
  readonly bytes: number;
  readonly loss: number;
}

export interface Plan {
  readonly layers: readonly PlannedLayer[];
  readonly bytes: number;
  readonly bitsPerWeight: number;
  /** Sum of the losses. */
  readonly loss: number;
  /** Loss and bytes of every layer in every candidate, in the order given. */
  readonly table: readonly { readonly name: string; readonly loss: readonly number[]; readonly bytes: readonly number[] }[];
}

/** Loss relative to the output without quantization: ||X (W - Q)^T||^2 / ||X W^T||^2, or of the weights where there are no statistics. */
export function relativeLoss(layer: PlanLayer, packed: PackedTensor): number {
  const w = weightMatrix(layer.weight, `plan of layer "${layer.name}"`);
  const q = packed.recipe.rotation || packed.recipe.channelScales ? dequantizeOriginal(packed) : dequantize(packed, { dtype: "float64" });
  const zeros = new Float64Array(w.data.length);
  const hessian = layer.statistics?.hessian;
  if (hessian) {
    if (layer.statistics!.k !== w.k)
      throw new LowbitError("E_CALIBRATION", `plan of layer "${layer.name}": expected inputs of ${w.k}, got ${layer.statistics!.k}.`);
    return outputError(w.data, q, w.rows, hessian) / outputError(w.data, zeros, w.rows, hessian);
  }
  let [error, power] = [0, 0];
  for (let i = 0; i < zeros.length; i++) {
    error += (w.data[i] - q[i]) ** 2;
    power += w.data[i] ** 2;
  }
  return power === 0 ? 0 : error / power;
}

/**
 * Assigns formats.
 * @throws LowbitError E_CALIBRATION for a budget that no plan meets (with what the smallest needs); TypeError, RangeError for options; E_ABORTED
 * @example const p = await plan(layers, { candidates: [format("int3_b64"), format("int4_b32")], bitsPerWeight: 3.8 });
 */
export async function plan(layers: readonly PlanLayer[], options: PlanOptions): Promise<Plan> {
  checkOptions(layers, options);
  const table: Plan["table"][number][] = [];
  let weights = 0;
  for (const [index, layer] of layers.entries()) {
    checkAborted(options.signal, "plan");
    const rows = layer.weight.shape[0];
    const k = layer.weight.shape.slice(1).reduce((n, d) => n * d, 1);
    weights += rows * k;
    const importance = layer.importance ?? 1;
    const loss: number[] = [];
    const bytes: number[] = [];
    for (const format of options.candidates) {
      const packed = quantize(layer.weight, format, options.quantizer ? options.quantizer(layer, format) : {});
      const l = options.loss ? await options.loss(layer, format, packed) : relativeLoss(layer, packed);
      if (!Number.isFinite(l))
        throw new LowbitError("E_CALIBRATION", `plan of layer "${layer.name}": expected a finite loss in ${format.name}, got ${l}.`);
      loss.push(l * importance);
      bytes.push(Math.ceil((storedBits(format, rows, k) * rows * k) / 8));
    }
    table.push({ name: layer.name, loss, bytes });
    options.onProgress?.({ stage: "plan", done: index + 1, total: layers.length, layer: layer.name });
  }
  const choice = choose(table, layers, weights, options);
  const planned = table.map((row, i): PlannedLayer => ({
    name: row.name,
    format: options.candidates[choice[i]],
    bytes: row.bytes[choice[i]],
    loss: row.loss[choice[i]],
  }));
  const bytes = planned.reduce((n, p) => n + p.bytes, 0);
  return { layers: planned, bytes, bitsPerWeight: (8 * bytes) / weights, loss: planned.reduce((n, p) => n + p.loss, 0), table };
}

function checkOptions(layers: readonly PlanLayer[], o: PlanOptions): void {
  if (layers.length === 0) throw new TypeError("plan: expected at least one layer, got none.");
  if (!Array.isArray(o.candidates) || o.candidates.length === 0) throw new TypeError("plan: expected candidate formats, got none.");
  const names = new Set(layers.map((l) => l.name));
  if (names.size !== layers.length) throw new TypeError("plan: expected layers of different names, got one twice.");
  const policy = o.policy ?? "balanced";
  const given = [o.budgetBytes, o.bitsPerWeight, o.maxLoss].filter((v) => v !== undefined);
  if (policy === "balanced") {
    if (given.length !== 1) throw new TypeError(`plan: expected one of budgetBytes, bitsPerWeight and maxLoss, got ${given.length}.`);
    if (!(given[0]! > 0 && given[0]! < Infinity)) throw new RangeError(`plan budget: expected a number above 0, got ${given[0]}.`);
  } else if (policy === "xr-npe" || policy === "flexq") {
    if (!(o.layerLoss !== undefined && o.layerLoss > 0))
      throw new RangeError(`plan layerLoss: expected a number above 0, got ${o.layerLoss}.`);
    if (policy === "flexq" && o.candidates.length !== 2)
      throw new TypeError(`plan: expected two candidates for policy "flexq", got ${o.candidates.length}.`);
  } else throw new RangeError(`plan policy: expected "balanced", "xr-npe" or "flexq", got "${String(policy)}".`);
}

type Table = Plan["table"];
const total = (table: Table, choice: readonly number[], what: "loss" | "bytes") => choice.reduce((n, c, i) => n + table[i][what][c], 0);

function choose(table: Table, layers: readonly PlanLayer[], weights: number, o: PlanOptions): number[] {
  if (o.policy === "flexq") return table.map((row, i) => (row.loss[0] > o.layerLoss! * (layers[i].importance ?? 1) ? 1 : 0));
  if (o.policy === "xr-npe")
    return table.map((row, i) => {
      const fits = row.loss.map((_, c) => c).filter((c) => row.loss[c] <= o.layerLoss! * (layers[i].importance ?? 1));
      if (fits.length === 0)
        throw new LowbitError(
          "E_CALIBRATION",
          `plan of layer "${row.name}": expected a candidate with loss ${o.layerLoss} or less, got ${Math.min(...row.loss)} at best. Add wider formats.`,
        );
      return fits.reduce((a, b) => (row.bytes[b] < row.bytes[a] ? b : a));
    });
  if (o.maxLoss !== undefined) return minimise(table, "bytes", "loss", o.maxLoss);
  return minimise(table, "loss", "bytes", o.budgetBytes ?? Math.floor((o.bitsPerWeight! * weights) / 8));
}

/** Least sum of `goal` with the sum of `cost` within the budget: Lagrangian sweep, then exchanges of one and two layers, then every uniform choice. */
function minimise(table: Table, goal: "loss" | "bytes", cost: "loss" | "bytes", budget: number): number[] {
  const least = table.map((row) => row[cost].indexOf(Math.min(...row[cost])));
  if (total(table, least, cost) > budget)
    throw new LowbitError(
      "E_CALIBRATION",
      `plan: expected a budget of at least ${total(table, least, cost)} (${cost}), got ${budget}. Raise it, or add ${cost === "bytes" ? "narrower" : "wider"} candidates.`,
    );
  let best = least;
  const consider = (choice: number[]) => {
    if (total(table, choice, cost) <= budget && total(table, choice, goal) < total(table, best, goal)) best = choice;
  };
  // Slopes at which a layer's choice changes.
  const slopes = new Set<number>();
  for (const row of table)
    for (let a = 0; a < row[cost].length; a++)
      for (let b = 0; b < row[cost].length; b++) {
        const run = row[cost][b] - row[cost][a];
        if (run > 0 && row[goal][a] > row[goal][b]) slopes.add((row[goal][a] - row[goal][b]) / run);
      }
  for (const slope of slopes)
    for (const lambda of [slope * (1 - 1e-9), slope * (1 + 1e-9)])
      consider(table.map((row) => argmin(row[goal].map((g, c) => g + lambda * row[cost][c]))));
  const uniform = Math.min(...table.map((row) => row.loss.length));
  for (let c = 0; c < uniform; c++) consider(table.map(() => c));
  for (;;) {
    const from = best;
    for (let i = 0; i < table.length; i++)
      for (let c = 0; c < table[i].loss.length; c++) {
        consider(from.map((v, l) => (l === i ? c : v)));
        for (let j = 0; j < i; j++)
          for (let e = 0; e < table[j].loss.length; e++) consider(from.map((v, l) => (l === i ? c : l === j ? e : v)));
      }
    if (best === from) return best;
  }
}

const argmin = (list: readonly number[]) => list.reduce((a, v, i) => (v < list[a] ? i : a), 0);

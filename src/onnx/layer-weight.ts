// The weight of one layer by an algorithm: a matrix in float64, or bands of its rows one after the other where it is
// large, and how much of it and of its outputs is lost. Which layers and in which order: decide.ts.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import { dequantizeOriginal } from "../quantize/mrgptq.ts";
import { correctDriftBias } from "../quantize/refit.ts";
import { outputError, unvarying, type LayerStatistics } from "../quantize/statistics.ts";
import { isApart } from "../tensor/quantize/bands.ts";
import { quantize } from "../tensor/quantize/index.ts";
import { matrixView, readRows, type Tensor } from "../tensor/tensor.ts";
import { SAMPLED } from "./algorithm-choices.ts";
import type { AlgorithmInput } from "./algorithm-types.ts";
import { resolveAlgorithm, type ResolvedAlgorithm } from "./algorithms.ts";
import { BANDS, isLarge, layerBands, readsBands } from "./bands.ts";
import { isExperts } from "./calibrate/experts.ts";
import type { CollectOptions, InputStatistics } from "./calibrate/statistics.ts";
import { checkAborted, pause } from "./file/files.ts";
import type { OnnxModel } from "./file/model.ts";
import { ARRAY_MAX, type Scratch } from "./file/values.ts";
import type { DecidedWeight } from "./journal/store.ts";
import type { Layer } from "./layers.ts";
import { weightLayout, type WeightLayout } from "./matrix.ts";
import { decibels, layerMatrix, matrixTensor } from "./weights.ts";

/** A basis other than the model's, in which a packed weight may be: the recipe says which. */
export type WeightBasis = "rotation" | "channelScales";

/** How layers are calibrated while their weights are chosen. */
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

export interface Job {
  readonly layer: Layer;
  readonly format: Format;
  readonly algorithm: ResolvedAlgorithm;
}

/** What options chosen on held-out data left there, in a recipe. */
interface HeldOut {
  readonly signal: number;
  readonly error: number;
}

/**
 * Weights of one band: 256 MiB as float64, of which algorithms take some five times. Those that work row by row have
 * small bands, of `rows` at least. Tests lower them.
 */
export const DECIDE_BANDS = { elements: 2 ** 25, byRows: 2 ** 20, rows: 2 * SAMPLED };

/** Rows of the weight as it multiplies (Gemm's alpha in it), row-major, by where they begin and how many. */
type RowReader = (row: number, count: number) => Float64Array<ArrayBuffer>;

/** @param bandRows rows that are asked for at a time; of a weight that has more only those are read */
function rowReader(model: OnnxModel, layer: Layer, bandRows: number, scratch?: Scratch): RowReader {
  const matrix = layerMatrix(layer);
  if (typeof matrix === "string")
    throw new LowbitError("E_UNSUPPORTED", `layer ${layer.name}: expected a weight to quantize, got none: ${matrix}.`);
  const { rows, k } = matrix;
  const few = isLarge(layer.weight!) || (bandRows < rows && readsBands(model, layer, matrix));
  const bands = few ? layerBands(model, layer, matrix, Math.min(BANDS.bytes, 4 * k * bandRows)) : null;
  const whole = bands === null ? matrixView(matrixTensor(model, layer, matrix, scratch)) : null;
  return (row, count) => {
    const values = new Float64Array(count * k);
    if (whole !== null) readRows(whole, row, count, values);
    else
      for (let done = 0; done < count; done += bands!.bandRows) {
        const some = Math.min(bands!.bandRows, count - done);
        readRows(matrixView(bands!.band(row + done, some)), 0, some, values.subarray(done * k));
      }
    const at = values.findIndex((value) => !Number.isFinite(value));
    if (at < 0) return values;
    throw new LowbitError(
      "E_VALUE",
      `layer ${layer.name}: expected finite weights, got ${values[at]} in row ${row + Math.floor(at / k)}. Repair the model, or leave the layer out.`,
    );
  };
}

/** Rows spread over a part of the weight, which is read a band at a time: single rows may lie in columns. */
function sampled(read: RowReader, from: number, rows: number, k: number, bandRows: number): Tensor {
  const data = new Float64Array(SAMPLED * k);
  const step = Math.floor(rows / SAMPLED);
  for (let row = 0, i = 0; i < SAMPLED; row += bandRows) {
    const band = read(from + row, Math.min(bandRows, rows - row));
    for (; i < SAMPLED && i * step < row + bandRows; i++) {
      const at = (i * step - row) * k;
      data.set(band.subarray(at, at + k), i * k);
    }
  }
  return { data, shape: [SAMPLED, k], stride: [k, 1], offset: 0 };
}

/** Rows of one band: all of a part, unless it has too many weights and no scale reaches over all rows. */
function bandRowsOf({ layer, format, algorithm }: Job, each: number, k: number): number {
  const few = Math.max(DECIDE_BANDS.rows, Math.floor(DECIDE_BANDS.byRows / k / 16) * 16);
  if (algorithm.byRows && few < each && few * k <= DECIDE_BANDS.elements && isApart(format, few)) return few;
  const most = Math.floor(DECIDE_BANDS.elements / k / 16) * 16;
  if (each * k <= DECIDE_BANDS.elements || most === 0) return each;
  if (isApart(format, most)) return most;
  if (4 * each * k <= ARRAY_MAX) return each;
  throw new LowbitError(
    "E_UNSUPPORTED",
    `layer ${layer.name}: expected a format whose scales stay within rows, for a weight of ${each} x ${k} that is quantized in bands, got ${format.name}. Take a format with blocks or rows only, or the algorithm rtn.`,
  );
}

/** What takes the place of an algorithm that has nothing to learn from. */
const WITHOUT_DATA = resolveAlgorithm("mse");

/** Vectors of an input below which an expert that none are held out for is left to a search without data. */
const FEW = 1 / 8;

/** Whether a part has nothing to learn from: inputs that never vary, or an expert that hardly any token is sent to. */
function isBlind(layer: Layer, fit: LayerStatistics, held: LayerStatistics | null): boolean {
  return unvarying(fit) || fit.rows === 0 || (isExperts(layer) && held === null && fit.rows < fit.k * FEW);
}

/** Statistics over some vector, or none. */
const someOf = (held: LayerStatistics | undefined): LayerStatistics | null => (held === undefined || held.rows === 0 ? null : held);

/**
 * The weight of a layer. Where calibration says nothing of a group (inputs that never vary, no token), scales are
 * searched without data instead; the recipe says of how many groups (`unvarying`).
 * @param scratch the weights of one run are read into, one after the other
 * @throws LowbitError E_VALUE, E_UNSUPPORTED, E_CALIBRATION, E_ABORTED
 */
export async function quantizeLayer(
  model: OnnxModel,
  job: Job,
  statistics: InputStatistics | null,
  options: DecideOptions,
  scratch?: Scratch,
): Promise<DecidedWeight> {
  await pause();
  checkAborted(options.signal);
  const { layer, algorithm } = job;
  const layout = weightLayout(layer);
  const { rows, k } = layout;
  const shared = options.backend === undefined ? {} : { backend: options.backend };
  const parts = statistics?.statistics.length ?? 1;
  const each = rows / parts;
  const bandRows = bandRowsOf(job, each, k);
  const read = rowReader(model, layer, bandRows, scratch);
  const made: PackedTensor[] = [];
  const sums = layerSums(rows, k);
  const blind =
    algorithm.needs === "nothing"
      ? []
      : (statistics?.statistics ?? []).map((fit, g) => isBlind(layer, fit, someOf(statistics?.heldOut?.[g])));
  for (let g = 0; g < parts; g++) {
    const input: AlgorithmInput = {
      layer,
      name: layer.name,
      rows: each,
      k,
      statistics: statistics?.statistics[g] ?? null,
      heldOut: someOf(statistics?.heldOut?.[g]),
      drift: statistics?.drift?.[g] ?? null,
      heldOutDrift: statistics?.heldOutDrift?.[g] ?? null,
      ...(bandRows < each && each >= 2 * SAMPLED && algorithm.takes ? { sample: sampled(read, g * each, each, k, bandRows) } : {}),
    };
    const quantizer = (blind[g] ? WITHOUT_DATA : algorithm).make(input, shared);
    try {
      for (let row = g * each; row < (g + 1) * each; row += bandRows) {
        const count = Math.min(bandRows, (g + 1) * each - row);
        const w = read(row, count);
        const packed = quantize({ data: w, shape: [count, k], stride: [k, 1], offset: 0 }, job.format, quantizer);
        checkBasis(packed, job, options);
        sums.add(w, packed, row, statistics, g);
        made.push(packed);
        if (bandRows < each) await pause();
      }
    } finally {
      quantizer.close?.();
    }
  }
  const count = blind.filter(Boolean).length;
  const packed = joinRows(made, layer.name);
  const noted = count === 0 ? packed : { ...packed, recipe: { ...packed.recipe, unvarying: { groups: count, of: parts } } };
  return sums.weight(noted, layout, statistics, options);
}

/** Refuses a weight in a basis that the target cannot undo. */
function checkBasis(packed: PackedTensor, { layer, algorithm }: Job, { undoes = [] }: DecideOptions): void {
  for (const basis of ["rotation", "channelScales"] as const)
    if (packed.recipe[basis] !== undefined && !undoes.includes(basis))
      throw new LowbitError(
        "E_UNSUPPORTED",
        `layer ${layer.name}: expected an algorithm that keeps the model's basis, got ${algorithm.name}, whose weight needs its ${basis} undone, which this target cannot. Take gptq, or a target that can.`,
      );
}

/** Adds up, band by band, what a weight and its outputs lose. */
function layerSums(rows: number, k: number) {
  let [signal, noise, out, error] = [0, 0, 0, 0];
  const shift = new Float64Array(rows);
  return {
    add(w: Float64Array<ArrayBuffer>, packed: PackedTensor, row: number, statistics: InputStatistics | null, g: number): void {
      const values = dequantizeOriginal(packed);
      for (let i = 0; i < w.length; i++) {
        signal += w[i] * w[i];
        noise += (w[i] - values[i]) ** 2;
      }
      const hessian = (statistics?.heldOut ?? statistics?.statistics)?.[g].hessian ?? null;
      if (hessian === null) return;
      const count = w.length / k;
      out += outputError(w, null, count, hessian);
      error += outputError(w, values, count, hessian);
      const drift = statistics!.drift?.[g];
      if (drift !== undefined) shift.set(correctDriftBias({ weight: w, rows: count, k }, values, drift), row);
    },
    weight(packed: PackedTensor, { rowSpan }: WeightLayout, statistics: InputStatistics | null, options: DecideOptions): DecidedWeight {
      if (statistics === null) return { packed, signal, noise };
      // Where options were chosen on data held out, the weight was then fitted to all of them: the figure is of the
      // choice, before.
      const chosen = packed.recipe.heldOut as HeldOut | undefined;
      const outputSqnr = chosen === undefined ? decibels(out, error) : decibels(chosen.signal, chosen.error);
      // A transposed convolution has a bias for several rows.
      const shifts = statistics.drift !== null && rowSpan === 1 && (options.biasCorrection ?? true);
      return { packed, signal, noise, outputSqnr, ...(shifts ? { biasShift: shift } : {}) };
    },
  };
}

/** Packed tensors one below the other. @throws LowbitError E_UNSUPPORTED where a scale covers rows of several */
function joinRows(parts: readonly PackedTensor[], name: string): PackedTensor {
  const [first] = parts;
  if (parts.length === 1) return first;
  const { format } = first;
  if (!isApart(format, first.rows))
    throw new LowbitError(
      "E_UNSUPPORTED",
      `layer ${name}: expected a format whose scales stay within one of its ${parts.length} groups, got ${format.name}. Take a format with blocks or rows only, or an algorithm without data.`,
    );
  const basis = ({ recipe }: PackedTensor): string => JSON.stringify([recipe.rotation, recipe.channelScales]);
  if (parts.some((part) => basis(part) !== basis(first)))
    throw new LowbitError(
      "E_UNSUPPORTED",
      `layer ${name}: expected one basis for all of its ${parts.length} groups or bands, got channel scales or rotations of their own. Take an algorithm that keeps the model's basis (gptq), or leave the layer out.`,
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
  const chosen = heldOut.length > 0 ? { heldOut: { signal: sum("signal"), error: sum("error") } } : {};
  const losses = parts.map(({ recipe }) => recipe.loss).filter((loss) => typeof loss === "number");
  // of groups whose inputs never vary nothing was chosen
  const { polish, ...recipeOfAll } = (parts.find((part) => part.recipe.heldOut !== undefined) ?? first).recipe;
  const recipe = {
    ...recipeOfAll,
    // what it kept of the error is known by band only
    ...(polish === undefined ? {} : { polish: { passes: (polish as { passes?: number }).passes } }),
    ...(losses.length < parts.length ? {} : { loss: losses.reduce((a, b) => a + b) }),
    ...chosen,
  };
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

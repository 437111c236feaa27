// Calibration: runs an async stream of named arrays through the statistics and observers of the layers that ask for
// them. Memory is that of the statistics; a batch is dropped once it is counted. Errors of all layers are collected and
// reported together.
import { LowbitError, isLowbitError } from "../../formats/core/errors.ts";
import { observer, type Observer, type ObserverOptions } from "./observers.ts";
import type { AlgebraOptions } from "./simd.ts";
import { im2col, type ConvGeometry } from "./im2col.ts";
import { layerStatistics, type LayerStatistics, type StatisticsAccumulator } from "./statistics.ts";
import { checkAborted, type RunOptions } from "./steps.ts";

/** An array of a batch: the last axis is the channel, all others are tokens. */
export interface CalibrationArray {
  readonly data: Float32Array | Float64Array;
  readonly shape: readonly number[];
  /** One entry per token; 0 leaves it out. */
  readonly mask?: ArrayLike<number>;
  /** One weight per token. */
  readonly weights?: ArrayLike<number>;
}

/** One batch: arrays by the name of the layer whose input they are. */
export type CalibrationBatch = Readonly<Record<string, CalibrationArray>>;
/** Batches one after the other; they are read once. */
export type CalibrationSource = AsyncIterable<CalibrationBatch> | Iterable<CalibrationBatch>;

/** What one layer wants to know of an array. */
export interface LayerRequest {
  /**
   * Name of the array in the batches; default: the name of the layer. Layers that name the same array share its
   * statistics.
   */
  readonly input?: string;
  /** Collect x x^T (8 k^2 bytes); default true. */
  readonly hessian?: boolean;
  /** Collect ranges, of the last axis. */
  readonly observer?: ObserverOptions;
  /**
   * The array is the input [n, channels, height, width] of a convolution, of any height and width: statistics are those
   * of its patches, one for each group. No masks or weights.
   */
  readonly convolution?: ConvGeometry;
}

/** Layers to watch, and how much of the data counts. */
export interface CalibrateOptions extends RunOptions, AlgebraOptions {
  readonly layers: Readonly<Record<string, LayerRequest>>;
  /** Stop after this many batches. */
  readonly maxBatches?: number;
  /** Vectors (tokens, patches) of a layer that count, at most; what comes after is left out of its statistics. */
  readonly maxTokens?: number;
  /** Every n-th vector of an array only; default 1. */
  readonly every?: number;
}

/** What calibration knows of one layer: sums, ranges, or both. */
export interface LayerCalibration {
  readonly statistics: LayerStatistics;
  /** Of every group of a convolution; `statistics` is the first. */
  readonly groups: readonly LayerStatistics[];
  readonly observer: Observer | null;
}

/** One array in one reading: layers that share it share its statistics. */
interface Reading {
  readonly name: string;
  readonly convolution: ConvGeometry | undefined;
  hessian: boolean;
  accumulators: StatisticsAccumulator[] | null;
  rows: number;
}

const readingKey = (layer: string, r: LayerRequest): string =>
  `${r.input ?? layer}\0${r.convolution === undefined ? "" : JSON.stringify(r.convolution)}`;

/** Vectors of an array, one list for each group, thinned out to the budget that is left. */
function vectorsOf(
  array: CalibrationArray,
  reading: Reading,
  k: number,
  options: CalibrateOptions,
): { rows: (Float32Array | Float64Array)[]; mask?: Uint8Array; count: number } {
  const every = options.every ?? 1;
  const left = (options.maxTokens ?? Infinity) - reading.rows;
  const { convolution, name } = reading;
  if (convolution !== undefined) {
    const { shape, data } = array;
    if (shape.length !== 4 || array.mask || array.weights)
      throw new LowbitError(
        "E_SHAPE",
        `array "${name}": expected [n, channels, height, width] without masks or weights, got [${String(shape)}].`,
      );
    const x = data instanceof Float32Array ? data : Float32Array.from(data);
    const groups = Array.from({ length: convolution.group ?? 1 }, (_, g) => im2col(x, shape as never, convolution, g, { every }));
    const count = Math.min(left, groups[0].length / k);
    return { rows: groups.map((rows) => rows.subarray(0, count * k)), count };
  }
  const tokens = array.data.length / k;
  if (every === 1 && tokens <= left && !(array.mask && options.maxTokens)) return { rows: [array.data], count: tokens };
  const mask = new Uint8Array(tokens);
  let count = 0;
  for (let t = 0; t < tokens && count < left; t += every) if (!array.mask || array.mask[t]) count += mask[t] = 1;
  return { rows: [array.data], mask, count };
}

/** Length of the vectors that a reading sees in an array. */
function vectorLength({ convolution }: Reading, last: number): number {
  if (convolution === undefined) return last;
  return (convolution.channels / (convolution.group ?? 1)) * convolution.kernel[0] * convolution.kernel[1];
}

/**
 * Calibrates layers by name.
 * @throws LowbitError E_CALIBRATION: a layer whose array no batch has (with the names that there are), NaN, no data;
 * all failing layers are named. E_ABORTED on the signal
 * @example
 * const batches = [{ x: { data: x, shape: [1, 256] } }]; // or an async generator
 * const { fc1 } = await calibrate(batches, { layers: { fc1: { input: "x" } } });
 * fc1.statistics.rows // 1
 */
export async function calibrate(source: CalibrationSource, options: CalibrateOptions): Promise<Record<string, LayerCalibration>> {
  const requests = Object.entries(options.layers);
  if (requests.length === 0) throw new TypeError("calibrate layers: expected at least one layer, got none.");
  for (const [what, value] of [
    ["maxTokens", options.maxTokens],
    ["every", options.every],
  ] as const)
    if (value !== undefined && !(Number.isSafeInteger(value) && value >= 1))
      throw new RangeError(`calibrate ${what}: expected a positive integer, got ${value}.`);
  const wanted = new Map<string, Reading>();
  for (const [layer, r] of requests) {
    const key = readingKey(layer, r);
    const entry = wanted.get(key) ?? { name: r.input ?? layer, convolution: r.convolution, hessian: false, accumulators: null, rows: 0 };
    entry.hessian ||= r.hessian !== false;
    wanted.set(key, entry);
  }
  const observers = new Map<string, Observer>();
  const failed = new Map<string, LowbitError>();
  const seen = new Set<string>();
  const total = options.maxBatches ?? 0;
  let batches = 0;
  checkAborted(options.signal, "calibrate");
  for await (const batch of source) {
    checkAborted(options.signal, "calibrate");
    for (const name of Object.keys(batch)) seen.add(name);
    for (const [key, entry] of wanted) {
      const { name } = entry;
      const array = Object.hasOwn(batch, name) ? batch[name] : undefined;
      if (array === undefined || failed.has(key)) continue;
      try {
        const last = lastAxis(name, array);
        const k = vectorLength(entry, last);
        entry.accumulators ??= Array.from({ length: entry.convolution?.group ?? 1 }, () =>
          layerStatistics(k, { hessian: entry.hessian, name, ...(options.backend ? { backend: options.backend } : {}) }),
        );
        if (entry.accumulators[0].k !== k)
          throw new LowbitError(
            "E_SHAPE",
            `array "${name}": expected last axis ${entry.accumulators[0].k} as before, got ${k}. Every batch must have the same channels.`,
          );
        const { rows, mask, count } = vectorsOf(array, entry, k, options);
        if (count > 0) rows.forEach((list, g) => entry.accumulators![g].add(list, { mask: mask ?? array.mask, weights: array.weights }));
        entry.rows += count;
        for (const [layer, r] of requests) {
          if (!r.observer || readingKey(layer, r) !== key) continue;
          let o = observers.get(layer);
          // Widths of images vary: their observers see single values.
          if (o === undefined) observers.set(layer, (o = observer(r.convolution === undefined ? last : 1, { name: layer, ...r.observer })));
          o.observe(array.data, { mask: array.mask });
        }
      } catch (error) {
        if (!isLowbitError(error)) throw error;
        failed.set(key, error);
      }
    }
    batches++;
    options.onProgress?.({ stage: "calibrate", done: batches, total });
    if (options.maxBatches !== undefined && batches >= options.maxBatches) break;
  }
  return collect(requests, wanted, observers, failed, seen, batches);
}

function collect(
  requests: [string, LayerRequest][],
  wanted: ReadonlyMap<string, Reading>,
  observers: ReadonlyMap<string, Observer>,
  failed: ReadonlyMap<string, LowbitError>,
  seen: ReadonlySet<string>,
  batches: number,
): Record<string, LayerCalibration> {
  if (batches === 0)
    throw new LowbitError("E_CALIBRATION", "calibrate: expected at least one batch, got none. Is the source empty, or was it used before?");
  const out: Record<string, LayerCalibration> = {};
  const problems: string[] = [];
  const finished = new Map<string, readonly LayerStatistics[]>();
  for (const [layer, r] of requests) {
    const key = readingKey(layer, r);
    const { name, accumulators } = wanted.get(key)!;
    const error = failed.get(key);
    if (error) problems.push(`${layer}: ${error.message}`);
    else if (accumulators === null)
      problems.push(
        `${layer}: expected an array "${name}", got ${
          [...seen]
            .slice(0, 8)
            .map((s) => `"${s}"`)
            .join(", ") || "none"
        }.`,
      );
    else {
      try {
        const groups = finished.get(key) ?? accumulators.map((accumulator) => accumulator.finish());
        finished.set(key, groups);
        out[layer] = { statistics: groups[0], groups, observer: observers.get(layer) ?? null };
      } catch (e) {
        if (!isLowbitError(e)) throw e;
        problems.push(`${layer}: ${e.message}`);
      }
    }
  }
  if (problems.length > 0)
    throw new LowbitError(
      "E_CALIBRATION",
      `calibrate: expected statistics for ${requests.length} layers, got problems with ${problems.length}.\n  ${problems.join("\n  ")}`,
    );
  return out;
}

function lastAxis(name: string, array: CalibrationArray): number {
  const k = array.shape?.at(-1);
  const count = array.shape?.reduce((n, d) => n * d, 1);
  const typed = array.data instanceof Float32Array || array.data instanceof Float64Array;
  if (!typed || k === undefined || !(k >= 1) || count !== array.data.length)
    throw new LowbitError(
      "E_SHAPE",
      `array "${name}": expected { data: Float32Array or Float64Array, shape } that agree, got ${typed ? array.data.length : typeof array.data} numbers for [${String(array.shape)}].`,
    );
  return k;
}

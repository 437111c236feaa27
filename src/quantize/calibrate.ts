// Calibration: runs an async stream of named arrays through the statistics and observers of the layers that ask for them. Memory is that of the
// statistics; a batch is dropped once it is counted. Errors of all layers are collected and reported together.
import { LowbitError, isLowbitError } from "../../formats/core/errors.ts";
import { observer, type Observer, type ObserverOptions } from "./observers.ts";
import type { AlgebraOptions } from "./simd.ts";
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

export type CalibrationBatch = Readonly<Record<string, CalibrationArray>>;
export type CalibrationSource = AsyncIterable<CalibrationBatch> | Iterable<CalibrationBatch>;

/** What one layer wants to know of an array. */
export interface LayerRequest {
  /** Name of the array in the batches; default: the name of the layer. Layers that name the same array share its statistics. */
  readonly input?: string;
  /** Collect x x^T (8 k^2 bytes); default true. */
  readonly hessian?: boolean;
  /** Collect ranges. */
  readonly observer?: ObserverOptions;
}

export interface CalibrateOptions extends RunOptions, AlgebraOptions {
  readonly layers: Readonly<Record<string, LayerRequest>>;
  /** Stop after this many batches. */
  readonly maxBatches?: number;
}

export interface LayerCalibration {
  readonly statistics: LayerStatistics;
  readonly observer: Observer | null;
}

/**
 * Calibrates layers by name.
 * @throws LowbitError E_CALIBRATION: a layer whose array no batch has (with the names that there are), NaN, no data; all failing layers are named.
 * E_ABORTED on the signal
 * @example const stats = await calibrate(batches, { layers: { fc1: { input: "x" } } });
 */
export async function calibrate(source: CalibrationSource, options: CalibrateOptions): Promise<Record<string, LayerCalibration>> {
  const requests = Object.entries(options.layers);
  if (requests.length === 0) throw new TypeError("calibrate layers: expected at least one layer, got none.");
  const wanted = new Map<string, { hessian: boolean; accumulator: StatisticsAccumulator | null }>();
  for (const [layer, r] of requests) {
    const entry = wanted.get(r.input ?? layer) ?? { hessian: false, accumulator: null };
    entry.hessian ||= r.hessian !== false;
    wanted.set(r.input ?? layer, entry);
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
    for (const [name, entry] of wanted) {
      const array = Object.hasOwn(batch, name) ? batch[name] : undefined;
      if (array === undefined || failed.has(name)) continue;
      try {
        const k = lastAxis(name, array);
        entry.accumulator ??= layerStatistics(k, {
          hessian: entry.hessian,
          name,
          ...(options.backend ? { backend: options.backend } : {}),
        });
        if (entry.accumulator.k !== k)
          throw new LowbitError(
            "E_SHAPE",
            `array "${name}": expected last axis ${entry.accumulator.k} as before, got ${k}. Every batch must have the same channels.`,
          );
        entry.accumulator.add(array.data, { mask: array.mask, weights: array.weights });
        for (const [layer, r] of requests) {
          if (!r.observer || (r.input ?? layer) !== name) continue;
          let o = observers.get(layer);
          if (o === undefined) observers.set(layer, (o = observer(k, { name: layer, ...r.observer })));
          o.observe(array.data, { mask: array.mask });
        }
      } catch (error) {
        if (!isLowbitError(error)) throw error;
        failed.set(name, error);
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
  wanted: ReadonlyMap<string, { accumulator: StatisticsAccumulator | null }>,
  observers: ReadonlyMap<string, Observer>,
  failed: ReadonlyMap<string, LowbitError>,
  seen: ReadonlySet<string>,
  batches: number,
): Record<string, LayerCalibration> {
  if (batches === 0)
    throw new LowbitError("E_CALIBRATION", "calibrate: expected at least one batch, got none. Is the source empty, or was it used before?");
  const out: Record<string, LayerCalibration> = {};
  const problems: string[] = [];
  const finished = new Map<string, LayerStatistics>();
  for (const [layer, r] of requests) {
    const name = r.input ?? layer;
    const accumulator = wanted.get(name)!.accumulator;
    const error = failed.get(name);
    if (error) problems.push(`${layer}: ${error.message}`);
    else if (accumulator === null)
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
        const statistics = finished.get(name) ?? accumulator.finish();
        finished.set(name, statistics);
        out[layer] = { statistics, observer: observers.get(layer) ?? null };
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

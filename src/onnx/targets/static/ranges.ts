// Ranges of values of a model by running it on calibration data. Batches may differ in shape: an observer sees numbers,
// one batch after the other, and keeps a range or a histogram.
import { observer, type Observer, type ObserverOptions } from "../../../quantize/observers.ts";
import { floatValues } from "../../session.ts";
import { modelValues, type RunnerOptions } from "../../calibrate/taps.ts";
import type { OnnxModel } from "../../file/model.ts";
import type { Feeds } from "../../verify/feeds.ts";
import type { ValueRange } from "./parameters.ts";

/**
 * How ranges are made of what was seen: "minMax", "movingAverage", "percentile", "entropy", "mse" (default), or options
 * of `observer`.
 */
export type RangeObserver = ObserverOptions["method"] | Omit<ObserverOptions, "granularity" | "name">;

/** The range of a value for 8-bit codes, and what else was seen. */
export interface ObservedRange extends ValueRange {
  /** All values are in it: the range of 16-bit codes, which lose nothing by being wide. */
  readonly full: ValueRange;
  /** Power of the error of 8-bit codes over that of the values. */
  readonly noise: number;
}

/**
 * The range of each value over all batches. Values that are not floats, or that never hold a number, are left out.
 * @param names values of the main graph, inputs of the model among them
 * @throws LowbitError E_CALIBRATION for NaN and infinities, naming the value; E_ONNX for unknown names; E_RUNTIME
 */
export async function collectRanges(
  model: OnnxModel,
  feeds: readonly Feeds[],
  names: readonly string[],
  by: RangeObserver = "mse",
  options: RunnerOptions = {},
): Promise<Map<string, ObservedRange>> {
  const settings: ObserverOptions = typeof by === "string" ? { method: by } : by;
  const observers = new Map<string, { own: Observer; full: { min: number; max: number } }>();
  for await (const values of modelValues(model, feeds, names, options)) {
    for (const [name, value] of values) {
      const floats = floatValues(value);
      if (floats === null || floats.length === 0) continue;
      let entry = observers.get(name);
      if (entry === undefined) {
        entry = { own: observer(1, { ...settings, histogram: true, name }), full: { min: Infinity, max: -Infinity } };
        observers.set(name, entry);
      }
      entry.own.observe(floats);
      const { full } = entry;
      for (const v of floats) {
        if (v < full.min) full.min = v;
        if (v > full.max) full.max = v;
      }
    }
  }
  return new Map(
    [...observers].map(([name, { own, full }]) => {
      const { min, max } = own.ranges();
      return [name, { min: min[0], max: max[0], full, noise: own.noise(8)[0] }];
    }),
  );
}

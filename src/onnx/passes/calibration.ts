// Statistics for the passes that look at data: the model as it is at each pass is run on the same inputs.
import { calibrateModel, readFeeds, type CalibrationData } from "../calibrate/index.ts";
import type { LayerStatistics } from "../../quantize/statistics.ts";
import { exactPattern } from "../sensitivity.ts";
import type { Feeds } from "../verify/feeds.ts";
import type { LayerCalibration } from "./types.ts";

/**
 * Calibration for `applyPasses` from data as `calibrateModel` takes it; the data are read once. Node only
 * (onnxruntime-node).
 * @example await applyPasses(model, ["smooth"], { calibration: calibrationFrom("data.npz") });
 */
export function calibrationFrom(data: CalibrationData): LayerCalibration {
  let read: Promise<Feeds[]> | undefined;
  return async (model, names, { hessian }) => {
    read ??= readFeeds(model, data);
    const { layers } = await calibrateModel(model, await read, { layers: names.map(exactPattern), hessian });
    const found = new Map<string, LayerStatistics>();
    // Of a grouped convolution there are several, one for each group: no pass asks for these.
    for (const [name, { statistics }] of layers) if (statistics.length === 1) found.set(name, statistics[0]);
    return found;
  };
}

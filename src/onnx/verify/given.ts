// Inputs that a user gives to a comparison: feeds, or a source of them as calibration takes it; and the model that they
// are checked against.
import { isLowbitError } from "../../../formats/core/errors.ts";
import { modelInputs, sampleFeeds } from "../calibrate/feeds.ts";
import { readFeeds, type CalibrationData } from "../calibrate/sources.ts";
import { readModel, readModelBytes } from "../file/io.ts";
import type { OnnxModel } from "../file/model.ts";
import type { Feeds } from "./feeds.ts";

export async function givenInputs(
  model: string | Uint8Array,
  inputs: readonly Feeds[] | CalibrationData,
  samples?: number,
): Promise<readonly Feeds[]> {
  if (Array.isArray(inputs)) return inputs.length === 1 ? wholeBatches(model, inputs[0] as Feeds) : (inputs as readonly Feeds[]);
  return withModel(model, (opened) => readFeeds(opened, inputs as CalibrationData, samples === undefined ? {} : { maxBatches: samples }));
}

/** Arrays that hold several batches of the size that the model fixes, as a set for each; others as they are. */
async function wholeBatches(model: string | Uint8Array, feeds: Feeds): Promise<readonly Feeds[]> {
  try {
    return await withModel(model, (opened) => {
      const inputs = modelInputs(opened);
      const given = new Map(Object.entries(feeds));
      const known = inputs.every(({ name }) => given.has(name)) && inputs.length === given.size;
      const several = inputs.some(({ name, shape: [batch] }) => {
        const [samples] = given.get(name)?.dims ?? [];
        return typeof batch === "number" && batch > 0 && samples > batch && samples % batch === 0;
      });
      return known && several ? [...sampleFeeds(given, inputs, "inputs")] : [feeds];
    });
  } catch (error) {
    // what the package cannot read, or does not understand of the arrays, the runtime may: it has the last word
    if (isLowbitError(error)) return [feeds];
    throw error;
  }
}

export async function withModel<R>(model: string | Uint8Array, use: (opened: OnnxModel) => R | Promise<R>): Promise<R> {
  if (typeof model !== "string") return use(readModelBytes(model));
  const file = readModel(model);
  try {
    return await use(file);
  } finally {
    file.close();
  }
}

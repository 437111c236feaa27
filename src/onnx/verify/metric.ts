// A metric of the user's own: a module whose default export takes a model that can be run and returns a figure, such as
// the accuracy on a test set.
import { LowbitError } from "../../../formats/core/errors.ts";
import { needBuiltin } from "../../files/node.ts";
import { nodePath } from "../../files/calls.ts";
import type { Feeds } from "./feeds.ts";
import type { OutputTensor } from "./runtimes.ts";

/** What a metric gets. */
export interface MetricModel {
  /** "reference" or "model". */
  readonly which: "reference" | "model";
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  /** { inputName: { type, data, dims } } -> { outputName: { type, data, dims } } */
  run(feeds: Feeds): Promise<Record<string, OutputTensor>>;
}

/** A metric: a number, or several by name. */
export type Metric = (model: MetricModel) => Promise<number | Readonly<Record<string, number>>> | number | Readonly<Record<string, number>>;

/** Figures of both models by name. */
export type MetricFigures = Readonly<Record<string, { readonly reference: number; readonly model: number }>>;

/** @throws LowbitError E_IO where the module does not load, TypeError where it has no function */
export async function loadMetric(path: string): Promise<Metric> {
  const { href } = needBuiltin("node:url", "metric", "Pass a function.").pathToFileURL(nodePath().resolve(path));
  let module: { default?: unknown };
  try {
    module = (await import(/* @vite-ignore */ href)) as { default?: unknown };
  } catch (cause) {
    throw new LowbitError("E_IO", `${path}: expected a module with a metric, got ${(cause as Error).message}. Check --metric.`, { cause });
  }
  if (typeof module.default !== "function")
    throw new TypeError(`metric ${path}: expected a default export (model) => number, got ${typeof module.default}.`);
  return module.default as Metric;
}

/** Runs a metric on both models. @throws LowbitError E_VERIFY where it returns no number */
export async function measureMetric(metric: Metric, models: Readonly<Record<"reference" | "model", MetricModel>>): Promise<MetricFigures> {
  const of = async (which: "reference" | "model"): Promise<Map<string, number>> => {
    const value: unknown = await metric(models[which]);
    const entries = typeof value === "number" ? [["metric", value] as const] : Object.entries((value ?? {}) as Record<string, number>);
    const bad = entries.find(([, number]) => typeof number !== "number");
    if (entries.length === 0 || bad !== undefined)
      throw new LowbitError(
        "E_VERIFY",
        `metric: expected a number, or an object of numbers, got ${JSON.stringify(value) ?? typeof value}. Correct the module.`,
      );
    return new Map(entries);
  };
  const [reference, model] = [await of("reference"), await of("model")];
  return Object.fromEntries([...reference].map(([name, value]) => [name, { reference: value, model: model.get(name) ?? NaN }]));
}

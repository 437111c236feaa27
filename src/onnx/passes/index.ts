// The passes by name, and the driver: runs one after the other on a model, proves after each that the outputs are what
// they were, and takes back one that changed them.
import { clone } from "../file/copy.ts";
import { LowbitError } from "../../../formats/core/errors.ts";
import { checkAborted, type RunOptions } from "../../quantize/steps.ts";
import { findReaders } from "../edit.ts";
import { ModelProtoSchema } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import { buildScopes, sortNodes } from "../graph/graph.ts";
import { layersOf } from "../primitives.ts";
import type { Feeds } from "../verify/feeds.ts";
import { differenceFrom, referenceRun, type Reference } from "./check.ts";
import { awqPass } from "./awq.ts";
import { biasCorrectionPass } from "./bias-correction.ts";
import { equalizePass } from "./equalize.ts";
import { foldBatchNormPass } from "./fold-batchnorm.ts";
import { foldNormPass } from "./fold-norm.ts";
import { gatherOutliersPass } from "./gather-outliers.ts";
import { rotatePass } from "./rotate.ts";
import { smoothPass } from "./smooth.ts";
import type { LayerCalibration, Pass, PassContext, PassRequest, PassSettings } from "./types.ts";

/** Passes in the order in which they are useful together. */
export const PASSES: ReadonlyMap<string, Pass> = new Map(
  [foldBatchNormPass, equalizePass, foldNormPass, rotatePass, smoothPass, awqPass, gatherOutliersPass, biasCorrectionPass].map(
    (pass): [string, Pass] => [pass.name, pass],
  ),
);

/** Data for passes that need some, and the inputs that they are checked on. */
export interface ApplyPassesOptions extends RunOptions {
  /** Statistics of layers' inputs, for the passes that look at data. */
  readonly calibration?: LayerCalibration;
  /** Inputs for the check; default: two random ones. */
  readonly feeds?: readonly Feeds[];
  /**
   * Run the model before and after each pass and take back a pass that changed its outputs. Default true; needs
   * onnxruntime-node.
   */
  readonly verify?: boolean;
}

/**
 * Name and options of each pass. @throws TypeError for unknown passes and options
 * @example const [{ settings }] = checkPasses([{ name: "rotate", block: 128 }]); // what `applyPasses` would run with
 */
export function checkPasses(requests: readonly PassRequest[]): { pass: Pass; settings: PassSettings }[] {
  return requests.map((request) => {
    const settings: PassSettings = typeof request === "string" ? { name: request } : request;
    const pass = PASSES.get(settings?.name);
    if (pass === undefined)
      throw new TypeError(`passes: expected ${[...PASSES.keys()].join(", ")}, got ${JSON.stringify(settings?.name) ?? String(settings)}.`);
    const unknown = Object.keys(settings).find((key) => key !== "name" && !pass.options.includes(key));
    if (unknown !== undefined)
      throw new TypeError(`pass ${pass.name}: expected options ${pass.options.join(", ") || "(none)"}, got ${JSON.stringify(unknown)}.`);
    pass.check?.(settings);
    return { pass, settings };
  });
}

function contextFor(model: OnnxModel, pass: Pass, options: ApplyPassesOptions, notes: string[]): PassContext {
  const scopes = buildScopes(model);
  const layers = layersOf(scopes, model);
  let readers = findReaders(scopes);
  const layerOf = new Map<unknown, PassContext["layers"][number]>(layers.map((layer) => [layer.node, layer]));
  return {
    model,
    scopes,
    layers,
    layerOf,
    readers: (scope, name) => readers.get(scope)?.get(name) ?? [],
    refresh() {
      readers = findReaders(scopes);
    },
    note: (text) => notes.push(`${pass.name}: ${text}`),
    statistics(names, wanted) {
      if (options.calibration === undefined)
        throw new LowbitError(
          "E_CALIBRATION",
          `pass ${pass.name}: expected calibration data, got none. Give it with calibration (--calibrate).`,
        );
      return options.calibration(model, names, wanted);
    },
  };
}

/**
 * Runs passes on a model, in place. Each keeps the function of the model; after each the model is run and compared with
 * the original, within 1e-4 of each output's range (more for 16-bit weights), and a pass that went further is taken
 * back.
 * @param passes names, or objects of a name and options: ["fold-norm", { name: "rotate", block: 128 }]
 * @returns what was done, a line each, beginning with the name of the pass
 * @throws TypeError, RangeError for unknown passes and options; LowbitError E_CALIBRATION where a pass needs data that
 * was not given, E_RUNTIME where the model does not run, E_ABORTED
 * @example
 * using model = readModel("model.onnx");
 * for (const line of await applyPasses(model, ["equalize"])) console.log(line); // what was done
 */
export async function applyPasses(
  model: OnnxModel,
  passes: readonly PassRequest[],
  options: ApplyPassesOptions = {},
): Promise<readonly string[]> {
  const list = checkPasses(passes);
  const notes: string[] = [];
  let reference: Reference | undefined;
  if (options.verify !== false && list.some(({ pass }) => pass.changesOutputs !== true))
    reference = await referenceRun(model, options.feeds);
  for (const [done, { pass, settings }] of list.entries()) {
    checkAborted(options.signal, `pass ${pass.name}`);
    options.onProgress?.({ stage: pass.name, done, total: list.length });
    const before = clone(ModelProtoSchema, model.proto);
    const changed = await pass.run(contextFor(model, pass, options, notes), settings);
    if (changed === 0) continue;
    sortNodes(buildScopes(model));
    if (pass.changesOutputs === true) {
      reference = reference && (await referenceRun(model, reference.feeds));
      continue;
    }
    if (reference === undefined) continue;
    const { relative, output } = await differenceFrom(reference, model);
    if (relative <= reference.tolerance) {
      notes.push(`${pass.name}: outputs differ by at most ${relative.toExponential(1)} of their range`);
      continue;
    }
    model.proto = before;
    notes.push(
      `${pass.name}: taken back, because output ${output} differed by ${relative.toExponential(1)} of its range, more than ${reference.tolerance}; nothing changed`,
    );
  }
  options.onProgress?.({ stage: "passes", done: list.length, total: list.length });
  return notes;
}

export type { LayerCalibration, PassRequest, PassSettings } from "./types.ts";

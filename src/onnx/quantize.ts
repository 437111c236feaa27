// quantizeModel (files, Node) and quantizeModelBytes (anywhere): budgets and targets become rules, the model is
// converted, written and reported.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format } from "../../formats/core/types.ts";
import { gptq, gptqIn } from "../quantize/gptq.ts";
import { gptqWorkspace, type GptqWorkspace } from "../quantize/gptq-workspace.ts";
import type { PlanLayer } from "../quantize/plan.ts";
import { rtn } from "../quantize/rtn.ts";
import { unvarying } from "../quantize/statistics.ts";
import type { WeightQuantizer } from "../tensor/quantize/index.ts";
import type { Algorithm } from "./algorithm-types.ts";
import { plannedLayers, planBudget } from "./budget.ts";
import { openStatistics } from "./calibrate/file.ts";
import { calibrateModel, readFeeds } from "./calibrate/index.ts";
import { inputGroups } from "./calibrate/statistics.ts";
import { dequantizeWeights } from "./dequantize/index.ts";
import { decider, resolveFormat } from "./choose.ts";
import { convertWith, newContext, pick, type ConvertResult } from "./convert.ts";
import { dtypeRow } from "./dtypes.ts";
import { payloadBytes, segmentsLength } from "./file/encode.ts";
import { checkAborted, checkOutput, fileSize, spillFile, writeFiles, type SegmentFile } from "./file/files.ts";
import { clone } from "./file/copy.ts";
import { ModelProtoSchema } from "./file/gen/onnx_pb.ts";
import { checkOutputs, inputPaths, outputFiles, readModel, readModelBytes, writeModelBytes } from "./file/io.ts";
import type { OnnxModel } from "./file/model.ts";
import { decodeOriginal } from "./file/model.ts";
import { buildScopes } from "./graph/graph.ts";
import { findLayers } from "./layers.ts";
import type { LayerReport, LayerRule, QuantizeModelOptions, QuantizeOptions, QuantizeReport } from "./options.ts";
import { checkOptions } from "./option-table.ts";
import { exactPattern, reachSqnr } from "./sensitivity.ts";
import { staticQuantize } from "./static.ts";
import type { Feeds } from "./verify/feeds.ts";
import { recipeOf } from "./recipe.ts";
import { checkReport, writeReport } from "./report/write.ts";
import { runtimeTraps } from "./verify/traps.ts";
import { openRunLog, spillStore, type Run } from "./journal/runs.ts";
import { ShardMade, type WeightStore } from "./journal/store.ts";

/** New tensors stay in memory up to this many bytes, then go to a temporary file beside the output. */
const MEMORY_BUDGET = 64 << 20;
/** As many of a large model behind an algorithm, which takes memory itself. */
const LEAST_BUDGET = 8 << 20;

/** From here on the packed weights of a model are not held in memory either. */
const LARGE_MODEL = 2 ** 27;

/** Share of the calibration data on which a target is judged: no quantizer sees it. */
const JUDGES = 1 / 8;

/**
 * Converts a model by all that options ask for. In place; rules that were found are in the result, so that they can be
 * written down.
 */
async function runOptions(model: OnnxModel, options: QuantizeOptions, store?: WeightStore): Promise<ConvertResult> {
  // before the model is run: importances, targets and statistics are those of the float weights
  const dequantized = options.requantize ? dequantizeWeights(model) : [];
  const result = await runPlan(model, options, store);
  return { ...result, notes: [...dequantized, ...result.notes] };
}

/** All that a budget does not choose a format for. */
const OUTSIDE: LayerRule = { match: "*", keep: true, reason: "outside the budget, which is for products of at least 1024 weights" };

/** A budget and a target become rules; then one conversion. */
async function runPlan(model: OnnxModel, options: QuantizeOptions, store?: WeightStore): Promise<ConvertResult> {
  const { budget, targetSqnr, ...plain } = options;
  if (budget === undefined && targetSqnr === undefined) return convertOnce(model, plain, store);
  if (options.calibration === undefined)
    throw new LowbitError(
      "E_CALIBRATION",
      `${budget === undefined ? "targetSqnr" : "budget"}: expected calibration data, got none: the model is run on them. Give them with calibration (--calibrate).`,
    );
  const feeds = await readFeeds(model, options.calibration, pick({ maxBatches: options.calibrate?.maxBatches, signal: options.signal }));
  const judges = feeds.length > 1 ? Math.max(1, Math.round(feeds.length * JUDGES)) : 0;
  const [seen, unseen] = [feeds.slice(0, feeds.length - judges), judges === 0 ? feeds : feeds.slice(-judges)];
  const notes: string[] = [];
  let asked: QuantizeOptions = { ...plain, calibration: seen };
  if (budget !== undefined) asked = await withBudget(model, asked, budget, seen, notes);
  if (targetSqnr !== undefined) asked = await withTarget(model, asked, targetSqnr, unseen, notes);
  const result = await convertOnce(model, asked, store);
  return { layers: result.layers, notes: [...notes, ...result.notes], rules: asked.rules ?? [] };
}

/** One conversion: static where activations are quantized, else by layers. */
function convertOnce(model: OnnxModel, options: QuantizeOptions, store?: WeightStore): Promise<ConvertResult> {
  if (options.activations === undefined) return convertWith(model, options, store);
  if (options.calibration === undefined)
    throw new LowbitError(
      "E_CALIBRATION",
      "activations: expected calibration data for their ranges, got none. Give them with calibration (--calibrate).",
    );
  const { calibration, target: _, ...rest } = options;
  return staticQuantize(model, calibration, rest, store);
}

/**
 * What planning looks at: enough to rank layers and formats; the weights themselves are quantized on all of the data.
 */
const PLAN_TOKENS = 8192;
const PLAN_ELEMENTS = 4096;
const PLAN_FEEDS = 2;

/** Some of the feeds, spread evenly: at least two, and no more once they hold a few thousand numbers. */
function someFeeds(feeds: readonly Feeds[]): Feeds[] {
  const elements = (feed: Feeds): number => Math.max(1, ...Object.values(feed).map(({ data }) => data.length));
  const wanted = Math.min(feeds.length, Math.max(PLAN_FEEDS, Math.ceil(PLAN_ELEMENTS / elements(feeds[0]))));
  return Array.from({ length: wanted }, (_, i) => feeds[Math.floor((i * feeds.length) / wanted)]);
}

/**
 * Formats within a budget of bits as rules; layers without one stay. Without an algorithm it is GPTQ: calibration data
 * are at hand, and at few bits it is worth more than any choice of formats. Layers that calibration cannot look at then
 * have their scales searched.
 */
async function withBudget(
  model: OnnxModel,
  options: QuantizeOptions,
  budget: NonNullable<QuantizeOptions["budget"]>,
  feeds: readonly Feeds[],
  notes: string[],
): Promise<QuantizeOptions> {
  const { signal, calibrate } = options;
  const algorithm = options.algorithm ?? "gptq";
  const maxTokens = Math.min(calibrate?.maxTokens ?? Infinity, PLAN_TOKENS);
  const { groups } = inputGroups(model, plannedLayers(model));
  const calibrated = new Set(groups.flatMap(({ layers }) => layers.map(({ name }) => name)));
  // of a depthwise convolution every group has sums of its own, which no plan looks at
  const looked = groups.flatMap(({ view, layers }) => (view.groups === 1 ? layers.map(({ name }) => exactPattern(name)) : []));
  const sums = { ...pick({ ...calibrate, signal }), layers: looked, maxTokens, holdOut: 0 };
  const collected = looked.length === 0 ? [] : (await calibrateModel(model, feeds, sums)).layers;
  const statistics = new Map([...collected].flatMap(([name, { statistics: of }]) => (of.length === 1 ? [[name, of[0]] as const] : [])));
  const quantizers = planQuantizers(algorithm);
  const found = await planBudget(model, someFeeds(feeds), { ...budget, statistics, quantizer: quantizers.of, ...pick({ signal }) }).finally(
    quantizers.close,
  );
  notes.push(...found.notes);
  const own = found.rules.map((rule, i) =>
    options.algorithm === undefined && !calibrated.has(found.plan.layers[i].name) ? { ...rule, algorithm: "mse" as const } : rule,
  );
  const rules: LayerRule[] = [...(options.rules ?? []), ...own, OUTSIDE];
  return { ...options, algorithm, format: options.format ?? found.rules[0].format!, rules };
}

/**
 * What a layer is rounded with while formats are compared: GPTQ where something better than rounding is asked for and
 * its inputs are known by more vectors than it has inputs (fewer would make every format seem free of loss). Candidates
 * of a layer come one after the other, and share the factor of its Hessian.
 */
function planQuantizers(algorithm: Algorithm) {
  let workspace: GptqWorkspace | undefined;
  let at = "";
  const close = (): void => workspace?.close();
  const of = ({ name, statistics }: PlanLayer, format: Format): WeightQuantizer => {
    if (algorithm === "rtn" || !statistics?.hessian || statistics.rows < statistics.k || unvarying(statistics)) return rtn();
    const options = { hessian: statistics, name, damp: 0.05 };
    if (format.kind === "opaque") return gptq(options); // in natural order: a factor of its own
    if (at !== name) {
      close();
      [at, workspace] = [name, gptqWorkspace()];
    }
    return gptqIn(workspace, { ...options, actOrder: true });
  };
  return { of, close };
}

/** Layers left out, or raised to 8 bits, until the outputs reach a SQNR on data that no quantizer saw; as rules. */
async function withTarget(
  model: OnnxModel,
  options: QuantizeOptions,
  targetSqnr: number,
  feeds: readonly Feeds[],
  notes: string[],
): Promise<QuantizeOptions> {
  const quantizeWith = async (rules: readonly LayerRule[]): Promise<Uint8Array> => {
    const copy = { ...model, proto: clone(ModelProtoSchema, model.proto) };
    await convertOnce(copy, { ...options, allowUnchanged: true, rules: [...rules, ...(options.rules ?? [])] });
    return writeModelBytes(copy);
  };
  const blocks = options.format !== undefined || dtypeRow(options.dtype!)?.target === "matmulnbits";
  const raise = blocks && options.activations === undefined ? [{ format: "int8_b32" }] : [];
  const report = await reachSqnr(model, quantizeWith, {
    targetSqnr,
    layers: takenLayers(model, options),
    feeds,
    raise,
    ...pick({ signal: options.signal }),
  });
  notes.push(...report.notes);
  return { ...options, rules: [...report.rules, ...(options.rules ?? [])] };
}

/** Names of the layers that the options would quantize. */
function takenLayers(model: OnnxModel, options: QuantizeOptions): string[] {
  const scopes = buildScopes(model);
  const found = findLayers(scopes, model);
  const context = newContext(model, scopes, options, [], () => {
    throw new Error("formats are not asked for here");
  });
  if (options.activations !== undefined) return [...new Set(found.filter(({ weight }) => weight !== null).map(({ name }) => name))];
  const decide = decider(context, found);
  return [...new Set(found.filter((layer) => typeof decide.of(layer) !== "string").map(({ name }) => name))];
}

function summarize(
  options: QuantizeOptions,
  result: ConvertResult,
  sizes: { before: number; after: number; started: number; outputs: string[]; model: OnnxModel },
): QuantizeReport {
  const quantized = result.layers.filter((layer) => layer.format !== null);
  // A weight that two operators read in different forms is one before and two after.
  const before = new Map(quantized.map((layer) => [layer.weight, layer.bytesBefore]));
  const after = quantized.filter((layer) => layer.sharedWith === undefined).reduce((sum, layer) => sum + layer.bytesAfter, 0);
  const notes = [...result.notes];
  if (sizes.after > sizes.before) notes.push(`the file grew from ${sizes.before} to ${sizes.after} bytes`);
  return {
    dtype: labelOf(options),
    ...(result.rules === undefined ? {} : { rules: result.rules }),
    layers: result.layers,
    quantized: quantized.length,
    leftAlone: result.layers.length - quantized.length,
    weightBytesBefore: [...before.values()].reduce((sum, bytes) => sum + bytes, 0),
    weightBytesAfter: after,
    fileBytesBefore: sizes.before,
    fileBytesAfter: sizes.after,
    seconds: (performance.now() - sizes.started) / 1000,
    outputs: sizes.outputs,
    notes,
    traps: runtimeTraps(sizes.model),
  };
}

/** What was made, in a word: the dtype, the format's name, "static" or the budget. */
function labelOf({ dtype, format, activations, budget }: QuantizeOptions): string {
  if (dtype !== undefined) return dtype;
  if (format !== undefined) return resolveFormat(format).name;
  return budget === undefined ? `static ${activations}` : `${budget.bitsPerWeight} bits per weight`;
}

/** Of how many layers none was quantized, and why. */
export function noneOf({ layers, notes }: Pick<QuantizeReport, "layers" | "notes">): string {
  const already = notes.filter((note) => note.includes("quantized already"));
  const reasons = [...already, ...new Set(layers.map((layer) => layer.reason))].slice(0, 3).join("; ");
  return `none of ${layers.length}${reasons === "" ? "" : ` (${reasons})`}`;
}

/** A run that changes nothing is a mistake, not a result: its file would carry a name that it does not deserve. */
function checkChanged(result: ConvertResult, options: QuantizeOptions): void {
  if (options.allowUnchanged || result.layers.some((layer) => layer.format !== null)) return;
  const maps = result.layers.some(({ opType }) => opType === "Conv" || opType === "ConvTranspose");
  const others = maps ? "another dtype (convolutions: q8, fp16, or in 4 bits format int4_row with target stored)" : "another dtype";
  throw new LowbitError(
    "E_UNSUPPORTED",
    `${labelOf(options)}: expected a layer to quantize, got ${noneOf(result)}. Nothing was written; choose ${others}, or allow it with allowUnchanged (--allow-unchanged).`,
  );
}

/**
 * Quantizes the model file `input` to `output`. The output appears whole or not at all; the input is only read. Node
 * only.
 * @returns a report of every layer with a weight: format, bytes, SQNR, or why it was left alone
 * @throws LowbitError E_IO, E_EXISTS, E_ONNX, E_VALUE, E_ABORTED, E_UNSUPPORTED where no layer was quantized; TypeError
 * and RangeError for options
 * @example const report = await quantizeModel("model.onnx", "model_q4.onnx", { dtype: "q4" });
 */
export async function quantizeModel(input: string, output: string, options: QuantizeModelOptions): Promise<QuantizeReport> {
  checkOptions(options);
  checkAborted(options.signal);
  const model = readModel(input);
  try {
    if (options.report !== undefined) checkReport(options.report, model, output, options.force);
    const report = await quantizeFile(model, output, options);
    if (options.report !== undefined)
      await writeReport(options.report, { input, report, recipe: recipeOf(options) }, options.force ?? false);
    return report;
  } finally {
    model.close();
  }
}

/** Quantizes a copy of a model that was read from a file, and writes it; the model itself stays as it is. */
export async function quantizeFile(source: OnnxModel, output: string, options: QuantizeModelOptions): Promise<QuantizeReport> {
  checkOptions(options);
  checkAborted(options.signal);
  const { resume = false, shard, calibration } = options;
  if (!resume && shard === undefined) return writeQuantized(source, output, options);
  const rules = { force: options.force ?? false, followLinks: options.followLinks ?? true };
  checkOutput(output, inputPaths(source), shard === undefined ? rules : { ...rules, force: true });
  // read once, here: an iterable may be usable once only, and two runs are the same only on the same data
  const feeds =
    calibration === undefined
      ? null
      : await readFeeds(source, calibration, pick({ maxBatches: options.calibrate?.maxBatches, signal: options.signal }));
  const run = openRunLog(source, output, options, feeds ?? statisticsHash(options.statistics));
  let failed = true;
  try {
    const asked = feeds === null ? options : { ...options, calibration: feeds };
    const report = shard === undefined ? await writeQuantized(source, output, asked, run) : await makeShard(source, asked, run);
    failed = false;
    return report;
  } finally {
    run.close(failed);
  }
}

/** What statistics say, as a hash; null without. */
function statisticsHash(path: string | undefined): string | null {
  if (path === undefined) return null;
  const file = openStatistics(path, null);
  file.close();
  return file.hash;
}

/** The weights of one shard. */
async function makeShard(source: OnnxModel, options: QuantizeModelOptions, run: Run): Promise<QuantizeReport> {
  const started = performance.now();
  const model = { ...source, proto: decodeOriginal(source) };
  const before = inputPaths(model).reduce((sum, path) => sum + fileSize(path), 0);
  const report = (layers: readonly LayerReport[], notes: string[]): QuantizeReport => {
    const path = run.finish();
    const sizes = { before, after: fileSize(path), started, outputs: [path], model };
    return summarize(options, { layers: [...layers], notes: [...notes, ...resumed(run)] }, sizes);
  };
  if (run.finished) return report([], ["the shard was whole already: nothing was made"]);
  try {
    await runOptions(model, options, run.store);
  } catch (error) {
    if (error instanceof ShardMade) return report(error.layers, []);
    throw error;
  }
  throw new LowbitError(
    "E_UNSUPPORTED",
    `${labelOf(options)}: expected layers to spread over shards, got none. Make the model in one run, without shard.`,
  );
}

/** What a run took from its journal. */
const resumed = ({ store }: Run): string[] =>
  store.taken() === 0 ? [] : [`resumed: ${store.taken()} weights were taken from the journal of an earlier run`];

/** Does any layer get an algorithm, which makes all weights before the first is written? */
const looksAtWeights = ({ algorithm, rules = [] }: QuantizeOptions): boolean =>
  [algorithm, ...rules.map((rule) => rule.algorithm)].some((one) => one !== undefined && one !== "rtn");

/** Converts a copy of the model and writes it. @param run its journal, which goes away when the output appears */
export async function writeQuantized(
  source: OnnxModel,
  output: string,
  options: QuantizeModelOptions,
  run?: Pick<Run, "store"> & Partial<Run>,
): Promise<QuantizeReport> {
  const started = performance.now();
  const { force = false, followLinks = true } = options;
  const model = { ...source, proto: decodeOriginal(source) };
  const large = looksAtWeights(options) && payloadBytes(model) >= LARGE_MODEL;
  const spill = spillFile(output, large ? LEAST_BUDGET : MEMORY_BUDGET);
  const { keep } = model.payloads;
  let made: ReturnType<typeof spillStore> | undefined;
  try {
    const inputs = inputPaths(model);
    checkOutput(output, inputs, { force, followLinks });
    model.payloads.keep = spill.keep;
    // what an algorithm makes waits until all of it is made: of a large model on disk
    if (run === undefined && large) made = spillStore(output);
    const result = await runOptions(model, options, run?.store ?? made?.store);
    checkChanged(result, options);
    const outputs = outputFiles(model, output, options);
    checkOutputs(outputs, model, { force, followLinks });
    if (run?.path !== undefined) outputs.push(withObsolete(outputs.pop()!, run.path));
    await writeFiles(outputs, force, options.signal);
    if (run?.path !== undefined) result.notes.push(...resumed(run as Run));
    return summarize(options, result, {
      before: inputs.reduce((sum, path) => sum + fileSize(path), 0),
      after: outputs.reduce((sum, file) => sum + segmentsLength(file.segments), 0),
      started,
      outputs: outputs.map((file) => file.path),
      model,
    });
  } finally {
    model.payloads.keep = keep;
    spill.close();
    made?.close();
  }
}

/** A file with one more that goes away when it appears. */
const withObsolete = (file: SegmentFile, path: string): SegmentFile => ({ ...file, obsolete: [...(file.obsolete ?? []), path] });

/** The options of `quantizeModelBytes`: those of a quantization, and external data as bytes. */
export interface QuantizeBytesOptions extends QuantizeOptions {
  /** Bytes of external data files, by the location that tensors name. */
  external?: Readonly<Record<string, Uint8Array>>;
}

/**
 * Quantizes a model in memory: browsers, workers, tests. At most 2 GiB.
 * @throws LowbitError E_ONNX, E_VALUE, E_ABORTED; TypeError and RangeError for options
 * @example
 * const { bytes: q8, report } = await quantizeModelBytes(bytes, { dtype: "q8" });
 * [report.quantized, q8.length < bytes.length / 3] // [5, true]
 */
export async function quantizeModelBytes(
  bytes: Uint8Array,
  options: QuantizeBytesOptions,
): Promise<{ bytes: Uint8Array; report: QuantizeReport }> {
  const started = performance.now();
  const { external, ...rest } = options;
  checkOptions(rest);
  const model = readModelBytes(bytes, external);
  const result = await runOptions(model, rest);
  const out = writeModelBytes(model);
  const before = bytes.length + Object.values(external ?? {}).reduce((sum, data) => sum + data.length, 0);
  return { bytes: out, report: summarize(rest, result, { before, after: out.length, started, outputs: [], model }) };
}

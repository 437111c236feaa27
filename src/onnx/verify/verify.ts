// verifyModels: runs two models on the same inputs in onnxruntime-node, in a process of its own, and compares every
// output. Node only; onnxruntime-node is an optional peer.
import { LowbitError, isLowbitError } from "../../../formats/core/errors.ts";
import type { CalibrationData } from "../calibrate/sources.ts";
import type { OnnxModel } from "../file/model.ts";
import { summarizeModel } from "../inspect.ts";
import { describeFeeds } from "../session.ts";
import type { OutputComparison, Sums } from "./compare.ts";
import { addSample, finish, newSums } from "./compare.ts";
import type { FeedTensor, Feeds, InputHint, InputMetadata } from "./feeds.ts";
import { inputHints } from "./feeds.ts";
import type { OutputKind } from "./kinds.ts";
import { kindsByGraph } from "./kinds.ts";
import { givenInputs, withModel } from "./given.ts";
import { compareGeneration, type DecoderModel, type Generation } from "./generate.ts";
import { PRESETS, imageFeeds } from "./images.ts";
import { loadMetric, measureMetric, type Metric, type MetricFigures } from "./metric.ts";
import type { RuntimeMatrix } from "./matrix.ts";
import { compareRuntimes } from "./matrix.ts";
import { CrashError, requirePackage } from "./process.ts";
import { describedInputs, randomFeeds } from "./random.ts";
import { halfRange, hasHalf, rangeWarning } from "./range.ts";
import type { OutputTensor, Runtime, RuntimeSession } from "./runtimes.ts";
import { runtimeEntries, runtimeEntry } from "./table.ts";
import type { RuntimeTrap } from "./traps.ts";
import { runtimeTraps } from "./traps.ts";

/** Inputs, runtimes and bars of a comparison of two models. */
export interface VerifyOptions {
  /** Random inputs to run. Default 4. */
  samples?: number;
  /** Default 1. */
  seed?: number;
  /**
   * Inputs to run instead of random ones: feeds, or a source as calibration takes it (.npz, .npy, a folder, JSON lines,
   * a module); of a source at most `samples`.
   */
  inputs?: readonly Feeds[] | CalibrationData;
  /**
   * A folder of images (or one) as inputs, at most `samples` of them (default 4); `preprocess` says how: imagenet,
   * clip, half, unit, raw.
   */
  images?: string;
  preprocess?: string;
  /**
   * Decoders: let both write this many tokens greedily, and compare. Prompts are the token ids of `inputs`, or random.
   */
  generate?: number;
  /** A metric of one's own: a module's path, or the function. */
  metric?: string | Metric;
  /** Below this SQNR of any output the models do not agree. Default 10 dB. */
  minSqnrDb?: number;
  /** Below this agreement (0..1) of any output that has one, the models do not agree. Default: none is asked for. */
  minAgreement?: number;
  /** Sizes of symbolic dims, by name or as "input:axis". */
  dims?: Readonly<Record<string, number>>;
  /** Threads of the runtime inside an operator. Default: its own choice. */
  threads?: number;
  /**
   * Runtimes in which both models are run too: node, node-disabled, web, webgpu (both builds: webgpu-native,
   * webgpu-jsep), lowbit. A report then has a matrix, and a runtime that disagrees by more than the file's arithmetic
   * explains fails.
   */
  runtimes?: readonly string[];
  /** Called before each cell of that matrix. */
  onCell?: (cell: { readonly model: string; readonly runtime: string }) => void;
}

/** How two models compare on the same inputs: every output, and the verdict. */
export interface VerifyReport {
  readonly samples: number;
  readonly seed: number;
  readonly minSqnrDb: number;
  readonly outputs: readonly OutputComparison[];
  /**
   * Every output reaches minSqnrDb (and minAgreement), the reference has numbers, random inputs moved an output, and
   * the runtimes asked for agree.
   */
  readonly ok: boolean;
  /** Shapes of the inputs that were run. */
  readonly inputs: Readonly<Record<string, readonly number[]>>;
  /** Whether the inputs were random; such figures say less than those of real inputs. */
  readonly random: boolean;
  /** How the inputs were made. */
  readonly notes: readonly string[];
  /** What the figures do not show, and what to do. */
  readonly warnings: readonly string[];
  /** Known faults of runtimes that the second model is in. */
  readonly traps: readonly RuntimeTrap[];
  /** What decoders wrote. */
  readonly generation?: Generation;
  /** The metric of the options for both models. */
  readonly metrics?: MetricFigures;
  /** The models in the runtimes asked for. */
  readonly matrix?: RuntimeMatrix;
}

const PACKAGE = "onnxruntime-node";

/**
 * Asks for the runtimes before work that verification follows.
 * @throws LowbitError E_RUNTIME where a package or a browser is missing; RangeError, TypeError for names
 */
export function checkRuntimes(names?: readonly string[]): void {
  requirePackage(PACKAGE);
  if (names !== undefined) for (const entry of runtimeEntries(names)) entry.check();
}

/** A model in a runtime, under the name that errors call it. */
interface Opened {
  readonly session: RuntimeSession;
  readonly label: string;
  /** Errors of this model: the reference's are not a result of the comparison, the other's are. */
  readonly judged: boolean;
}

/**
 * The process of the runtime ended: of the model that is judged this is a finding (E_VERIFY), of the reference it is a
 * failure.
 */
function crashed(label: string, judged: boolean, doing: string, cause: CrashError): LowbitError {
  return new LowbitError(
    judged ? "E_VERIFY" : "E_RUNTIME",
    `${label}: expected ${PACKAGE} to ${doing}, got a crash of its process (${cause.message}). ` +
      "The fault is the runtime's, but this file brings it about: try another dtype, or keep the operators that changed in float32.",
    { cause },
  );
}

async function open(runtime: Runtime, model: string | Uint8Array, label: string, judged: boolean, threads?: number): Promise<Opened> {
  try {
    return { session: await runtime.open(model, { threads }), label, judged };
  } catch (cause) {
    if (cause instanceof CrashError) throw crashed(label, judged, "load the model", cause);
    throw new LowbitError(
      "E_RUNTIME",
      `${label}: expected a model that onnxruntime loads, got ${(cause as Error).message}. The model is not usable.`,
      { cause },
    );
  }
}

async function run({ session, label, judged }: Opened, feeds: Feeds): Promise<ReadonlyMap<string, OutputTensor | null>> {
  try {
    return (await session.run(feeds)).outputs;
  } catch (cause) {
    if (cause instanceof CrashError) throw crashed(label, judged, `run the model with inputs ${describeFeeds(feeds)}`, cause);
    throw new LowbitError(
      "E_RUNTIME",
      `${label}: expected a run with inputs ${describeFeeds(feeds)}, got ${(cause as Error).message}. Give sizes with dims (--dims), or inputs of the shapes that the model takes (--inputs).`,
      { cause },
    );
  }
}

/**
 * What the file of the reference says: inputs for runtimes that do not describe them, hints on integer values, kinds of
 * outputs.
 */
interface ModelFacts {
  readonly inputs: readonly InputMetadata[];
  readonly hints: ReadonlyMap<string, InputHint>;
  readonly kinds: ReadonlyMap<string, OutputKind>;
}

/** ONNX's names of element types where onnxruntime has others. */
const RUNTIME_TYPES: ReadonlyMap<string, string> = new Map([
  ["float", "float32"],
  ["double", "float64"],
]);

async function readFacts(model: string | Uint8Array): Promise<ModelFacts> {
  const facts = (opened: OnnxModel): ModelFacts => ({
    inputs: summarizeModel(opened).inputs.map(({ name, type, dims }) => ({ name, type: RUNTIME_TYPES.get(type) ?? type, shape: dims })),
    hints: inputHints(opened),
    kinds: kindsByGraph(opened),
  });
  try {
    return await withModel(model, facts);
  } catch (error) {
    // A model that the runtime loads and this package cannot read is compared without hints.
    if (isLowbitError(error)) return { inputs: [], hints: new Map(), kinds: new Map() };
    throw error;
  }
}

/** @throws LowbitError E_VERIFY where names differ: the models are not two forms of one */
function checkNames(a: RuntimeSession, b: RuntimeSession): void {
  for (const [what, left, right] of [
    ["inputs", a.inputNames, b.inputNames],
    ["outputs", a.outputNames, b.outputNames],
  ] as const) {
    if (left.length !== right.length || left.some((name) => !right.includes(name)))
      throw new LowbitError(
        "E_VERIFY",
        `verify: expected the same ${what} in both models, got ${left.join(", ")} and ${right.join(", ")}. They are not two forms of one model.`,
      );
  }
}

/** What can be said of options before a model is opened. @throws TypeError, RangeError */
export function checkVerifyOptions(options: VerifyOptions): void {
  if (typeof options !== "object" || options === null)
    throw new TypeError(`verifyModels options: expected an object, got ${options === null ? "null" : `a ${typeof options}`}.`);
  const { samples = 4, seed, minSqnrDb, minAgreement, generate, images, inputs, preprocess } = options;
  for (const [name, value] of Object.entries({ seed, minSqnrDb, minAgreement }))
    if (value !== undefined && !(typeof value === "number" && !Number.isNaN(value)))
      throw new RangeError(`${name}: expected a number, got ${String(value)}`);
  if (!Number.isInteger(samples) || samples < 1) throw new RangeError(`samples: expected a positive integer, got ${samples}`);
  if (Array.isArray(inputs) && inputs.length === 0) throw new RangeError("inputs: expected at least one set of feeds, got none");
  if (generate !== undefined && !(Number.isInteger(generate) && generate >= 1))
    throw new RangeError(`generate: expected a positive number of tokens, got ${generate}`);
  if (images !== undefined && inputs !== undefined) throw new TypeError("images, inputs: expected one of them, got both. Leave one out.");
  if ((images === undefined) !== (preprocess === undefined))
    throw new TypeError(`images, preprocess: expected both or none, got one. Presets: ${[...PRESETS.keys()].join(", ")}.`);
  if (preprocess !== undefined && !PRESETS.has(preprocess))
    throw new RangeError(`preprocess: expected one of ${[...PRESETS.keys()].join(", ")}, got ${JSON.stringify(preprocess)}.`);
}

/**
 * Compares two models, usually an original and its quantized form, on the same inputs. The runtime works in a process
 * of its own, so that a crash there is an error like others.
 * @param a path or bytes of the reference
 * @param b path or bytes of the model to judge
 * @throws LowbitError E_RUNTIME where onnxruntime-node (or what another runtime needs) is missing, a model does not
 * load or does not run, or the reference crashes it; E_VERIFY where the models' inputs or outputs differ in name or
 * shape, or the second model crashes the runtime
 * @example
 * const { ok, outputs } = await verifyModels("model.onnx", "quantized.onnx", { samples: 2, minSqnrDb: 20 });
 * ok // true; outputs[0].sqnrDb says by how much
 */
export async function verifyModels(a: string | Uint8Array, b: string | Uint8Array, options: VerifyOptions = {}): Promise<VerifyReport> {
  checkVerifyOptions(options);
  const samples = options.samples ?? 4;
  const metric = typeof options.metric === "string" ? await loadMetric(options.metric) : options.metric;
  checkRuntimes(options.runtimes);
  const runtime = await runtimeEntry("node").start({});
  try {
    const reference = await open(runtime, a, typeof a === "string" ? a : "first model", false, options.threads);
    const judged = await open(runtime, b, typeof b === "string" ? b : "second model", true, options.threads);
    checkNames(reference.session, judged.session);
    const facts = await readFacts(a);
    const described = describedInputs(reference.session.inputs, facts.inputs, reference.session.inputNames);
    const given =
      options.images !== undefined
        ? await imageFeeds(options.images, options.preprocess!, described, samples, options.dims)
        : options.inputs === undefined
          ? null
          : await givenInputs(a, options.inputs, options.samples);
    const { feeds, notes } =
      given === null
        ? await drawInputs(reference, facts, { samples, seed: options.seed ?? 1, dims: options.dims ?? {} })
        : { feeds: given, notes: [] };
    const all = new Map<string, Sums>();
    for (const feed of feeds) compareRuns(all, reference.session, await run(reference, feed), await run(judged, feed));
    const report = reportOf(all, facts, options, { feeds, notes, random: given === null });
    const decoded = await decode(reference, judged, facts, described, given, options);
    const metrics = metric === undefined ? {} : { metrics: await metricsOf(metric, reference, judged) };
    const { traps, warnings } = await beyondTheRun(runtime, a, b, feeds);
    const ok = report.ok && (options.minAgreement === undefined || (decoded.generation?.agreement ?? 1) >= options.minAgreement);
    const found = { ...report, ok, ...decoded, ...metrics, warnings: [...report.warnings, ...warnings], traps };
    if (options.runtimes === undefined) return found;
    const { threads, onCell } = options;
    const matrix = await compareRuntimes(a, b, { runtimes: runtimeEntries(options.runtimes), feeds, kinds: facts.kinds, threads, onCell });
    return { ...found, matrix, ok: ok && matrix.ok };
  } finally {
    await runtime.close();
  }
}

/** What both write as decoders, where that is asked for. */
async function decode(
  reference: Opened,
  judged: Opened,
  facts: ModelFacts,
  inputs: readonly InputMetadata[],
  given: readonly Feeds[] | null,
  options: VerifyOptions,
): Promise<{ generation?: Generation }> {
  if (options.generate === undefined) return {};
  const model = (opened: Opened): DecoderModel => ({
    label: opened.label,
    inputs,
    outputNames: opened.session.outputNames,
    run: (feeds) => run(opened, feeds),
  });
  const { hints } = facts;
  const { samples = 4, seed = 1, generate: tokens } = options;
  return { generation: await compareGeneration(model(reference), model(judged), { tokens, inputs: given, samples, seed, hints }) };
}

const metricsOf = (metric: Metric, reference: Opened, judged: Opened): Promise<MetricFigures> => {
  const model = (opened: Opened, which: "reference" | "model") => ({
    which,
    inputNames: opened.session.inputNames,
    outputNames: opened.session.outputNames,
    run: async (feeds: Feeds) =>
      Object.fromEntries([...(await run(opened, feeds))].flatMap(([name, value]) => (value === null ? [] : [[name, value]]))),
  });
  return measureMetric(metric, { reference: model(reference, "reference"), model: model(judged, "model") });
};

/** What these runs on a CPU cannot show: traps of other runtimes, and values that a GPU's float16 does not hold. */
async function beyondTheRun(
  runtime: Runtime,
  a: string | Uint8Array,
  b: string | Uint8Array,
  feeds: readonly Feeds[],
): Promise<{ traps: RuntimeTrap[]; warnings: string[] }> {
  try {
    return await withModel(b, async (model) => {
      const traps = runtimeTraps(model);
      if (!hasHalf(model)) return { traps, warnings: [] };
      const found = await withModel(a, (reference) => (hasHalf(reference) ? [] : halfRange(runtime, { reference, model }, feeds)));
      return { traps, warnings: found === null || found.length === 0 ? [] : [rangeWarning(found)] };
    });
  } catch (error) {
    // A model that the runtime loads and this package cannot read: the comparison stands without this.
    if (isLowbitError(error)) return { traps: [], warnings: [] };
    throw error;
  }
}

const drawInputs = (
  reference: Opened,
  facts: ModelFacts,
  options: { samples: number; seed: number; dims: Readonly<Record<string, number>> },
): ReturnType<typeof randomFeeds> => {
  const { inputs, inputNames } = reference.session;
  return randomFeeds(
    { inputs: describedInputs(inputs, facts.inputs, inputNames), hints: facts.hints, run: (feeds) => run(reference, feeds) },
    options,
  );
};

function compareRuns(
  all: Map<string, Sums>,
  session: RuntimeSession,
  a: ReadonlyMap<string, OutputTensor | null>,
  b: ReadonlyMap<string, OutputTensor | null>,
): void {
  for (const name of session.outputNames) {
    const [left, right] = [a.get(name) ?? null, b.get(name) ?? null];
    // Sequences and maps cannot be compared.
    if (left === null || right === null) continue;
    if (left.dims.join() !== right.dims.join())
      throw new LowbitError(
        "E_VERIFY",
        `output ${name}: expected the same shape from both models, got [${left.dims.join(", ")}] and [${right.dims.join(", ")}]. The second model computes something else.`,
      );
    const sums = all.get(name) ?? newSums(name);
    all.set(name, sums);
    addSample(sums, left, right);
  }
}

interface Ran {
  readonly feeds: readonly Feeds[];
  readonly notes: readonly string[];
  readonly random: boolean;
}

function reportOf(all: ReadonlyMap<string, Sums>, facts: ModelFacts, options: VerifyOptions, ran: Ran): Omit<VerifyReport, "traps"> {
  const minSqnrDb = options.minSqnrDb ?? 10;
  const { minAgreement } = options;
  const outputs = [...all.values()].map((sums) => finish(sums, facts.kinds.get(sums.name), { minSqnrDb, minAgreement }));
  const inputs = Object.fromEntries(Object.entries(ran.feeds[0]).map(([name, feed]: [string, FeedTensor]) => [name, feed.dims]));
  // Nothing that moves with the inputs was compared: any two models would agree. A model without inputs is what it is.
  const nothing = ran.random && Object.keys(inputs).length > 0 && outputs.every((output) => output.noEvidence !== null);
  return {
    samples: ran.feeds.length,
    seed: options.seed ?? 1,
    minSqnrDb,
    outputs,
    ok: outputs.every((output) => output.ok) && !nothing,
    inputs,
    random: ran.random,
    notes: ran.notes,
    warnings: outputWarnings(outputs, nothing),
  };
}

const GIVE_INPUTS = "Give real inputs (inputs; on the command line --inputs).";

function outputWarnings(outputs: readonly OutputComparison[], nothing: boolean): string[] {
  const warnings: string[] = [];
  for (const { name, noEvidence, nanReference, judgement } of outputs) {
    if (noEvidence !== null) warnings.push(`output ${name}: ${judgement.text}. ${GIVE_INPUTS}`);
    else if (nanReference > 0)
      warnings.push(`output ${name}: ${nanReference} elements of the reference are NaN and were left out. ${GIVE_INPUTS}`);
  }
  if (nothing) warnings.push(`no output was evidence: models of other weights would agree as well. ${GIVE_INPUTS}`);
  return warnings;
}

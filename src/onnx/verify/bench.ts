// benchModels: how fast models run in runtimes, measured fairly: every model in every runtime is open at the same time,
// in a process of its own, and they run in turn, round by round, so that whatever else the machine does falls on all of
// them.
import { LowbitError, isLowbitError } from "../../../formats/core/errors.ts";
import type { CalibrationData } from "../calibrate/sources.ts";
import { readFeeds } from "../calibrate/sources.ts";
import { statOf } from "../../files/calls.ts";
import { readModel } from "../file/io.ts";
import { inputPaths } from "../file/io.ts";
import { summarizeModel } from "../inspect.ts";
import type { Feeds, InputHint, InputMetadata } from "./feeds.ts";
import { inputHints } from "./feeds.ts";
import { greedyTokens } from "./generate.ts";
import { describedInputs, randomFeeds } from "./random.ts";
import type { Runtime, RuntimeEntry, RuntimeSession } from "./runtimes.ts";
import { runtimeEntries } from "./table.ts";

/** Where models are timed, on what, and how often. */
export interface BenchOptions {
  /** Where to run: default node. */
  readonly runtimes?: readonly string[];
  /** Rounds that count, after two that do not; default 20. */
  readonly runs?: number;
  /** Feeds, or a source as calibration takes it; default random inputs of the first model. */
  readonly inputs?: readonly Feeds[] | CalibrationData;
  /** Sizes of symbolic dims, by name or as "input:axis". */
  readonly dims?: Readonly<Record<string, number>>;
  readonly seed?: number;
  /** Threads inside an operator. */
  readonly threads?: number;
  /** Decoders: tokens per second over this many greedy tokens. */
  readonly generate?: number;
  readonly onCell?: (cell: { readonly model: string; readonly runtime: string }) => void;
}

/** One model in one runtime. */
export interface BenchCell {
  readonly model: string;
  readonly runtime: string;
  readonly version: string;
  readonly note?: string;
  /** Why it does not run there; the figures are then NaN. */
  readonly error?: string;
  /** Bytes of the model and its external data. */
  readonly fileBytes: number;
  /** Milliseconds of loading and of the first run. */
  readonly loadMs: number;
  readonly firstMs: number;
  /** Over the rounds that count. */
  readonly medianMs: number;
  readonly p95Ms: number;
  /** Median of the first model in the same runtime over this one's: above 1 it is faster. */
  readonly ratio: number;
  readonly tokensPerSecond?: number;
  /** Largest resident memory of its process; null where nobody knows. */
  readonly peakBytes: number | null;
}

/** Times of models by runtime. */
export interface BenchReport {
  readonly runs: number;
  readonly random: boolean;
  readonly inputs: Readonly<Record<string, readonly number[]>>;
  readonly cells: readonly BenchCell[];
}

const WARM_UP = 2;

/** Value at a share of the sorted list (nearest rank). */
export const quantile = (values: readonly number[], share: number): number =>
  [...values].sort((a, b) => a - b)[Math.max(0, Math.ceil(share * values.length) - 1)] ?? NaN;

interface Seat {
  readonly model: string;
  readonly entry: RuntimeEntry;
  readonly fileBytes: number;
  runtime?: Runtime;
  session?: RuntimeSession;
  error?: string;
  firstMs: number;
  tokensPerSecond?: number;
  peakBytes: number | null;
  readonly times: number[];
}

interface Facts {
  readonly inputs: readonly InputMetadata[];
  readonly hints: ReadonlyMap<string, InputHint>;
  readonly fileBytes: number;
}

const TYPES: ReadonlyMap<string, string> = new Map([
  ["float", "float32"],
  ["double", "float64"],
]);

function factsOf(path: string): Facts {
  const model = readModel(path);
  try {
    return {
      inputs: summarizeModel(model).inputs.map(({ name, type, dims }) => ({ name, type: TYPES.get(type) ?? type, shape: dims })),
      hints: inputHints(model),
      fileBytes: inputPaths(model).reduce((sum, file) => sum + Number(statOf(file)?.size ?? 0n), 0),
    };
  } finally {
    model.close();
  }
}

async function open(seat: Seat, threads: number | undefined): Promise<void> {
  try {
    seat.runtime = await seat.entry.start({ fresh: true, threads });
    seat.session = await seat.runtime.open(seat.model, { threads });
  } catch (cause) {
    seat.error = (cause as Error).message.split("\n")[0];
  }
}

/** A run; a seat whose run fails is left out from then on. */
async function run(seat: Seat, feeds: Feeds): Promise<number> {
  if (seat.session === undefined || seat.error !== undefined) return NaN;
  try {
    return (await seat.session.run(feeds)).ms;
  } catch (cause) {
    seat.error = (cause as Error).message.split("\n")[0];
    return NaN;
  }
}

async function inputsOf(model: string, seats: readonly Seat[], facts: Facts, options: BenchOptions): Promise<readonly Feeds[]> {
  const { inputs } = options;
  if (Array.isArray(inputs)) return inputs as readonly Feeds[];
  if (inputs !== undefined) {
    const file = readModel(model);
    try {
      return await readFeeds(file, inputs as CalibrationData, { maxBatches: 8 });
    } finally {
      file.close();
    }
  }
  const seat = seats.find(({ session, error }) => session !== undefined && error === undefined);
  if (seat === undefined)
    throw new LowbitError(
      "E_RUNTIME",
      `${model}: expected a runtime that loads a model, got none (${seats[0]?.error ?? ""}). Check the models.`,
    );
  const { session } = seat;
  const source = {
    inputs: describedInputs(session!.inputs, facts.inputs, session!.inputNames),
    hints: facts.hints,
    run: async (feeds: Feeds) => (await session!.run(feeds)).outputs,
  };
  const { feeds } = await randomFeeds(source, { samples: 1, seed: options.seed ?? 1, dims: options.dims ?? {} });
  return feeds;
}

/**
 * Measures models in runtimes.
 * @param models paths; the first is what the others are compared with, usually the float32 model
 * @throws LowbitError E_RUNTIME where a package or browser is missing, or nothing runs; RangeError, TypeError for
 * options
 * @example const { cells } = await benchModels(["model.onnx", "quantized.onnx"], { runtimes: ["node", "web"] });
 */
export async function benchModels(models: readonly string[], options: BenchOptions = {}): Promise<BenchReport> {
  const runs = options.runs ?? 20;
  if (!Number.isInteger(runs) || runs < 1) throw new RangeError(`runs: expected a positive integer, got ${runs}`);
  if (models.length === 0) throw new TypeError("benchModels: expected at least one model, got none");
  const entries = runtimeEntries(options.runtimes ?? ["node"]);
  for (const entry of entries) entry.check();
  const facts = models.map(factsOf);
  const seats = models.flatMap((model, i) =>
    entries.map((entry): Seat => ({ model, entry, fileBytes: facts[i].fileBytes, firstMs: NaN, peakBytes: null, times: [] })),
  );
  try {
    for (const seat of seats) {
      options.onCell?.({ model: seat.model, runtime: seat.entry.name });
      await open(seat, options.threads);
    }
    const feeds = await inputsOf(models[0], seats, facts[0], options);
    for (let round = 0; round < runs + WARM_UP; round++)
      for (const seat of seats) {
        const ms = await run(seat, feeds[round % feeds.length]);
        if (round === 0) seat.firstMs = ms;
        if (round >= WARM_UP) seat.times.push(ms);
      }
    if (options.generate !== undefined)
      for (const seat of seats) await measureTokens(seat, facts[models.indexOf(seat.model)], options.generate);
    for (const seat of seats) if (seat.error === undefined) seat.peakBytes = await seat.runtime!.peakBytes();
    if (seats.every(({ error }) => error !== undefined))
      throw new LowbitError("E_RUNTIME", `${models[0]}: expected a run, got ${seats[0].error}. Give sizes with dims, or inputs.`);
    const inputs = Object.fromEntries(Object.entries(feeds[0]).map(([name, { dims }]) => [name, dims]));
    return { runs, random: options.inputs === undefined, inputs, cells: seats.map((seat) => cellOf(seat, seats)) };
  } finally {
    for (const { runtime } of seats) await runtime?.close();
  }
}

async function measureTokens(seat: Seat, { inputs, hints }: Facts, count: number): Promise<void> {
  if (seat.session === undefined || seat.error !== undefined) return;
  const { session } = seat;
  let ms = 0;
  const model = {
    label: seat.model,
    inputs: describedInputs(session.inputs, inputs, session.inputNames),
    outputNames: session.outputNames,
    run: async (feeds: Feeds) => {
      const result = await session.run(feeds);
      ms += result.ms;
      return result.outputs;
    },
  };
  try {
    await greedyTokens(model, hints, count, () => (ms = 0));
    seat.tokensPerSecond = (1000 * count) / ms;
  } catch (error) {
    if (isLowbitError(error) && error.code === "E_UNSUPPORTED") throw error;
    seat.error = (error as Error).message.split("\n")[0];
  }
}

function cellOf(seat: Seat, seats: readonly Seat[]): BenchCell {
  const { model, entry, runtime, error, fileBytes, session, firstMs, times, peakBytes, tokensPerSecond } = seat;
  const failed = error !== undefined;
  const medianMs = failed ? NaN : quantile(times, 0.5);
  const first = seats.find((other) => other.entry === entry)!;
  return {
    model,
    runtime: entry.name,
    version: runtime?.version ?? "",
    ...(runtime?.note === undefined ? {} : { note: runtime.note }),
    ...(failed ? { error } : {}),
    fileBytes,
    loadMs: session?.loadMs ?? NaN,
    firstMs,
    medianMs,
    p95Ms: failed ? NaN : quantile(times, 0.95),
    ratio: first.error === undefined ? quantile(first.times, 0.5) / medianMs : NaN,
    ...(tokensPerSecond === undefined ? {} : { tokensPerSecond }),
    peakBytes,
  };
}

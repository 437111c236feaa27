// lowbit verify: runs two models on the same inputs in onnxruntime and compares every output; exit 3 where they do not
// agree.
import { existsSync } from "node:fs";
import { LowbitError, isLowbitError } from "../../../formats/core/errors.ts";
import type { Feeds } from "../../onnx/verify/feeds.ts";
import type { LayerComparison } from "../../onnx/verify/layers.ts";
import { compareLayers } from "../../onnx/verify/layers.ts";
import type { VerifyOptions, VerifyReport } from "../../onnx/verify/verify.ts";
import { checkRuntimes, checkVerifyOptions, verifyModels } from "../../onnx/verify/verify.ts";
import { PRESETS } from "../../onnx/verify/images.ts";
import { RUNTIME_NAMES } from "../../onnx/verify/table.ts";
import { readFeeds } from "../inputs.ts";
import { progressLine } from "../progress.ts";
import { json } from "../report.ts";
import type { CommandSpec, ParsedArgs } from "../spec.ts";
import { EXIT, numberOption, usageError } from "../spec.ts";
import { layersText, partingText, verifyText } from "../verify-text.ts";

export const DEFAULT_MIN_SQNR = 10;

/** `verify` and `quantize --verify` have it. */
export const RUNTIMES_OPTION = {
  value: "LIST",
  help: `run both models there too: ${RUNTIME_NAMES.join(", ")}; exit 3 where one disagrees`,
};

/** The names of --runtimes, checked: packages and the browser are there. @throws LowbitError E_CLI, E_RUNTIME */
export function runtimesOf(args: ParsedArgs): string[] | undefined {
  const names = args
    .text("runtimes")
    ?.split(",")
    .map((name) => name.trim());
  try {
    checkRuntimes(names);
  } catch (error) {
    if (error instanceof RangeError) throw usageError(`--${error.message}. See lowbit verify --help.`);
    throw error;
  }
  return names;
}

/** Options that do not go together. @throws LowbitError E_CLI */
function checkUsage(options: VerifyOptions): void {
  try {
    checkVerifyOptions(options);
  } catch (error) {
    if (error instanceof TypeError || error instanceof RangeError) throw usageError(`--${error.message} See lowbit verify --help.`);
    throw error;
  }
}

export const verifyCommand: CommandSpec = {
  name: "verify",
  summary: "Runs two models on the same inputs and compares every output (needs onnxruntime-node).",
  positionals: ["REFERENCE", "MODEL"],
  options: {
    samples: { short: "n", value: "N", help: "random inputs to run (default 4)" },
    seed: { value: "N", help: "seed of the random inputs (default 1)" },
    inputs: {
      value: "PATH",
      multiple: true,
      help: "data instead of random inputs: .npz, folder, .jsonl, .mjs, or NAME=FILE.npy (repeated)",
    },
    images: { value: "DIR", help: "images as inputs (needs sharp, or pngjs and jpeg-js), with --preprocess" },
    preprocess: { value: "NAME", help: `with --images: ${[...PRESETS.keys()].join(", ")}` },
    generate: { value: "N", help: "decoders: N greedy tokens of both, where they part, and the divergence of their logits" },
    metric: { value: "FILE", help: "a module of your own: export default async ({ run }) => number, for both models" },
    dims: { value: "NAME=N,...", multiple: true, help: "sizes of symbolic dimensions, by name or as INPUT:AXIS" },
    "min-sqnr": { value: "DB", help: `exit 3 where an output's SQNR is below this (default ${DEFAULT_MIN_SQNR})` },
    "min-agreement": { value: "SHARE", help: "exit 3 where fewer largest elements, labels or neighbours agree, e.g. 0.95" },
    layers: { help: "compare the outputs of all layers too (without it: only where the models do not agree)" },
    threads: { value: "N", help: "threads of the runtime inside an operator" },
    runtimes: RUNTIMES_OPTION,
  },
  notes: `SQNR is 10 log10(sum a^2 / sum (a - b)^2) of an output over all samples. ${DEFAULT_MIN_SQNR} dB is an error of a third of the signal: models
below it compute something else. Real inputs judge better than random ones.
Exit codes: 0 the models agree, 3 they do not, 1 a model does not load or run, 2 usage.`,
  run: runVerify,
};

/** Work that a signal interrupts: nothing is being written, so the runtime's work is simply dropped. */
function interruptible<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  const aborted = new Promise<never>((_, reject) => {
    const stop = (): void => reject(new LowbitError("E_ABORTED", "verify: expected to finish, got a signal. No file was changed by it."));
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
  return Promise.race([work, aborted]);
}

export const compareModels = (a: string, b: string, options: VerifyOptions, signal: AbortSignal): Promise<VerifyReport> =>
  interruptible(verifyModels(a, b, { minSqnrDb: DEFAULT_MIN_SQNR, ...defined(options) }), signal);

/**
 * The layers' outputs compared on one input; null where that cannot be done (more than 1 GB, or the runtime refuses).
 */
export async function layersOf(a: string, b: string, options: VerifyOptions, signal: AbortSignal): Promise<LayerComparison[] | null> {
  const { samples: _, inputs, runtimes: __, onCell: ___, ...rest } = defined(options);
  const first = Array.isArray(inputs) ? (inputs as readonly Feeds[]).slice(0, 1) : inputs;
  try {
    return await interruptible(compareLayers(a, b, { ...rest, ...(first === undefined ? {} : { inputs: first }) }), signal);
  } catch (error) {
    // Only an explanation of a result that stands without it.
    if (isLowbitError(error) && error.code !== "E_ABORTED") return null;
    throw error;
  }
}

const defined = (options: VerifyOptions): VerifyOptions =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as VerifyOptions;

export function dimsOf(args: ParsedArgs): Record<string, number> | undefined {
  if (!args.flag("dims")) return undefined;
  const pairs = args.all("dims").flatMap((text) => text.split(","));
  return Object.fromEntries(
    pairs.map((pair) => {
      const [, name, size] = /^(.+)=(\d{1,9})$/.exec(pair.trim()) ?? [];
      if (name === undefined)
        throw usageError(`--dims: expected NAME=N, got ${JSON.stringify(pair)}. For example --dims sequence_length=64`);
      return [name, Number(size)];
    }),
  );
}

/** One path is a source as calibration takes it; NAME=FILE.npy, any number, are the inputs themselves. */
export async function inputsOf(given: readonly string[]): Promise<NonNullable<VerifyOptions["inputs"]>> {
  const [first] = given;
  return given.length === 1 && existsSync(first) ? first : readFeeds(given);
}

async function runVerify(args: ParsedArgs, context: Parameters<CommandSpec["run"]>[1]): Promise<number> {
  const [reference, model] = args.positionals;
  const count = (name: string, least: number): number | undefined =>
    numberOption(args, name, `a whole number from ${least}`, (n) => Number.isInteger(n) && n >= least && n < 2 ** 32);
  const samples = count("samples", 1);
  const dims = dimsOf(args);
  const inputs = args.flag("inputs") ? await inputsOf(args.all("inputs")) : undefined;
  if (Array.isArray(inputs) && samples !== undefined)
    throw usageError("--samples: expected only with random inputs or a source of many, got it together with --inputs NAME=FILE.npy.");
  const progress = progressLine();
  progress.note("verifying");
  const options: VerifyOptions = {
    samples,
    seed: count("seed", 0),
    inputs,
    dims,
    images: args.text("images"),
    preprocess: args.text("preprocess"),
    generate: count("generate", 1),
    metric: args.text("metric"),
    minSqnrDb: numberOption(args, "min-sqnr", "a number of decibels", () => true),
    minAgreement: numberOption(args, "min-agreement", "a share from 0 to 1", (n) => n >= 0 && n <= 1),
    threads: count("threads", 1),
    runtimes: runtimesOf(args),
    onCell: ({ model: which, runtime }) => progress.note(`${which} in ${runtime}`),
  };
  checkUsage(options);
  let report: VerifyReport;
  let layers: LayerComparison[] | null | undefined;
  try {
    report = await compareModels(reference, model, options, context.signal);
    if (args.flag("layers") || !report.ok) {
      progress.note("comparing layers");
      layers = await layersOf(reference, model, options, context.signal);
    }
  } finally {
    progress.clear();
  }
  if (args.json) context.print(json({ command: "verify", reference, model, ...report, ...(layers === undefined ? {} : { layers }) }));
  else if (args.flag("layers")) context.print(`${layersText(layers ?? null)}\n${verifyText(report)}`);
  else context.print(verifyText(report) + (report.ok ? "" : partingText(layers ?? null, report.minSqnrDb)));
  return report.ok ? EXIT.ok : EXIT.verification;
}

// lowbit verify: runs two models on the same inputs in onnxruntime and compares every output; exit 3 where they do not agree.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { VerifyOptions, VerifyReport } from "../../onnx/verify.ts";
import { verifyModels } from "../../onnx/verify.ts";
import { readFeeds } from "../inputs.ts";
import { progressLine } from "../progress.ts";
import { decibels, json, shape, table } from "../report.ts";
import type { CommandSpec, ParsedArgs } from "../spec.ts";
import { EXIT, numberOption, usageError } from "../spec.ts";

export const DEFAULT_MIN_SQNR = 10;

export const verifyCommand: CommandSpec = {
  name: "verify",
  summary: "Runs two models on the same inputs and compares every output (needs onnxruntime-node).",
  positionals: ["REFERENCE", "MODEL"],
  options: {
    samples: { short: "n", value: "N", help: "random inputs to run (default 4)" },
    seed: { value: "N", help: "seed of the random inputs (default 1)" },
    inputs: { value: "NAME=FILE.npy", multiple: true, help: "an input instead of random ones; repeat a NAME for more samples" },
    dims: { value: "NAME=N,...", multiple: true, help: "sizes of symbolic dimensions, by name or as INPUT:AXIS" },
    "min-sqnr": { value: "DB", help: `exit 3 where an output's SQNR is below this (default ${DEFAULT_MIN_SQNR})` },
    threads: { value: "N", help: "threads of the runtime inside an operator" },
  },
  notes: `SQNR is 10 log10(sum a^2 / sum (a - b)^2) of an output over all samples. ${DEFAULT_MIN_SQNR} dB is an error of a third of the signal: models
below it compute something else. Real inputs judge better than random ones.
Exit codes: 0 the models agree, 3 they do not, 1 a model does not load or run, 2 usage.`,
  run: runVerify,
};

/** verifyModels that a signal interrupts: nothing is being written, so the runtime's work is simply dropped. */
export async function compareModels(a: string, b: string, options: VerifyOptions, signal: AbortSignal): Promise<VerifyReport> {
  const aborted = new Promise<never>((_, reject) => {
    const stop = (): void => reject(new LowbitError("E_ABORTED", "verify: expected to finish, got a signal. No file was changed by it."));
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
  return Promise.race([verifyModels(a, b, { minSqnrDb: DEFAULT_MIN_SQNR, ...defined(options) }), aborted]);
}

const defined = (options: VerifyOptions): VerifyOptions =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as VerifyOptions;

function dimsOf(args: ParsedArgs): Record<string, number> | undefined {
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

async function runVerify(args: ParsedArgs, context: Parameters<CommandSpec["run"]>[1]): Promise<number> {
  const [reference, model] = args.positionals;
  const count = (name: string, least: number): number | undefined =>
    numberOption(args, name, `a whole number from ${least}`, (n) => Number.isInteger(n) && n >= least && n < 2 ** 32);
  const samples = count("samples", 1);
  const dims = dimsOf(args);
  const inputs = args.flag("inputs") ? readFeeds(args.all("inputs")) : undefined;
  if (inputs !== undefined && samples !== undefined)
    throw usageError("--samples: expected only with random inputs, got it together with --inputs.");
  const progress = progressLine();
  progress.note("verifying");
  let report: VerifyReport;
  try {
    report = await compareModels(
      reference,
      model,
      {
        samples,
        seed: count("seed", 0),
        inputs,
        dims,
        minSqnrDb: numberOption(args, "min-sqnr", "a number of decibels", () => true),
        threads: count("threads", 1),
      },
      context.signal,
    );
  } finally {
    progress.clear();
  }
  context.print(args.json ? json({ command: "verify", reference, model, ...report }) : verifyText(report));
  return report.ok ? EXIT.ok : EXIT.verification;
}

export function verifyText(report: VerifyReport): string {
  const columns = [
    { title: "output" },
    { title: "shape" },
    { title: "SQNR dB", right: true },
    { title: "cosine", right: true },
    { title: "max error", right: true },
    { title: "same argmax", right: true },
    { title: "" },
  ];
  const rows = report.outputs.map((output) => [
    output.name,
    shape(output.dims),
    decibels(output.sqnrDb),
    output.cosine.toFixed(5),
    output.maxAbsError.toPrecision(3),
    output.argmaxAgreement === null ? "" : `${(100 * output.argmaxAgreement).toFixed(1)}%`,
    output.sqnrDb >= report.minSqnrDb ? "ok" : "differs",
  ]);
  const ran = Object.entries(report.inputs).map(([name, dims]) => `${name} [${dims.join(", ")}]`);
  return [
    table(columns, rows),
    "",
    `${report.samples} inputs: ${ran.join("; ")}`,
    report.ok ? `ok: every output reaches ${report.minSqnrDb} dB` : `FAILED: expected every output to reach ${report.minSqnrDb} dB`,
    "",
  ].join("\n");
}

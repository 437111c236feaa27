// lowbit calibrate: statistics of calibration data as a file, whole or by shards of the data.
import { calibrateToFile, type CalibrateFileReport } from "../../onnx/calibrate/file.ts";
import { progressLine } from "../progress.ts";
import { json } from "../report.ts";
import type { CommandSpec, ParsedArgs } from "../spec.ts";
import { EXIT, numberOption, usageError } from "../spec.ts";

export const calibrateCommand: CommandSpec = {
  name: "calibrate",
  summary: "Runs a model on calibration data and writes the statistics of its layers' inputs, for `lowbit quantize --statistics`.",
  positionals: ["MODEL", "DATA"],
  options: {
    output: { short: "o", value: "OUT", help: "file to write" },
    shard: { value: "I/N", help: "only this share of the batches, as OUT.I-of-N.shard, for lowbit merge OUT" },
    layers: { value: "PATTERN", multiple: true, help: "only layers of this name (glob, or /regex/); may be repeated" },
    "max-batches": { value: "N", help: "batches of the data, at most" },
    threads: { value: "N", help: "threads of the runtime inside an operator" },
    force: { short: "f", help: "overwrite OUT if it exists" },
  },
  notes: `DATA is what lowbit quantize --calibrate takes. The file has sums over the data: 4 k^2 bytes (8 with batches held out) for an input of k channels.
  lowbit calibrate model.onnx data.npz -o model.stats
  lowbit quantize model.onnx -o model_q4.onnx --dtype q4 --algorithm gptq --statistics model.stats`,
  run: runCalibrate,
};

async function runCalibrate(args: ParsedArgs, context: Parameters<CommandSpec["run"]>[1]): Promise<number> {
  const [model, data] = args.positionals;
  const output = args.text("output");
  if (output === undefined) throw usageError("-o: expected the file to write, got none. For example -o model.stats");
  const whole = (name: string): number | undefined =>
    numberOption(args, name, "a whole number from 1", (n) => Number.isInteger(n) && n >= 1);
  const [maxBatches, threads, shard] = [whole("max-batches"), whole("threads"), args.text("shard")];
  const progress = progressLine();
  let report: CalibrateFileReport;
  try {
    report = await calibrateToFile(model, data, output, {
      force: args.flag("force"),
      signal: context.signal,
      onProgress: ({ stage, done, total, layer }) => progress.update({ done, total, layer: `${layer ?? ""} (${stage})` }),
      ...(args.flag("layers") && { layers: args.all("layers") }),
      ...(maxBatches && { maxBatches }),
      ...(threads && { threads }),
      ...(shard && { shard }),
    });
  } catch (error) {
    if (error instanceof RangeError && error.message.startsWith("shard:")) throw usageError(`--${error.message}.`);
    throw error;
  } finally {
    progress.clear();
  }
  if (args.json) context.print(json({ command: "calibrate", model, ...report, refused: Object.fromEntries(report.refused) }));
  else {
    const refused = [...report.refused].map(([name, reason]) => `left out: ${name}: ${reason}\n`).join("");
    context.print(`${refused}${report.inputs} inputs of layers over ${report.batches} of ${report.of} batches: ${report.output}\n`);
  }
  return EXIT.ok;
}

// lowbit quantize: one model file to another, or a folder in several dtypes, with a report of every layer; --verify
// runs both and compares their outputs. Its options are those of src/onnx/option-table.ts: a new one there has its flag
// here.
import { statSync } from "node:fs";
import { isLowbitError } from "../../../formats/core/errors.ts";
import { nearest } from "../../../formats/registry.ts";
import { ONNX_DTYPES, dtypeFileName, dtypeRow } from "../../onnx/dtypes.ts";
import { quantizeFolder, type FolderReport } from "../../onnx/folder.ts";
import { OPTIONS, checkOptions } from "../../onnx/option-table.ts";
import type { LayerReport, OnnxDtype, QuantizeModelOptions, QuantizeReport } from "../../onnx/options.ts";
import { readModel } from "../../onnx/file/io.ts";
import { quantizeModel } from "../../onnx/quantize.ts";
import { checkReport, writeReport } from "../../onnx/report/write.ts";
import { configFile, recipeOf } from "../../onnx/recipe.ts";
import type { LayerComparison } from "../../onnx/verify/layers.ts";
import type { VerifyReport } from "../../onnx/verify/verify.ts";
import { progressLine } from "../progress.ts";
import { count, decibels, json, percent, shape, size, table } from "../report.ts";
import type { CommandSpec, ParsedArgs } from "../spec.ts";
import { EXIT, numberOption, usageError } from "../spec.ts";
import { partingText, trapText, verifyText } from "../verify-text.ts";
import { DEFAULT_MIN_SQNR, RUNTIMES_OPTION, compareModels, layersOf, runtimesOf } from "./verify.ts";

/** The table's options that have a flag, with their flags. */
const FLAGS = OPTIONS.flatMap((option) => (option.flag === undefined ? [] : [{ option, flag: option.flag }]));

/** Names of the API's options as the command line has them. */
const flagName = (name: string): string =>
  name === "symmetric" ? "--symmetric or --asymmetric" : `--${FLAGS.find(({ option }) => option.name === name)?.flag.name ?? name}`;

const flagSpecs = Object.fromEntries(
  FLAGS.flatMap(({ flag }) =>
    flag.alias === undefined ? [flag] : [flag, { ...flag, name: flag.alias, help: `the same as --${flag.name}` }],
  ).map((flag) => [
    flag.name,
    {
      help: flag.help,
      ...(flag.value === "" ? {} : { value: flag.value }),
      ...(flag.short === undefined ? {} : { short: flag.short }),
      ...(flag.multiple ? { multiple: true } : {}),
    },
  ]),
);

export const quantizeCommand: CommandSpec = {
  name: "quantize",
  summary: "Quantizes the weights of an ONNX model, or of every model of a folder, and reports every layer.",
  positionals: ["MODEL"],
  options: {
    output: { short: "o", value: "OUT", help: "file to write; for a folder the folder to write to (default: itself)" },
    dtypes: { value: "LIST", help: "several dtypes at once, of a model or a folder, e.g. q4,q8,fp16; OUT is a folder" },
    ...flagSpecs,
    symmetric: { help: "no zero points (default for block dtypes and signed weights)" },
    asymmetric: { help: "zero points (default for unsigned 8-bit weights)" },
    budget: { value: "BITS", help: "formats by layer within this many stored bits per weight, chosen on --calibrate data" },
    candidates: { value: "LIST", help: "with --budget: the formats to choose from (default: 2 to 8 bits around BITS)" },
    sort: { help: "without effect, for older scripts: graphs are always sorted" },
    config: { value: "FILE", help: "options from a file (default: lowbit.config.json or .mjs beside the model, where there is one)" },
    "print-config": { help: "print the options in force as JSON and stop" },
    verify: { value: "N", help: "afterwards run both models on N random inputs and compare" },
    "min-sqnr": { value: "DB", help: `with --verify: exit 3 below this (default ${DEFAULT_MIN_SQNR})` },
    seed: { value: "N", help: "with --verify: seed of the random inputs (default 1)" },
    runtimes: { ...RUNTIMES_OPTION, help: `with --verify: ${RUNTIMES_OPTION.help}` },
  },
  notes: `Layer names are those of \`lowbit inspect MODEL\`. SQNR is 10 log10(sum w^2 / sum (w - w')^2) of a layer's weight.
  lowbit quantize model.onnx -o model_q4.onnx --dtype q4
  lowbit quantize model.onnx -o model_quantized.onnx --dtype q8 --op-types MatMul --verify 4
  lowbit quantize model.onnx -o model_mxfp4.onnx --format mxfp4
  lowbit quantize onnx/ --dtypes q4,q4f16,q8,fp16`,
  run: runQuantize,
};

const listOf = (text: string): string[] =>
  text
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "");

/**
 * The value of a flag as its option has it: numbers, lists, switches and texts tell themselves apart by what the table
 * accepts.
 */
function valueOf(args: ParsedArgs, { option, flag }: (typeof FLAGS)[number]): unknown {
  if (flag.value === "") return !flag.name.startsWith("no-");
  if (flag.multiple) return args.all(flag.name);
  const text = args.text(flag.name)!;
  if (flag.value === "LIST") return listOf(text);
  if (flag.value === "MAP")
    return Object.fromEntries(listOf(text).map((pair) => [pair.slice(0, pair.lastIndexOf("=")), pair.slice(pair.lastIndexOf("=") + 1)]));
  const number = Number(text);
  if (text.trim() !== "" && option.accepts(number)) return number;
  return option.accepts(text) || !option.accepts(text.toLowerCase()) ? text : text.toLowerCase();
}

/** The options of the flags that were given. */
function givenOptions(args: ParsedArgs): Record<string, unknown> {
  if (args.flag("symmetric") && args.flag("asymmetric")) throw usageError("--symmetric and --asymmetric: expected one of them, got both.");
  const options: Record<string, unknown> = {};
  const spellings = FLAGS.flatMap(({ option, flag }) =>
    [flag.name, flag.alias ?? []].flat().map((name) => ({ option, flag: { ...flag, name } })),
  );
  for (const entry of spellings) {
    if (!args.flag(entry.flag.name)) continue;
    const value = valueOf(args, entry);
    if (Array.isArray(value) && value.length === 0) throw usageError(`--${entry.flag.name}: expected ${entry.option.expected}, got none.`);
    options[entry.option.name] = value;
  }
  if (args.flag("symmetric") || args.flag("asymmetric")) options.symmetric = args.flag("symmetric");
  const bits = numberOption(args, "budget", "a number of bits per weight above 0", (n) => n > 0);
  const candidates = args.text("candidates");
  if (bits === undefined && candidates !== undefined) throw usageError("--candidates: expected together with --budget BITS, got it alone.");
  if (bits !== undefined) options.budget = { bitsPerWeight: bits, ...(candidates === undefined ? {} : { candidates: listOf(candidates) }) };
  return options;
}

/** Checks options; what is wrong with them is said by the names of the flags. */
function checked<T extends QuantizeModelOptions>(options: T): T {
  try {
    checkOptions(options);
    return options;
  } catch (error) {
    if (isLowbitError(error) || !(error instanceof Error)) throw error;
    const near =
      error.message.startsWith("dtype:") && options.dtype ? ` Did you mean ${nearest(String(options.dtype), ONNX_DTYPES)[0]}?` : "";
    throw usageError(`${error.message.replace(/^\w+(?=:)/, flagName)}.${near} See lowbit quantize --help.`);
  }
}

async function runQuantize(args: ParsedArgs, context: Parameters<CommandSpec["run"]>[1]): Promise<number> {
  const [input] = args.positionals;
  const output = args.text("output");
  const asked = { ...(await configFile(args.text("config"), input)), ...givenOptions(args) } as Record<string, unknown>;
  if (args.flag("dtypes") || isFolder(input)) return runFolder(args, context, input, output, asked);
  const chooses = ["dtype", "format", "activations", "budget"].some((name) => asked[name] !== undefined);
  if (!chooses)
    throw usageError(`--dtype: expected one of ${ONNX_DTYPES.join(", ")}, got none. Say what to make, e.g. --dtype q4, or --format NAME.`);
  const options = checked(asked as QuantizeModelOptions);
  if (args.flag("print-config")) {
    context.print(json(recipeOf(options)));
    return EXIT.ok;
  }
  if (output === undefined)
    throw usageError(
      `-o: expected the file to write, got none. For example -o ${options.dtype === undefined ? input.replace(/(\.onnx)?$/i, `_${options.format === undefined ? "quantized" : String(options.format)}.onnx`) : dtypeFileName(input, dtypeRow(options.dtype)!)}`,
    );
  const samples = numberOption(args, "verify", "a number of inputs from 1", (n) => Number.isInteger(n) && n >= 1);
  const minSqnrDb = numberOption(args, "min-sqnr", "a number of decibels", () => true);
  const seed = numberOption(args, "seed", "a whole number from 0", (n) => Number.isInteger(n) && n >= 0 && n < 2 ** 32);
  const lone = ["min-sqnr", "seed", "runtimes"].find((name) => args.flag(name));
  if (samples === undefined && lone !== undefined) throw usageError(`--${lone}: expected together with --verify N, got it alone.`);

  // Missing, it is better missed before the work.
  const { report: page, ...rest } = options;
  if (page !== undefined) checkPage(page, input, output, options.force);
  const runtimes = samples === undefined ? undefined : runtimesOf(args);

  const progress = progressLine();
  let report: QuantizeReport | undefined;
  let verified: VerifyReport | undefined;
  let layers: LayerComparison[] | null = null;
  try {
    report = await quantizeModel(input, output, { ...rest, signal: context.signal, onProgress: (p) => progress.update(p) });
    if (samples !== undefined) {
      progress.note("verifying");
      const onCell = ({ model, runtime }: { model: string; runtime: string }): void => progress.note(`${model} in ${runtime}`);
      verified = await compareModels(input, output, { samples, seed, minSqnrDb, runtimes, onCell }, context.signal);
      if (!verified.ok) {
        progress.note("comparing layers");
        layers = await layersOf(input, output, { seed }, context.signal);
      }
    }
    if (page !== undefined) await writeReport(page, { input, report, recipe: recipeOf(options), verify: verified }, options.force);
  } catch (error) {
    progress.clear();
    // The file was written, only its verification failed: its report is still wanted.
    if (report !== undefined && !args.json) context.print(quantizeText(input, report));
    throw error;
  } finally {
    progress.clear();
  }
  const exit = verified?.ok === false ? EXIT.verification : EXIT.ok;
  const verify = verified === undefined ? {} : { verify: { ...verified, ...(verified.ok ? {} : { layers }) } };
  if (args.json) context.print(json({ command: "quantize", input, ...report, ...verify }));
  else {
    const written = page === undefined ? "" : `report: ${page}\n`;
    const check = verified === undefined ? "" : `\n${verifyText(verified)}`;
    const help = verified === undefined || verified.ok ? "" : advice(report, verified, layers, options.perChannel ?? false);
    context.print(`${quantizeText(input, report, verified !== undefined)}${written}${check}${help}`);
  }
  return exit;
}

function checkPage(page: string, input: string, output: string, force: boolean | undefined): void {
  const model = readModel(input);
  try {
    checkReport(page, model, output, force);
  } finally {
    model.close();
  }
}

const isFolder = (path: string): boolean => statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;

async function runFolder(
  args: ParsedArgs,
  context: Parameters<CommandSpec["run"]>[1],
  input: string,
  output: string | undefined,
  asked: Record<string, unknown>,
): Promise<number> {
  const given = args.text("dtypes") === undefined ? (asked.dtype === undefined ? [] : [String(asked.dtype)]) : listOf(args.text("dtypes")!);
  if (given.length === 0)
    throw usageError(`--dtypes: expected a list of ${ONNX_DTYPES.join(", ")}, got none. For example --dtypes q4,q8,fp16.`);
  if (asked.format !== undefined)
    throw usageError("--format: expected with one model, got a folder or --dtypes. Give dtypes, or one model.");
  if (asked.report !== undefined)
    throw usageError("--report: expected with one model, got a folder or --dtypes. Leave it out, or give one model.");
  const { dtype: _, ...rest } = asked;
  for (const dtype of given) checked({ dtype } as QuantizeModelOptions);
  const progress = progressLine();
  let entries: FolderReport;
  try {
    entries = await quantizeFolder(input, {
      ...(rest as QuantizeModelOptions),
      dtypes: given as OnnxDtype[],
      ...(output === undefined ? {} : { output }),
      signal: context.signal,
      onProgress: (p) => progress.update(p),
      onFile: (file) => progress.note(`${file.index + 1} of ${file.count}: ${file.output}`),
    });
  } finally {
    progress.clear();
  }
  if (args.json) context.print(json({ command: "quantize", input, ...entries }));
  else context.print(folderText(entries));
  return EXIT.ok;
}

function folderText({ files, config }: FolderReport): string {
  const columns = [
    { title: "model" },
    { title: "dtype" },
    { title: "layers", right: true },
    { title: "bytes", right: true },
    { title: "" },
    { title: "" },
  ];
  const rows = files.map(({ input, dtype, report, reason }) =>
    report === null
      ? [input, dtype, "", "", "", `no file: ${reason ?? ""}`]
      : [
          input,
          dtype,
          `${report.quantized} of ${report.layers.length}`,
          count(report.fileBytesAfter),
          percent(report.fileBytesAfter, report.fileBytesBefore),
          reason === undefined ? report.outputs.join(", ") : `${report.outputs.join(", ")}, unchanged: ${reason}`,
        ],
  );
  return `${[table(columns, rows), ...(config === null ? [] : ["", `${config} written`])].join("\n")}\n`;
}

function layerRow(layer: LayerReport): string[] {
  const done = layer.format !== null;
  return [
    layer.name,
    layer.opType,
    shape(layer.shape),
    layer.format ?? "-",
    count(layer.bytesBefore),
    done ? (layer.sharedWith === undefined ? count(layer.bytesAfter) : "shared") : "",
    decibels(layer.sqnrDb),
    done
      ? layer.sharedWith === undefined
        ? ""
        : `weight shared with ${layer.sharedWith}`
      : `left alone: ${layer.reason ?? "no reason given"}`,
  ];
}

/** @param verified the traps are listed by the verification that follows */
function quantizeText(input: string, report: QuantizeReport, verified = false): string {
  const columns = [
    { title: "layer" },
    { title: "operator" },
    { title: "shape" },
    { title: "format" },
    { title: "before", right: true },
    { title: "after", right: true },
    { title: "SQNR dB", right: true },
    { title: "" },
  ];
  const lines = [table(columns, report.layers.map(layerRow)), ""];
  lines.push(`${report.quantized} of ${report.layers.length} layers quantized (${report.dtype}), ${report.leftAlone} left alone.`);
  lines.push(
    `weights ${count(report.weightBytesBefore)} -> ${count(report.weightBytesAfter)} bytes${ratio(report.weightBytesAfter, report.weightBytesBefore)}`,
    `file    ${count(report.fileBytesBefore)} -> ${count(report.fileBytesAfter)} bytes${ratio(report.fileBytesAfter, report.fileBytesBefore)}`,
  );
  for (const note of report.notes) lines.push(`note: ${note}`);
  if (!verified) for (const trap of report.traps) lines.push(trapText(trap));
  lines.push(`${input} -> ${report.outputs.join(", ")} (${size(report.fileBytesAfter)}) in ${report.seconds.toFixed(2)} s`, "");
  return lines.join("\n");
}

const ratio = (after: number, before: number): string => (before === 0 ? "" : ` (${percent(after, before)})`);

/**
 * What to try after a failed verification: where the models part (else the weights that lost most), and other settings.
 */
function advice(report: QuantizeReport, verified: VerifyReport, layers: readonly LayerComparison[] | null, perChannel: boolean): string {
  const parting = partingText(layers, verified.minSqnrDb);
  const worst = report.layers
    .filter((layer) => layer.sqnrDb !== null && layer.sharedWith === undefined)
    .sort((a, b) => a.sqnrDb! - b.sqnrDb!)
    .slice(0, 5);
  const types = [...new Set(report.layers.filter((layer) => layer.format !== null).map((layer) => layer.opType))];
  // Where the models part first the harm is done; without figures of layers, where the weights lost most.
  const harmful = (layers ?? []).find((layer) => layer.sqnrDb < verified.minSqnrDb && types.includes(layer.opType)) ?? worst.at(0);
  const others = types.filter((type) => type !== harmful?.opType);
  const eightBits = /8$/.test(report.dtype);
  const tries = [
    ...(others.length > 0 ? [`--op-types ${others.join(",")}`] : []),
    ...(eightBits && !perChannel ? ["--per-channel"] : []),
    ...(eightBits ? ["--static uint8 with --calibrate DATA", "a weight-only dtype (q4)"] : []),
    `--target-sqnr ${Math.max(20, Math.ceil(verified.minSqnrDb))}`,
    "--exclude NAME",
  ];
  return [
    ...(parting === ""
      ? ["Layers whose weights lost most:", ...worst.map((layer) => `  ${layer.name} (${layer.opType}, ${decibels(layer.sqnrDb)} dB)`)]
      : [parting.trimEnd()]),
    `Quantized operators: ${types.join(", ")}. Try ${tries.join(", or ")}. ${report.outputs[report.outputs.length - 1]} was written and stays.`,
    "",
  ].join("\n");
}

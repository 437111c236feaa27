// lowbit quantize: one model file to another, with a report of every layer; --verify runs both and compares their outputs.
import { isLowbitError } from "../../../formats/core/errors.ts";
import { nearest } from "../../../formats/registry.ts";
import { ONNX_DTYPES, checkOptions } from "../../onnx/options.ts";
import type { LayerReport, OnnxDtype, QuantizeModelOptions, QuantizeReport } from "../../onnx/options.ts";
import { quantizeModel } from "../../onnx/quantize.ts";
import type { LayerComparison } from "../../onnx/verify/layers.ts";
import type { VerifyReport } from "../../onnx/verify/verify.ts";
import { checkRuntime } from "../../onnx/verify/verify.ts";
import { progressLine } from "../progress.ts";
import { count, decibels, json, percent, shape, size, table } from "../report.ts";
import type { CommandSpec, ParsedArgs } from "../spec.ts";
import { EXIT, numberOption, usageError } from "../spec.ts";
import { DEFAULT_MIN_SQNR, compareModels, layersOf, partingText, verifyText } from "./verify.ts";

/** Names of the API's options as the command line has them. */
const OPTION_NAMES: Readonly<Record<string, string>> = {
  dtype: "--dtype",
  blockSize: "--block-size",
  symmetric: "--symmetric or --asymmetric",
  accuracyLevel: "--accuracy-level",
  perChannel: "--per-channel",
};

export const quantizeCommand: CommandSpec = {
  name: "quantize",
  summary: "Quantizes the weights of an ONNX model and reports every layer.",
  positionals: ["MODEL"],
  options: {
    output: { short: "o", value: "OUT", help: "file to write (required)" },
    dtype: { short: "d", value: "DTYPE", help: `${ONNX_DTYPES.join(", ")} (required)` },
    "block-size": { value: "N", help: "q4: values that share a scale: 16, 32 (default), 64, 128, 256" },
    symmetric: { help: "no zero points (default for q4 and signed weights)" },
    asymmetric: { help: "zero points (default for unsigned 8-bit weights)" },
    "accuracy-level": { value: "N", help: "q4: 4 lets the CPU use int8 activations (faster); default: not written" },
    "per-channel": { help: "8-bit: one scale per output channel" },
    "op-types": { value: "LIST", help: "only these operators, e.g. MatMul,Conv" },
    include: { value: "PATTERN", multiple: true, help: "only layers of this name (glob, or /regex/); may be repeated" },
    exclude: { value: "PATTERN", multiple: true, help: "not the layers of this name; may be repeated" },
    sort: { help: "accept a graph whose nodes are not in order, and sort it" },
    "external-data": { help: "put weights into OUT_data (default: from 1.5 GB)" },
    verify: { value: "N", help: "afterwards run both models on N random inputs and compare" },
    "min-sqnr": { value: "DB", help: `with --verify: exit 3 below this (default ${DEFAULT_MIN_SQNR})` },
    seed: { value: "N", help: "with --verify: seed of the random inputs (default 1)" },
    force: { short: "f", help: "overwrite OUT if it exists" },
  },
  notes: `Layer names are those of \`lowbit inspect MODEL\`. SQNR is 10 log10(sum w^2 / sum (w - w')^2) of a layer's weight.
  lowbit quantize model.onnx -o model_q4.onnx --dtype q4
  lowbit quantize model.onnx -o model_quantized.onnx --dtype q8 --op-types MatMul --verify 4`,
  run: runQuantize,
};

function dtypeOf(args: ParsedArgs): OnnxDtype {
  const text = args.text("dtype");
  const known = ONNX_DTYPES.join(", ");
  if (text === undefined) throw usageError(`--dtype: expected one of ${known}, got none. Say what to make, e.g. --dtype q4.`);
  const found = ONNX_DTYPES.find((dtype) => dtype === text.toLowerCase());
  if (found === undefined)
    throw usageError(`--dtype: expected one of ${known}, got ${text}. Did you mean ${nearest(text.toLowerCase(), ONNX_DTYPES)[0]}?`);
  return found;
}

function optionsOf(args: ParsedArgs): QuantizeModelOptions {
  const dtype = dtypeOf(args);
  if (args.flag("symmetric") && args.flag("asymmetric")) throw usageError("--symmetric and --asymmetric: expected one of them, got both.");
  const integer = (name: string): number | undefined => numberOption(args, name, "a whole number", (n) => Number.isInteger(n) && n >= 0);
  const blockSize = integer("block-size");
  const accuracyLevel = integer("accuracy-level");
  const opTypes = args
    .text("op-types")
    ?.split(",")
    .map((type) => type.trim())
    .filter((type) => type !== "");
  if (opTypes?.length === 0) throw usageError("--op-types: expected operators such as MatMul,Conv, got none.");
  const options: QuantizeModelOptions = {
    dtype,
    ...(blockSize === undefined ? {} : { blockSize }),
    ...(accuracyLevel === undefined ? {} : { accuracyLevel }),
    ...(args.flag("symmetric") || args.flag("asymmetric") ? { symmetric: args.flag("symmetric") } : {}),
    ...(args.flag("per-channel") ? { perChannel: true } : {}),
    ...(opTypes === undefined ? {} : { opTypes }),
    ...(args.flag("include") ? { include: args.all("include") } : {}),
    ...(args.flag("exclude") ? { exclude: args.all("exclude") } : {}),
    ...(args.flag("sort") ? { sort: true } : {}),
    ...(args.flag("external-data") ? { externalData: true } : {}),
    force: args.flag("force"),
  };
  try {
    checkOptions(options);
  } catch (error) {
    if (isLowbitError(error) || !(error instanceof Error)) throw error;
    throw usageError(`${error.message.replace(/^\w+/, (name) => OPTION_NAMES[name] ?? name)}. See lowbit quantize --help.`);
  }
  return options;
}

async function runQuantize(args: ParsedArgs, context: Parameters<CommandSpec["run"]>[1]): Promise<number> {
  const [input] = args.positionals;
  const output = args.text("output");
  const options = optionsOf(args);
  if (output === undefined)
    throw usageError(`-o: expected the file to write, got none. For example -o ${input.replace(/(\.onnx)?$/i, `_${options.dtype}.onnx`)}`);
  const samples = numberOption(args, "verify", "a number of inputs from 1", (n) => Number.isInteger(n) && n >= 1);
  const minSqnrDb = numberOption(args, "min-sqnr", "a number of decibels", () => true);
  const seed = numberOption(args, "seed", "a whole number from 0", (n) => Number.isInteger(n) && n >= 0 && n < 2 ** 32);
  if (samples === undefined && (minSqnrDb ?? seed) !== undefined)
    throw usageError(`--${minSqnrDb === undefined ? "seed" : "min-sqnr"}: expected together with --verify N, got it alone.`);

  // Missing, it is better missed before the work.
  if (samples !== undefined) await checkRuntime();

  const progress = progressLine();
  let report: QuantizeReport | undefined;
  let verified: VerifyReport | undefined;
  let layers: LayerComparison[] | null = null;
  try {
    report = await quantizeModel(input, output, { ...options, signal: context.signal, onProgress: (p) => progress.update(p) });
    if (samples !== undefined) {
      progress.note("verifying");
      verified = await compareModels(input, output, { samples, seed, minSqnrDb }, context.signal);
      if (!verified.ok) {
        progress.note("comparing layers");
        layers = await layersOf(input, output, { seed }, context.signal);
      }
    }
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
    const check = verified === undefined ? "" : `\n${verifyText(verified)}`;
    const help = verified === undefined || verified.ok ? "" : advice(report, verified, layers, options.perChannel ?? false);
    context.print(`${quantizeText(input, report)}${check}${help}`);
  }
  if (report.quantized === 0)
    process.stderr.write(`lowbit: warning: no layer was quantized; the reasons are in the report. ${output} holds the same weights.\n`);
  return exit;
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

function quantizeText(input: string, report: QuantizeReport): string {
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
  lines.push(`${input} -> ${report.outputs.join(", ")} (${size(report.fileBytesAfter)}) in ${report.seconds.toFixed(2)} s`, "");
  return lines.join("\n");
}

const ratio = (after: number, before: number): string => (before === 0 ? "" : ` (${percent(after, before)})`);

/** What to try after a failed verification: where the models part (else the weights that lost most), and other settings. */
function advice(report: QuantizeReport, verified: VerifyReport, layers: readonly LayerComparison[] | null, perChannel: boolean): string {
  const parting = partingText(layers, verified.minSqnrDb);
  const worst = report.layers
    .filter((layer) => layer.sqnrDb !== null && layer.sharedWith === undefined)
    .sort((a, b) => a.sqnrDb! - b.sqnrDb!)
    .slice(0, 5);
  const types = [...new Set(report.layers.filter((layer) => layer.format !== null).map((layer) => layer.opType))];
  const tries = [
    ...(types.length > 1 ? [`--op-types ${types.includes("MatMul") ? "MatMul" : types[0]}`] : []),
    ...(report.dtype !== "q4" && report.dtype !== "fp16" && !perChannel ? ["--per-channel"] : []),
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

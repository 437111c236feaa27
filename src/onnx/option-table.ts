// One table of the options of the ONNX quantizer, from which checks, the recipe file and the command line's flags are
// derived: a new option is a field of `QuantizeOptions` (options.ts) and a row here.
import { nearest } from "../../formats/registry.ts";
import { resolveAlgorithm } from "./algorithms.ts";
import { DTYPES, ONNX_DTYPES, REFUSED_DTYPES, TARGET_NAMES, dtypeRow, type Dtype, type TargetName } from "./dtypes.ts";
import { parseShard } from "./journal/shard.ts";
import type { QuantizeModelOptions } from "./options.ts";
import { checkPasses } from "./passes/index.ts";
import { patternRegExp, type NamePattern } from "./patterns.ts";
import { NBITS_BLOCKS } from "./targets/nbits.ts";

export type OptionName = keyof QuantizeModelOptions;

export interface OptionRow {
  readonly name: OptionName;
  /** What a value must be, in words; the check itself. */
  readonly expected: string;
  readonly accepts: (value: unknown) => boolean;
  /** Can it stand in a recipe file? Functions and signals cannot. */
  readonly json: boolean;
  /** The dtypes that have it, if not all. */
  readonly dtypes?: (dtype: Dtype) => boolean;
  /** The flag of the command line: its name, the name of its value ("" for a switch), its help. */
  readonly flag?: {
    readonly name: string;
    readonly value: string;
    readonly help: string;
    readonly multiple?: boolean;
    readonly short?: string;
    /** Another name for it. */
    readonly alias?: string;
  };
}

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null && !Array.isArray(value);
const isText = (value: unknown): boolean => typeof value === "string" && value !== "";
const isList = (value: unknown, item: (v: unknown) => boolean): boolean => Array.isArray(value) && value.length > 0 && value.every(item);
const isPattern = (value: unknown): boolean => isText(value) || value instanceof RegExp;
const isFormat = (value: unknown): boolean => isText(value) || (isObject(value) && typeof value.kind === "string");
const isClamp = (value: unknown): boolean =>
  Array.isArray(value) && value.length === 2 && value[0] >= 0 && value[0] < value[1] && value[1] <= 65504;
const isAlgorithm = (value: unknown): boolean => isText(value) || typeof value === "function" || (isObject(value) && isText(value.name));

const isActivation = (value: unknown): boolean => ["int8", "uint8", "int16", "uint16"].includes(value as string);
const OBSERVERS = ["minMax", "movingAverage", "percentile", "entropy", "mse"];
const isObserver = (value: unknown): boolean => OBSERVERS.includes((isObject(value) ? value.method : value) as string);

const isBudget = (v: unknown): boolean =>
  isObject(v) &&
  Object.keys(v).every((key) => key === "bitsPerWeight" || key === "candidates") &&
  typeof v.bitsPerWeight === "number" &&
  v.bitsPerWeight > 0 &&
  (v.candidates === undefined || isList(v.candidates, isText));
const CALIBRATE_FIELDS = ["maxBatches", "maxTokens", "every", "holdOut", "memory", "threads"];
const RULE_FIELDS = ["match", "keep", "reason", "dtype", "format", "target", "algorithm"];

const isRule = (rule: unknown): boolean =>
  isObject(rule) &&
  Object.keys(rule).every((key) => RULE_FIELDS.includes(key)) &&
  isPattern(rule.match) &&
  (rule.keep === undefined || typeof rule.keep === "boolean") &&
  (rule.reason === undefined || typeof rule.reason === "string") &&
  (rule.dtype === undefined || dtypeRow(String(rule.dtype)) !== undefined) &&
  (rule.format === undefined || isFormat(rule.format)) &&
  (rule.target === undefined || TARGET_NAMES.includes(rule.target as TargetName)) &&
  (rule.algorithm === undefined || isAlgorithm(rule.algorithm)) &&
  Object.keys(rule).length > 1;

const text = (name: OptionName, expected: string, accepts: (value: unknown) => boolean, rest: Partial<OptionRow> = {}): OptionRow => ({
  name,
  expected,
  accepts,
  json: true,
  ...rest,
});
const flag = (name: OptionName, help: string, rest: Partial<OptionRow> = {}, shown?: string): OptionRow =>
  text(name, "true or false", (value) => typeof value === "boolean", {
    flag: { name: shown ?? name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`), value: "", help },
    ...rest,
  });
const has = (option: Dtype["options"][number]) => ({ dtypes: (dtype: Dtype) => dtype.options.includes(option) });

export const OPTIONS: readonly OptionRow[] = [
  text("dtype", `one of ${ONNX_DTYPES.join(", ")}`, (v) => dtypeRow(String(v)) !== undefined, {
    flag: { name: "dtype", short: "d", value: "DTYPE", help: ONNX_DTYPES.join(", ") },
  }),
  text("format", "a format's name, descriptor or definition", isFormat, {
    flag: { name: "format", value: "NAME", help: "any format of the library for the weights (lowbit formats), instead of a dtype" },
  }),
  text("target", `one of ${TARGET_NAMES.join(", ")}`, (v) => TARGET_NAMES.includes(v as TargetName), {
    flag: {
      name: "target",
      value: "TARGET",
      help: `with --format: ${TARGET_NAMES.join(", ")} (default: the fastest that takes the format)`,
    },
  }),
  text("algorithm", "a quantizer's name, { name, ...options }, or a function of the layer", isAlgorithm, {
    flag: {
      name: "algorithm",
      value: "NAME",
      help: "what rounds the weights: rtn (default), mse, hqq, awq, gptq, mrgptq, adaround, refit",
    },
  }),
  flag("sequential", "calibrate each layer on the model quantized so far"),
  text(
    "calibration",
    "a path, { text, tokenizer }, or feeds",
    (v) => isText(v) || isObject(v) || Array.isArray(v) || typeof v === "function",
    {
      flag: {
        name: "calibrate",
        value: "DATA",
        help: "inputs to calibrate on: .npz, .npy, .safetensors, .jsonl, a folder of them, or a module (.mjs)",
      },
    },
  ),
  text("statistics", "the path of a file of lowbit calibrate", isText, {
    flag: { name: "statistics", value: "FILE", help: "what lowbit calibrate wrote, instead of --calibrate: the model is not run" },
  }),
  text(
    "calibrate",
    `an object of ${CALIBRATE_FIELDS.join(", ")}`,
    (v) => isObject(v) && Object.entries(v).every(([key, n]) => CALIBRATE_FIELDS.includes(key) && typeof n === "number" && n >= 0),
  ),
  flag("requantize", "quantize a model that is quantized already, from its dequantized weights"),
  text(
    "passes",
    "a list of passes: names, or { name, ...options }",
    (v) => isList(v, (p) => isText(p) || (isObject(p) && isText(p.name))),
    {
      flag: {
        name: "passes",
        value: "LIST",
        help: "rewrites that keep the function, before: fold-norm, rotate, smooth, awq, gather-outliers, equalize, fold-batchnorm",
      },
    },
  ),
  text("activations", "int8, uint8, int16, uint16 or mixed", (v) => v === "mixed" || isActivation(v), {
    flag: {
      name: "static",
      alias: "activations",
      value: "TYPE",
      help: "quantize activations too, with ranges from --calibrate: uint8, int8, uint16, int16, mixed",
    },
  }),
  text("activationTypes", "an object of types by the name of a value", (v) => isObject(v) && Object.values(v).every(isActivation), {
    flag: { name: "activation-types", value: "MAP", help: "with --static: types of single values, as NAME=TYPE,NAME=TYPE" },
  }),
  flag("symmetricActivations", "with --static: zero points in the middle of the codes"),
  text("observer", "minMax, movingAverage, percentile, entropy or mse", isObserver, {
    flag: { name: "observer", value: "NAME", help: "with --static: ranges by mse (default), minMax, percentile, entropy" },
  }),
  text("outputs", "qdq or qoperator", (v) => v === "qdq" || v === "qoperator", {
    flag: { name: "outputs", value: "FORM", help: "with --static: qdq (default), or qoperator (QLinearConv, QLinearMatMul ...)" },
  }),
  flag("inputsOnly", "with --static: only what layers read; nearer to the float model, slower convolutions"),
  text("budget", "{ bitsPerWeight, candidates }", isBudget),
  text("targetSqnr", "a number of decibels", (v) => typeof v === "number" && Number.isFinite(v), {
    flag: {
      name: "target-sqnr",
      value: "DB",
      help: "leave layers out, or raise them, until outputs reach this on held-out calibration data",
    },
  }),
  text("blockSize", "a whole number from 1", (v) => Number.isInteger(v) && (v as number) > 0, {
    ...has("blockSize"),
    flag: { name: "block-size", value: "N", help: "values that share a scale: 16, 32, 64, 128, 256 (default 32; bnb4 64)" },
  }),
  text("symmetric", "true or false", (v) => typeof v === "boolean", has("symmetric")),
  text("accuracyLevel", "a whole number from 0 to 4", (v) => Number.isInteger(v) && (v as number) >= 0 && (v as number) <= 4, {
    ...has("accuracyLevel"),
    flag: {
      name: "accuracy-level",
      value: "N",
      help: "block dtypes: 4 lets the CPU use int8 activations (faster); default 4 for 2 and 8 bits",
    },
  }),
  flag("perChannel", "8-bit: one scale per output channel", has("perChannel")),
  flag("reduceRange", "8-bit: weights of 7 bits, for x86 processors without VNNI", has("reduceRange")),
  text("opTypes", "operators such as MatMul, Gather", (v) => isList(v, isText), {
    flag: { name: "op-types", value: "LIST", help: "only these operators, e.g. MatMul,Conv; Gather adds embeddings" },
  }),
  text("rules", `a list of { match, keep | dtype | format | target | algorithm }`, (v) => Array.isArray(v) && v.every(isRule)),
  text("include", "a list of patterns", (v) => isList(v, isPattern), {
    flag: { name: "include", value: "PATTERN", multiple: true, help: "only layers of this name (glob, or /regex/); may be repeated" },
  }),
  text("exclude", "a list of patterns", (v) => isList(v, isPattern), {
    flag: { name: "exclude", value: "PATTERN", multiple: true, help: "not the layers of this name; may be repeated" },
  }),
  text("keep", "a list of patterns", (v) => isList(v, isPattern), {
    flag: { name: "keep", value: "PATTERN", multiple: true, help: "nodes of this name stay in float32; may be repeated" },
  }),
  text("keepOps", "a list of operators", (v) => isList(v, isText), {
    flag: { name: "keep-ops", alias: "block-ops", value: "LIST", help: "these operators stay in float32" },
  }),
  text("blockedOps", "a list of operators", (v) => Array.isArray(v) && v.every(isText), { dtypes: (dtype) => dtype.half }),
  text("clamp", "[low, high] with 0 <= low < high <= 65504", isClamp, { dtypes: (dtype) => dtype.half }),
  text("keepIoTypes", "true or false", (v) => typeof v === "boolean", { dtypes: (dtype) => dtype.half }),
  flag("allowUnchanged", "succeed even where no layer was quantized"),
  flag("externalData", "put weights into OUT_data (default: from 1.5 GB)"),
  text("dataFileBytes", "a whole number of bytes from 1", (v) => Number.isSafeInteger(v) && (v as number) > 0, {
    flag: { name: "data-file-bytes", value: "N", help: "bytes of one data file: OUT_data, OUT_data_1, ... (default: one file)" },
  }),
  text("followLinks", "true or false", (v) => typeof v === "boolean", {
    flag: { name: "no-follow-links", value: "", help: "refuse an OUT that is a link, instead of writing the file that it leads to" },
  }),
  text("report", "the path of an HTML file", isText, {
    json: false,
    flag: { name: "report", value: "FILE", help: "write an HTML page: layers, weights against code points, outputs compared, the recipe" },
  }),
  flag("resume", "keep a journal beside OUT, and go on from it where a run was killed or failed", { json: false }),
  text("shard", "I/N with 1 <= I <= N, such as 3/8", (v) => typeof v === "string" && /^[1-9]\d*\/[1-9]\d*$/.test(v), {
    json: false,
    flag: { name: "shard", value: "I/N", help: "make this share of the weights only, as OUT.I-of-N.shard, for lowbit merge" },
  }),
  { ...flag("force", "overwrite OUT if it exists"), flag: { name: "force", short: "f", value: "", help: "overwrite OUT if it exists" } },
  text("signal", "an AbortSignal", (v) => isObject(v) && typeof v.aborted === "boolean", { json: false }),
  text("onProgress", "a function", (v) => typeof v === "function", { json: false }),
];

const ROWS: ReadonlyMap<string, OptionRow> = new Map(OPTIONS.map((option) => [option.name, option]));

/** Got, in a few words. */
const shown = (value: unknown): string => {
  const plain = typeof value === "function" ? "a function" : value instanceof RegExp ? String(value) : JSON.stringify(value);
  return (plain ?? String(value)).slice(0, 80);
};

/**
 * Checks options by the table.
 * @throws TypeError for an unknown option or a value of the wrong kind, RangeError for one out of range
 */
export function checkOptions(options: QuantizeModelOptions): void {
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined) continue;
    const option = ROWS.get(name);
    if (option === undefined)
      throw new TypeError(
        `${name}: expected an option of quantizeModel, got an unknown one. Did you mean ${nearest(name, [...ROWS.keys()])[0]}?`,
      );
    if (option.accepts(value)) continue;
    const refused = name === "dtype" ? REFUSED_DTYPES.get(String(value)) : undefined;
    if (refused !== undefined) throw new RangeError(`dtype: expected one of ${ONNX_DTYPES.join(", ")}, got ${shown(value)}: ${refused}`);
    const message = `${name}: expected ${option.expected}, got ${shown(value)}`;
    throw typeof value === "string" || typeof value === "number" ? new RangeError(message) : new TypeError(message);
  }
  const chooses = options.activations !== undefined || options.budget !== undefined;
  const halves = options.dtype === "fp16" && options.budget === undefined;
  if (options.dtype !== undefined && chooses && !halves)
    throw new TypeError(`dtype: expected none beside ${options.budget === undefined ? "activations" : "budget"}, got ${options.dtype}`);
  if (options.dtype !== undefined && options.format !== undefined)
    throw new TypeError('dtype, format: expected one of them, got both. Say what to make, e.g. dtype "q4".');
  if (options.dtype === undefined && options.format === undefined && !chooses)
    throw new TypeError(`dtype, format: expected one of them, got none. Say what to make, e.g. dtype "q4".`);
  const dtype = options.dtype === undefined ? undefined : dtypeRow(options.dtype)!;
  for (const option of OPTIONS) {
    if (option.dtypes === undefined || options[option.name] === undefined) continue;
    if (dtype === undefined) {
      if (option.name === "accuracyLevel") continue;
      const { format } = options;
      const given = format === undefined ? "none" : `format ${typeof format === "object" ? format.name : format}`;
      throw new TypeError(
        `${option.name}: expected only with a dtype, got ${given}. ${format === undefined ? "Leave it out" : "The format says it"}.`,
      );
    }
    if (!option.dtypes(dtype)) {
      const having = DTYPES.filter(option.dtypes).map(({ name }) => name);
      throw new TypeError(`${option.name}: expected only with ${having.join(", ")}, got dtype ${dtype.name}`);
    }
  }
  if (options.statistics !== undefined) checkStatistics(options);
  if (options.shard !== undefined) checkShard(options, dtype);
  if (options.target !== undefined && dtype !== undefined)
    throw new TypeError(`target: expected only with a format, got dtype ${dtype.name}, which says it`);
  for (const choice of [options.algorithm, ...(options.rules ?? []).map((rule) => rule.algorithm)])
    if (choice !== undefined) resolveAlgorithm(choice);
  for (const name of ["include", "exclude", "keep"] as const) for (const pattern of options[name] ?? []) checkPattern(name, pattern);
  for (const { match } of options.rules ?? []) checkPattern("rules", match);
  if (options.passes !== undefined) checkPasses(options.passes);
  if (options.blockSize !== undefined) checkBlockSize(options.blockSize, dtype!);
}

/** Statistics are those of the model as it is, one-shot. */
function checkStatistics({ calibration, passes, requantize }: QuantizeModelOptions): void {
  if (calibration !== undefined) throw new TypeError("statistics, calibration: expected one of them, got both. Leave one out.");
  const change = passes !== undefined ? "passes" : requantize ? "requantize" : undefined;
  if (change !== undefined)
    throw new TypeError(
      `statistics: expected none beside ${change}, which change what layers read, got both. Give the data with calibration (--calibrate).`,
    );
}

/** Shards are made of weights that do not depend on each other. */
function checkShard({ shard, budget, targetSqnr, sequential, report }: QuantizeModelOptions, dtype: Dtype | undefined): void {
  parseShard(shard!);
  const whole = Object.entries({ budget, targetSqnr, sequential, report }).find(([, value]) => value !== undefined && value !== false)?.[0];
  if (whole !== undefined)
    throw new TypeError(
      `shard: expected no ${whole} beside it, which looks at the whole model, got shard ${shard}. ${
        whole === "report" || whole === "sequential"
          ? "Leave it out"
          : "Make the rules first, in one run (its report has them), and spread with them"
      }.`,
    );
  if (dtype !== undefined && dtype.target === null)
    throw new TypeError(`shard: expected a dtype whose weights are quantized, got ${dtype.name}, which one run copies as fast as many.`);
}

function checkPattern(option: string, pattern: NamePattern): void {
  try {
    patternRegExp(pattern);
  } catch (error) {
    throw new RangeError(`${option}: ${(error as Error).message}`, { cause: error });
  }
}

function checkBlockSize(size: number, dtype: Dtype): void {
  const allowed = dtype.target === "bnb4" ? size >= 16 && (size & (size - 1)) === 0 : NBITS_BLOCKS.includes(size);
  if (allowed) return;
  const expected =
    dtype.target === "bnb4"
      ? "a power of two from 16 (what MatMulBnb4 takes)"
      : `one of ${NBITS_BLOCKS.join(", ")} (what MatMulNBits takes)`;
  throw new RangeError(`blockSize: expected ${expected}, got ${size}`);
}

// quantizeFolder: every model of a folder, or one model, in every dtype asked for, named and described as
// transformers.js looks for them. Node only.
// Source: transformers.js src/utils/model-loader.js (file names, `use_external_data_format`), specs of its
// `transformers.js_config`.
import { LowbitError } from "../../formats/core/errors.ts";
import { readFile } from "../files/open.ts";
import { makeFolder } from "../files/outputs.ts";
import { nodeFs, nodePath } from "./calibrate/node.ts";
import { DTYPES, dtypeFileName, dtypeRow, type Dtype } from "./dtypes.ts";
import { writeFiles } from "./file/files.ts";
import type { OnnxDtype, QuantizeModelOptions, QuantizeReport } from "./options.ts";
import { noneOf, quantizeFile } from "./quantize.ts";
import { readModel } from "./file/io.ts";
import type { OnnxModel } from "./file/model.ts";
import { buildScopes } from "./graph/graph.ts";
import { findLayers } from "./layers.ts";
import { TARGETS } from "./targets/index.ts";

/** Dtypes to make of every model of a folder, and where they go. */
export interface QuantizeFolderOptions extends Omit<QuantizeModelOptions, "dtype" | "format" | "target" | "report"> {
  readonly dtypes: readonly OnnxDtype[];
  /** Where the files go; default the folder itself. */
  readonly output?: string;
  /** Called before each file. */
  readonly onFile?: (file: { readonly input: string; readonly output: string; readonly index: number; readonly count: number }) => void;
}

/** One file of a folder, by dtype. */
export interface FolderEntry {
  readonly input: string;
  readonly dtype: OnnxDtype;
  /** null where no file was written. */
  readonly report: QuantizeReport | null;
  /** Why there is no file, or why the file is the model as it was. */
  readonly reason?: string;
}

/** What `quantizeFolder` wrote. */
export interface FolderReport {
  readonly files: readonly FolderEntry[];
  /** config.json, where it was written. */
  readonly config: string | null;
}

/** The float models of a folder: names that end in no dtype's suffix. */
export function folderModels(folder: string): string[] {
  let names: string[];
  try {
    names = nodeFs().readdirSync(folder);
  } catch (cause) {
    throw new LowbitError("E_IO", `${folder}: expected a folder of ONNX models, got ${(cause as Error).message}. Check the path.`, {
      cause,
    });
  }
  const models = names.filter((name) => /\.onnx$/i.test(name)).sort();
  const plain = models.filter((name) => !DTYPES.some((dtype) => name.toLowerCase().endsWith(`${dtype.suffix}.onnx`)));
  if (plain.length === 0)
    throw new LowbitError(
      "E_IO",
      `${folder}: expected float models (*.onnx), got ${models.length === 0 ? "none" : `only ${models.slice(0, 3).join(", ")}, whose names say that they are quantized`}. Pass the folder that holds model.onnx.`,
    );
  return plain;
}

/**
 * Quantizes every float model of a folder, or one model by its path, to every dtype; each model is read once.
 * transformers.js loads the files of one dtype together, so each model gets one: a model in which a dtype finds
 * nothing has its embeddings quantized where the dtype can, else it is written as it is, and the report says why. Only
 * a dtype that finds nothing in the whole folder gets no files.
 * @throws LowbitError as quantizeModel; RangeError for dtypes
 * @example await quantizeFolder("onnx/", { dtypes: ["q4", "q8", "fp16"] });
 */
export async function quantizeFolder(path: string, options: QuantizeFolderOptions): Promise<FolderReport> {
  const alone = nodeFs().statSync(path, { throwIfNoEntry: false })?.isFile() === true;
  const folder = alone ? nodePath().dirname(path) : path;
  const { dtypes, output = folder, onFile, ...rest } = options;
  if (!Array.isArray(dtypes) || dtypes.length === 0)
    throw new TypeError(`dtypes: expected a list of ${DTYPES.map(({ name }) => name).join(", ")}, got ${JSON.stringify(dtypes) ?? "none"}`);
  const rows = [...new Set(dtypes)].map((name): Dtype => {
    const row = dtypeRow(name);
    if (row === undefined) throw new RangeError(`dtypes: expected ${DTYPES.map(({ name }) => name).join(", ")}, got ${String(name)}`);
    return row;
  });
  const models = alone ? [nodePath().basename(path)] : folderModels(folder);
  // before the work: what could not be completed afterwards
  configOf(folder, output);
  makeFolder(output);
  const files: FolderEntry[] = [];
  const count = models.length * rows.length;
  for (const name of models) {
    const input = nodePath().join(folder, name);
    const model = readModel(input);
    try {
      for (const row of rows) {
        const target = nodePath().join(output, dtypeFileName(name, row));
        onFile?.({ input, output: target, index: files.length, count });
        files.push({ input, dtype: row.name, ...(await quantizeOne(model, target, row, rest)) });
      }
    } finally {
      model.close();
    }
  }
  if (files.every(({ report }) => report === null))
    throw new LowbitError("E_UNSUPPORTED", `${path}: expected a layer to quantize, got none in ${models.join(", ")}. ${files[0].reason}`);
  const whole = await withUnchanged(files, output, rest);
  return { files: whole, config: await writeConfig(folder, output, whole) };
}

type FileOptions = Omit<QuantizeFolderOptions, "dtypes" | "output" | "onFile">;

/** What a dtype does not have is not asked of it. */
const optionsOf = (row: Dtype, options: FileOptions): QuantizeModelOptions => ({
  ...Object.fromEntries(Object.entries(options).filter(([key]) => !BY_DTYPE.has(key) || row.options.includes(key as never))),
  dtype: row.name,
});

/**
 * The operators with a weight that a dtype can quantize in a model, and does not unless they are named: embeddings in
 * blocks.
 */
function furtherTypes(model: OnnxModel, row: Dtype): string[] {
  const known = row.target === null ? [] : TARGETS.get(row.target)!().opTypes;
  const there = new Set(findLayers(buildScopes(model), model).map(({ node }) => node.opType));
  return known.filter((type) => there.has(type));
}

/** What is tried, in turn: a dtype that finds nothing by default takes what else it can. */
function attempts(model: OnnxModel, row: Dtype, options: FileOptions): QuantizeModelOptions[] {
  const own = optionsOf(row, options);
  const opTypes = own.opTypes === undefined ? furtherTypes(model, row) : [];
  return opTypes.length === 0 ? [own] : [own, { ...own, opTypes }];
}

/** One model in one dtype. */
async function quantizeOne(
  model: OnnxModel,
  target: string,
  row: Dtype,
  options: FileOptions,
): Promise<Pick<FolderEntry, "report" | "reason">> {
  let reason = "";
  for (const tried of attempts(model, row, options)) {
    try {
      return { report: await quantizeFile(model, target, tried) };
    } catch (error) {
      if (!(error instanceof LowbitError) || error.code !== "E_UNSUPPORTED") throw error;
      reason = error.message;
    }
  }
  return { report: null, reason };
}

/** Models that a dtype left whole are written under its name beside those that it quantized. */
async function withUnchanged(files: readonly FolderEntry[], output: string, options: FileOptions): Promise<FolderEntry[]> {
  const made = new Set(files.flatMap(({ dtype, report }) => (report === null ? [] : [dtype])));
  const whole: FolderEntry[] = [];
  for (const entry of files) {
    if (entry.report !== null || !made.has(entry.dtype)) {
      whole.push(entry);
      continue;
    }
    const row = dtypeRow(entry.dtype)!;
    const target = nodePath().join(output, dtypeFileName(nodePath().basename(entry.input), row));
    const model = readModel(entry.input);
    try {
      const report = await quantizeFile(model, target, { ...attempts(model, row, options).at(-1)!, allowUnchanged: true });
      whole.push({ ...entry, report, reason: `expected a layer to quantize, got ${noneOf(report)}` });
    } catch (error) {
      if (!(error instanceof LowbitError) || error.code !== "E_UNSUPPORTED") throw error;
      whole.push({ ...entry, reason: error.message });
    } finally {
      model.close();
    }
  }
  return whole;
}

const BY_DTYPE: ReadonlySet<string> = new Set(["blockSize", "symmetric", "accuracyLevel", "perChannel", "reduceRange"]);

/** The folder of config.json for a folder of models: models lie in onnx/ beside it. */
function configFolder(folder: string): string {
  const { basename, dirname, resolve } = nodePath();
  return basename(resolve(folder)) === "onnx" ? dirname(resolve(folder)) : resolve(folder);
}

/**
 * How many data files each file of a folder of models has, as config.json says it: by file name, else by the model's
 * name, else for all.
 */
type DataFiles = Record<string, unknown>;

/**
 * `transformers.js_config.use_external_data_format` with the files that were written: transformers.js looks for data
 * where a name, or the whole, says so, and fails where there are none. What held for other files still does. null:
 * nothing to say.
 */
function dataFiles(before: unknown, folder: string, files: readonly FolderEntry[]): DataFiles | null {
  const { basename } = nodePath();
  const known = new Map<string, unknown>(typeof before === "object" && before !== null ? Object.entries(before) : []);
  // one answer for all files becomes one for each model of the folder
  if (typeof before === "boolean" || typeof before === "number")
    for (const name of folderModels(folder)) known.set(name.replace(/\.onnx$/i, ""), before);
  let changed = false;
  for (const { input, report } of files) {
    if (report === null) continue;
    const name = basename(report.outputs.at(-1)!);
    const count = report.outputs.length - 1;
    const said = known.get(name) ?? known.get(basename(input).replace(/\.onnx$/i, "")) ?? 0;
    if (Number(said) === count) continue;
    known.set(name, count);
    changed = true;
  }
  return changed ? Object.fromEntries(known) : null;
}

/**
 * The config.json that a folder of models has or gets: that of the output where there is one, else the input's. null:
 * none.
 */
function configOf(
  folder: string,
  output: string,
): { readonly from: string; readonly to: string; readonly config: Record<string, unknown> } | null {
  const to = nodePath().join(configFolder(output), "config.json");
  const from = nodeFs().existsSync(to) ? to : nodePath().join(configFolder(folder), "config.json");
  return nodeFs().existsSync(from) ? { from, to, config: readConfig(from) } : null;
}

/**
 * Brings config.json to what was written, see dataFiles. Returns its path, or null where there was nothing to write.
 */
async function writeConfig(folder: string, output: string, files: readonly FolderEntry[]): Promise<string | null> {
  const found = configOf(folder, output);
  if (found === null) return null;
  const { from, to, config } = found;
  const own = (config["transformers.js_config"] ?? {}) as Record<string, unknown>;
  const data = dataFiles(own.use_external_data_format, folder, files);
  if (data === null && from === to) return null;
  if (data !== null) config["transformers.js_config"] = { ...own, use_external_data_format: data };
  const bytes = new TextEncoder().encode(`${JSON.stringify(config, null, 2)}\n`);
  await writeFiles([{ path: to, chunks: () => [bytes] }], true);
  return to;
}

function readConfig(path: string): Record<string, unknown> {
  const wrong = (got: string, cause?: unknown): LowbitError =>
    new LowbitError("E_IO", `${path}: expected a JSON object, got ${got}. Correct the file, or move it away.`, { cause });
  let config: unknown;
  try {
    config = JSON.parse(new TextDecoder().decode(readFile(path)));
  } catch (cause) {
    throw wrong((cause as Error).message, cause);
  }
  if (typeof config !== "object" || config === null || Array.isArray(config)) throw wrong(JSON.stringify(config).slice(0, 40));
  return config as Record<string, unknown>;
}

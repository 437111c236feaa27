// quantizeFolder: every model of a folder in every dtype asked for, named and described as transformers.js looks for them. Node only.
// Source: transformers.js src/utils/model-loader.js (file names, `use_external_data_format`), specs of its `transformers.js_config`.
import { LowbitError } from "../../formats/core/errors.ts";
import { nodeFs, nodePath } from "./calibrate/node.ts";
import { DTYPES, dtypeFileName, dtypeRow, type Dtype } from "./dtypes.ts";
import { writeFiles } from "./file/files.ts";
import type { OnnxDtype, QuantizeModelOptions, QuantizeReport } from "./options.ts";
import { quantizeFile } from "./quantize.ts";
import { readModel } from "./file/io.ts";

export interface QuantizeFolderOptions extends Omit<QuantizeModelOptions, "dtype" | "format" | "target" | "report"> {
  readonly dtypes: readonly OnnxDtype[];
  /** Where the files go; default the folder itself. */
  readonly output?: string;
  /** Called before each file. */
  readonly onFile?: (file: { readonly input: string; readonly output: string; readonly index: number; readonly count: number }) => void;
}

export interface FolderEntry {
  readonly input: string;
  readonly dtype: OnnxDtype;
  /** null where the model has nothing that the dtype quantizes: `reason` says so, and no file was written. */
  readonly report: QuantizeReport | null;
  readonly reason?: string;
}

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
 * Quantizes every float model of a folder to every dtype; each model is read once. A model in which a dtype finds nothing gets no file of that
 * dtype, and the report says why.
 * @throws LowbitError as quantizeModel; RangeError for dtypes
 * @example await quantizeFolder("onnx/", { dtypes: ["q4", "q8", "fp16"] });
 */
export async function quantizeFolder(folder: string, options: QuantizeFolderOptions): Promise<FolderReport> {
  const { dtypes, output = folder, onFile, ...rest } = options;
  if (!Array.isArray(dtypes) || dtypes.length === 0)
    throw new TypeError(`dtypes: expected a list of ${DTYPES.map(({ name }) => name).join(", ")}, got ${JSON.stringify(dtypes) ?? "none"}`);
  const rows = dtypes.map((name): Dtype => {
    const row = dtypeRow(name);
    if (row === undefined) throw new RangeError(`dtypes: expected ${DTYPES.map(({ name }) => name).join(", ")}, got ${String(name)}`);
    return row;
  });
  const models = folderModels(folder);
  const files: FolderEntry[] = [];
  const count = models.length * rows.length;
  for (const name of models) {
    const input = nodePath().join(folder, name);
    const model = readModel(input);
    try {
      for (const row of rows) {
        const target = nodePath().join(output, dtypeFileName(name, row));
        onFile?.({ input, output: target, index: files.length, count });
        // what a dtype does not have is not asked of it
        const own = Object.fromEntries(Object.entries(rest).filter(([key]) => !BY_DTYPE.has(key) || row.options.includes(key as never)));
        try {
          files.push({ input, dtype: row.name, report: await quantizeFile(model, target, { ...own, dtype: row.name }) });
        } catch (error) {
          if (!(error instanceof LowbitError) || error.code !== "E_UNSUPPORTED") throw error;
          files.push({ input, dtype: row.name, report: null, reason: error.message });
        }
      }
    } finally {
      model.close();
    }
  }
  if (files.every(({ report }) => report === null))
    throw new LowbitError("E_UNSUPPORTED", `${folder}: expected a layer to quantize, got none in ${models.join(", ")}. ${files[0].reason}`);
  return { files, config: await writeConfig(folder, output, files, rest.force ?? false) };
}

const BY_DTYPE: ReadonlySet<string> = new Set(["blockSize", "symmetric", "accuracyLevel", "perChannel", "reduceRange"]);

/** The folder of config.json for a folder of models: models lie in onnx/ beside it. */
function configFolder(folder: string): string {
  const { basename, dirname, resolve } = nodePath();
  return basename(resolve(folder)) === "onnx" ? dirname(resolve(folder)) : resolve(folder);
}

/** Adds `transformers.js_config.use_external_data_format` where files have external data. Returns the path written, or null. */
async function writeConfig(folder: string, output: string, files: readonly FolderEntry[], force: boolean): Promise<string | null> {
  const { existsSync, readFileSync } = nodeFs();
  const { basename, join } = nodePath();
  const external: Record<string, number> = {};
  for (const { report } of files) {
    if (report === null || report.outputs.length < 2) continue;
    external[basename(report.outputs.at(-1)!)] = report.outputs.length - 1;
  }
  const from = join(configFolder(folder), "config.json");
  const to = join(configFolder(output), "config.json");
  if (!existsSync(from) || (from === to && Object.keys(external).length === 0)) return null;
  if (from !== to && existsSync(to) && !force) return null;
  let config: Record<string, unknown>;
  try {
    config = JSON.parse(readFileSync(from, "utf8")) as Record<string, unknown>;
  } catch (cause) {
    throw new LowbitError("E_IO", `${from}: expected JSON, got ${(cause as Error).message}. Correct the file, or move it away.`, { cause });
  }
  const own = (config["transformers.js_config"] ?? {}) as Record<string, unknown>;
  const known = typeof own.use_external_data_format === "object" ? (own.use_external_data_format as Record<string, unknown>) : {};
  if (Object.keys(external).length > 0) config["transformers.js_config"] = { ...own, use_external_data_format: { ...known, ...external } };
  const bytes = new TextEncoder().encode(`${JSON.stringify(config, null, 2)}\n`);
  await writeFiles([{ path: to, chunks: () => [bytes] }], true);
  return to;
}

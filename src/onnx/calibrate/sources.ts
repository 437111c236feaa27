// Calibration data from wherever users have it: .npz, .npy, safetensors, a folder of them, JSON lines, a module, text
// with a tokenizer, or feeds from the caller. Everything becomes checked feeds, one batch each. Paths need Node.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { OnnxModel } from "../file/model.ts";
import { checkAborted } from "../file/files.ts";
import type { FeedTensor, Feeds, InputMetadata } from "../verify/feeds.ts";
import { checkFeeds, modelInputs, nestedFeed, sampleFeeds } from "./feeds.ts";
import { readFile } from "../../files/open.ts";
import { nodeFs, nodePath, nodeUrl } from "./node.ts";
import { parseNpy, parseNpz, readSafetensorsFeeds } from "./npy.ts";
import { textFeeds, type TextSource } from "./text.ts";

export type { TextSource } from "./text.ts";

/** Feeds, or what makes them. */
export type FeedsSource = Iterable<Feeds> | AsyncIterable<Feeds> | (() => FeedsSource | Promise<FeedsSource>);

/**
 * Calibration data: a path (.npz, .npy, .safetensors, .jsonl, .txt, .mjs or .js, a folder), text with its tokenizer, or
 * feeds `{ inputName: { type, data, dims } }` as an array, an (async) iterable or a function that returns one.
 */
export type CalibrationData = string | TextSource | FeedsSource;

/** How much of a source is read. */
export interface ReadFeedsOptions {
  /** Batches at most. */
  readonly maxBatches?: number;
  readonly signal?: AbortSignal;
}

/** Bytes of feeds held in memory. */
const FEEDS_MAX = 2 ** 31;

/**
 * All feeds of a source, checked against the inputs of a model.
 * @throws LowbitError E_CALIBRATION for data that does not fit the model, E_CONTAINER for damaged files, E_IO;
 * TypeError for another kind of source
 * @example const feeds = await readFeeds(model, "data.npz");
 */
export async function readFeeds(model: OnnxModel, source: CalibrationData, options: ReadFeedsOptions = {}): Promise<Feeds[]> {
  const inputs = modelInputs(model);
  const feeds: Feeds[] = [];
  let bytes = 0;
  const label = typeof source === "string" ? source : isText(source) ? source.text : "feeds";
  for await (const given of openSource(source, inputs)) {
    checkAborted(options.signal);
    const checked = checkFeeds(given, inputs, `${label}, batch ${feeds.length}`);
    for (const { data } of Object.values(checked)) bytes += "byteLength" in data ? data.byteLength : 8 * data.length;
    if (bytes > FEEDS_MAX)
      throw new LowbitError(
        "E_CALIBRATION",
        `calibration data ${label}: expected at most 2 GiB, got more by batch ${feeds.length}. Calibrate on fewer samples: a few hundred are enough.`,
      );
    feeds.push(checked);
    if (feeds.length === options.maxBatches) break;
  }
  if (feeds.length === 0)
    throw new LowbitError(
      "E_CALIBRATION",
      `calibration data ${label}: expected at least one batch, got none. Is the source empty, or was it used before?`,
    );
  return feeds;
}

const isText = (source: CalibrationData): source is TextSource => typeof source === "object" && source !== null && "text" in source;

async function* openSource(source: CalibrationData, inputs: readonly InputMetadata[]): AsyncGenerator<Feeds> {
  if (typeof source === "string") yield* openPath(source, inputs);
  else if (isText(source)) yield* textFeeds(source, inputs);
  else yield* openIterable(source, "feeds");
}

async function* openIterable(source: unknown, label: string): AsyncGenerator<Feeds> {
  let value = await source;
  for (let calls = 0; typeof value === "function" && calls < 3; calls++) value = await (value as () => unknown)();
  const iterable = typeof value === "object" && value !== null && (Symbol.iterator in value || Symbol.asyncIterator in value);
  if (!iterable)
    throw new TypeError(
      `calibration ${label}: expected an iterable of feeds { inputName: { type, data, dims } }, or a function that returns one, got ${value === null ? "null" : typeof value}.`,
    );
  yield* value as AsyncIterable<Feeds>;
}

const LINES = /\.(jsonl|ndjson)$/i;
const ARRAYS = /\.(npz|safetensors)$/i;

async function* openPath(path: string, inputs: readonly InputMetadata[]): AsyncGenerator<Feeds> {
  const fs = nodeFs();
  if (!fs.existsSync(path))
    throw new LowbitError("E_IO", `${path}: expected calibration data, got no such file or folder. Check the path.`);
  if (fs.statSync(path).isDirectory()) yield* openFolder(path, inputs);
  else if (/\.npy$/i.test(path)) yield* openArrays([path], inputs, path);
  else if (ARRAYS.test(path)) yield* openContainer(path, inputs);
  else if (LINES.test(path)) yield* openLines(path, inputs);
  else if (/\.txt$/i.test(path)) yield* textFeeds({ text: path }, inputs);
  else if (/\.[cm]?[jt]s$/i.test(path)) {
    const url = nodeUrl().pathToFileURL(nodePath().resolve(path)).href;
    const module = (await import(/* @vite-ignore */ url)) as { default?: unknown };
    yield* openIterable(module.default, `module ${path} (default export)`);
  } else
    throw new LowbitError(
      "E_CALIBRATION",
      `calibration data ${path}: expected .npz, .npy, .safetensors, .jsonl, .txt, a module (.mjs, .js) or a folder, got another file. Convert it with numpy.savez.`,
    );
}

/** The array of a file named after an input: "/" in a name is written as %2F. */
const inputName = (path: string): string => {
  const base = nodePath()
    .basename(path)
    .replace(/\.npy$/i, "");
  try {
    return decodeURIComponent(base);
  } catch {
    return base;
  }
};

function* openArrays(paths: readonly string[], inputs: readonly InputMetadata[], label: string): Generator<Feeds> {
  const arrays = new Map<string, FeedTensor>();
  for (const path of paths) {
    const name = inputName(path);
    // A single array of a model with a single input may have any name.
    const only = paths.length === 1 && inputs.length === 1 && !inputs.some((input) => input.name === name);
    arrays.set(only ? inputs[0].name : name, parseNpy(readFile(path), path));
  }
  yield* sampleFeeds(arrays, inputs, label);
}

async function* openContainer(path: string, inputs: readonly InputMetadata[]): AsyncGenerator<Feeds> {
  const arrays = /\.npz$/i.test(path) ? parseNpz(readFile(path), path) : await readSafetensorsFeeds(path, path);
  if (arrays.size === 0)
    throw new LowbitError("E_CALIBRATION", `calibration data ${path}: expected arrays, got none. Name one after each input.`);
  yield* sampleFeeds(arrays, inputs, path);
}

/** A folder holds either .npy files, one an input, or .npz, safetensors and JSON lines that follow each other. */
async function* openFolder(path: string, inputs: readonly InputMetadata[]): AsyncGenerator<Feeds> {
  const files = nodeFs()
    .readdirSync(path)
    .sort()
    .map((name) => nodePath().join(path, name));
  const arrays = files.filter((file) => /\.npy$/i.test(file));
  const others = files.filter((file) => ARRAYS.test(file) || LINES.test(file));
  if (arrays.length + others.length === 0)
    throw new LowbitError(
      "E_CALIBRATION",
      `calibration data ${path}: expected .npy (one an input), .npz, .safetensors or .jsonl files, got ${files.length === 0 ? "an empty folder" : `${files.length} others`}. Check the path.`,
    );
  if (arrays.length > 0) yield* openArrays(arrays, inputs, path);
  for (const file of others) yield* LINES.test(file) ? openLines(file, inputs) : openContainer(file, inputs);
}

function* openLines(path: string, inputs: readonly InputMetadata[]): Generator<Feeds> {
  const lines = new TextDecoder().decode(readFile(path)).split("\n");
  for (const [i, line] of lines.entries()) {
    if (line.trim() === "") continue;
    let object: unknown;
    try {
      object = JSON.parse(line);
    } catch (cause) {
      throw new LowbitError(
        "E_CALIBRATION",
        `calibration data ${path}, line ${i + 1}: expected JSON, got ${(cause as Error).message}. Write one object a line.`,
        { cause },
      );
    }
    yield nestedFeed(object, inputs, `${path}, line ${i + 1}`);
  }
}

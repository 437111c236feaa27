// readModel and writeModel: models as files (Node) and as bytes (anywhere), for those who change a model themselves.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { EncodedModel, Placement, Segment } from "./encode.ts";
import { encodeModel, payloadBytes, segmentChunks, segmentsLength } from "./encode.ts";
import type { FileSet, OutputRules, SegmentFile } from "./files.ts";
import {
  DATA_FILES_MAX,
  checkAborted,
  checkOutput,
  dataFileName,
  externalFiles,
  fileId,
  fileSet,
  isDataFileName,
  outputPath,
  segmentFile,
  siblingPath,
  writeFiles,
} from "./files.ts";
import type { OnnxModel } from "./model.ts";
import { decodeOriginal, externalLocations, locationsOf, readModelSource } from "./model.ts";
import type { ByteSource } from "./source.ts";
import { RAW_DATA, bytesSource } from "./source.ts";

/** A model read from a file. Close it when done: its weights are read from the file as they are needed. */
export interface OnnxFile extends OnnxModel {
  readonly path: string;
  readonly files: FileSet;
  close(): void;
  [Symbol.dispose](): void;
}

export interface ReadOptions {
  /**
   * More folders that links to external data may lead to: the root of a cache. Default: the model's own folder, and
   * that of the file it links to.
   */
  folders?: readonly string[];
}

/** Where weights go, and what may be overwritten. */
export interface WriteOptions {
  /**
   * Put tensors of 1 KiB or more into `<file name>_data` beside the model. Default: where the model would pass 1.5 GB.
   */
  externalData?: boolean;
  /**
   * Bytes of one external data file: where there is more, `<file name>_data_1`, `_2`, ... follow (100 files at most; a
   * tensor is never divided). Default: one file.
   */
  dataFileBytes?: number;
  /** Overwrite files that exist. */
  force?: boolean;
  /** An output that is a link: true (default) writes the file that it leads to, false refuses it. */
  followLinks?: boolean;
  /** Stops the writing; nothing is left behind. */
  signal?: AbortSignal;
}

/** Above this the weights leave the protobuf file: its format ends at 2 GiB, and some readers before. */
export const EXTERNAL_ABOVE = 1.5e9;

/**
 * Reads a model file; weights stay in the file until they are needed. External data lies in the model's folder, or,
 * where `path` is a link, in that of the file it leads to.
 * @throws LowbitError E_IO where a file cannot be read, E_ONNX where the model is damaged
 * @example
 * using model = readModel("model.onnx"); // closes its files at the end of the block
 * model.proto.graph!.node.length
 */
export function readModel(path: string, options: ReadOptions = {}): OnnxFile {
  const files = fileSet();
  try {
    const model = readModelSource(files.open(path), externalFiles(path, files, options.folders));
    const close = (): void => files.close();
    return { ...model, path, files, check: () => files.check(), close, [Symbol.dispose]: close };
  } catch (error) {
    files.close();
    throw error;
  }
}

/**
 * Reads a model from bytes: a Uint8Array (also a Buffer) or an ArrayBuffer, not copied; shared and resizable memory is
 * copied once.
 * @param external bytes of external data files by the location that tensors name
 * @throws LowbitError E_ONNX where the model is damaged, E_IO where external data is missing; TypeError where these are
 * no bytes
 * @example const model = readModelBytes(await readFile("model.onnx")); // in a browser: await file.arrayBuffer()
 */
export function readModelBytes(bytes: Uint8Array, external?: Readonly<Record<string, Uint8Array>>): OnnxModel {
  if (external === undefined) return readModelSource(bytesSource(bytes, "model"));
  const opened = new Map<string, ByteSource>();
  return readModelSource(bytesSource(bytes, "model"), (location) => {
    const known = opened.get(location);
    if (known !== undefined) return known;
    if (!Object.hasOwn(external, location)) {
      throw new LowbitError(
        "E_IO",
        `model: expected the external data ${JSON.stringify(location)}, got ${JSON.stringify(Object.keys(external))}. Pass the bytes of every data file.`,
      );
    }
    const source = bytesSource(external[location], location);
    opened.set(location, source);
    return source;
  });
}

/**
 * The bytes of a model, all data inside. An unchanged model without external data gives the bytes it was read from.
 * @example
 * const model = readModelBytes(bytes);
 * writeModelBytes(model).length === bytes.length // true: nothing changed
 */
export function writeModelBytes(model: OnnxModel): Uint8Array {
  return joinSegments(encodeModel(model, undefined, true).model);
}

function joinSegments(segments: readonly Segment[]): Uint8Array {
  const size = segmentsLength(segments);
  if (size > 2 ** 31 - 1)
    throw new LowbitError("E_ONNX", `model: expected at most 2 GiB in memory, got ${size} bytes. Write it to a file with external data.`);
  const out = new Uint8Array(size);
  let at = 0;
  for (const chunk of segmentChunks(segments)) {
    out.set(chunk, at);
    at += chunk.length;
  }
  return out;
}

/** Bytes of the files (or arrays) that a model was read from. */
export function inputBytes(model: OnnxModel): number {
  const sources = new Set([model.source, ...locationsOf(model.proto).map((location) => model.external(location))]);
  return [...sources].reduce((sum, source) => sum + source.size, 0);
}

/** Paths of the files that a model was read from; none for a model from bytes. */
export function inputPaths(model: OnnxModel): string[] {
  if (model.path === undefined) return [];
  // also what the model named when it was read: weights that were replaced since lie there still
  const locations = new Set([...locationsOf(decodeOriginal(model)), ...locationsOf(model.proto)]);
  return [model.path, ...[...locations].map((location) => model.external(location).label)];
}

function placementFor(path: string, options: WriteOptions): Placement {
  const { dataFileBytes } = options;
  return { nameOf: (file) => dataFileName(path, file), ...(dataFileBytes === undefined ? {} : { fileBytes: dataFileBytes }) };
}

/** @throws RangeError, TypeError */
function checkWriteOptions(options: WriteOptions): void {
  const { dataFileBytes: bytes, externalData } = options;
  if (bytes === undefined) return;
  if (!Number.isSafeInteger(bytes) || bytes < 1)
    throw new RangeError(`dataFileBytes: expected a whole number of bytes from 1, got ${bytes}`);
  if (externalData === false) throw new TypeError("dataFileBytes: expected only with external data, got externalData false");
}

/** Encodes a model for a path, with external data where asked for or needed. */
export function encodeForFile(model: OnnxModel, path: string, options: WriteOptions): EncodedModel {
  checkWriteOptions(options);
  if (options.externalData === undefined) {
    const inside = encodeModel(model);
    if (inside.unchanged || segmentsLength(inside.model) <= EXTERNAL_ABOVE) return inside;
  } else if (!options.externalData) {
    const bytes = payloadBytes(model);
    if (bytes > 2 ** 31 - 1) {
      throw new LowbitError(
        "E_ONNX",
        `${path}: expected at most 2 GiB in one ONNX file, got ${bytes} bytes of tensors. Leave externalData unset or set it.`,
      );
    }
    return encodeModel(model, undefined, true);
  }
  const encoded = encodeModel(model, placementFor(path, options));
  if (encoded.data.length > DATA_FILES_MAX) {
    throw new RangeError(
      `dataFileBytes: expected at most ${DATA_FILES_MAX} data files (what transformers.js loads), got ${encoded.data.length}. Pass a larger size.`,
    );
  }
  return encoded;
}

/**
 * Data files of the model that stands where `path` will be written, by that name and its own convention, beside those
 * written now.
 */
function obsoleteData(model: OnnxModel, path: string, written: readonly string[]): string[] {
  const files = fileSet();
  try {
    const inputs = new Set(inputPaths(model).map((input) => fileId(input)?.id));
    return externalLocations(files.open(path))
      .filter((location) => isDataFileName(path, location))
      .map((location) => siblingPath(path, location))
      .filter((file) => {
        const there = fileId(file);
        return !written.includes(file) && there?.plain === true && !inputs.has(there.id);
      });
  } catch {
    return []; // No model: it has no data.
  } finally {
    files.close();
  }
}

/** True where the data of a model is what its locations name from the folder of `path` too. */
const isBeside = (model: OnnxModel, path: string): boolean =>
  model.path !== undefined &&
  locationsOf(model.proto).every((location) => fileId(siblingPath(path, location))?.id === fileId(model.external(location).label)?.id);

/**
 * What becomes of the data of an unchanged model: it stays where it is, goes along under the names that it has, or gets
 * other names.
 */
function dataOfUnchanged(model: OnnxModel, path: string): "stays" | "copied" | "renamed" {
  if (isBeside(model, path)) return "stays";
  const own = locationsOf(model.proto).every((location) => isDataFileName(path, location));
  // Over a pair that exists the data needs another name for a moment.
  return own && fileId(path) === undefined ? "copied" : "renamed";
}

/**
 * The files that writing `model` to `path` makes: its data files, then the model. Their names follow from `path` alone;
 * of a link the file that it leads to is meant. An unchanged model with external data takes its data along to another
 * folder.
 */
export function outputFiles(model: OnnxModel, path: string, options: WriteOptions): SegmentFile[] {
  const target = outputPath(path);
  let encoded = encodeForFile(model, target, options);
  const fate = encoded.unchanged && locationsOf(model.proto).length > 0 ? dataOfUnchanged(model, target) : undefined;
  if (fate === "renamed") encoded = encodeModel(model, placementFor(target, options));
  const data =
    fate === "copied"
      ? locationsOf(model.proto).map((location): SegmentFile => {
          const source = model.external(location);
          return segmentFile(siblingPath(target, location), [{ source, offset: 0, length: source.size, field: RAW_DATA }]);
        })
      : encoded.data.map((segments, i) => segmentFile(siblingPath(target, dataFileName(target, i)), segments));
  const renamed = (nameOf: (data: string) => string) =>
    segmentChunks(encodeModel(model, { ...placementFor(target, options), nameOf: (file) => nameOf(dataFileName(target, file)) }).model);
  const obsolete =
    options.force === true
      ? obsoleteData(
          model,
          target,
          data.map((file) => file.path),
        )
      : [];
  return [
    ...data,
    {
      ...segmentFile(target, encoded.model),
      ...(data.length > 0 && !encoded.unchanged ? { renamed } : {}),
      ...(obsolete.length > 0 ? { obsolete } : {}),
      ...(model.check === undefined ? {} : { check: model.check }),
    },
  ];
}

/**
 * Checks the files of `outputFiles`. Data files are never written through a link. @throws LowbitError E_EXISTS, E_IO
 */
export function checkOutputs(outputs: readonly SegmentFile[], model: OnnxModel, rules: OutputRules): void {
  const inputs = inputPaths(model);
  outputs.forEach((output, i) => checkOutput(output.path, inputs, i < outputs.length - 1 ? { ...rules, followLinks: false } : rules));
}

/**
 * Writes a model to a file, with its data files: all of them or, on an error or abort, none. An unchanged model is
 * written byte for byte as it was read.
 * @throws LowbitError E_EXISTS where the output exists (without `force`) or is the input; E_IO where it cannot be
 * written
 * @example
 * using model = readModel("model.onnx");
 * await convertModel(model, { dtype: "fp16" });
 * await writeModel(model, "model_fp16.onnx", { externalData: true }); // and model_fp16.onnx_data
 */
export async function writeModel(model: OnnxModel, path: string, options: WriteOptions = {}): Promise<void> {
  checkAborted(options.signal);
  checkOutput(path, inputPaths(model), options);
  const outputs = outputFiles(model, path, options);
  checkOutputs(outputs, model, options);
  await writeFiles(outputs, options.force ?? false, options.signal);
}

// readModel and writeModel: models as files (Node) and as bytes (anywhere), for those who change a model themselves.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { EncodedModel, Segment } from "./encode.ts";
import { encodeModel, payloadBytes, segmentChunks, segmentsLength } from "./encode.ts";
import type { FileSet, OutputFile } from "./files.ts";
import { checkAborted, checkOutput, dataFileName, externalFiles, fileSet, siblingPath, writeFiles } from "./files.ts";
import type { OnnxModel } from "./model.ts";
import { allTensors, isExternal, readModelSource } from "./model.ts";
import { bytesSource } from "./source.ts";

/** A model read from a file. Close it when done: its weights are read from the file as they are needed. */
export interface OnnxFile extends OnnxModel {
  readonly path: string;
  readonly files: FileSet;
  close(): void;
  [Symbol.dispose](): void;
}

export interface WriteOptions {
  /** Put tensors of 1 KiB or more into `<file name>_data` beside the model. Default: where the model would pass 1.5 GB. */
  externalData?: boolean;
  /** Overwrite files that exist. */
  force?: boolean;
  /** Stops the writing; nothing is left behind. */
  signal?: AbortSignal;
}

/** Above this the weights leave the protobuf file: its format ends at 2 GiB, and some readers before. */
export const EXTERNAL_ABOVE = 1.5e9;

/**
 * Reads a model file; weights stay in the file until they are needed.
 * @throws LowbitError E_IO where a file cannot be read, E_ONNX where the model is damaged
 */
export function readModel(path: string): OnnxFile {
  const files = fileSet();
  try {
    const model = readModelSource(files.open(path), externalFiles(path, files));
    const close = (): void => files.close();
    return { ...model, path, files, close, [Symbol.dispose]: close };
  } catch (error) {
    files.close();
    throw error;
  }
}

/**
 * Reads a model from bytes.
 * @param external bytes of external data files by the location that tensors name
 * @throws LowbitError E_ONNX where the model is damaged, E_IO where external data is missing
 */
export function readModelBytes(bytes: Uint8Array, external?: Readonly<Record<string, Uint8Array>>): OnnxModel {
  if (external === undefined) return readModelSource(bytesSource(bytes, "model"));
  return readModelSource(bytesSource(bytes, "model"), (location) => {
    if (!Object.hasOwn(external, location)) {
      throw new LowbitError(
        "E_IO",
        `model: expected the external data ${JSON.stringify(location)}, got ${JSON.stringify(Object.keys(external))}. Pass the bytes of every data file.`,
      );
    }
    return bytesSource(external[location], location);
  });
}

/** The bytes of a model, all data inside. An unchanged model without external data gives the bytes it was read from. */
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

/** Encodes a model for a path, with external data where asked for or needed. */
export function encodeForFile(model: OnnxModel, path: string, externalData: boolean | undefined): EncodedModel {
  if (externalData === undefined) {
    const inside = encodeModel(model);
    if (inside.unchanged || segmentsLength(inside.model) <= EXTERNAL_ABOVE) return inside;
  } else if (!externalData) {
    const bytes = payloadBytes(model);
    if (bytes > 2 ** 31 - 1) {
      throw new LowbitError(
        "E_ONNX",
        `${path}: expected at most 2 GiB in one ONNX file, got ${bytes} bytes of tensors. Leave externalData unset or set it.`,
      );
    }
    return encodeModel(model, undefined, true);
  }
  return encodeModel(model, dataFileName(path));
}

/** Paths of the files that a model was read from. */
export function inputPaths(model: OnnxModel): string[] {
  const locations = new Set<string>();
  for (const tensor of allTensors(model.proto)) {
    if (isExternal(tensor)) locations.add(tensor.externalData.find((entry) => entry.key === "location")?.value ?? "");
  }
  return [model.source.label, ...[...locations].map((location) => model.external(location).label)];
}

/** The files that writing `model` to `path` makes. An unchanged model with external data takes its data files along to another folder. */
export function outputFiles(model: OnnxModel, path: string, options: WriteOptions): OutputFile[] {
  const encoded = encodeForFile(model, path, options.externalData);
  if (encoded.unchanged) {
    const inputs = inputPaths(model);
    const outputs: OutputFile[] = [];
    const locations = new Set<string>();
    for (const tensor of allTensors(model.proto)) {
      if (isExternal(tensor)) locations.add(tensor.externalData.find((entry) => entry.key === "location")?.value ?? "");
    }
    for (const location of locations) {
      const source = model.external(location);
      const target = siblingPath(path, location);
      try {
        checkOutput(target, inputs, options.force ?? false);
      } catch (error) {
        if (siblingPath(model.source.label, location) === target) continue; // same folder: the data is already there
        throw error;
      }
      outputs.push({ path: target, segments: [{ source, offset: 0, length: source.size, field: 9 }] });
    }
    return [...outputs, { path, segments: encoded.model }];
  }
  if (encoded.data.length === 0) return [{ path, segments: encoded.model }];
  // Data first: the model that names it appears last.
  return [
    { path: siblingPath(path, dataFileName(path)), segments: encoded.data },
    { path, segments: encoded.model },
  ];
}

/**
 * Writes a model to a file: under a temporary name, renamed when whole. An unchanged model is written byte for byte as it was read.
 * @throws LowbitError E_EXISTS where the output exists (without `force`) or is the input; E_IO where it cannot be written
 */
export async function writeModel(model: OnnxModel, path: string, options: WriteOptions = {}): Promise<void> {
  checkAborted(options.signal);
  const inputs = inputPaths(model);
  checkOutput(path, inputs, options.force ?? false);
  const outputs = outputFiles(model, path, options);
  for (const output of outputs) checkOutput(output.path, inputs, options.force ?? false);
  await writeFiles(outputs, options.force ?? false, options.signal);
}

// quantizeTfjsModel: model.json and its weights, quantized as tfjs's converter does it or to any format of the library.
import { isA } from "../../../formats/core/check.ts";
import type { Format } from "../../../formats/core/types.ts";
import { nodePath } from "../../files/calls.ts";
import { writeFiles, type OutputFile } from "../../files/commit.ts";
import { checkOutput, makeFolder } from "../../files/outputs.ts";
import { toBytes } from "../../tensor/container.ts";
import { quantize, type QuantizeOptions, type WeightQuantizer } from "../../tensor/quantize/index.ts";
import { tensor, transpose } from "../../tensor/tensor.ts";
import { backend } from "../weights.ts";
import { converterQuantize, type ConverterDtype } from "./affine.ts";
import { rowAxes } from "./consumers.ts";
import { sizeOf, type StoredWeight, type TfjsModelFile, type WeightEntry } from "./manifest.ts";
import { readTfjsModel } from "./read.ts";
import { floatValues, packedWeight } from "./values.ts";
import { dequantize } from "../../tensor/dequantize.ts";

/** What the weights of a model.json become. */
export interface QuantizeTfjsOptions {
  /**
   * How tfjs itself stores weights, all float32 ones of the model: any tfjs loads the result with `loadGraphModel` or
   * `loadLayersModel`. "float32" takes quantization out again.
   */
  readonly dtype?: ConverterDtype | "float32";
  /**
   * A format of the library, for matrices: `loadTfjsModel` keeps them packed in memory. One of dtype and format, or
   * both: dtype is for the other weights then.
   */
  readonly format?: Format;
  /** Of `quantize`, with `format`: rules, or another quantizer. */
  readonly quantizer?: QuantizeOptions | WeightQuantizer;
  /** Matrices of fewer values are left to dtype; default 1024. */
  readonly minimum?: number;
  /** Weights that stay as they are, by name. */
  readonly skip?: readonly string[];
  /** Bytes of a shard, default 4 MiB as the converter writes them. */
  readonly shardBytes?: number;
  /** Over files that exist; default false. */
  readonly force?: boolean;
}

/** What became of each weight of a model.json. */
export interface QuantizeTfjsReport {
  /** Each weight: how it is stored, and its bytes before and now. */
  readonly weights: readonly { readonly name: string; readonly stored: string; readonly bytesBefore: number; readonly bytes: number }[];
  readonly bytesBefore: number;
  readonly bytes: number;
  /** Path of the model.json that was written. */
  readonly path: string;
}

const KNOWN: ReadonlySet<string> = new Set(["dtype", "format", "quantizer", "minimum", "skip", "shardBytes", "force"]);

function checkOptions(options: QuantizeTfjsOptions): void {
  if (typeof options !== "object" || options === null)
    throw new TypeError(`quantizeTfjsModel options: expected { dtype } or { format }, got ${isA(options)}.`);
  const unknown = Object.keys(options).find((key) => !KNOWN.has(key));
  if (unknown !== undefined)
    throw new TypeError(`quantizeTfjsModel options: expected ${[...KNOWN].join(", ")}, got ${unknown.slice(0, 40)}. Is it misspelt?`);
  const { dtype, format, minimum = 0, shardBytes = 1 } = options;
  if (dtype === undefined && format === undefined)
    throw new TypeError('quantizeTfjsModel options: expected dtype or format, got neither. Try { dtype: "uint8" }.');
  if (dtype !== undefined && !["uint8", "uint16", "float16", "float32"].includes(dtype))
    throw new TypeError(`quantizeTfjsModel dtype: expected "uint8", "uint16", "float16" or "float32", got ${String(dtype)}.`);
  if (!(Number.isSafeInteger(minimum) && minimum >= 0))
    throw new RangeError(`quantizeTfjsModel minimum: expected a number of values, got ${minimum}.`);
  if (!(Number.isSafeInteger(shardBytes) && shardBytes > 0))
    throw new RangeError(`quantizeTfjsModel shardBytes: expected a size, got ${shardBytes}.`);
}

/** One weight as it will be stored. */
function stored(weight: StoredWeight, axis: 0 | 1, options: QuantizeTfjsOptions): { entry: WeightEntry; bytes: Uint8Array } {
  const { dtype, format, quantizer, minimum = 1024, skip = [] } = options;
  const { entry } = weight;
  const { quantization: before, ...plain } = entry;
  if (entry.dtype !== "float32" || skip.includes(entry.name) || sizeOf(entry.shape) === 0) return weight;
  const values = (): Float32Array => {
    if (before?.dtype !== "lowbit") return floatValues(weight);
    const w = packedWeight(weight);
    const data = dequantize(w, { backend: backend() });
    return before.rows === 0 ? data : flip(data, w.rows, w.k);
  };
  if (format !== undefined && entry.shape.length === 2 && sizeOf(entry.shape) >= minimum) {
    const matrix = tensor(values(), entry.shape);
    const bytes = toBytes(quantize(axis === 0 ? matrix : transpose(matrix), format, quantizer ?? { backend: backend() }));
    return { entry: { ...plain, quantization: { dtype: "lowbit", bytes: bytes.length, rows: axis } }, bytes };
  }
  if (dtype === undefined) return weight;
  if (dtype === "float32") return { entry: plain, bytes: new Uint8Array(values().buffer) };
  const { bytes, quantization } = converterQuantize(entry.name, values(), dtype);
  return { entry: { ...plain, quantization }, bytes };
}

function flip(data: Float32Array, rows: number, k: number): Float32Array {
  const out = new Float32Array(data.length);
  for (let r = 0; r < rows; r++) for (let j = 0; j < k; j++) out[j * rows + r] = data[r * k + j];
  return out;
}

/** The bytes of several weights in shards. */
function shardsOf(parts: readonly Uint8Array[], size: number): Uint8Array[] {
  const all = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return Array.from({ length: Math.ceil(all.length / size) }, (_, i) => all.subarray(i * size, (i + 1) * size));
}

/**
 * Quantizes the weights of a TensorFlow.js model, a graph model or a layers model: reads model.json and its shards,
 * writes another. With `dtype` what tensorflowjs_converter writes, byte for byte; with `format` matrices are packed
 * ([outputs, inputs], rows along outputs) in any format of the library, which `loadTfjsModel` loads.
 * @param source folder of model.json, its path, or in browsers its address
 * @param output folder to write model.json and shards into; made where it is not there
 * @throws LowbitError E_CONTAINER, E_IO, E_EXISTS, E_VALUE; TypeError and RangeError for options that are none
 * @example await quantizeTfjsModel("model", "model_uint8", { dtype: "uint8" });
 */
export async function quantizeTfjsModel(source: string, output: string, options: QuantizeTfjsOptions): Promise<QuantizeTfjsReport> {
  checkOptions(options);
  for (const [what, value] of [
    ["source", source],
    ["output", output],
  ] as const)
    // prettier-ignore
    if (typeof value !== "string" || value === "") throw new TypeError(`quantizeTfjsModel ${what}: expected the path of a folder, got ${isA(value)}.`);
  const { shardBytes = 2 ** 22, force = false } = options;
  const model = await readTfjsModel(source);
  const path = nodePath();
  const target = path.join(output, "model.json");
  const axisOf = rowAxes(model.json);
  const weights: QuantizeTfjsReport["weights"][number][] = [];
  const files: { path: string; bytes: Uint8Array }[] = [];
  const weightsManifest = model.groups.map((group: TfjsModelFile["groups"][number], g) => {
    const written = group.map((weight) => {
      const now = stored(weight, axisOf(weight.entry), options);
      const { name, quantization, dtype } = now.entry;
      weights.push({ name, stored: quantization?.dtype ?? dtype, bytesBefore: weight.bytes.length, bytes: now.bytes.length });
      return now;
    });
    const shards = shardsOf(written.map(({ bytes }) => bytes), shardBytes); // prettier-ignore
    const paths = shards.map((bytes, i) => {
      const name = `group${g + 1}-shard${i + 1}of${shards.length}.bin`;
      files.push({ path: path.join(output, name), bytes });
      return name;
    });
    return { paths, weights: written.map(({ entry }) => entry) };
  });
  const json = new TextEncoder().encode(JSON.stringify({ ...model.json, weightsManifest }));
  makeFolder(output);
  const inputs = [model.path, ...model.shards.map((name) => path.join(path.dirname(model.path), name))];
  const outputs: OutputFile[] = [...files, { path: target, bytes: json }].map((file) => ({ path: file.path, chunks: () => [file.bytes] }));
  for (const file of outputs) checkOutput(file.path, inputs, { force });
  await writeFiles(outputs, force);
  const sum = (key: "bytes" | "bytesBefore"): number => weights.reduce((n, w) => n + w[key], 0);
  return { weights, bytesBefore: sum("bytesBefore"), bytes: sum("bytes"), path: target };
}

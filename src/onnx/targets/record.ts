// What the target "stored" writes down in the model: which value is decoded from which tensors, in which format.
// `readStored` makes the packed tensors again, so that a runtime with kernels for the format never decodes them. Kept
// in metadata_props under one key, as JSON.
import { create } from "@bufbuild/protobuf";
import { LowbitError } from "../../../formats/core/errors.ts";
import { packedBytes, packInto } from "../../../formats/core/pack.ts";
import { elementOf, packedSizes } from "../../../formats/core/packed.ts";
import { spanGrid } from "../../../formats/core/span.ts";
import type { FormatDefinition, PackedTensor, QuantConfig, ScaleLevel } from "../../../formats/core/types.ts";
import { defineFormat } from "../../../formats/define/index.ts";
import type { TensorProto } from "../file/gen/onnx_pb.ts";
import { StringStringEntryProtoSchema } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import { allTensors } from "../file/model.ts";
import { readBytes } from "../file/values.ts";
import { loadCodes } from "./planes.ts";

/** One weight of the target "stored". */
export interface StoredWeight {
  /** The value that the weight is decoded to, float32 [rows, k]. */
  readonly value: string;
  readonly format: FormatDefinition;
  readonly rows: number;
  readonly k: number;
  readonly shape: readonly number[];
  readonly recipe: QuantConfig;
  /** Initializers of the codes, and of each level of scales and offsets: one, or its planes of bits. */
  readonly codes: readonly string[];
  readonly scales: readonly string[];
  readonly superScales: readonly string[];
  readonly offsets: readonly string[];
}

const KEY = "lowbit.stored";

interface Record {
  readonly version: 1;
  readonly weights: StoredWeight[];
}

function readRecord(model: OnnxModel): Record {
  const entry = model.proto.metadataProps.find(({ key }) => key === KEY);
  if (entry === undefined) return { version: 1, weights: [] };
  try {
    const record = JSON.parse(entry.value ?? "") as Record;
    if (record.version === 1 && Array.isArray(record.weights)) return record;
  } catch {
    // said below
  }
  throw new LowbitError(
    "E_ONNX",
    `metadata ${KEY}: expected the record of version 1, got another. The model was changed by hand or by a newer version.`,
  );
}

/** What the record says, without reading a weight. @throws LowbitError E_ONNX for another version */
export const storedWeights = (model: OnnxModel): readonly StoredWeight[] => readRecord(model).weights;

/** Adds weights to the model's record. */
export function recordStored(model: OnnxModel, weights: readonly StoredWeight[]): void {
  const record = readRecord(model);
  const value = JSON.stringify({ ...record, weights: [...record.weights, ...weights] });
  const entry = model.proto.metadataProps.find(({ key }) => key === KEY);
  if (entry === undefined) model.proto.metadataProps.push(create(StringStringEntryProtoSchema, { key: KEY, value }));
  else entry.value = value;
}

/**
 * The packed weights of a model that the target "stored" wrote, by the name of the value that they are decoded to.
 * @throws LowbitError E_ONNX where the record does not fit the tensors
 */
export function readStored(model: OnnxModel): Map<string, () => PackedTensor> {
  const tensors = new Map<string, TensorProto>();
  for (const tensor of allTensors(model.proto)) tensors.set(tensor.name, tensor);
  return new Map(readRecord(model).weights.map((weight) => [weight.value, () => packedOf(model, tensors, weight)]));
}

function packedOf(model: OnnxModel, tensors: ReadonlyMap<string, TensorProto>, weight: StoredWeight): PackedTensor {
  const format = defineFormat(weight.format);
  const { rows, k, shape } = weight;
  const bad = (got: string) =>
    new LowbitError(
      "E_ONNX",
      `stored weight ${JSON.stringify(weight.value)}: expected the tensors of ${format.name} [${rows}, ${k}], got ${got}. The model was changed.`,
    );
  const sizes = packedSizes(format, shape);
  const read = (names: readonly string[]): Uint8Array[] =>
    names.map((name) => {
      const tensor = tensors.get(name);
      if (tensor === undefined) throw bad(`no ${JSON.stringify(name)}`);
      return readBytes(model, tensor);
    });
  const level = (at: ScaleLevel | undefined, names: readonly string[], size: number | null): Uint8Array | null => {
    if (at === undefined || size === null) return null;
    const grid = spanGrid(at.span, rows, k);
    const codes = loadCodes(at.format, grid.gridRows * grid.gridK, read(names));
    const rowBytes = packedBytes(grid.gridK, at.format.bits);
    const out = new Uint8Array(size);
    for (let r = 0; r < grid.gridRows; r++) packInto(codes, r * grid.gridK, grid.gridK, at.format.bits, out, r * rowBytes);
    return out;
  };
  const block = format.kind === "block" ? format : null;
  const element = elementOf({ format } as PackedTensor);
  if (element === null) throw bad("an opaque format");
  const codes = loadCodes(element, rows * k, read(weight.codes));
  const out = new Uint8Array(sizes.codes);
  for (let r = 0; r < rows; r++) packInto(codes, r * k, k, element.bits, out, r * sizes.rowBytes);
  return {
    format,
    shape,
    rows,
    k,
    rowBytes: sizes.rowBytes,
    codes: out,
    scales: level(block?.scales[0], weight.scales, sizes.scales),
    superScales: level(block?.scales[1], weight.superScales, sizes.superScales),
    offsets: level(block?.offset?.levels[0], weight.offsets, sizes.offsets),
    recipe: weight.recipe,
  };
}

// A model in memory: the decoded message (weights replaced by tokens), the payload table, and where external data comes
// from. Reading checks what a runtime would only find out later: a graph and opsets are there, every tensor's dims
// agree with its bytes.
import { create, fromBinary } from "@bufbuild/protobuf";
import { LowbitError, isLowbitError } from "../../../formats/core/errors.ts";
import type { AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto } from "./gen/onnx_pb.ts";
import { ModelProtoSchema, TensorProtoSchema, TensorProto_DataLocation } from "./gen/onnx_pb.ts";
import { HEAD_BYTES, foreignKind } from "./kinds.ts";
import { scanModel } from "./scan.ts";
import type { ByteSource, Payload, PayloadStore } from "./source.ts";
import { RAW_DATA, payloadStore } from "./source.ts";
import { DATA_TYPES } from "./types.ts";

/**
 * Opens an external data file by the `location` that a tensor names. @throws LowbitError where it is missing or leaves
 * the model's folder
 */
export type ExternalResolver = (location: string) => ByteSource;

/**
 * A model that can be changed (through `proto`) and written back. Large tensor data is not in `proto`: see
 * `tensorPayload`.
 */
export interface OnnxModel {
  proto: ModelProto;
  readonly payloads: PayloadStore;
  readonly external: ExternalResolver;
  /**
   * The file or bytes this was read from, and its message without payloads: an unchanged model is written back from
   * them, byte for byte.
   */
  readonly source: ByteSource;
  readonly skeleton: Uint8Array;
  /** Where it was read from; undefined: from bytes. */
  readonly path?: string;
  /** Of a model from a path: throws where its files changed since they were opened. */
  readonly check?: () => void;
}

const noExternal =
  (label: string): ExternalResolver =>
  (location) => {
    throw new LowbitError(
      "E_IO",
      `${label}: expected all tensor data inside the model, got a tensor in the external file ${JSON.stringify(location)}. Read the model from its path, or pass the external files' bytes.`,
    );
  };

/** Decodes the message of a scanned model. */
function decode(source: ByteSource, skeleton: Uint8Array): ModelProto {
  let proto: ModelProto;
  try {
    proto = fromBinary(ModelProtoSchema, skeleton);
  } catch (cause) {
    if (isLowbitError(cause)) throw cause;
    throw new LowbitError(
      "E_ONNX",
      `${source.label}: expected an ONNX model (protobuf), got ${(cause as Error).message}. The file is damaged or not an ONNX model.`,
      {
        cause,
      },
    );
  }
  const missing =
    proto.graph === undefined
      ? "no graph"
      : proto.opsetImport.length === 0
        ? "no opset_import"
        : proto.irVersion === 0n
          ? "no ir_version"
          : null;
  if (missing !== null) {
    throw new LowbitError(
      "E_ONNX",
      `${source.label}: expected an ONNX model, got a protobuf message with ${missing}. The file is truncated or not an ONNX model.`,
    );
  }
  return proto;
}

/** Says what a file is that is no model, where its first bytes tell. */
function nameForeign(source: ByteSource, error: unknown): unknown {
  if (!isLowbitError(error) || error.code !== "E_ONNX" || source.size === 0) return error;
  const head = source.read(0, Math.min(HEAD_BYTES, source.size));
  const zeros = { what: "zeros", remedy: "The download or the copy was cut short: get it again" };
  const kind = head.every((byte) => byte === 0) ? zeros : foreignKind(head);
  if (kind === undefined) return error;
  return new LowbitError(
    "E_ONNX",
    `${source.label}: expected an ONNX model, got ${kind.what}: this is not an ONNX model. ${kind.remedy}.`,
    {
      cause: error,
    },
  );
}

function decoded(source: ByteSource, payloads: PayloadStore): { skeleton: Uint8Array; proto: ModelProto } {
  try {
    const skeleton = scanModel(source, payloads);
    return { skeleton, proto: decode(source, skeleton) };
  } catch (error) {
    throw nameForeign(source, error);
  }
}

/** The locations of external data that a model names. @throws LowbitError E_ONNX where it is no model */
export function externalLocations(source: ByteSource): string[] {
  const { proto } = decoded(source, payloadStore());
  return locationsOf(proto);
}

/** The locations of external data that the tensors of a model name, each once. */
export function locationsOf(proto: ModelProto): string[] {
  const locations = new Set<string>();
  for (const tensor of allTensors(proto)) {
    if (isExternal(tensor)) locations.add(tensor.externalData.find((entry) => entry.key === "location")?.value ?? "");
  }
  return [...locations];
}

/**
 * Reads a model from a byte source. Weights stay in the source.
 * @throws LowbitError E_ONNX on a damaged model; E_IO on missing external data
 */
export function readModelSource(source: ByteSource, external?: ExternalResolver): OnnxModel {
  const payloads = payloadStore();
  const { skeleton, proto } = decoded(source, payloads);
  const model: OnnxModel = { proto, payloads, external: external ?? noExternal(source.label), source, skeleton };
  for (const tensor of allTensors(proto)) checkTensor(model, tensor);
  return model;
}

/** The message as it was read. */
export function decodeOriginal(model: OnnxModel): ModelProto {
  return fromBinary(ModelProtoSchema, model.skeleton);
}

// ---- walking
// -------------------------------------------------------------------------------------------------------------------

/** The graphs that an attribute holds. */
export function attributeGraphs(attribute: AttributeProto): GraphProto[] {
  return attribute.g === undefined ? attribute.graphs : [attribute.g, ...attribute.graphs];
}

/** Every tensor of a model: initializers, attribute values, sparse parts, in all graphs and functions. */
export function* allTensors(model: ModelProto): Generator<TensorProto> {
  // Work still to do, last first: no recursion, however deep the graphs lie in each other.
  const graphs: (GraphProto | undefined)[] = [];
  function* attributeTensors(attribute: AttributeProto): Generator<TensorProto> {
    if (attribute.t !== undefined) yield attribute.t;
    yield* attribute.tensors;
    if (attribute.sparseTensor !== undefined) yield* sparseTensors([attribute.sparseTensor]);
    yield* sparseTensors(attribute.sparseTensors);
    graphs.push(...attributeGraphs(attribute));
  }
  function* nodeTensors(nodes: readonly NodeProto[]): Generator<TensorProto> {
    for (const node of nodes) for (const attribute of node.attribute) yield* attributeTensors(attribute);
  }
  function* pending(): Generator<TensorProto> {
    while (graphs.length > 0) {
      const graph = graphs.pop();
      if (graph === undefined) continue;
      yield* graph.initializer;
      yield* sparseTensors(graph.sparseInitializer);
      yield* nodeTensors(graph.node);
    }
  }
  graphs.push(model.graph);
  for (const training of model.trainingInfo) graphs.push(training.initialization, training.algorithm);
  yield* pending();
  for (const fn of model.functions) {
    yield* nodeTensors(fn.node);
    for (const attribute of fn.attributeProto) yield* attributeTensors(attribute);
    yield* pending();
  }
}

function* sparseTensors(list: readonly SparseTensorProto[]): Generator<TensorProto> {
  for (const sparse of list) {
    if (sparse.values !== undefined) yield sparse.values;
    if (sparse.indices !== undefined) yield sparse.indices;
  }
}

// ---- tensor data
// ---------------------------------------------------------------------------------------------------------------

export const isExternal = (tensor: TensorProto): boolean => tensor.dataLocation === TensorProto_DataLocation.EXTERNAL;

const nameOf = (tensor: TensorProto): string => `tensor ${JSON.stringify(tensor.name)}`;

/** The dims as numbers. @throws LowbitError on a negative dim or more elements than 2^53 */
export function tensorDims(tensor: TensorProto): number[] {
  let elements = 1;
  return tensor.dims.map((dim) => {
    const value = Number(dim);
    elements *= value;
    if (value < 0 || !Number.isSafeInteger(value) || !Number.isSafeInteger(elements)) {
      throw new LowbitError(
        "E_ONNX",
        `${nameOf(tensor)}: expected dims of at most 2^53 elements, got [${tensor.dims.join(", ")}]. The model is damaged.`,
      );
    }
    return value;
  });
}

const product = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);

/** Bytes that the type and dims of a tensor ask for. */
const tensorByteCount = (tensor: TensorProto): number =>
  Math.ceil((product(tensorDims(tensor)) * (DATA_TYPES[tensor.dataType]?.bits ?? 0)) / 8);

/** The location, offset and length of external data. */
function externalPayload(model: OnnxModel, tensor: TensorProto): Payload {
  const entries = new Map(tensor.externalData.map((entry) => [entry.key, entry.value]));
  const location = entries.get("location");
  if (location === undefined || location === "") {
    throw new LowbitError("E_ONNX", `${nameOf(tensor)}: expected a location of its external data, got none. The model is damaged.`);
  }
  if (location.startsWith("*/_ORT_MEM_ADDR_")) {
    throw new LowbitError(
      "E_ONNX",
      `${nameOf(tensor)}: expected data in a file, got an address in the memory of the runtime that wrote the model. Save the model with its weights.`,
    );
  }
  const source = model.external(location);
  const number = (key: string, fallback: number): number => {
    const text = entries.get(key);
    if (text === undefined) return fallback;
    const value = /^\d{1,16}$/.test(text) ? Number(text) : NaN;
    if (!Number.isSafeInteger(value)) {
      throw new LowbitError(
        "E_ONNX",
        `${nameOf(tensor)}: expected ${key} of its external data as a whole number, got ${JSON.stringify(text)}. The model is damaged.`,
      );
    }
    return value;
  };
  const offset = number("offset", 0);
  // As the runtime takes it: without a length, or with length 0, the bytes that type and dims ask for.
  const length = number("length", 0) || tensorByteCount(tensor);
  if (offset + length > source.size) {
    const kind = source.size > 0 ? foreignKind(source.read(0, Math.min(HEAD_BYTES, source.size))) : undefined;
    if (kind !== undefined)
      throw new LowbitError("E_ONNX", `${source.label}: expected external data of ${nameOf(tensor)}, got ${kind.what}. ${kind.remedy}.`);
    throw new LowbitError(
      "E_ONNX",
      `${nameOf(tensor)}: expected bytes ${offset} to ${offset + length} of ${source.label}, got a file of ${source.size} bytes. The file is truncated or belongs to another model.`,
    );
  }
  return { source, offset, length, field: RAW_DATA };
}

/**
 * The bytes of a tensor stored as raw_data or outside the message; undefined for typed fields that stayed in the
 * message.
 */
export function tensorPayload(model: OnnxModel, tensor: TensorProto): Payload | undefined {
  if (isExternal(tensor)) return externalPayload(model, tensor);
  return model.payloads.get(tensor.rawData);
}

/** Elements that the typed fields hold (raw_data and external data: undefined). */
function typedCount(tensor: TensorProto): number {
  return Math.max(
    tensor.floatData.length,
    tensor.int32Data.length,
    tensor.int64Data.length,
    tensor.doubleData.length,
    tensor.uint64Data.length,
    tensor.stringData.length,
  );
}

/** Checks that dims and bytes agree. */
function checkTensor(model: OnnxModel, tensor: TensorProto): void {
  const elements = product(tensorDims(tensor));
  const payload = tensorPayload(model, tensor);
  const type = DATA_TYPES[tensor.dataType];
  if (type === undefined) {
    throw new LowbitError(
      "E_ONNX",
      `${nameOf(tensor)}: expected a known data type, got ${tensor.dataType}. The model is damaged or newer than this package.`,
    );
  }
  const storages = (payload !== undefined || (tensor.rawData?.length ?? 0) > 0 ? 1 : 0) + (typedCount(tensor) > 0 ? 1 : 0);
  if (storages > 1)
    throw new LowbitError("E_ONNX", `${nameOf(tensor)}: expected its data in one place, got it in two. The model is damaged.`);
  const disagree = (got: string): never => {
    throw new LowbitError(
      "E_ONNX",
      `${nameOf(tensor)}: expected ${elements} values of ${type.name} for dims [${tensor.dims.join(", ")}], got ${got}. The model is damaged.`,
    );
  };
  if (payload !== undefined ? payload.field === RAW_DATA : (tensor.rawData?.length ?? 0) > 0) {
    if (type.bits === 0) disagree("raw bytes");
    const bytes = payload?.length ?? tensor.rawData!.length;
    if (bytes !== Math.ceil((elements * type.bits) / 8)) disagree(`${bytes} bytes`);
  } else if (payload !== undefined) {
    const count = typedPayloadCount(payload);
    if (count !== type.typedCount(elements)) disagree(`${count} numbers`);
  } else if (typedCount(tensor) !== type.typedCount(elements)) disagree(`${typedCount(tensor)} numbers`);
}

/**
 * Numbers in an elided packed field: fixed width for float and double, else one varint per byte without the
 * continuation bit.
 */
function typedPayloadCount(payload: Payload): number {
  if (payload.field === 4) return payload.length / 4;
  if (payload.field === 10) return payload.length / 8;
  let count = 0;
  for (let at = 0; at < payload.length; at += 1 << 20) {
    const bytes = payload.source.read(payload.offset + at, Math.min(1 << 20, payload.length - at));
    for (let i = 0; i < bytes.length; i++) if (bytes[i] < 128) count++;
  }
  return count;
}

/** A new tensor with little-endian bytes. Above 1 KiB they go to the payload table, not into the message. */
export function makeTensor(model: OnnxModel, name: string, dataType: number, dims: readonly number[], bytes: Uint8Array): TensorProto {
  return create(TensorProtoSchema, {
    name,
    dataType,
    dims: dims.map(BigInt),
    rawData: bytes.length >= 1024 ? model.payloads.addBytes(bytes) : new Uint8Array(bytes),
  });
}

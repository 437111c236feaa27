// Writing: the message is encoded by protobuf-es without payloads, then cut open wherever a tensor's data goes, and
// lengths are put right. The result is a list of segments (bytes, or ranges of a source) whose total is known before
// the first byte is written, so a model streams.
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import type { TensorProto } from "./gen/onnx_pb.ts";
import { ModelProtoSchema, TensorProtoSchema, TensorProto_DataLocation } from "./gen/onnx_pb.ts";
import type { OnnxModel } from "./model.ts";
import { allTensors, decodeOriginal, isExternal, tensorPayload } from "./model.ts";
import { splitFields } from "./scan.ts";
import type { Payload } from "./source.ts";
import { RAW_DATA } from "./source.ts";
import type { MessageKind } from "./wire.ts";
import { CHILDREN, fieldHeader } from "./wire.ts";

/** A piece of an output file: bytes, or a range of a source. */
export type Segment = Uint8Array | Payload;

/** Where the tensors of a model go that leave it. */
export interface Placement {
  /** The location that tensors name, for the data files 0, 1, ... */
  readonly nameOf: (file: number) => string;
  /** A data file ends before it passes this; a tensor that is larger has a file of its own. Default: one file. */
  readonly fileBytes?: number;
}

/** An encoded model: the segments of the file, and those of its external data files. */
export interface EncodedModel {
  readonly model: readonly Segment[];
  readonly data: readonly (readonly Segment[])[];
  /** The model was written back as it was read, byte for byte. */
  readonly unchanged: boolean;
}

/**
 * External data starts on this boundary, so that a runtime can map it (ONNX recommends the page size; 64 KiB on Windows
 * suits both).
 */
const ALIGN = 4096;
/** Smaller tensors stay in the model: they are shapes and scales that shape inference reads. */
const EXTERNAL_MIN = 1024;

const sum = (segments: readonly Segment[]): number => segments.reduce((total, segment) => total + segment.length, 0);

/** Bytes that the tensors of a model take in one file. */
export function payloadBytes(model: OnnxModel): number {
  let total = 0;
  for (const tensor of allTensors(model.proto)) total += tensorPayload(model, tensor)?.length ?? 0;
  return total;
}

/** True where nothing has been changed since the model was read. */
function isUnchanged(model: OnnxModel): boolean {
  const now = toBinary(ModelProtoSchema, model.proto);
  const then = toBinary(ModelProtoSchema, decodeOriginal(model));
  if (now.length !== then.length) return false;
  for (let i = 0; i < now.length; i++) if (now[i] !== then[i]) return false;
  return true;
}

/**
 * Encodes a model. With a `placement`, tensors of 1 KiB or more go to external data files; else every tensor is inside.
 * An unchanged model without a placement is its source, byte for byte; it keeps its external files, unless all is
 * wanted `inside`.
 */
export function encodeModel(model: OnnxModel, placement?: Placement, inside = false): EncodedModel {
  const asRead = placement === undefined && !(inside && [...allTensors(model.proto)].some(isExternal));
  if (asRead && isUnchanged(model)) {
    return { model: [{ source: model.source, offset: 0, length: model.source.size, field: RAW_DATA }], data: [], unchanged: true };
  }
  const data: Segment[][] = [];
  let dataAt = 0;

  /** The fields that hold a tensor's data elsewhere. */
  function place(payload: Payload, { nameOf, fileBytes = Infinity }: Placement): Pick<TensorProto, "externalData" | "dataLocation"> {
    let padding = (ALIGN - (dataAt % ALIGN)) % ALIGN;
    if (data.length === 0 || dataAt + padding + payload.length > fileBytes) {
      data.push([]);
      dataAt = padding = 0;
    }
    const file = data[data.length - 1];
    if (padding > 0) file.push(new Uint8Array(padding));
    const offset = dataAt + padding;
    file.push(payload);
    dataAt = offset + payload.length;
    const entry = (name: string, value: string) => ({ $typeName: "onnx.StringStringEntryProto" as const, key: name, value });
    return {
      externalData: [entry("location", nameOf(data.length - 1)), entry("offset", String(offset)), entry("length", String(payload.length))],
      dataLocation: TensorProto_DataLocation.EXTERNAL,
    };
  }

  function encodeTensor(bytes: Uint8Array): Segment[] | null {
    const tensor = fromBinary(TensorProtoSchema, bytes);
    const payload = tensorPayload(model, tensor);
    if (payload === undefined) return null;
    if (isExternal(tensor)) {
      tensor.externalData = [];
      delete (tensor as Partial<TensorProto>).dataLocation;
    }
    delete (tensor as Partial<TensorProto>).rawData;
    // float_data and double_data have raw_data's bytes; packed varints have not, and stay inside.
    const rawLayout = payload.field === RAW_DATA || payload.field === 4 || payload.field === 10;
    if (placement !== undefined && payload.length >= EXTERNAL_MIN && rawLayout) {
      Object.assign(tensor, place(payload, placement));
      return [toBinary(TensorProtoSchema, tensor)];
    }
    const rest = toBinary(TensorProtoSchema, tensor);
    const at = splitFields(rest).find(([field]) => field > payload.field)?.[1] ?? rest.length;
    return [rest.subarray(0, at), fieldHeader(payload.field, payload.length), payload, rest.subarray(at)];
  }

  /** Segments that replace the bytes of one message, or null where they stay. */
  function splice(kind: MessageKind, bytes: Uint8Array): Segment[] | null {
    if (kind === "tensor") return encodeTensor(bytes);
    const out: Segment[] = [];
    let from = 0;
    for (const [field, start, end, valueStart] of splitFields(bytes)) {
      const child = CHILDREN[kind][field];
      if (child === undefined) continue;
      const inner = splice(child, bytes.subarray(valueStart, end));
      if (inner === null) continue;
      if (from < start) out.push(bytes.subarray(from, start));
      out.push(fieldHeader(field, sum(inner)));
      for (const segment of inner) out.push(segment);
      from = end;
    }
    if (out.length === 0) return null;
    if (from < bytes.length) out.push(bytes.subarray(from));
    return out;
  }

  const message = toBinary(ModelProtoSchema, model.proto);
  return { model: splice("model", message) ?? [message], data, unchanged: false };
}

/** Total bytes of segments. */
export const segmentsLength = sum;

/** Small segments are gathered up to this many bytes: a model of many nodes is not written in as many calls. */
const GATHER = 1 << 16;

/** The bytes of segments, in chunks of at most `chunk` bytes, each valid until the next one is asked for. */
export function* segmentChunks(segments: readonly Segment[], chunk = 4 << 20): Generator<Uint8Array> {
  const gathered = new Uint8Array(GATHER);
  let scratch = new Uint8Array(0);
  let used = 0;
  for (const segment of segments) {
    if (segment.length <= GATHER - used) {
      gathered.set(segment instanceof Uint8Array ? segment : segment.source.read(segment.offset, segment.length), used);
      used += segment.length;
      continue;
    }
    if (used > 0) yield gathered.subarray(0, used);
    used = 0;
    if (segment.length <= GATHER) {
      gathered.set(segment instanceof Uint8Array ? segment : segment.source.read(segment.offset, segment.length));
      used = segment.length;
    } else if (segment instanceof Uint8Array) yield segment;
    else {
      const most = Math.min(chunk, segment.length);
      if (scratch.length < most) scratch = new Uint8Array(most);
      for (let at = 0; at < segment.length; at += chunk)
        yield segment.source.read(segment.offset + at, Math.min(chunk, segment.length - at), scratch);
    }
  }
  if (used > 0) yield gathered.subarray(0, used);
}

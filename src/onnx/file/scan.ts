// The scanner: walks the wire format of a ModelProto and builds the same message without its large tensor payloads (the
// skeleton), each replaced by a token, with a table of where the payloads are. It reads a 1 GiB model in a few dozen
// small reads. It checks structure only (lengths, wire types, nesting); what the fields mean is protobuf-es's and
// model.ts's work.
import { LowbitError } from "../../../formats/core/errors.ts";
import { RAW_DATA } from "./source.ts";
import type { ByteSource, PayloadStore } from "./source.ts";
import type { MessageSchema } from "./schema.ts";
import { UNKNOWN_FIELD_COST, modelSchema } from "./schema.ts";
import { fieldHeader, readVarint } from "./wire.ts";

/** Payloads of this many bytes or more leave the skeleton. */
export const PAYLOAD_MIN = 1024;
/** A skeleton above this is no model that a runtime would load (ONNX files are limited to 2 GiB in all). */
const SKELETON_MAX = 1 << 29;
/**
 * Graphs nest through attributes: each level of control flow costs three levels of messages; protobuf-es stops at 100.
 */
const DEPTH_MAX = 90;
/**
 * What decoded messages may take in memory: so much, and so much for each byte of the file, but no more than the last.
 */
const MEMORY_BASE = 64 << 20;
const MEMORY_PER_BYTE = 32;
const MEMORY_MAX = 2 ** 30;
/** TensorProto fields that hold data: float, int32, string (never elided), int64, raw, double, uint64. */
const DATA_FIELDS: ReadonlySet<number> = new Set([4, 5, 7, 9, 10, 11]);

const WINDOW = 1 << 16;
const HEAD = 1 << 10;

type Piece = { readonly from: number; readonly to: number } | Uint8Array;

const pieceLength = (piece: Piece): number => (piece instanceof Uint8Array ? piece.length : piece.to - piece.from);

function damaged(source: ByteSource, at: number, what: string): LowbitError {
  return new LowbitError(
    "E_ONNX",
    `${source.label}: expected an ONNX model (protobuf), got ${what} at byte ${at}. The file is truncated, damaged or not an ONNX model.`,
  );
}

/**
 * Scans a model. Returns the skeleton's bytes; payloads of 1024 bytes or more are registered in `store`.
 * @throws LowbitError E_ONNX where the bytes are not a well-formed ONNX protobuf.
 */
export function scanModel(source: ByteSource, store: PayloadStore): Uint8Array {
  let windowStart = 0;
  let window = new Uint8Array(0);
  /** What windows are read into: one for each tensor that is passed over would be 10 MB for a model of 150 tensors. */
  const room = new Uint8Array(Math.min(WINDOW, source.size));
  const budget = Math.min(MEMORY_MAX, MEMORY_BASE + MEMORY_PER_BYTE * source.size);
  let spent = 0;

  function spend(cost: number): void {
    spent += cost;
    if (spent <= budget) return;
    throw new LowbitError(
      "E_ONNX",
      `${source.label}: expected at most ${MEMORY_PER_BYTE} bytes of nodes, attributes and the like in memory for each byte of the file (${MEMORY_MAX >> 20} MiB at most), got more. ` +
        "The model is damaged, or larger than this package takes.",
    );
  }

  /** Where the number ends that was read last. */
  let after = 0;

  /** A number, and `after` it; no array of both, for a model has some 100,000. */
  function varintAt(pos: number, end: number): number {
    if (pos < windowStart || pos + 10 > windowStart + window.length) {
      // beyond a tensor that was passed over lies the head of the next one
      const most = pos >= windowStart && pos <= windowStart + window.length ? WINDOW : HEAD;
      windowStart = pos;
      window = source.read(pos, Math.min(most, source.size - pos), room) as Uint8Array<ArrayBuffer>;
    }
    let value = 0;
    let scale = 1;
    for (let at = pos - windowStart; at < window.length && scale < 2 ** 70; scale *= 128) {
      const byte = window[at++];
      value += (byte & 127) * scale;
      if (byte >= 128) continue;
      after = windowStart + at;
      if (after > end) break;
      return value <= Number.MAX_SAFE_INTEGER ? value : NaN;
    }
    throw damaged(source, pos, "an unfinished number");
  }

  /**
   * The end of a group whose start tag ends at `start`. Groups are older than ONNX: no field of it is one, but unknown
   * fields may be.
   */
  function skipGroup(field: number, start: number, end: number): number {
    const open = [field];
    let pos = start;
    while (open.length > 0) {
      const at = pos;
      const tag = varintAt(pos, end);
      pos = after;
      const wireType = tag % 8;
      if (wireType === 0) {
        varintAt(pos, end);
        pos = after;
      } else if (wireType === 1) pos += 8;
      else if (wireType === 5) pos += 4;
      else if (wireType === 2) {
        const length = varintAt(pos, end);
        pos = after + length;
      } else if (wireType === 3) open.push(Math.floor(tag / 8));
      else if (wireType !== 4 || open.pop() !== Math.floor(tag / 8)) throw damaged(source, at, `wire type ${wireType}`);
      if (!(pos <= end)) throw damaged(source, at, "a group that is longer than what holds it");
      if (open.length > DEPTH_MAX) throw damaged(source, at, `groups nested more than ${DEPTH_MAX} deep`);
    }
    return pos;
  }

  /** The pieces that replace [start, end), or null where nothing is elided. */
  function walk(schema: MessageSchema, start: number, end: number, depth: number): Piece[] | null {
    if (depth > DEPTH_MAX) throw damaged(source, start, `messages nested more than ${DEPTH_MAX} deep`);
    spend(schema.cost);
    const pieces: Piece[] = [];
    let from = start;
    let pos = start;
    let payloads = 0;
    while (pos < end) {
      const fieldStart = pos;
      const tag = varintAt(pos, end);
      pos = after;
      const field = Math.floor(tag / 8);
      const wireType = tag % 8;
      if (!(field >= 1 && field < 2 ** 29)) throw damaged(source, fieldStart, "an impossible field number");
      const child = schema.children.get(field);
      if (!schema.fields.has(field)) spend(UNKNOWN_FIELD_COST);
      if (child !== undefined && wireType !== 2)
        throw damaged(source, fieldStart, `wire type ${wireType} for field ${field} of a ${schema.name}`);
      if (wireType === 0) {
        varintAt(pos, end);
        pos = after;
      } else if (wireType === 1) pos += 8;
      else if (wireType === 5) pos += 4;
      else if (wireType === 2) {
        const length = varintAt(pos, end);
        const valueStart = (pos = after);
        if (!(length <= end - pos))
          throw damaged(source, fieldStart, `field ${field} of a ${schema.name} that is longer than what holds it`);
        pos += length;
        let replacement: Piece[] | null = null;
        if (child !== undefined) {
          const inner = walk(child, valueStart, pos, depth + 1);
          if (inner !== null) {
            const size = inner.reduce((sum, piece) => sum + pieceLength(piece), 0);
            replacement = [fieldHeader(field, size), ...inner];
          }
        } else if (schema.name === "tensor" && length >= PAYLOAD_MIN && DATA_FIELDS.has(field)) {
          if (payloads++ > 0) throw damaged(source, fieldStart, "a second payload in one tensor");
          const token = store.add({ source, offset: valueStart, length, field });
          replacement = [fieldHeader(RAW_DATA, token.length), token];
        }
        if (replacement !== null) {
          if (from < fieldStart) pieces.push({ from, to: fieldStart });
          for (const piece of replacement) pieces.push(piece);
          from = pos;
        }
      } else if (wireType === 3 && !schema.fields.has(field)) pos = skipGroup(field, pos, end);
      else throw damaged(source, fieldStart, `wire type ${wireType}`);
      if (pos > end) throw damaged(source, fieldStart, `field ${field} of a ${schema.name} that is longer than what holds it`);
    }
    if (pieces.length === 0) return null;
    if (from < end) pieces.push({ from, to: end });
    return pieces;
  }

  if (source.size === 0) throw damaged(source, 0, "no bytes");
  const pieces = walk(modelSchema(), 0, source.size, 0) ?? [{ from: 0, to: source.size }];
  const size = pieces.reduce((sum, piece) => sum + pieceLength(piece), 0);
  if (size > SKELETON_MAX) {
    throw new LowbitError(
      "E_ONNX",
      `${source.label}: expected at most ${SKELETON_MAX} bytes beside tensor data, got ${size}. Store the tensors as raw_data.`,
    );
  }
  const skeleton = new Uint8Array(size);
  let at = 0;
  for (const piece of pieces) {
    skeleton.set(piece instanceof Uint8Array ? piece : source.read(piece.from, piece.to - piece.from), at);
    at += pieceLength(piece);
  }
  return skeleton;
}

/**
 * Splits the bytes of one small message into its fields: [field number, start, end] of each whole field (tag included).
 */
export function splitFields(bytes: Uint8Array): [field: number, start: number, end: number, valueStart: number][] {
  const fields: [number, number, number, number][] = [];
  let pos = 0;
  while (pos < bytes.length) {
    const start = pos;
    const [tag, afterTag] = readVarint(bytes, pos);
    let valueStart = afterTag;
    let end: number;
    if (tag % 8 === 0) end = readVarint(bytes, afterTag)[1];
    else if (tag % 8 === 1) end = afterTag + 8;
    else if (tag % 8 === 5) end = afterTag + 4;
    else {
      const [length, next] = readVarint(bytes, afterTag);
      valueStart = next;
      end = next + length;
    }
    fields.push([Math.floor(tag / 8), start, end, valueStart]);
    pos = end;
  }
  return fields;
}

// Messages out of bytes. Fields that the schema does not know, or knows with another wire type, are kept as they are.
import type { Field, GenMessage, Message, MessageSchema } from "./descriptor.ts";
import { Kind } from "./descriptor.ts";
import { emptyMessage } from "./message.ts";

/** Levels of messages and of groups. */
const DEPTH = 100;
/** Shorter strings are read by the byte: a decoder takes longer to begin. */
const SHORT = 48;

const VARINT = 0;
const BYTES = 2;
const GROUP = 3;
const END = 4;

/** How values lie in bytes. */
export const wireTypeOf = ({ kind }: Field): number => {
  if (kind === Kind.double) return 1;
  if (kind === Kind.float) return 5;
  return kind === Kind.string || kind === Kind.bytes || kind === Kind.message ? BYTES : VARINT;
};

type Plain = Record<string, unknown>;

// a leading U+FEFF is text
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** @throws RangeError where the bytes are no such message */
export function fromBinary<T extends Message>(schema: GenMessage<T>, bytes: Uint8Array): T {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let pos = 0;
  let [low, high] = [0, 0];
  /** Reads 64 bits into `low` and `high`. */
  const varint = (): number => {
    low = high = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      const byte = bytes[pos++];
      if (byte === undefined) throw new RangeError("a number beyond the end");
      const part = byte & 127;
      if (shift < 28) low |= part << shift;
      else if (shift > 28) high |= part << (shift - 32);
      else {
        low |= part << 28;
        high = part >> 4;
      }
      if (byte < 128) return low >>> 0;
    }
    throw new RangeError("a number of more than 10 bytes");
  };
  const take = (count: number, end: number): number => {
    const at = pos;
    pos += count;
    if (pos > end) throw new RangeError("a field beyond the end");
    return at;
  };
  const string = (at: number): string => {
    if (pos - at <= SHORT) {
      let out = "";
      let i = at;
      while (i < pos && bytes[i] < 128) out += String.fromCharCode(bytes[i++]);
      if (i === pos) return out;
    }
    return decoder.decode(bytes.subarray(at, pos));
  };
  const scalar = ({ kind }: Field, end: number): unknown => {
    switch (kind) {
      case Kind.double:
        return view.getFloat64(take(8, end), true);
      case Kind.float:
        return view.getFloat32(take(4, end), true);
      case Kind.string:
        return string(take(varint(), end));
      case Kind.bytes: {
        const at = take(varint(), end);
        return bytes.subarray(at, pos);
      }
      default:
        varint();
        if (kind === Kind.uint64) return (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);
        if (kind === Kind.int64) return high === 0 ? BigInt(low >>> 0) : (BigInt(high) << 32n) | BigInt(low >>> 0);
        return low | 0;
    }
  };
  /** Passes over a field that is not known. */
  const skip = (no: number, wireType: number, end: number, depth: number): void => {
    if (wireType === VARINT) varint();
    else if (wireType === 1) take(8, end);
    else if (wireType === 5) take(4, end);
    else if (wireType === BYTES) take(varint(), end);
    else if (wireType !== GROUP) throw new RangeError(`wire type ${wireType}`);
    else {
      if (depth <= 0) throw new RangeError(`groups nested more than ${DEPTH} deep`);
      for (;;) {
        const [inner, type] = tag();
        if (type === END && inner === no) break;
        skip(inner, type, end, depth - 1);
      }
    }
    if (pos > end) throw new RangeError("a field beyond the end");
  };
  const tag = (): [no: number, wireType: number] => {
    const value = varint();
    if (high !== 0 || value < 8) throw new RangeError("an impossible field number");
    return [value >>> 3, value & 7];
  };
  const message = (own: MessageSchema, end: number, into: Message & Plain, depth: number): Message => {
    if (depth > DEPTH) throw new RangeError(`messages nested more than ${DEPTH} deep`);
    const unknown = (no: number, wireType: number, data: Uint8Array): void => void (into.$unknown ??= []).push({ no, wireType, data });
    while (pos < end) {
      const [no, wireType] = tag();
      const start = pos;
      const field = own.byNumber.get(no);
      const expected = field === undefined ? -1 : wireTypeOf(field);
      const packed = field?.list === true && expected !== BYTES && wireType === BYTES;
      if (field === undefined || (wireType !== expected && !packed)) {
        skip(no, wireType, end, DEPTH - depth);
        unknown(no, wireType, bytes.subarray(start, pos));
      } else if (field.message !== undefined) {
        const to = varint() + pos;
        if (to > end) throw new RangeError("a field beyond the end");
        const before = field.oneof === undefined ? into[field.name] : (into[field.oneof] as Plain);
        // one that comes again is merged
        const known = field.list ? undefined : field.oneof === undefined ? before : (before as Plain).case === field.name ? (before as Plain).value : undefined; // prettier-ignore
        const child = message(field.message, to, (known as Message & Plain | undefined) ?? emptyMessage(field.message), depth + 1); // prettier-ignore
        if (field.list) (into[field.name] as unknown[]).push(child);
        else if (field.oneof === undefined) into[field.name] = child;
        else into[field.oneof] = { case: field.name, value: child };
      } else if (field.list) {
        const list = into[field.name] as unknown[];
        if (!packed) list.push(scalar(field, end));
        else {
          const to = varint() + pos;
          if (to > end) throw new RangeError("a field beyond the end");
          while (pos < to) list.push(scalar(field, to));
        }
      } else {
        const value = scalar(field, end);
        if (field.values?.includes(value as number) === false) unknown(no, wireType, bytes.subarray(start, pos));
        else if (field.oneof === undefined) into[field.name] = value;
        else into[field.oneof] = { case: field.name, value };
      }
      if (pos > end) throw new RangeError("a field beyond the end");
    }
    return into;
  };
  return message(schema, bytes.length, emptyMessage(schema), 1) as unknown as T;
}

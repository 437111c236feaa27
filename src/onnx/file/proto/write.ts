// Bytes of messages: fields by number, then what was not known.
import type { Field, GenMessage, Message, MessageSchema } from "./descriptor.ts";
import { Kind } from "./descriptor.ts";
import { setValue } from "./message.ts";
import { wireTypeOf } from "./read.ts";

const encoder = new TextEncoder();

const fail = (field: Field, what: string, got: unknown): never => {
  const shown = typeof got === "object" || typeof got === "function" ? Object.prototype.toString.call(got) : String(got);
  throw new TypeError(`field ${field.name}: expected ${what}, got ${shown}.`);
};

/** @throws TypeError for values that are none of their field */
export function toBinary<T extends Message>(schema: GenMessage<T>, message: T): Uint8Array<ArrayBuffer> {
  let out = new Uint8Array(256);
  let pos = 0;
  const need = (count: number): void => {
    if (pos + count <= out.length) return;
    const larger = new Uint8Array(Math.max(pos + count, 2 * out.length));
    larger.set(out.subarray(0, pos));
    out = larger;
  };
  /** Of a number below 2^32. */
  const varint = (value: number): void => {
    need(5);
    for (; value > 127; value >>>= 7) out[pos++] = (value & 127) | 128;
    out[pos++] = value;
  };
  const long = (value: bigint): void => {
    need(10);
    for (value = BigInt.asUintN(64, value); value > 127n; value >>= 7n) out[pos++] = Number(value & 127n) | 128;
    out[pos++] = Number(value);
  };
  const raw = (bytes: Uint8Array): void => {
    need(bytes.length);
    out.set(bytes, pos);
    pos += bytes.length;
  };
  /** What `write` writes, with its length before it. */
  const sized = (write: () => void): void => {
    need(1);
    const at = pos++;
    write();
    const length = pos - at - 1;
    if (length < 128) {
      out[at] = length;
      return;
    }
    const size = Math.ceil((32 - Math.clz32(length)) / 7);
    need(size - 1);
    out.copyWithin(at + size, at + 1, pos);
    pos = at;
    varint(length);
    pos += length;
  };
  const value = (field: Field, one: unknown): void => {
    switch (field.kind) {
      case Kind.double:
      case Kind.float: {
        if (typeof one !== "number") fail(field, "a number", one);
        const width = field.kind === Kind.double ? 8 : 4;
        need(width);
        const view = new DataView(out.buffer, pos, width);
        if (width === 8) view.setFloat64(0, one as number, true);
        else {
          if (Number.isFinite(one) && !Number.isFinite(Math.fround(one as number))) fail(field, "a float32", one);
          view.setFloat32(0, one as number, true);
        }
        pos += width;
        return;
      }
      case Kind.string: {
        const bytes = encoder.encode(one as string);
        varint(bytes.length);
        return raw(bytes);
      }
      case Kind.bytes: {
        if (!(one instanceof Uint8Array)) fail(field, "a Uint8Array", one);
        varint((one as Uint8Array).length);
        return raw(one as Uint8Array);
      }
      case Kind.int64:
      case Kind.uint64: {
        const isOwn = field.kind === Kind.int64 ? BigInt.asIntN : BigInt.asUintN;
        if (typeof one !== "bigint" || isOwn(64, one) !== one) fail(field, "a bigint of 64 bits", one);
        return long(one as bigint);
      }
      case Kind.message:
        return sized(() => fields(field.message!, one as Message));
      default: {
        if ((one as number) !== ((one as number) | 0)) fail(field, "an integer of 32 bits", one);
        if ((one as number) < 0) long(BigInt(one as number));
        else varint(one as number);
      }
    }
  };
  const fields = (own: MessageSchema, of: Message): void => {
    if (of?.$typeName !== own.typeName) throw new TypeError(`message: expected ${own.typeName}, got ${of?.$typeName}.`);
    for (const field of own.fields) {
      const set = setValue(of, field);
      if (set === undefined) continue;
      const tag = 8 * field.number + wireTypeOf(field);
      if (!field.list) {
        varint(tag);
        value(field, set);
      } else if (field.packed) {
        varint(8 * field.number + 2);
        sized(() => (set as unknown[]).forEach((one) => value(field, one)));
      } else
        for (const one of set as unknown[]) {
          varint(tag);
          value(field, one);
        }
    }
    for (const { no, wireType, data } of of.$unknown ?? []) {
      varint(8 * no + wireType);
      raw(data);
    }
  };
  fields(schema, message);
  return out.slice(0, pos);
}

// Messages as plain objects: fields that are set are own properties, zero values of others lie on the prototype; lists
// are always there; one of several cases is { case, value }. The same shape as protobuf-es gives them.
import type { Field, GenMessage, Message, MessageSchema } from "./descriptor.ts";
import { Kind } from "./descriptor.ts";

/** What a message can be made of: parts of it, messages below it too. */
export type MessageInit<T extends Message> = T | { readonly [P in keyof T as P extends `$${string}` ? never : P]?: FieldInit<T[P]> };

type FieldInit<F> = F extends Uint8Array | bigint | boolean | string | number | undefined
  ? F
  : F extends readonly (infer U)[]
    ? readonly FieldInit<U>[]
    : F extends Message
      ? MessageInit<F>
      : F extends { case: infer C extends string; value: infer V }
        ? { case: C; value: FieldInit<V> }
        : F;

type Plain = Record<string, unknown>;
type Choice = { readonly case: string | undefined; readonly value?: unknown };

const isObject = (x: unknown): x is object => typeof x === "object" && x !== null;
const isOf = (x: unknown, { typeName }: MessageSchema): boolean => isObject(x) && (x as Partial<Message>).$typeName === typeName;

/** An empty message. */
export function emptyMessage({ typeName, zeros, fields, oneofs }: MessageSchema): Message & Plain {
  const out = Object.create(zeros) as Message & Plain;
  (out as { $typeName: string }).$typeName = typeName;
  for (const { list, name } of fields) if (list) out[name] = [];
  for (const name of oneofs) out[name] = { case: undefined };
  return out;
}

/** A value of a field, or of a list, made whole. */
const valueOf = ({ message, kind }: Field, value: unknown): unknown => {
  if (kind === Kind.bytes && Array.isArray(value)) return new Uint8Array(value as number[]);
  return message === undefined || !isObject(value) ? value : create(message, value);
};

/** A message of some of its fields; one that is a message already is returned as it is. */
export function create<T extends Message>(schema: GenMessage<T>, init?: MessageInit<T>): T {
  if (isOf(init, schema)) return init as T;
  const out = emptyMessage(schema);
  const given = (init ?? {}) as Plain;
  for (const field of schema.fields) {
    const { name, list, oneof } = field;
    if (oneof !== undefined) {
      const chosen = given[oneof] as Choice | undefined;
      if (chosen?.case === name) out[oneof] = { case: name, value: valueOf(field, chosen.value) };
      continue;
    }
    const value = given[name];
    if (value === undefined || value === null) continue;
    out[name] = list && Array.isArray(value) ? value.map((one) => valueOf(field, one)) : valueOf(field, value);
  }
  return out as unknown as T;
}

/** The value of a field that is set; undefined for others, and for empty lists. */
export function setValue(message: object, { name, list, oneof }: Field): unknown {
  const plain = message as Plain;
  if (oneof !== undefined) {
    const chosen = plain[oneof] as Choice;
    return chosen.case === name ? chosen.value : undefined;
  }
  if (!Object.hasOwn(plain, name)) return undefined;
  return list && (plain[name] as unknown[]).length === 0 ? undefined : plain[name];
}

/** A deep copy, unknown fields included. */
export function clone<T extends Message>(schema: GenMessage<T>, message: T): T {
  const out = emptyMessage(schema);
  for (const field of schema.fields) {
    const value = setValue(message, field);
    if (value === undefined) continue;
    const copy = (one: unknown): unknown => {
      if (field.message !== undefined) return clone(field.message, one as Message);
      return one instanceof Uint8Array ? one.slice() : one;
    };
    const copied = field.list ? (value as unknown[]).map(copy) : copy(value);
    if (field.oneof === undefined) out[field.name] = copied;
    else out[field.oneof] = { case: field.name, value: copied };
  }
  if (message.$unknown !== undefined && message.$unknown.length > 0) out.$unknown = [...message.$unknown];
  return out as unknown as T;
}

/** Whether the same fields are set to the same values; unknown fields do not count. */
export function equals<T extends Message>(schema: GenMessage<T>, a: T, b: T): boolean {
  if (!isOf(a, schema) || !isOf(b, schema)) return false;
  return schema.fields.every((field) => {
    const [x, y] = [setValue(a, field), setValue(b, field)];
    if (x === undefined || y === undefined) return x === y;
    if (!field.list) return same(field, x, y);
    const [all, others] = [x as unknown[], y as unknown[]];
    return all.length === others.length && all.every((one, i) => same(field, one, others[i]));
  });
}

function same({ message }: Field, x: unknown, y: unknown): boolean {
  if (message !== undefined) return equals(message, x as Message, y as Message);
  if (x instanceof Uint8Array && y instanceof Uint8Array) return x.length === y.length && x.every((byte, i) => byte === y[i]);
  return x === y;
}

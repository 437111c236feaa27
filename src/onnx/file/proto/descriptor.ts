// Messages of a .proto file from a table: a line for each message or enum, "Name field=NUMBER... " or "Name VALUE ...",
// which scripts/onnx-proto.ts writes into what protoc-gen-es generates. As much as onnx.proto has: proto2 without
// groups, maps, extensions and defaults. Specification: https://protobuf.dev/programming-guides/encoding.

/** A field that the schema does not know, as it was read: it is written back. */
export interface UnknownField {
  readonly no: number;
  readonly wireType: number;
  /** What follows the tag. */
  readonly data: Uint8Array;
}

export interface Message<Name extends string = string> {
  readonly $typeName: Name;
  $unknown?: UnknownField[] | undefined;
}

/** Types of fields: letters of the table, and two for what is named there. */
export const Kind = {
  double: "d",
  float: "f",
  int64: "l",
  uint64: "u",
  int32: "i",
  string: "s",
  bytes: "b",
  enum: "enum",
  message: "message",
} as const;
export type FieldKind = (typeof Kind)[keyof typeof Kind];

export interface Field {
  readonly number: number;
  /** Of the property. */
  readonly name: string;
  readonly kind: FieldKind;
  readonly list: boolean;
  readonly packed: boolean;
  /** The property of the choice that it is a case of. */
  readonly oneof: string | undefined;
  /** What it holds, for messages. */
  readonly message: MessageSchema | undefined;
  /** The values of an enum: others are kept as unknown fields. */
  readonly values: readonly number[] | undefined;
}

export interface MessageSchema {
  readonly typeName: string;
  /** By number. */
  readonly fields: readonly Field[];
  /** Properties that hold one of several cases. */
  readonly oneofs: readonly string[];
  readonly byNumber: ReadonlyMap<number, Field>;
  /** Zero values, which a message has where a field is not set. */
  readonly zeros: object;
}

declare const shape: unique symbol;

/** The schema of messages of one type. */
export type GenMessage<T extends Message> = MessageSchema & { readonly [shape]?: T };

export interface GenEnum<T extends number> {
  readonly typeName: string;
  readonly [shape]?: T;
}

export interface GenFile {
  readonly messages: ReadonlyMap<string, MessageSchema>;
  readonly enums: ReadonlyMap<string, GenEnum<number>>;
}

const zeroOf = (kind: FieldKind, values: readonly number[] | undefined): unknown => {
  if (kind === Kind.int64 || kind === Kind.uint64) return 0n;
  if (kind === Kind.string) return "";
  if (kind === Kind.bytes) return new Uint8Array(0);
  return kind === Kind.enum ? values![0] : 0;
};

/** name, number, "*" of a list, "+" of a packed one, letter or ":" and a type, "|" and a choice */
const FIELD = /^(\w+)=(\d+)(\*?)(\+?)(?:(\w)|:([\w.]+))(?:\|(\w+))?$/;

export function fileDesc(scope: string, table: string): GenFile {
  const lines = table.split("\n").map((line) => line.split(" "));
  const messages = new Map<string, MessageSchema>();
  const enums = new Map<string, GenEnum<number>>();
  const valuesOf = new Map<string, readonly number[]>();
  const build: (() => void)[] = [];
  for (const [name, ...parts] of lines) {
    const typeName = `${scope}.${name}`;
    if (parts.every((part) => /^\d+$/.test(part))) {
      enums.set(name, { typeName });
      valuesOf.set(name, parts.map(Number));
      continue;
    }
    const found = parts.map((part) => FIELD.exec(part)!);
    const fields: Field[] = [];
    const byNumber = new Map<number, Field>();
    const zeros: Record<string, unknown> = {};
    const oneofs = [...new Set(found.map((part) => part[7]).filter((oneof) => oneof !== undefined))];
    messages.set(name, { typeName, fields, oneofs, byNumber, zeros });
    // types may stand further on
    build.push(() => {
      for (const [, property, number, list, packed, letter, type, oneof] of found) {
        const values = valuesOf.get(type);
        const kind = letter === undefined ? (values === undefined ? Kind.message : Kind.enum) : (letter as FieldKind);
        const isList = list !== "";
        fields.push({
          number: Number(number),
          name: property,
          kind,
          list: isList,
          packed: packed !== "",
          oneof,
          message: messages.get(type),
          values,
        });
        if (!isList && oneof === undefined && kind !== Kind.message) zeros[property] = zeroOf(kind, values);
      }
      fields.sort((a, b) => a.number - b.number);
      for (const field of fields) byNumber.set(field.number, field);
    });
  }
  for (const fill of build) fill();
  return { messages, enums };
}

export const messageDesc = <T extends Message>({ messages }: GenFile, name: string): GenMessage<T> => messages.get(name) as GenMessage<T>;

export const enumDesc = <T extends number>({ enums }: GenFile, name: string): GenEnum<T> => enums.get(name) as GenEnum<T>;

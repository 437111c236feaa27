// Descriptors of messages as protobuf-es takes them, from a table: a line for each message or enum, "Name field=NUMBER"
// or "Name VALUE", which scripts/onnx-proto.ts writes into what protoc-gen-es generates. protobuf-es makes them of a
// serialized FileDescriptorProto, by the messages of descriptor.proto: more code than all the rest of it, and several
// times the memory. As much as onnx.proto has: proto2 without groups, maps, extensions and defaults; what only JSON,
// text and registries of protobuf-es read is left out.
import type { Message } from "@bufbuild/protobuf";
import type { GenEnum, GenFile, GenMessage } from "@bufbuild/protobuf/codegenv2";

/** Values of `ScalarType` by the table's letters. */
const SCALARS: ReadonlyMap<string, number> = new Map([
  ["d", 1],
  ["f", 2],
  ["l", 3],
  ["u", 4],
  ["i", 5],
  ["s", 9],
  ["b", 12],
]);

const EDITION_PROTO2 = 998;
/** Presence of fields: `EXPLICIT` but for lists. */
const [EXPLICIT, IMPLICIT] = [1, 2];

/** name, number, "*" of a list, "+" of a packed one, letter or ":" and a type, "|" and a choice */
const FIELD = /^(\w+)=(\d+)(\*?)(\+?)(?:(\w)|:([\w.]+))(?:\|(\w+))?$/;

interface Described {
  readonly kind: "message" | "enum";
  readonly typeName: string;
}

export interface Descriptors {
  readonly byName: ReadonlyMap<string, Described>;
}

/** @param scope the package */
export function fileDesc(scope: string, table: string): GenFile {
  const byName = new Map<string, Described>();
  const file = { kind: "file", edition: EDITION_PROTO2, name: scope, byName };
  const build: (() => void)[] = [];
  for (const line of table.split("\n")) {
    const [name, ...parts] = line.split(" ");
    const typeName = `${scope}.${name}`;
    const common = { typeName, name: name.split(".").at(-1)!, file, parent: undefined, deprecated: false };
    if (parts.every((part) => /^\d+$/.test(part))) {
      byName.set(name, { kind: "enum", ...common, open: false, values: parts.map((number) => ({ number: Number(number) })) } as Described);
      continue;
    }
    const [fields, oneofs, members]: Record<string, unknown>[][] = [[], [], []];
    const message = { kind: "message" as const, ...common, fields, oneofs, members, toString: () => `message ${typeName}` };
    byName.set(name, message);
    // types may stand further on
    build.push(() => {
      for (const [, localName, number, list, packed, letter, type, choice] of parts.map((part) => FIELD.exec(part)!)) {
        const target = byName.get(type);
        const held = target?.kind ?? "scalar";
        let oneof = oneofs.find((one) => one.localName === choice);
        if (oneof === undefined && choice !== undefined) {
          oneof = { kind: "oneof", localName: choice, name: choice, fields: [], parent: message };
          oneofs.push(oneof);
          members.push(oneof);
        }
        const field = {
          kind: "field",
          ...{ localName, name: localName, number: Number(number), parent: message, oneof, deprecated: false },
          fieldKind: list === "" ? held : "list",
          listKind: list === "" ? undefined : held,
          scalar: SCALARS.get(letter),
          message: held === "message" ? target : undefined,
          enum: held === "enum" ? target : undefined,
          packed: packed !== "",
          presence: list === "" ? EXPLICIT : IMPLICIT,
          ...{ delimitedEncoding: false, longAsString: false, utf8Validation: false, getDefaultValue: () => undefined },
          toString: () => `field ${typeName}.${localName}`,
        };
        fields.push(field);
        if (oneof === undefined) members.push(field);
        else (oneof.fields as object[]).push(field);
      }
    });
  }
  for (const fill of build) fill();
  return file as unknown as GenFile;
}

const named = (file: GenFile, name: string): unknown => (file as unknown as Descriptors).byName.get(name);

export const messageDesc = <T extends Message>(file: GenFile, name: string): GenMessage<T> => named(file, name) as GenMessage<T>;

export const enumDesc = <T extends number>(file: GenFile, name: string): GenEnum<T> => named(file, name) as GenEnum<T>;

// Descriptors from the table against those that protobuf-es makes of the serialized onnx.proto: schemas, and messages
// through both; copies by bytes.
import * as es from "@bufbuild/protobuf";
import { fileDesc, type GenMessage } from "@bufbuild/protobuf/codegenv2";
import { describe, expect, it } from "vitest";
import { clone, equals } from "../../src/onnx/file/copy.ts";
import * as pb from "../../src/onnx/file/gen/onnx_pb.ts";
import { random, type Random } from "../helpers/random.ts";
import { ONNX_PROTO } from "../oracle/onnx-proto.ts";

type Any = GenMessage<es.Message>;
const theirs = new Map<string, Any>();
const theirEnums = new Map<string, es.DescEnum>();
const collect = (messages: readonly es.DescMessage[]): void => {
  for (const message of messages) {
    theirs.set(message.typeName, message as Any);
    for (const one of message.nestedEnums) theirEnums.set(one.typeName, one);
    collect(message.nestedMessages);
  }
};
const file = fileDesc(ONNX_PROTO);
collect(file.messages);
for (const one of file.enums) theirEnums.set(one.typeName, one);
const all = Object.values(pb) as { kind?: string; typeName: string }[];
const ours = all.filter((x): x is Any => x.kind === "message");
const theirOf = ({ typeName }: es.DescMessage): Any => theirs.get(typeName)!;

const seen = (field: es.DescField): unknown => ({
  ...{ kind: field.kind, number: field.number, localName: field.localName, fieldKind: field.fieldKind, scalar: field.scalar },
  listKind: field.fieldKind === "list" ? field.listKind : undefined,
  packed: field.fieldKind === "list" && field.packed,
  delimited: "delimitedEncoding" in field && field.delimitedEncoding === true,
  longAsString: "longAsString" in field && field.longAsString === true,
  message: field.message?.typeName,
  enum: field.enum?.typeName,
  oneof: field.oneof?.localName,
  parent: field.parent.typeName,
  presence: field.presence,
  utf8Validation: field.utf8Validation,
  zero: "getDefaultValue" in field ? field.getDefaultValue?.() : undefined,
});

const memberNames = ({ members }: es.DescMessage): string[] => members.map(({ kind, localName }) => `${kind} ${localName}`);

const STRINGS = ["", "x", "Größe", "名前", "\ufeffmark", "c".repeat(200), "é".repeat(60)];
const LONGS = [0n, 1n, -1n, 127n, 128n, 2n ** 32n, -(2n ** 32n), 2n ** 63n - 1n, -(2n ** 63n)];
const pick = <T>(rng: Random, list: readonly T[]): T => list[rng.integer(list.length)];

/** A value of a field, as `create` takes it. */
function valueOf(rng: Random, field: es.DescField, depth: number): unknown {
  if (field.message !== undefined) return initOf(rng, field.message, depth - 1);
  if (field.enum !== undefined) return pick(rng, field.enum.values).number;
  switch (field.scalar) {
    case es.ScalarType.STRING:
      return pick(rng, STRINGS);
    case es.ScalarType.BYTES:
      return Uint8Array.from({ length: rng.integer(300) }, (_, i) => i);
    case es.ScalarType.INT64:
      return pick(rng, LONGS);
    case es.ScalarType.UINT64:
      return BigInt.asUintN(64, pick(rng, LONGS));
    case es.ScalarType.INT32:
      return pick(rng, [0, 1, -1, 300, 2 ** 31 - 1, -(2 ** 31)]);
    default:
      return pick(rng, [0, -0, 1.5, 65504, Infinity]);
  }
}

function initOf(rng: Random, schema: es.DescMessage, depth: number): Record<string, unknown> {
  const init: Record<string, unknown> = {};
  for (const field of schema.fields) {
    if (rng.next() < 0.4 || (field.message !== undefined && depth <= 0)) continue;
    const one = (): unknown => valueOf(rng, field, depth);
    const value = field.fieldKind === "list" ? Array.from({ length: rng.integer(4) }, one) : one();
    if (field.oneof === undefined) init[field.localName] = value;
    else init[field.oneof.localName] = { case: field.localName, value };
  }
  return init;
}

const plain = (message: object): unknown => structuredClone({ ...message });
const UNKNOWN = [{ no: 300, wireType: 2, data: Uint8Array.of(2, 5, 6) }];

describe("schemas", () => {
  it("are those of protobuf-es: every message, enum, field and choice", () => {
    expect(ours.map(({ typeName }) => typeName).sort()).toEqual([...theirs.keys()].sort());
    for (const schema of ours) {
      const their = theirOf(schema);
      expect(schema.fields.map(seen)).toEqual(their.fields.map(seen));
      expect(memberNames(schema).sort()).toEqual(memberNames(their).sort());
      expect(schema.oneofs.map(({ fields }) => fields.map(({ number }) => number))).toEqual(
        their.oneofs.map(({ fields }) => fields.map(({ number }) => number)),
      );
      expect(schema.file.edition).toBe(their.file.edition);
    }
    const enums = all.filter((x) => x.kind === "enum") as es.DescEnum[];
    expect(enums.map(({ typeName }) => typeName).sort()).toEqual([...theirEnums.keys()].sort());
    for (const { typeName, open, values } of enums) {
      const their = theirEnums.get(typeName)!;
      expect([open, values.map(({ number }) => number)]).toEqual([their.open, their.values.map(({ number }) => number)]);
    }
  });
});

describe("messages", () => {
  it.each(ours.map((schema) => [schema.typeName, schema] as const))("%s: made, written and read the same", (_, schema) => {
    const rng = random(7);
    const [zero, theirZero] = [es.create(schema), es.create(theirOf(schema))] as unknown as Record<string, unknown>[];
    for (const { localName } of schema.fields) {
      expect(zero[localName]).toEqual(theirZero[localName]);
      expect(Object.hasOwn(zero, localName)).toBe(Object.hasOwn(theirZero, localName));
    }
    for (let round = 0; round < 8; round++) {
      const init = initOf(rng, schema, 3);
      const [own, their] = [es.create(schema, init as never), es.create(theirOf(schema), init as never)];
      if (round % 2 === 1) own.$unknown = their.$unknown = UNKNOWN;
      expect(plain(own)).toEqual(plain(their));
      const bytes = es.toBinary(schema, own);
      expect(Buffer.compare(bytes, es.toBinary(theirOf(schema), their))).toBe(0);
      expect(plain(es.fromBinary(schema, bytes))).toEqual(plain(es.fromBinary(theirOf(schema), bytes)));
      expect(plain(clone(schema, own))).toEqual(plain(own));
    }
  });
  it("enum values that are not known are kept beside", () => {
    const read = es.fromBinary(pb.AttributeProtoSchema, Uint8Array.of(0xa0, 1, 99));
    expect(read).toMatchObject({ type: 0, $unknown: [{ no: 20, wireType: 0 }] });
    expect([...es.toBinary(pb.AttributeProtoSchema, read)]).toEqual([0xa0, 1, 99]);
  });
  it("another message in a field is refused", () => {
    const graph = es.create(pb.GraphProtoSchema);
    graph.node.push(es.create(pb.TensorProtoSchema) as never);
    expect(() => es.toBinary(pb.GraphProtoSchema, graph)).toThrow(/cannot use field onnx.NodeProto.input with message onnx.TensorProto/);
  });
});

describe("copies", () => {
  it("share nothing that can be written to, and are equal until they are", () => {
    const own = es.create(pb.TensorProtoSchema, { dims: [2n], rawData: Uint8Array.of(1, 2), segment: { begin: 1n } });
    const copy = clone(pb.TensorProtoSchema, own);
    expect(equals(pb.TensorProtoSchema, own, copy)).toBe(true);
    copy.rawData[0] = 9;
    expect(own.rawData[0]).toBe(1);
    expect(equals(pb.TensorProtoSchema, own, copy)).toBe(false);
    copy.rawData[0] = 1;
    copy.dims.push(3n);
    copy.segment!.begin = 4n;
    expect([own.dims, own.segment!.begin]).toEqual([[2n], 1n]);
    expect(equals(pb.TensorProtoSchema, own, copy)).toBe(false);
  });
});

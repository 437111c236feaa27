// The reader and writer of messages against protobuf-es: schemas, random messages, bytes that
// no encoder writes, damage.
import * as es from "@bufbuild/protobuf";
import { fileDesc, type GenMessage } from "@bufbuild/protobuf/codegenv2";
import { describe, expect, it } from "vitest";
import * as pb from "../../src/onnx/file/gen/onnx_pb.ts";
import { Kind, type Field, type Message, type MessageSchema } from "../../src/onnx/file/proto/descriptor.ts";
import { clone, create, equals, fromBinary, toBinary } from "../../src/onnx/file/proto/index.ts";
import { random, type Random } from "../helpers/random.ts";
import { ONNX_PROTO } from "../oracle/onnx-proto.ts";

const file = fileDesc(ONNX_PROTO);
const theirs = new Map<string, es.DescMessage>();
const collect = (messages: readonly es.DescMessage[]): void => {
  for (const message of messages) {
    theirs.set(message.typeName, message);
    collect(message.nestedMessages);
  }
};
collect(file.messages);
const ours = (Object.values(pb) as object[]).filter((x): x is MessageSchema => "byNumber" in x);
type Any = GenMessage<es.Message>;
const theirOf = ({ typeName }: MessageSchema): Any => theirs.get(typeName) as Any;
const MODEL: MessageSchema = pb.ModelProtoSchema;

const ES_KINDS = new Map<number, string>([
  [es.ScalarType.DOUBLE, Kind.double],
  [es.ScalarType.FLOAT, Kind.float],
  [es.ScalarType.INT64, Kind.int64],
  [es.ScalarType.UINT64, Kind.uint64],
  [es.ScalarType.INT32, Kind.int32],
  [es.ScalarType.STRING, Kind.string],
  [es.ScalarType.BYTES, Kind.bytes],
]);

function kindOf(field: es.DescField): string | undefined {
  if (field.message !== undefined) return Kind.message;
  return field.enum !== undefined ? Kind.enum : ES_KINDS.get(field.scalar!);
}

const STRINGS = ["", "x", "Größe", "名前", "\ufeffmark", "a".repeat(47), "b".repeat(48), "c".repeat(200), "é".repeat(60)];
const LONGS = [0n, 1n, -1n, 127n, 128n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 32n, -(2n ** 32n), 2n ** 53n, 2n ** 63n - 1n, -(2n ** 63n)];
const INTS = [0, 1, -1, 127, 128, 300, 2 ** 31 - 1, -(2 ** 31)];
const FLOATS = [0, -0, 1.5, -2, 65504, Infinity, -Infinity];

const pick = <T>(rng: Random, list: readonly T[]): T => list[rng.integer(list.length)];

/** A value of a field, as `create` takes it. */
function valueOf(rng: Random, field: Field, depth: number): unknown {
  switch (field.kind) {
    case Kind.message:
      return initOf(rng, field.message!, depth - 1);
    case Kind.enum:
      return pick(rng, field.values!);
    case Kind.string:
      return pick(rng, STRINGS);
    case Kind.bytes:
      return Uint8Array.from({ length: rng.integer(300) }, (_, i) => i);
    case Kind.int64:
      return pick(rng, LONGS);
    case Kind.uint64:
      return BigInt.asUintN(64, pick(rng, LONGS));
    case Kind.int32:
      return pick(rng, INTS);
    default:
      return pick(rng, FLOATS);
  }
}

function initOf(rng: Random, schema: MessageSchema, depth: number): Record<string, unknown> {
  const init: Record<string, unknown> = {};
  for (const field of schema.fields) {
    if (rng.next() < 0.4 || (field.message !== undefined && depth <= 0)) continue;
    const value = field.list ? Array.from({ length: rng.integer(4) }, () => valueOf(rng, field, depth)) : valueOf(rng, field, depth);
    if (field.oneof === undefined) init[field.name] = value;
    else init[field.oneof] = { case: field.name, value };
  }
  if (rng.next() < 0.2) init.$unknown = [{ no: 300, wireType: 2, data: Uint8Array.of(2, 5, 6) }];
  return init;
}

/** The message and theirs. */
function pair(rng: Random, schema: MessageSchema): [Message, es.Message] {
  const init = initOf(rng, schema, 4);
  return [create(schema, init as never), es.create(theirOf(schema), init as never)];
}

const plain = (message: object): unknown => structuredClone({ ...message });

describe("schemas", () => {
  it("are those of protobuf-es: every message, field, choice and zero value", () => {
    expect(ours.map(({ typeName }) => typeName).sort()).toEqual([...theirs.keys()].sort());
    for (const schema of ours) {
      const their = theirOf(schema);
      expect(schema.fields.map(({ number }) => number)).toEqual(their.fields.map(({ number }) => number).sort((a, b) => a - b));
      expect(schema.oneofs).toEqual(their.oneofs.map(({ localName }) => localName));
      const [empty, theirEmpty] = [create(schema), es.create(their)] as unknown as Record<string, unknown>[];
      for (const field of their.fields) {
        const own = schema.byNumber.get(field.number)!;
        const isPacked = field.fieldKind === "list" && field.packed;
        expect([own.name, own.kind, own.list, own.packed, own.oneof], `${schema.typeName}.${field.name}`).toEqual([
          field.localName,
          kindOf(field),
          field.fieldKind === "list",
          isPacked,
          field.oneof?.localName,
        ]);
        expect(own.message?.typeName).toBe(field.message?.typeName);
        expect(own.values).toEqual(field.enum?.values.map((value) => value.number));
        expect(empty[own.name]).toEqual(theirEmpty[own.name]);
        expect(Object.hasOwn(empty, own.name)).toBe(Object.hasOwn(theirEmpty, own.name));
      }
    }
  });
});

describe("random messages", () => {
  it.each(ours.map((schema) => [schema.typeName, schema] as const))("%s: made, written and read as by protobuf-es", (_, schema) => {
    const rng = random(7);
    for (let round = 0; round < 12; round++) {
      const [own, their] = pair(rng, schema);
      expect(plain(own)).toEqual(plain(their));
      const bytes = toBinary(schema, own);
      expect(Buffer.compare(bytes, es.toBinary(theirOf(schema), their))).toBe(0);
      const read = fromBinary(schema, bytes);
      expect(plain(read)).toEqual(plain(es.fromBinary(theirOf(schema), bytes)));
      expect(Buffer.compare(toBinary(schema, read), bytes)).toBe(0);
      const copy = clone(schema, read);
      expect(plain(copy)).toEqual(plain(read));
      expect(equals(schema, copy, read)).toBe(true);
      const [other, theirOther] = pair(rng, schema);
      expect(equals(schema, own, other)).toBe(es.equals(theirOf(schema), their, theirOther));
    }
  });
  it("a copy shares nothing that can be written to", () => {
    const own = create(pb.TensorProtoSchema, { dims: [2n], rawData: Uint8Array.of(1, 2), segment: { begin: 1n } });
    const copy = clone(pb.TensorProtoSchema, own);
    copy.dims[0] = 3n;
    copy.rawData[0] = 9;
    copy.segment!.begin = 4n;
    expect([own.dims[0], own.rawData[0], own.segment!.begin]).toEqual([2n, 1, 1n]);
    expect(equals(pb.TensorProtoSchema, own, copy)).toBe(false);
  });
  it("a message is taken as it is", () => {
    const node = create(pb.NodeProtoSchema, { opType: "Relu" });
    expect(create(pb.NodeProtoSchema, node)).toBe(node);
    expect(create(pb.GraphProtoSchema, { node: [node] }).node[0]).toBe(node);
  });
});

describe("bytes that no encoder writes", () => {
  const both = (schema: MessageSchema, bytes: number[]): unknown => {
    const read = fromBinary(schema, Uint8Array.from(bytes));
    const their = es.fromBinary(theirOf(schema), Uint8Array.from(bytes));
    expect(plain(read)).toEqual(plain(their));
    expect(Buffer.compare(toBinary(schema, read), es.toBinary(theirOf(schema), their))).toBe(0);
    return read;
  };
  it("numbers longer than they need to be, and negative ones", () => {
    expect(both(MODEL, [0x08, 0x88, 0x80, 0x80, 0x00])).toMatchObject({ irVersion: 8n });
    expect(both(pb.TensorProtoSchema, [0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01])).toMatchObject({ dataType: -1 });
  });
  it("lists packed or not, whatever the schema writes", () => {
    expect(both(pb.TensorProtoSchema, [0x0a, 2, 1, 2, 0x08, 3])).toMatchObject({ dims: [1n, 2n, 3n] });
    expect(both(pb.TensorProtoSchema, [0x25, 0, 0, 0x80, 0x3f, 0x22, 4, 0, 0, 0, 0x40])).toMatchObject({ floatData: [1, 2] });
  });
  it("messages and choices that come twice", () => {
    // type.tensor { elem_type 1 }, then type.tensor { shape }: merged; then type.sequence: in its place
    expect(both(pb.TypeProtoSchema, [0x0a, 2, 8, 1, 0x0a, 2, 0x12, 0])).toMatchObject({ value: { case: "tensorType", value: { elemType: 1 } } }); // prettier-ignore
    expect(both(pb.TypeProtoSchema, [0x0a, 2, 8, 1, 0x22, 0])).toMatchObject({ value: { case: "sequenceType" } });
    expect(both(MODEL, [0x3a, 3, 0x12, 1, 97, 0x3a, 3, 0x52, 1, 98])).toMatchObject({ graph: { name: "a", docString: "b" } });
  });
  it("enum values that are not known, fields and groups", () => {
    expect(both(pb.AttributeProtoSchema, [0xa0, 1, 99])).toMatchObject({ type: 0, $unknown: [{ no: 20, wireType: 0 }] });
    both(MODEL, [0xa3, 6, 8, 7, 0x12, 1, 65, 0x1b, 0x0d, 1, 2, 3, 4, 0x1c, 0xa4, 6]);
    both(MODEL, [0xc1, 0x0c, 1, 2, 3, 4, 5, 6, 7, 8, 0xc5, 0x0c, 1, 2, 3, 4]);
  });
  it("text that is not UTF-8", () => void both(pb.NodeProtoSchema, [0x1a, 3, 0x61, 0xff, 0x62]));
  it("a known field of another wire type is kept, as the specification has it", () => {
    const bytes = Uint8Array.of(0x0a, 2, 1, 2, 0x08, 5);
    const read = fromBinary(pb.ModelProtoSchema, bytes);
    expect(read).toMatchObject({ irVersion: 5n, $unknown: [{ no: 1, wireType: 2, data: Uint8Array.of(2, 1, 2) }] });
    expect([...toBinary(pb.ModelProtoSchema, read)]).toEqual([0x08, 5, 0x0a, 2, 1, 2]);
  });
});

describe("damage", () => {
  it("a message cut short is refused, but where a field ends", () => {
    const rng = random(3);
    const [own] = pair(rng, pb.TensorProtoSchema);
    const bytes = toBinary(pb.TensorProtoSchema as MessageSchema, own);
    let refused = 0;
    for (let end = 0; end < bytes.length; end++)
      try {
        const read = fromBinary(pb.TensorProtoSchema, bytes.subarray(0, end));
        expect(toBinary(pb.TensorProtoSchema, read).length).toBeLessThanOrEqual(end);
      } catch (error) {
        expect(error).toBeInstanceOf(RangeError);
        refused++;
      }
    expect(refused).toBeGreaterThan(bytes.length / 2);
  });
  it.each([
    ["a child longer than its message", [0x3a, 9, 0x12, 1, 97]],
    ["a child's field longer than the child", [0x3a, 3, 0x12, 9, 97, 1, 2, 3, 4, 5, 6, 7, 8, 9]],
    ["field 0", [0, 1]],
    ["a field number past 2^29", [0x80, 0x80, 0x80, 0x80, 0x10, 1]],
    ["an endless number", [0x08, ...new Array<number>(11).fill(0x80)]],
    ["the end of a group that never began", [0xa4, 6]],
    ["a group that ends as another", [0xa3, 6, 0xac, 6]],
    ["an impossible wire type", [0x0e, 1]],
    ["a number beyond the end", [0x08]],
  ])("%s", (_, bytes) => {
    expect(() => fromBinary(pb.ModelProtoSchema, Uint8Array.from(bytes))).toThrow(RangeError);
  });
  it("nesting has an end", () => {
    // attribute { g { node { attribute { ...
    let bytes: Uint8Array = Uint8Array.of();
    const field = (tag: number, inner: Uint8Array): Uint8Array => {
      const length = inner.length < 128 ? [inner.length] : [(inner.length & 127) | 128, inner.length >> 7];
      return Uint8Array.from([tag, ...length, ...inner]);
    };
    const levels = (count: number): void => {
      bytes = Uint8Array.of();
      for (let i = 0; i < count; i++) bytes = field(0x2a, field(0x32, field(0x0a, bytes)));
    };
    levels(32);
    expect(fromBinary(pb.NodeProtoSchema, bytes).attribute).toHaveLength(1);
    levels(34);
    expect(() => fromBinary(pb.NodeProtoSchema, bytes)).toThrow(/nested more than 100/);
  });
  it.each([
    ["a number for a bigint", pb.TensorProtoSchema, { dims: [1] }, /dims: expected a bigint of 64 bits, got 1/],
    ["a bigint of 65 bits", pb.TensorProtoSchema, { dims: [2n ** 63n] }, /dims: expected a bigint of 64 bits/],
    ["a fraction", pb.TensorProtoSchema, { dataType: 1.5 }, /dataType: expected an integer of 32 bits, got 1.5/],
    ["a float past float32", pb.TensorProtoSchema, { floatData: [1e39] }, /floatData: expected a float32, got 1e\+39/],
    ["text for a number", pb.TensorProtoSchema, { doubleData: ["1"] }, /doubleData: expected a number, got 1/],
    ["text for bytes", pb.TensorProtoSchema, { rawData: "x" }, /rawData: expected a Uint8Array, got x/],
  ])("values that are none of their field: %s", (_, schema, init, message) => {
    expect(() => toBinary(schema as MessageSchema, create(schema as MessageSchema, init as never))).toThrow(message);
  });
  it("another message in its place", () => {
    const graph = create(pb.GraphProtoSchema);
    graph.node.push(create(pb.TensorProtoSchema) as never);
    expect(() => toBinary(pb.GraphProtoSchema, graph)).toThrow(/expected onnx.NodeProto, got onnx.TensorProto/);
  });
});

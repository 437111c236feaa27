// The messages of ONNX as the scanner walks them, from protobuf-es' description of onnx.proto: which fields hold
// messages, and about how much memory a decoded message takes, so that a small file cannot ask for a large heap.
import type { DescField, DescMessage } from "@bufbuild/protobuf";
import { ModelProtoSchema } from "./gen/onnx_pb.ts";

/** A kind of message. */
export interface MessageSchema {
  /** For people: "graph", "node". */
  readonly name: string;
  /** Fields that hold messages. */
  readonly children: ReadonlyMap<number, MessageSchema>;
  /** All fields that onnx.proto knows. */
  readonly fields: ReadonlySet<number>;
  /**
   * Bytes of heap that an empty one takes once decoded, measured: 64, 40 for each repeated field, 32 for each oneof.
   */
  readonly cost: number;
}

/** Bytes of heap of a field that onnx.proto does not know; it is kept, to be written back. */
export const UNKNOWN_FIELD_COST = 160;

function messageOf(field: DescField): DescMessage | undefined {
  if (field.fieldKind === "message") return field.message;
  return field.fieldKind === "list" && field.listKind === "message" ? field.message : undefined;
}

/** "graph" of GraphProto, "value info" of ValueInfoProto, "type.tensor" of TypeProto.Tensor. */
const shortName = (desc: DescMessage): string =>
  desc.typeName
    .replace(/^onnx\./, "")
    .replaceAll("Proto", "")
    .replace(/(?<=[a-z])(?=[A-Z])/g, " ")
    .toLowerCase();

/** The schema of a message and of all that it can hold; messages hold each other in circles. */
function build(root: DescMessage): MessageSchema {
  const made = new Map<string, MessageSchema & { children: Map<number, MessageSchema> }>();
  const of = (desc: DescMessage): MessageSchema & { children: Map<number, MessageSchema> } => {
    let schema = made.get(desc.typeName);
    if (schema === undefined) {
      const lists = desc.fields.filter((field) => field.fieldKind === "list").length;
      schema = {
        name: shortName(desc),
        children: new Map(),
        fields: new Set(desc.fields.map((field) => field.number)),
        cost: 64 + 40 * lists + 32 * desc.oneofs.length,
      };
      made.set(desc.typeName, schema);
      for (const field of desc.fields) {
        const child = messageOf(field);
        if (child !== undefined) schema.children.set(field.number, of(child));
      }
    }
    return schema;
  };
  return of(root);
}

let model: MessageSchema | undefined;

/** The schema of ModelProto. */
export const modelSchema = (): MessageSchema => (model ??= build(ModelProtoSchema));

// The few facts of the protobuf wire format that the scanner and the writer need: varints, and which ONNX messages hold
// which. Field numbers: onnx.proto (proto2). Everything else about messages is left to protobuf-es.

/** Message kinds on the path from ModelProto to a TensorProto. */
export type MessageKind = "model" | "graph" | "node" | "attribute" | "tensor" | "sparse" | "function" | "training";

/** For each kind, the length-delimited fields that can hold a tensor somewhere below. */
export const CHILDREN: Readonly<Record<MessageKind, Readonly<Record<number, MessageKind>>>> = {
  model: { 7: "graph", 20: "training", 25: "function" },
  graph: { 1: "node", 5: "tensor", 15: "sparse" },
  node: { 5: "attribute" },
  attribute: { 5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse" },
  tensor: {},
  sparse: { 1: "tensor", 2: "tensor" },
  function: { 7: "node", 11: "attribute" },
  training: { 1: "graph", 2: "graph" },
};

/** Bytes of `value` as a varint; `value` is a safe non-negative integer. */
export function varintSize(value: number): number {
  let size = 1;
  while (value >= 128) {
    value = Math.floor(value / 128);
    size++;
  }
  return size;
}

export function writeVarint(value: number): Uint8Array {
  const out = new Uint8Array(varintSize(value));
  for (let i = 0; i < out.length; i++) {
    out[i] = (value % 128) | (i + 1 < out.length ? 128 : 0);
    value = Math.floor(value / 128);
  }
  return out;
}

/** Tag and length of a length-delimited field. */
export function fieldHeader(field: number, length: number): Uint8Array {
  const tag = writeVarint(field * 8 + 2);
  const size = writeVarint(length);
  const out = new Uint8Array(tag.length + size.length);
  out.set(tag);
  out.set(size, tag.length);
  return out;
}

/**
 * Reads the varint at `pos`. Returns [value, next]; value is NaN past 2^53, next is -1 where the varint does not end
 * inside `bytes`.
 */
export function readVarint(bytes: Uint8Array, pos: number): [value: number, next: number] {
  let value = 0;
  let scale = 1;
  for (let i = 0; i < 10; i++) {
    if (pos >= bytes.length) return [NaN, -1];
    const byte = bytes[pos++];
    value += (byte & 127) * scale;
    if (byte < 128) return [value <= Number.MAX_SAFE_INTEGER ? value : NaN, pos];
    scale *= 128;
  }
  return [NaN, -1];
}

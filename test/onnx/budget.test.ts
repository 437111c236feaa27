// Small files that ask for much: empty messages, unknown fields, depth; and models of many nodes, which are read and
// written in linear time.
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { isLowbitError } from "../../formats/core/errors.ts";
import { readModelBytes, writeModelBytes } from "../../src/onnx/index.ts";
import { T, encode, graph, matmulModel, model, node, raw, value, weights } from "./build.ts";

const varint = (n: number): number[] => (n < 128 ? [n] : [(n % 128) | 128, ...varint(Math.floor(n / 128))]);
const field = (number: number, body: Uint8Array): Uint8Array => {
  const head = [...varint(number * 8 + 2), ...varint(body.length)];
  const out = new Uint8Array(head.length + body.length);
  out.set(head);
  out.set(body, head.length);
  return out;
};
const join = (...parts: Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(parts));
const small = (): Uint8Array => encode(matmulModel(raw("w", [8, 4], weights(32)), 8, 4));

const times = (count: number, bytes: number[]): Uint8Array => {
  const out = new Uint8Array(count * bytes.length);
  for (let i = 0; i < count; i++) out.set(bytes, i * bytes.length);
  return out;
};

describe("messages that cost far more than their bytes", () => {
  it.each([
    ["empty nodes", field(7, times(1 << 21, [0x0a, 0]))],
    ["empty attributes", field(7, field(1, times(1 << 21, [0x2a, 0])))],
    ["empty dimensions", field(7, field(11, field(2, field(1, field(2, times(1 << 22, [0x0a, 0]))))))],
    ["unknown fields", times(1 << 21, [0xf8, 1, 0])],
  ])("%s are refused before they are decoded", (_, bytes) => {
    const before = process.memoryUsage.rss();
    let error: unknown;
    try {
      readModelBytes(join(small(), bytes));
    } catch (caught) {
      error = caught;
    }
    expect(isLowbitError(error) && error.code, String(error)).toBe("E_ONNX");
    expect((error as Error).message).toMatch(/for each byte of the file/);
    expect(process.memoryUsage.rss() - before).toBeLessThan((64 << 20) + 40 * bytes.length);
  });
});

describe("depth", () => {
  const nested = (levels: number, wrap: (inner: Uint8Array) => Uint8Array): Uint8Array => {
    let bytes: Uint8Array = new Uint8Array(0);
    for (let i = 0; i < levels; i++) bytes = wrap(bytes);
    return bytes;
  };
  it.each([
    [
      "graphs in attributes",
      field(
        7,
        nested(3000, (inner) => field(1, field(5, field(6, inner)))),
      ),
    ],
    [
      "sequence types",
      field(
        7,
        field(
          11,
          field(
            2,
            nested(2000, (inner) => field(4, field(1, inner))),
          ),
        ),
      ),
    ],
    ["groups", times(5000, [0xa3, 6])],
  ])("%s are refused clearly", (_, bytes) => {
    expect(() => readModelBytes(join(small(), bytes))).toThrow(/nested more than/);
  });
});

describe("protobuf, as its other readers take it", () => {
  it("a group of an unknown field is kept", () => {
    // Field 100 as a group that holds a number, a string and another group.
    const group = Uint8Array.from([0xa3, 6, 8, 7, 0x12, 1, 65, 0x1b, 0x0d, 1, 2, 3, 4, 0x1c, 0xa4, 6]);
    const opened = readModelBytes(join(small(), group));
    opened.proto.docString = "changed";
    expect(Buffer.from(writeModelBytes(opened)).includes(Buffer.from(group))).toBe(true);
    expect(() => readModelBytes(join(small(), group.subarray(0, 9)))).toThrow(/truncated/);
    expect(() => readModelBytes(join(small(), Uint8Array.from([0xa3, 6, 0xac, 6])))).toThrow(/wire type 4/);
  });
  it("a graph in two parts is merged", () => {
    const whole = graph({
      input: [value("x", T.FLOAT, [1, 8])],
      output: [value("y", T.FLOAT, [1, 4])],
      initializer: [raw("w", [8, 4], weights(32))],
      node: [node("MatMul", ["x", "w"], ["y"])],
    });
    const [first, second] = [{ ...whole, node: [] }, graph({ node: whole.node })].map((part) => encode(model(part)));
    const merged = readModelBytes(join(first, second)).proto.graph!;
    expect([merged.node.length, merged.initializer.length, merged.input.length]).toEqual([1, 1, 1]);
  });
  it("the small fixtures still read", () => {
    expect(
      readModelBytes(readFileSync(new URL("../fixtures/fashion-cnn/fashion_cnn.onnx", import.meta.url))).proto.graph!.node.length,
    ).toBeGreaterThan(3);
  });
});

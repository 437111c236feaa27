// Corners of small functions: what is asked for and how often, what a text says, what comes behind what.
import { toBinary } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { checkFeeds } from "../../src/onnx/calibrate/feeds.ts";
import { insertAfter, insertBefore, removeNode } from "../../src/onnx/edit.ts";
import { TensorProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { foreignKind } from "../../src/onnx/file/kinds.ts";
import { buildScopes } from "../../src/onnx/graph/graph.ts";
import { readModelBytes, type QuantizeModelOptions } from "../../src/onnx/index.ts";
import { checkOptions } from "../../src/onnx/option-table.ts";
import { smallest } from "../../src/onnx/sensitivity.ts";
import { T, encode, graph, matmulModel, model, node, raw, value, weights } from "./build.ts";

describe("the smallest count that is enough", () => {
  test("of every number of layers, from every guess: never one that is known, and the right one", async () => {
    for (let most = 1; most <= 12; most++)
      for (let guess = 0; guess <= most + 1; guess++)
        for (let enough = 1; enough <= most; enough++) {
          const asked: number[] = [];
          const found = await smallest(most, guess, () => 100, async (count) => asked.push(count) > 0 && count >= enough); // prettier-ignore
          expect([most, guess, found]).toEqual([most, guess, enough]);
          expect(asked.every((count) => count >= 1 && count < most)).toBe(true);
          expect(new Set(asked).size).toBe(asked.length);
        }
  });
  test("without runs left it is the best that was seen", async () => {
    let left = 2;
    const asked: number[] = [];
    expect(await smallest(100, 50, () => left--, async (count) => asked.push(count) > 0 && count >= 20)).toBe(49); // prettier-ignore
    expect(asked).toEqual([50, 49]);
  });
});

test("nodes go before, behind and out where they are asked to, in their order", () => {
  const chain = ["a", "b", "c"].map((name, i) => node("Relu", [["x", "a", "b"][i]], [name], {}, name));
  const opened = readModelBytes(encode(model(graph({ input: [value("x", T.FLOAT, [1])], output: [value("c", T.FLOAT, [1])], node: chain })))); // prettier-ignore
  const [scope] = buildScopes(opened);
  const order = (): string => scope.graph.node.map(({ name }) => name).join("");
  const made = (...names: string[]) => names.map((name) => node("Abs", ["x"], [name], {}, name));
  const [a, b, c] = scope.graph.node;
  insertAfter(scope, b, made("p", "q"));
  expect(order()).toBe("abpqc");
  insertBefore(scope, b, made("r", "s"));
  expect(order()).toBe("arsbpqc");
  insertAfter(scope, c, made("t"));
  insertAfter(scope, a, made("u"));
  insertBefore(scope, a, made("v"));
  expect(order()).toBe("vaursbpqct");
  for (const name of "pqrstuv") expect(scope.producers.get(name)?.name).toBe(name);
  removeNode(scope, b);
  expect([order(), scope.producers.has("b")]).toEqual(["vaurspqct", false]);
  removeNode(scope, b);
  expect(order()).toBe("vaurspqct");
});

describe("tensors on the wire", () => {
  const varint = (n: number): number[] => (n < 128 ? [n] : [(n & 127) | 128, ...varint(n >>> 7)]);
  const field = (number: number, bytes: Uint8Array): number[] => [...varint(number * 8 + 2), ...varint(bytes.length), ...bytes];
  /** A model with a tensor that has these fields of data, by number and length. */
  const opened = (type: number, fields: [number, number][]) => {
    const tensor = [...toBinary(TensorProtoSchema, raw("d", [256], new Uint8Array(0), type)), ...fields.flatMap(([number, bytes]) => field(number, new Uint8Array(bytes)))]; // prettier-ignore
    const rest = encode(matmulModel(raw("w", [64, 32], weights(2048)), 64, 32));
    return readModelBytes(Uint8Array.from([...rest, ...field(7, Uint8Array.from(field(5, Uint8Array.from(tensor))))]));
  };
  test("the numbers of one tensor are in one field of its data", () => {
    expect(opened(T.FLOAT, [[9, 1024]]).proto.graph!.initializer).toHaveLength(2);
    expect(opened(T.FLOAT, [[4, 1024]]).proto.graph!.initializer).toHaveLength(2);
    for (const first of [4, 5, 7, 9, 10, 11])
      for (const second of [4, 5, 7, 9, 10, 11])
        expect(() => opened(T.FLOAT, [[first, 1024], [second, 1024]]), `${first}, ${second}`).toThrow("a second payload in one tensor"); // prettier-ignore
  });
});

test("what is no model is called by what it is, text by all of its bytes", () => {
  const kind = (text: string): string | undefined => foreignKind(Uint8Array.from(text, (c) => c.charCodeAt(0)))?.what;
  const sixteen = "just sixteen chr";
  expect([kind(sixteen), kind(sixteen.slice(1)), kind("a longer line of text\nand\tanother\r\n")]).toEqual(["text", undefined, "text"]); // prettier-ignore
  for (let code = 0; code < 256; code++) {
    const plain = (code >= 32 && code < 127) || [9, 10, 13].includes(code);
    expect([code, kind(`sixteen and some${String.fromCharCode(code)}more`)]).toEqual([code, plain ? "text" : undefined]);
  }
});

describe("feeds", () => {
  const check = (shape: (number | string)[], dims: number[], name = "x") => {
    const data = new Float32Array(dims.reduce((a, b) => a * b, 1));
    return () => checkFeeds({ [name]: { type: "float32", data, dims } } as never, [{ name, type: "float32", shape }] as never, "here");
  };
  test.each<[(number | string)[], number[], string]>([
    [["n"], [2, 3], "1 dimensions [n]"],
    [["n"], [], "1 dimensions [n]"],
    [["n", 3], [3], "2 dimensions [n, 3]"],
    [["n", 3], [1, 2, 3], "2 dimensions [n, 3]"],
    [["n", 3], [2, 4], "Dimension 1 is 3 in the model"],
    [[2, 3], [1, 3], "Dimension 0 is 2 in the model"],
    [[0], [1], "Dimension 0 is 0 in the model"],
    [["n"], [0], "an empty array [0]"],
  ])("of an input %j: %j is refused", (shape, dims, text) => {
    expect(check(shape, dims)).toThrow(text);
  });
  test.each<[(number | string)[], number[], string?]>([
    [["n"], [2]],
    [
      [-1, 3],
      [5, 3],
    ],
    [[], [2, 3]],
    [[], []],
    [["n"], [0], "past_keys"],
  ])("of an input %j: %j is taken", (shape, dims, name) => {
    expect(check(shape, dims, name)).not.toThrow();
  });
});

test("an option that is refused is quoted as it was given, long ones in part", () => {
  const text = (options: object): string => {
    try {
      checkOptions(options as QuantizeModelOptions);
    } catch (error) {
      return (error as Error).message;
    }
    return "";
  };
  expect(text({ dtype: "q4", include: 5 })).toMatch(/, got 5$/);
  expect(text({ dtype: "q4", force: "yes" })).toMatch(/, got "yes"$/);
  expect(text({ dtype: "q4", force: { a: [1] } })).toMatch(/, got \{"a":\[1\]\}$/);
  expect(text({ dtype: "q4", force: () => 1 })).toMatch(/, got a function$/);
  expect(text({ dtype: "q4", force: /a"b/ })).toMatch(/, got \/a"b\/$/);
  expect(text({ dtype: "q4", force: Symbol("s") })).toMatch(/, got Symbol\(s\)$/);
  expect(text({ dtype: "q4", force: "x".repeat(200) }).split(", got ")[1]).toBe(`"${"x".repeat(79)}`);
});

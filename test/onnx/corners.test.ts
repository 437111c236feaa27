// Corners of small functions: what is asked for and how often, what a text says, what comes behind what.
import { toBinary } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { checkFeeds, nestedFeed, sampleFeeds } from "../../src/onnx/calibrate/feeds.ts";
import { insertAfter, insertBefore, removeNode } from "../../src/onnx/edit.ts";
import { TensorProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { foreignKind } from "../../src/onnx/file/kinds.ts";
import { buildScopes } from "../../src/onnx/graph/graph.ts";
import { readModelBytes, type QuantizeModelOptions } from "../../src/onnx/index.ts";
import { checkOptions } from "../../src/onnx/option-table.ts";
import { smallest } from "../../src/onnx/sensitivity.ts";
import { keepTexts } from "./kept.ts";
import { T, encode, graph, matmulModel, model, node, raw, value, weights } from "./build.ts";

describe("the smallest count that is enough", () => {
  test("of every number of layers, from every guess: never one that is known, and the right one", async () => {
    const said: string[] = [];
    for (let most = 1; most <= 12; most++)
      for (let guess = 0; guess <= most + 1; guess++)
        for (let enough = 1; enough <= most; enough++) {
          const asked: number[] = [];
          const found = await smallest(most, guess, () => 100, async (count) => asked.push(count) > 0 && count >= enough); // prettier-ignore
          expect([most, guess, found]).toEqual([most, guess, enough]);
          expect(asked.every((count) => count >= 1 && count < most)).toBe(true);
          expect(new Set(asked).size).toBe(asked.length);
          said.push(`${most} ${guess} ${enough}: ${asked.join(" ")}`);
        }
    keepTexts(...said);
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
  const known: [string, string][] = [
    ["version https://git-lfs.github.com/", "a Git LFS pointer"],
    ["version https://hawser.github.com/", "a Git LFS pointer"],
    ["\x1f\x8b", "a gzip file"],
    ["PK\x03\x04", "a zip archive"],
    ["PK\x05\x06", "an empty zip archive"],
    ["\x28\xb5\x2f\xfd", "a zstd file"],
    ["\xfd7zXZ\0", "an xz file"],
    ["BZh", "a bzip2 file"],
    ["7z\xbc\xaf\x27\x1c", "a 7z archive"],
    [`${"\0".repeat(257)}ustar`, "a tar archive"],
    ["abcdORTM", "a model in ORT format"],
    ["abcdTFL3", "a TFLite model"],
    ["GGUF", "a GGUF file"],
    ["GGML", "a ggml file"],
    ["\x89HDF\r\n", "an HDF5 file"],
    ["\x93NUMPY", "a NumPy array"],
    ["%PDF", "a PDF"],
    ["\x89PNG", "a PNG image"],
    ["\x7fELF", "a program (ELF)"],
    ["\x80\x02", "a Python pickle (an old PyTorch checkpoint)"],
    ["\x80\x03", "a Python pickle"],
    ["\x80\x04", "a Python pickle"],
    ['\x10\x20\0\0\0\0\0\0{"', "a safetensors file"],
    ["\x02\0\0\0\0\0\0\0{}", "a safetensors file"],
    ["\xef\xbb\xbf \n<!DOCTYPE HTML>", "an HTML page"],
    ["<head>", "an HTML page"],
    ["<?xml", "an XML file"],
    ["<net ", "an XML file"],
    ["< ir_version: 8", "a model in ONNX's text form"],
    ['{"error', "a JSON file"],
    ["[1", "a JSON file"],
  ];
  for (const [head, what] of known) {
    for (const tail of ["", "\x01\x02"]) expect([head, kind(head + tail)?.slice(0, what.length)]).toEqual([head, what]);
    if (!/^[ <{[\xef]/.test(head)) expect([head, kind(head.slice(0, -1))?.startsWith(what) ?? false]).toEqual([head, false]);
  }
  expect(kind('\x10\x20\0\0\0\0\0\x01{"')).toBeUndefined();
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

describe("nested arrays as feeds", () => {
  const inputs = [{ name: "x", type: "float32", shape: ["b", 2] }, { name: "ids", type: "int64", shape: ["b"] }, { name: "on", type: "bool", shape: [] }] as never; // prettier-ignore
  const feed = (object: unknown) => nestedFeed(object, inputs, "line 3");
  test("have the type of their input; a batch of one may be left out", () => {
    expect(feed({ x: [[1, 2], [3, 4.5]], ids: [7, -1, 0], on: true })).toEqual({
      x: { type: "float32", data: Float32Array.of(1, 2, 3, 4.5), dims: [2, 2] },
      ids: { type: "int64", data: BigInt64Array.of(7n, -1n, 0n), dims: [3] },
      on: { type: "bool", data: Uint8Array.of(1), dims: [] },
    }); // prettier-ignore
    expect(feed({ x: [1, 2], ids: 5 })).toMatchObject({ x: { dims: [1, 2] }, ids: { dims: [1] } });
    expect(feed({ x: [[], []] })).toMatchObject({ x: { dims: [2, 0] } });
    expect(feed({ y: [[1]] })).toMatchObject({ y: { dims: [1, 1] } });
  });
  const deep = (depth: number): unknown => JSON.parse("[".repeat(depth) + "1" + "]".repeat(depth));
  test.each<[unknown, string]>([
    [null, 'line 3: expected an object of arrays by input name'],
    [[1], "got an array"],
    ["x", "got string"],
    [{ x: [[1, 2], [3]] }, "a ragged array"],
    [{ x: [[1, 2], [3], [4, 5, 6]] }, "a ragged array"],
    [{ x: [[1, 2], [3, [4]]] }, "a ragged array"],
    [{ x: [[1, 2], 3, 4] }, "a ragged array"],
    [{ x: [["1", 2]] }, "a ragged array"],
    [{ x: [[null, 2]] }, "a ragged array"],
    [{ x: {} }, "a ragged array"],
    [{ x: deep(5000) }, "a ragged array"],
    [{ ids: [1.5] }, "got fractions"],
  ])("%# is refused", (object, text) => {
    expect(() => feed(object)).toThrow(text);
  }); // prettier-ignore
});

describe("arrays of samples", () => {
  const f32 = (dims: number[]) => ({ type: "float32", data: Float32Array.from({ length: dims.reduce((a, b) => a * b, 1) }, (_, i) => i), dims }); // prettier-ignore
  const cut = (arrays: Record<string, number[]>, shapes: Record<string, (number | string)[]>) => {
    const inputs = Object.entries(shapes).map(([name, shape]) => ({ name, type: "float32", shape }));
    const given = new Map(Object.entries(arrays).map(([name, dims]) => [name, f32(dims)]));
    return [...sampleFeeds(given, inputs as never, "a.npz")].map((feed) => Object.values(feed).map(({ dims, data }) => [...dims, Number((data as Float32Array)[0])])); // prettier-ignore
  };
  test("are cut along the batch: into eights, what the model fixes, or whole inputs", () => {
    expect(cut({ x: [19, 2] }, { x: ["b", 2] })).toEqual([[[8, 2, 0]], [[8, 2, 16]], [[3, 2, 32]]]);
    expect(cut({ x: [7, 2] }, { x: [3, 2] })).toEqual([[[3, 2, 0]], [[3, 2, 6]]]);
    expect(cut({ x: [2, 3, 2] }, { x: ["b", 2] })).toEqual([[[3, 2, 0]], [[3, 2, 6]]]);
    expect(cut({ x: [3, 1 << 17] }, { x: ["b", 1 << 17] }).map(([[n]]) => n)).toEqual([2, 1]);
    expect(cut({ x: [2, 1 << 19] }, { x: ["b", 1 << 19] }).map(([[n]]) => n)).toEqual([1, 1]);
  });
  test("of one sample go with every feed, as they are or as the input", () => {
    expect(cut({ x: [9, 2], s: [1, 4] }, { x: ["b", 2], s: ["b", 4] })).toEqual([[[8, 2, 0], [1, 4, 0]], [[1, 2, 16], [1, 4, 0]]]); // prettier-ignore
    expect(cut({ x: [2, 3, 2], s: [1, 5, 4] }, { x: ["b", 2], s: ["b", 4] })).toEqual([[[3, 2, 0], [5, 4, 0]], [[3, 2, 6], [5, 4, 0]]]); // prettier-ignore
  });
  test.each<[Record<string, number[]>, Record<string, (number | string)[]>, string]>([
    [{ y: [2, 2] }, { x: ["b", 2] }, 'arrays named after the inputs "x", got "y"'],
    [{ x: [2] }, { x: ["b", 2] }, "samples along the first of 2 or 3 dimensions (input [b, 2]), got [2]"],
    [{ x: [1, 1, 1, 2] }, { x: ["b", 2] }, "samples along the first of 2 or 3 dimensions"],
    [{ x: [0, 2] }, { x: ["b", 2] }, "an empty array [0, 2]"],
    [{ x: [4, 2], s: [3, 2] }, { x: ["b", 2], s: ["b", 2] }, 'array "s": expected 4 samples as the other arrays, got 3'],
    [{ x: [2, 2] }, { x: [3, 2] }, "at least 3 samples, the batch of the model, got 2"],
  ])("%j for %j are refused", (arrays, shapes, text) => {
    expect(() => cut(arrays, shapes)).toThrow(text);
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

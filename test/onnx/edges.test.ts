// Edges of small functions that only odd models reach: old storages of integers, bfloat16 weights that are written,
// results of branches, models by path, decoders without names, numbers of threads.
import { create } from "@bufbuild/protobuf";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { afterAll, describe, expect, test } from "vitest";
import { OperatorSetIdProtoSchema, TensorProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { segmentChunks, type Segment } from "../../src/onnx/file/encode.ts";
import { readModelSource } from "../../src/onnx/file/model.ts";
import { bytesSource } from "../../src/onnx/file/source.ts";
import { readRaw } from "../../src/onnx/file/values.ts";
import { setFloats, writeConstant } from "../../src/onnx/edit.ts";
import { buildScopes, removeUnused } from "../../src/onnx/graph/graph.ts";
import { calibrateModel, losslessInitializers, modelLayers, readModelBytes, readWeight, writeModelBytes, writeWeight, type Feeds } from "../../src/onnx/index.ts"; // prettier-ignore
import { randomFeeds } from "../../src/onnx/run.ts";
import { collectRanges } from "../../src/onnx/targets/static/ranges.ts";
import { greedyTokens, type DecoderModel } from "../../src/onnx/verify/generate.ts";
import { hasHalf } from "../../src/onnx/verify/range.ts";
import { T, encode, graph, matmulModel, model, node, raw, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-edges-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const opened = (...args: Parameters<typeof model>) => readModelBytes(encode(model(...args)));

test("integers in every storage have the bytes of raw data", () => {
  const wide = [0n, 1n, 127n, 128n, 300n, 2n ** 31n - 1n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 53n + 1n, 2n ** 63n - 1n];
  const negative = [-1n, -(2n ** 31n), -(2n ** 63n)];
  const CASES: [number, object, ArrayBufferView][] = [
    [T.INT64, { int64Data: [...wide, ...negative] }, BigInt64Array.from([...wide, ...negative])],
    [T.UINT64, { uint64Data: [...wide, 2n ** 64n - 1n] }, BigUint64Array.from([...wide, 2n ** 64n - 1n])],
    [T.UINT32, { uint64Data: wide.slice(0, 8) }, Uint32Array.from(wide.slice(0, 8), Number)],
    [T.INT32, { int32Data: [0, 1, -1, 128, 16384, -(2 ** 31), 2 ** 31 - 1] }, Int32Array.of(0, 1, -1, 128, 16384, -(2 ** 31), 2 ** 31 - 1)],
    [T.INT16, { int32Data: [0, -1, 32767, -32768] }, Int16Array.of(0, -1, 32767, -32768)],
    [T.UINT16, { int32Data: [0, 65535, 128] }, Uint16Array.of(0, 65535, 128)],
    [T.INT8, { int32Data: [0, -1, 127, -128] }, Int8Array.of(0, -1, 127, -128)],
    [T.UINT8, { int32Data: [0, 255, 128] }, Uint8Array.of(0, 255, 128)],
    [T.BOOL, { int32Data: [0, 1, 1] }, Uint8Array.of(0, 1, 1)],
    [T.FLOAT16, { int32Data: [0x3c00, 0xfc00, 1] }, Uint16Array.of(0x3c00, 0xfc00, 1)],
  ];
  for (const [dataType, fields, want] of CASES)
    for (const times of [1, 300]) {
      // many values are left out of the message when it is read, few are in it
      const many = Object.fromEntries(Object.entries(fields).map(([key, list]) => [key, Array.from({ length: times }, () => list as unknown[]).flat()])); // prettier-ignore
      const [list] = Object.values(many) as unknown[][];
      const tensor = create(TensorProtoSchema, { name: "t", dataType, dims: [BigInt(list.length)], ...many });
      const read = opened(graph({ input: [value("x", T.FLOAT, [1])], output: [value("y", T.FLOAT, [1])], initializer: [tensor], node: [node("Relu", ["x"], ["y"])] })); // prettier-ignore
      const one = new Uint8Array(want.buffer, want.byteOffset, want.byteLength);
      const all = new Uint8Array(one.length * times);
      for (let i = 0; i < times; i++) all.set(one, i * one.length);
      expect(Buffer.compare(readRaw(read, read.proto.graph!.initializer[0]), all), `${dataType} ${times}`).toBe(0);
    }
});

test("a model of many tensors is looked through one window", () => {
  const tensors = Array.from({ length: 20 }, (_, i) => raw(`w${i}`, [40000], new Float32Array(40000).fill(i)));
  const bytes = encode(model(graph({ input: [value("x", T.FLOAT, [1])], output: [value("y", T.FLOAT, [1])], initializer: tensors, node: [node("Relu", ["x"], ["y"])] }))); // prettier-ignore
  const windows = new Set<Uint8Array | undefined>();
  let [isOpening, read] = [true, 0];
  const source = {
    ...bytesSource(bytes, "model"),
    read(offset: number, length: number, into?: Uint8Array): Uint8Array {
      if (isOpening) {
        windows.add(into);
        read += length;
      }
      const room = into ?? new Uint8Array(length);
      room.set(bytes.subarray(offset, offset + length));
      return room.subarray(0, length);
    },
  };
  const opened = readModelSource(source);
  isOpening = false;
  // what nodes and the like are copied from has no room of its own
  windows.delete(undefined);
  expect(windows.size).toBe(1);
  // of each tensor its head
  expect(read).toBeLessThan(bytes.length / 20);
  for (const [i, tensor] of opened.proto.graph!.initializer.entries())
    expect(new Float32Array(readRaw(opened, tensor).slice().buffer)).toEqual(new Float32Array(40000).fill(i));
});

test("more than a mebibyte of integers in a field is counted to its end", () => {
  const many = new Array<number>(2_200_000).fill(1);
  const opening = (dims: bigint) => {
    const tensor = create(TensorProtoSchema, { name: "t", dataType: T.INT32, dims: [dims], int32Data: many });
    const read = opened(graph({ input: [value("x", T.FLOAT, [1])], output: [value("y", T.FLOAT, [1])], initializer: [tensor], node: [node("Relu", ["x"], ["y"])] })); // prettier-ignore
    return readRaw(read, read.proto.graph!.initializer[0]);
  };
  expect(opening(2_200_000n).length).toBe(8_800_000);
  expect(() => opening(2_200_001n)).toThrow("2200000");
});

test("segments are written in pieces: small ones gathered, large ones cut", () => {
  const data = Uint8Array.from({ length: 9 << 20 }, (_, i) => (i * 31) & 255);
  const source = bytesSource(data, "data");
  const sizes = [10, 65526, 65536, 65537, 30000, 40000, 1, 0, 65535, 1, 70000, 20000];
  const segments = sizes.flatMap((length, i): Segment[] =>
    i % 2 === 0 ? [data.subarray(i, i + length)] : [{ source, offset: i, length, field: 9 }],
  );
  segments.push({ source, offset: 0, length: data.length, field: 9 }, data.subarray(0, 5));
  const pieces: number[] = [];
  const all: Uint8Array[] = [];
  for (const piece of segmentChunks(segments)) {
    pieces.push(piece.length);
    all.push(piece.slice());
  }
  expect(pieces).toEqual([65536, 65536, 65537, 30000, 40001, 65536, 70000, 20000, 4 << 20, 4 << 20, 1 << 20, 5]);
  const want = [...sizes.map((length, i) => data.subarray(i, i + length)), data, data.subarray(0, 5)];
  expect(Buffer.compare(Buffer.concat(all), Buffer.concat(want))).toBe(0);
  expect([...segmentChunks([{ source, offset: 3, length: 100_000, field: 9 }], 30_000)].map(({ length }) => length)).toEqual([30000, 30000, 30000, 10000]); // prettier-ignore
});

test("weights of bfloat16 and float64 are written as such, rounded to nearest, ties to even", () => {
  const bits = (v: number): number => new Uint32Array(Float32Array.of(v).buffer)[0] >>> 16;
  const values = [1, 1 + 2 ** -8, 1 + 2 ** -7 + 2 ** -8, 1 + 2 ** -8 + 2 ** -20, -(1 + 3 * 2 ** -8), 3.3895e38, -0, 1e-40, Infinity];
  const want = [bits(1), bits(1), bits(1) + 2, bits(1) + 1, 0xbf82, 0x7f7f, 0x8000, 1, 0x7f80];
  const m = readModelBytes(encode(matmulModel(raw("w", [3, 3], new Uint16Array(9), T.BFLOAT16), 3, 3)));
  setFloats(m, m.proto.graph!.initializer[0], values);
  expect([...new Uint16Array(m.proto.graph!.initializer[0].rawData.slice().buffer)]).toEqual(want);
  setFloats(m, m.proto.graph!.initializer[0], [NaN, -NaN, 0, 0, 0, 0, 0, 0, 0]);
  const [nan] = new Uint16Array(m.proto.graph!.initializer[0].rawData.slice().buffer);
  expect(nan & 0x7fff).toBeGreaterThan(0x7f80);
  const d = readModelBytes(encode(matmulModel(raw("w", [2, 2], new Float64Array(4), T.DOUBLE), 2, 2)));
  const [layer] = modelLayers(d);
  writeWeight(d, layer, [1, 2, 3, 4]);
  expect([...readWeight(readModelBytes(writeModelBytes(d)), modelLayers(d)[0]).data]).toEqual([1, 3, 2, 4]);
  expect(() => writeConstant(d, buildScopes(d)[0], d.proto.graph!.node[0], 5, [1])).toThrow("expected a constant as input 5");
});

test("tensors of bfloat16 without an element are left out of the lossless ones, scalars are in", () => {
  const tensors = [[2, 0], [1, 2], [], [1]].map((dims, i) => raw(`t${i}`, dims, new Uint16Array(dims.reduce((a, b) => a * b, 1)).fill(0x3f80), T.BFLOAT16)); // prettier-ignore
  const m = opened(graph({ input: [value("x", T.FLOAT, [1])], output: [value("y", T.FLOAT, [1])], initializer: tensors, node: [node("Relu", ["x"], ["y"])] })); // prettier-ignore
  expect([...losslessInitializers(m)].map(([name, { shape }]) => [name, shape])).toEqual([["t1", [1, 2]], ["t2", [1]], ["t3", [1]]]); // prettier-ignore
});

describe("float16", () => {
  const outer = (keepIoTypes: boolean, other: Parameters<typeof node>) => {
    const branch = (name: string, nodes: Parameters<typeof node>[], output: string) => graph({ name, output: [value(output, T.FLOAT, [2])], node: nodes.map((args) => node(...args)) }); // prettier-ignore
    const bytes = encode(
      model(
        graph({
          input: [value("x", T.FLOAT, [2]), value("c", T.BOOL, [])],
          output: [value("y", T.FLOAT, [2])],
          initializer: [raw("w", [2], Float32Array.of(0.5, -1))],
          node: [
            node("Mul", ["x", "w"], ["h"], {}, "mul"),
            node("If", ["c"], ["y"], { then_branch: branch("t", [], "h"), else_branch: branch("e", [other], "z") }, "if"),
          ],
        }),
      ),
    );
    return { bytes, made: quantizeModelBytes(bytes, { dtype: "fp16", keepIoTypes }) };
  };
  test.each([true, false])("a branch whose result is a value outside of it, outputs kept: %s", async (keepIo) => {
    const { bytes, made } = outer(keepIo, ["Abs", ["h"], ["z"]]);
    const { bytes: half } = await made;
    for (const c of [1, 0]) {
      const run = async (of: Uint8Array) => {
        const session = await InferenceSession.create(of, { logSeverityLevel: 4 });
        const type = (session as unknown as { inputMetadata?: { name: string; type?: string }[] }).inputMetadata?.find(({ name }) => name === "x")?.type; // prettier-ignore
        const x = type === "float16" ? new Tensor("float16", Uint16Array.of(0x3c00, 0x4000), [2]) : new Tensor("float32", Float32Array.of(1, 2), [2]); // prettier-ignore
        const { y } = await session.run({ x, c: new Tensor("bool", Uint8Array.of(c), []) });
        await session.release();
        return y.type === "float16" ? Array.from(y.data as unknown as Uint16Array, (v) => ({ 0x3800: 0.5, 0xc000: -2, 0x4000: 2 })[v]) : [...(y.data as Float32Array)]; // prettier-ignore
      };
      // onnxruntime itself wants a node between
      await expect(run(bytes)).rejects.toThrow("outer scope value");
      expect(await run(half)).toEqual(c === 1 ? [0.5, -2] : [0.5, 2]);
    }
  });
  test("a model has it by its weights or by a Cast", () => {
    const of = (nodes: ReturnType<typeof node>[], init = [raw("w", [1], Float32Array.of(1))]) => hasHalf(opened(graph({ input: [value("x", T.FLOAT, [1])], output: [value("y", T.FLOAT, [1])], initializer: init, node: nodes }))); // prettier-ignore
    expect(of([node("Relu", ["x"], ["y"])])).toBe(false);
    expect(of([node("Cast", ["x"], ["y"], { to: 1n })])).toBe(false);
    expect(of([node("Cast", ["x"], ["y"], { to: 10n })])).toBe(true);
    expect(of([node("Relu", ["x"], ["y"], { to: 10n })])).toBe(false);
    expect(of([node("Relu", ["x"], ["y"])], [raw("w", [1], Uint16Array.of(1), T.FLOAT16)])).toBe(true);
  });
});

test("sparse constants that nothing reads go with the others", () => {
  const m = opened(graph({ input: [value("x", T.FLOAT, [2])], output: [value("y", T.FLOAT, [2])], initializer: [raw("w", [2], weights(2)), raw("v", [2], weights(2))], node: [node("Identity", ["w"], ["a"]), node("Add", ["x", "v"], ["y"])] })); // prettier-ignore
  const g = m.proto.graph!;
  g.sparseInitializer = [{ values: { name: "s" } }, { values: { name: "k" } }] as never;
  g.node.push(node("Identity", ["k"], ["z"]));
  g.output.push(value("z", T.FLOAT, [2]));
  g.valueInfo.push(value("a", T.FLOAT, [2]), value("v", T.FLOAT, [2]));
  expect(removeUnused(buildScopes(m), new Set(["w", "s", "v", "k"]))).toEqual([]);
  expect(g.initializer.map(({ name }) => name)).toEqual(["v"]);
  expect(g.sparseInitializer.map((one) => one.values!.name)).toEqual(["k"]);
  expect(g.node.map(({ opType }) => opType)).toEqual(["Add", "Identity"]);
  expect(g.valueInfo.map(({ name }) => name)).toEqual(["v"]);
});

describe("runs", () => {
  const bytes = encode(matmulModel(raw("w", [8, 4], weights(32)), 8, 4));
  const feeds: Feeds[] = [1, 2].map((seed) => ({ x: { type: "float32", dims: [3, 8], data: weights(24, seed) } }));
  test("calibration of a model by its path is that of the model", async () => {
    const path = join(folder, "m.onnx");
    writeFileSync(path, bytes);
    const [one, two] = [await calibrateModel(path, feeds), await calibrateModel(readModelBytes(bytes), feeds)];
    expect([...one.layers.keys()]).toEqual(["mm"]);
    expect(one.layers).toEqual(two.layers);
  });
  test("ranges are by mse where nothing is said", async () => {
    const m = readModelBytes(bytes);
    const wide: Feeds[] = [{ x: { type: "float32", dims: [500, 8], data: weights(4000, 3).map((v, i) => (i === 7 ? 9 : v)) } }];
    const by = async (...observer: Parameters<typeof collectRanges> extends [unknown, unknown, unknown, ...infer R] ? R : never) => [...(await collectRanges(m, wide, ["x"], ...observer))]; // prettier-ignore
    expect(await by()).toEqual(await by("mse"));
    expect(await by()).not.toEqual(await by("minMax"));
  });
  test("sizes are tried until the model runs, of other inputs the same and one", async () => {
    const inputs = ["a", "b"].map((name) => ({ name, type: "float32", shape: ["x", "n"] }));
    const m = readModelBytes(bytes);
    const asked: string[] = [];
    const session = (ok: (a: number, b: number) => boolean, own = inputs) => ({ inputs: own, run: async (feed: Feeds) => { const [a, b = 0] = own.map(({ name }) => feed[name].dims.at(-1)!); asked.push(`${a},${b}`); if (!ok(a, b)) throw new Error(`no ${a}`); return new Map(); }, release: async () => undefined }) as never; // prettier-ignore
    await randomFeeds(
      session((a, b) => a === 320 && b === 1),
      m,
      1,
    );
    expect(asked.splice(0)).toEqual(["16,16", "16,1", "64,64", "64,1", "320,320", "320,1"]);
    await randomFeeds(
      session((a) => a === 64, inputs.slice(0, 1)),
      m,
      1,
    );
    expect(asked.splice(0)).toEqual(["16,0", "64,0"]);
    const fixed = [{ name: "a", type: "float32", shape: [2, 5] }] as never;
    expect(
      await randomFeeds(
        session(() => true, fixed),
        m,
        3,
      ),
    ).toHaveLength(3);
    expect(asked.splice(0)).toEqual(["5,0"]);
    const image = [{ name: "a", type: "float32", shape: ["n", 3, "h", "w"] }] as never;
    await randomFeeds(
      session((a) => a === 224, image),
      m,
      1,
    );
    expect(asked.splice(0)).toEqual(["64,0", "224,0"]);
    await expect(
      randomFeeds(
        session(() => false),
        m,
        1,
      ),
    ).rejects.toThrow("no 16");
  });
});

test("a decoder whose logits have no name: the output that is no cache", async () => {
  const asked: Feeds[] = [];
  const decoder: DecoderModel = {
    label: "d",
    inputs: [
      { name: "tokens", type: "int32", shape: ["b", "n"] },
      { name: "attention_mask", type: "int64", shape: ["b", "n"] },
      { name: "position_ids", type: "int64", shape: ["b", "n"] },
      { name: "use_cache_branch", type: "bool", shape: [1] },
      { name: "past_key_values.0.key", type: "float32", shape: ["b", 2, "past_len", 4] },
    ],
    outputNames: ["present.0.key", "scores"],
    run: async (feeds) => {
      asked.push(feeds);
      const { data, dims } = feeds.tokens;
      const last = Number((data as Int32Array).at(-1));
      const n = dims[1];
      const logits = Float32Array.from({ length: n * 10 }, (_, i) => (i >= (n - 1) * 10 && i % 10 === (last + 3) % 10 ? 5 : i % 7 ? 0 : 1));
      const past = feeds["past_key_values.0.key"].dims[2] + n;
      return new Map([
        ["scores", { type: "float32", dims: [1, n, 10], data: logits }],
        ["present.0.key", { type: "float32", dims: [1, 2, past, 4], data: new Float32Array(8 * past) }],
      ]);
    },
  };
  const written = await greedyTokens(decoder, new Map([["tokens", { below: 10 }]]), 4);
  expect(written.slice(1)).toEqual(written.slice(0, 3).map((token) => (token + 3) % 10));
  expect(asked.map(({ tokens }) => tokens.dims.join())).toEqual(["1,8", "1,1", "1,1", "1,1", "1,1"]);
  expect(asked.map((feeds) => feeds["past_key_values.0.key"].dims[2])).toEqual([0, 8, 9, 10, 11]);
  expect(asked.map((feeds) => Array.from(feeds.position_ids.data as BigInt64Array, Number).join(" "))).toEqual(["0 1 2 3 4 5 6 7", "8", "9", "10", "11"]); // prettier-ignore
  expect(asked.map(({ attention_mask }) => attention_mask.dims[1])).toEqual([8, 9, 10, 11, 12]);
  expect(asked.map(({ use_cache_branch }) => (use_cache_branch.data as Uint8Array)[0])).toEqual([0, 1, 1, 1, 1]);
  const nameless = { ...decoder, outputNames: ["present.0.key"] };
  await expect(greedyTokens(nameless, new Map(), 1)).rejects.toThrow("expected an output of logits of a decoder");
});

test("DynamicQuantizeLSTM has both weights signed, or both unsigned", async () => {
  const proto = model(graph({ input: [value("x", T.FLOAT, [5, 1, 32])], output: [value("y", T.FLOAT, [])], initializer: [raw("w", [1, 64, 32], weights(2048)), raw("r", [1, 64, 16], weights(1024, 2))], node: [node("LSTM", ["x", "w", "r"], ["y"], { hidden_size: 16n }, "rnn")] })); // prettier-ignore
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  const names = modelLayers(readModelBytes(encode(proto))).map(({ name }) => name);
  const rules = [{ match: names[0], dtype: "int8" as const }, { match: names[1], dtype: "uint8" as const }]; // prettier-ignore
  const mixed = await quantizeModelBytes(encode(proto), { dtype: "uint8", rules: rules.slice(0, 1).map((rule) => ({ ...rule, format: "int8_row", dtype: undefined, target: "dynamic" as const })), allowUnchanged: true }); // prettier-ignore
  expect(mixed.report.layers.map(({ reason }) => reason)).toEqual(new Array(2).fill("DynamicQuantizeLSTM has both weights signed, or both unsigned")); // prettier-ignore
});

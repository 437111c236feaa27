// Calibration data on their way into a model, over grids of types, shapes and sources: what becomes feeds, how they are
// cut, and what is refused with which words, as text against stored text.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { npyBytes, npzBytes } from "../../src/interop/index.ts";
import { checkFeeds, convertTensor, modelInputs, nestedFeed, sampleFeeds } from "../../src/onnx/calibrate/feeds.ts";
import { readFeeds, type CalibrationData } from "../../src/onnx/calibrate/sources.ts";
import { heldOutBatches } from "../../src/onnx/calibrate/statistics.ts";
import { textFeeds, tokenInput } from "../../src/onnx/calibrate/text.ts";
import { readModelBytes } from "../../src/onnx/index.ts";
import { activationParameters, ACTIVATION_TYPES, biasCodes } from "../../src/onnx/targets/static/parameters.ts";
import type { FeedTensor, Feeds, InputMetadata } from "../../src/onnx/verify/feeds.ts";
import { T, encode, graph, model, node, raw, value } from "./build.ts";
import { storedTexts } from "./printed.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-data-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const stored = storedTexts("data");
const text = (v: unknown): string => JSON.stringify(v, (_, x: unknown) => (typeof x === "bigint" ? `${x}n` : typeof x === "number" && !Number.isFinite(x) ? String(x) : x)); // prettier-ignore
const shown = ({ type, dims, data }: FeedTensor): string => `${type}[${dims}] ${text(Array.from(data as ArrayLike<number>).slice(0, 40))}`; // prettier-ignore
const feedText = (feeds: Feeds): string => Object.entries(feeds).map(([name, tensor]) => `${name}: ${shown(tensor)}`).join("; "); // prettier-ignore
const tried = (make: () => string): string => {
  try {
    return make();
  } catch (error) {
    return `refused: ${(error as Error).message.replaceAll(folder, "")}`;
  }
};
const input = (name: string, type: string, ...shape: (number | string)[]): InputMetadata => ({ name, type, shape });

const MAKERS = { float32: Float32Array, float64: Float64Array, float16: Uint16Array, int64: BigInt64Array, uint64: BigUint64Array, int32: Int32Array, uint32: Uint32Array, int16: Int16Array, uint16: Uint16Array, int8: Int8Array, uint8: Uint8Array, bool: Uint8Array }; // prettier-ignore

test("types to types", () => {
  const lines: string[] = [];
  for (const [from, make] of Object.entries(MAKERS))
    for (const to of [...Object.keys(MAKERS), "string", "bfloat16"])
      for (const values of from === "float16"
        ? [
            [0x3c00, 0xc000],
            [0x7bff, 1],
          ]
        : [
            [0, 1],
            [2, 127],
            [128, 255],
            [65535, 3],
            [-1, -128],
            [2 ** 31, 5],
            [0.5, 1e10],
          ])
        // prettier-ignore
        if (from.startsWith("float") || values.every(Number.isInteger)) {
          const wide = from.endsWith("64") && !from.startsWith("float");
          const data = (make as typeof BigInt64Array).from(values.map((v) => (wide ? BigInt(v) : v)) as bigint[]);
          lines.push(`${from} to ${to} ${values}: ${tried(() => shown(convertTensor({ type: from, dims: [2], data }, to, "here")))}`);
        }
  stored("types", lines.join("\n"));
});

test("feeds of a run", () => {
  const floats = (dims: number[], at = 1): FeedTensor => ({ type: "float32", dims, data: new Float32Array(dims.reduce((a, b) => a * b, 1)).fill(at) }); // prettier-ignore
  const inputs = [input("x", "float32", "b", 3), input("past", "float32", "b", "n")];
  const good = { x: floats([2, 3]), past: floats([2, 0]) };
  const CASES: unknown[] = [
    good,
    { past: good.past, x: good.x },
    { x: good.x },
    { ...good, z: good.x },
    { z: good.x },
    null,
    "x",
    5,
    {}, // prettier-ignore
    { ...good, x: floats([2, 4]) },
    { ...good, x: floats([3]) },
    { ...good, x: floats([1, 2, 3]) },
    { ...good, x: floats([0, 3]) }, // prettier-ignore
    { ...good, x: floats([2, 3], NaN) },
    { ...good, x: floats([2, 3], -Infinity) },
    { ...good, x: { ...good.x, dims: [3, 3] } }, // prettier-ignore
    { ...good, x: null },
    { ...good, x: [1, 2] },
    { ...good, x: { type: "float32", dims: [2, 3] } },
    { ...good, x: { type: 3, dims: [2, 3], data: good.x.data } },
    { ...good, x: { type: "float32", dims: "2", data: good.x.data } }, // prettier-ignore
    { ...good, x: { type: "float64", dims: [2, 3], data: Float64Array.of(1, 2, 3, 4, 5, 1e300) } },
    { ...good, x: { type: "float16", dims: [1, 3], data: Uint16Array.of(0x3c00, 0x7c00, 0) } },
    { ...good, x: { type: "int64", dims: [1, 3], data: BigInt64Array.of(1n, 2n, 3n) } },
  ];
  const lines = CASES.map((feeds) => tried(() => feedText(checkFeeds(feeds as Feeds, inputs, "here"))));
  for (const shape of [[], [-1, 3], [2, -1], ["b"]]) lines.push(tried(() => feedText(checkFeeds({ x: floats([2, 3]) }, [input("x", "float32", ...shape)], "here")))); // prettier-ignore
  for (const name of ["past", "cache", "state", "x"]) lines.push(tried(() => feedText(checkFeeds({ [name]: floats([0, 3]) }, [input(name, "float32", "n", 3)], "here")))); // prettier-ignore
  lines.push(tried(() => feedText(checkFeeds({ i: { type: "int32", dims: [2], data: Int32Array.of(1, -1) } }, [input("i", "int64", 2)], "here")))); // prettier-ignore
  stored("feeds", lines.join("\n"));
});

test("samples cut into batches", () => {
  const array = (...dims: number[]): FeedTensor => ({ type: "float32", dims, data: Float32Array.from({ length: dims.reduce((a, b) => a * b, 1) }, (_, i) => i) }); // prettier-ignore
  const CASES: [Record<string, FeedTensor>, InputMetadata[]][] = [
    [{ x: array(5, 2) }, [input("x", "float32", "b", 2)]],
    [{ x: array(19, 2) }, [input("x", "float32", "b", 2)]],
    [{ x: array(5, 2) }, [input("x", "float32", 2, 2)]],
    [{ x: array(4, 2) }, [input("x", "float32", 2, 2)]],
    [{ x: array(1, 2) }, [input("x", "float32", 2, 2)]],
    [{ x: array(3, 2, 2) }, [input("x", "float32", 2, 2)]],
    [{ x: array(3, 1, 2), y: array(1, 4) }, [input("x", "float32", 1, 2), input("y", "float32", "b", 4)]],
    [{ x: array(3, 2), y: array(1, 2, 2) }, [input("x", "float32", "b", 2), input("y", "float32", 2, 2)]],
    [{ x: array(3, 2), y: array(3, 2) }, [input("x", "float32", "b", 2), input("y", "float32", "b", 2)]],
    [{ x: array(3, 2), y: array(2, 2) }, [input("x", "float32", "b", 2), input("y", "float32", "b", 2)]],
    [{ x: array(6, 2), y: array(6, 2) }, [input("x", "float32", "b", 2), input("y", "float32", 3, 2)]],
    [{ z: array(3, 2) }, [input("x", "float32", "b", 2)]],
    [{ x: array(3) }, [input("x", "float32", "b", 2)]],
    [{ x: array(3, 2, 2, 1) }, [input("x", "float32", "b", 2)]],
    [{ x: array(0, 2) }, [input("x", "float32", "b", 2)]],
    [{ x: array(3) }, [input("x", "float32")]],
    [{ x: array(4, 0) }, [input("x", "float32", "b", "n")]],
    [{ x: array(2, 0) }, [input("x", "float32", 0, "n")]],
  ];
  const lines = CASES.map(([arrays, inputs]) => tried(() => [...sampleFeeds(new Map(Object.entries(arrays)), inputs, "here")].map(feedText).join(" | "))); // prettier-ignore
  // as many as fit: large samples go alone
  for (const each of [2 ** 15, 2 ** 16, 2 ** 17, 2 ** 18, 2 ** 19]) lines.push(`${each}: ${[...sampleFeeds(new Map([["x", array(9, each)]]), [input("x", "float32", "b", each)], "here")].map(({ x }) => x.dims[0])}`); // prettier-ignore
  stored("samples", lines.join("\n"));
});

test("nested arrays of a line of JSON", () => {
  const inputs = [input("x", "float32", "b", 2), input("i", "int64", "n"), input("m", "bool", "b", 2), input("s", "float32")];
  const CASES: unknown[] = [
    { x: [[1, 2.5]] },
    { x: [1, 2] },
    {
      x: [
        [1, 2],
        [3, 4],
      ],
    },
    { x: [[[1, 2]]] },
    { x: 3 },
    { x: [] },
    { x: [[]] },
    { x: [[1, 2], [3]] },
    { x: [[1, "2"]] },
    { x: [[1, null]] },
    { x: "a" }, // prettier-ignore
    { i: [1, 2] },
    { i: 4 },
    { i: [1.5] },
    { i: [true, false] },
    { i: [2 ** 53] },
    { m: [[true, false]] },
    { m: [1, 0] },
    { m: [2, 0] },
    { s: 1.5 },
    { s: [1.5] }, // prettier-ignore
    { z: [1] },
    [],
    [1],
    null,
    3,
    "x",
    {},
    { x: [[1, 2]], i: [3] },
    { x: JSON.parse("[".repeat(31) + "1" + "]".repeat(31)) as unknown },
    { x: JSON.parse("[".repeat(33) + "1" + "]".repeat(33)) as unknown }, // prettier-ignore
  ];
  stored("nested", CASES.map((object) => `${text(object)}: ${tried(() => feedText(nestedFeed(object, inputs, "here")))}`).join("\n"));
});

test("inputs of a model", () => {
  const types = Object.entries(T).filter((entry): entry is [string, T] => typeof entry[1] === "number");
  const inputs = types.map(([name, type]) => value(name, type, [2, "n", ""]));
  const bare = value("bare", T.FLOAT, []);
  delete (bare.type!.value.value as { shape?: unknown }).shape;
  const m = readModelBytes(encode(model(graph({ input: [...inputs, bare, value("w", T.FLOAT, [1])], output: [value("y", T.FLOAT, [])], initializer: [raw("w", [1], Float32Array.of(1))], node: [node("Relu", ["FLOAT"], ["y"])] })))); // prettier-ignore
  stored("inputs", modelInputs(m).map(text).join("\n"));
});

const put = (name: string, data: string | Uint8Array): string => {
  const path = join(folder, name);
  mkdirSync(join(path, ".."), { recursive: true });
  writeFileSync(path, data);
  return path;
};

test("sources", async () => {
  const two = readModelBytes(encode(model(graph({ input: [value("x", T.FLOAT, ["b", 2]), value("a/b", T.INT64, ["b"])], output: [value("y", T.FLOAT, [])], node: [node("Relu", ["x"], ["y"])] })))); // prettier-ignore
  const one = readModelBytes(encode(model(graph({ input: [value("x", T.FLOAT, ["b", 2])], output: [value("y", T.FLOAT, [])], node: [node("Relu", ["x"], ["y"])] })))); // prettier-ignore
  const floats = { data: Float32Array.of(1, 2, 3, 4), shape: [2, 2] };
  const ints = { data: BigInt64Array.of(7n, 8n), shape: [2] };
  const feed: Feeds = { x: { type: "float32", dims: [1, 2], data: Float32Array.of(5, 6) } };
  const npy = (array: { data: ArrayBufferView; shape: number[] }) => npyBytes(array as never);
  const npz = await npzBytes({ x: floats, "a/b": ints } as never);
  put("other.txt.bin", "x");
  put("both/x.npy", npy(floats));
  put("both/a%2Fb.npy", npy(ints));
  put("mixed/1.npz", npz);
  put("mixed/2.jsonl", '{"x": [[9, 9]], "a/b": [3]}\n\n{"x": [1, 2], "a/b": 4}\n');
  put("mixed/3.txt", "not data");
  put("none/readme.md", "nothing");
  mkdirSync(join(folder, "empty"));
  put("feeds.mjs", "export default async function* () { yield { x: { type: 'float32', dims: [1, 2], data: Float32Array.of(1, 2) } }; }");
  put("bad.mjs", "export default 3;");
  put("%zz.npy", npy(floats));
  const CASES: [string, typeof one, CalibrationData | unknown][] = [
    ["a list", one, [feed, feed]],
    ["nothing in a list", one, []],
    ["a set", one, new Set([feed])],
    ["an async list", one, (async function* () { yield feed; })()], // prettier-ignore
    ["a function", one, () => [feed]],
    ["a function of a function", one, () => () => [feed]],
    ["a function of functions without end", one, function own(): unknown { return own; }], // prettier-ignore
    ["a promise", one, async () => [feed]],
    ["a number", one, 5],
    ["null", one, null],
    ["an object", one, { a: 1 }],
    ["bad feeds", one, [{ z: feed.x }]],
    ["one npy of any name", one, put("any.npy", npy(floats))],
    ["one npy of a bad name", one, join(folder, "%zz.npy")],
    ["one npy for two inputs", two, put("x.npy", npy(floats))],
    ["a folder of npy", two, join(folder, "both")],
    ["a folder of others", two, join(folder, "mixed")],
    ["a folder of nothing", two, join(folder, "none")],
    ["an empty folder", two, join(folder, "empty")],
    ["npz", two, put("all.npz", npz)],
    ["npz of nothing", two, put("no.npz", await npzBytes({} as never))],
    ["lines", one, put("lines.ndjson", '{"x": [[1, 2]]}\n{"x": [3, 4]}')],
    ["bad lines", one, put("bad.jsonl", '{"x": [[1, 2]]}\n{x}\n')],
    ["a module", one, join(folder, "feeds.mjs")],
    ["a bad module", one, join(folder, "bad.mjs")],
    ["another file", one, join(folder, "other.txt.bin")],
    ["no file", one, join(folder, "no.npz.gone")],
  ];
  const lines: string[] = [];
  for (const [title, opened, source] of CASES)
    for (const maxBatches of [undefined, 1]) {
      try {
        const feeds = await readFeeds(opened, source as CalibrationData, maxBatches === undefined ? {} : { maxBatches });
        lines.push(`${title}: ${feeds.map(feedText).join(" | ")}`);
      } catch (error) {
        lines.push(`${title}: refused: ${(error as Error).message.replaceAll(folder, "").replace(/got Expected.*|got Unexpected.*/, "got no JSON")}`); // prettier-ignore
      }
    }
  stored("sources", lines.join("\n"));
});

test("text in windows", async () => {
  const words = ["[UNK]", ..."abcdefghij"];
  put("t/tokenizer.json", JSON.stringify({ version: "1.0", added_tokens: [], normalizer: null, pre_tokenizer: { type: "WhitespaceSplit" }, post_processor: null, decoder: null, model: { type: "WordLevel", vocab: Object.fromEntries(words.map((word, i) => [word, i])), unk_token: "[UNK]" } })); // prettier-ignore
  const plain = put("t/plain.txt", Array.from({ length: 47 }, (_, i) => words[1 + (i % 10)]).join(" "));
  const jsonl = put("t/lines.jsonl", '{"text": "a b c"}\n\n{"text": "d e"}\n{"other": 1}\n');
  const ids = input("input_ids", "int64", "batch", "seq");
  const CASES: [object, InputMetadata[]][] = [
    [{ text: plain, window: 4 }, [ids]],
    [{ text: plain, window: 4, windows: 3 }, [ids]],
    [{ text: plain, window: 1, windows: 4 }, [ids]],
    [{ text: plain, window: 5, windows: 9 }, [input("tokens", "int32", "b", "n")]],
    [{ text: plain, window: 4 }, [input("input_ids", "int64", 2, 8)]],
    [{ text: plain, window: 4, windows: 5 }, [input("input_ids", "int64", 2, "n")]],
    [{ text: plain, window: 4 }, [input("input_ids", "int64", -1, 6)]],
    [{ text: jsonl, window: 2 }, [ids]],
    [{ text: plain, window: 60 }, [ids]],
    [{ text: plain, window: 0 }, [ids]],
    [{ text: plain, window: 1.5 }, [ids]],
    [{ text: plain, tokenizer: join(folder, "t/none.json"), window: 2 }, [ids]],
    [{ text: plain, tokenizer: plain, window: 2 }, [ids]],
    [{ text: plain, window: 4, windows: 2 }, [ids, input("attention_mask", "int64", "batch", "seq"), input("position_ids", "int32", "batch", "seq"), input("token_type_ids", "int64", "batch", "seq"), input("past_key_values.0.key", "float32", "batch", 2, "past_seq", 4), input("use_cache", "bool", 1), input("mask4", "float32", "batch", 1, "seq", "seq"), input("bias", "float16", "batch", "seq"), input("cache_length", "int64", 1)]], // prettier-ignore
    [{ text: plain, window: 4, windows: 2 }, [input("decoder_input_ids", "int64", "b", "n"), input("encoder_hidden", "float32", "b", "m", 3), input("position", "int64", "n"), input("mask", "bool", "n")]], // prettier-ignore
  ];
  const lines: string[] = [];
  for (const [source, inputs] of CASES) {
    try {
      const feeds: string[] = [];
      for await (const one of textFeeds(source as never, inputs)) feeds.push(feedText(one));
      lines.push(feeds.join(" | "));
    } catch (error) {
      lines.push(`refused: ${(error as Error).message.replaceAll(folder, "").replace(/got (Unexpected|Expected|ENOENT|no such).*/, "got no JSON")}`); // prettier-ignore
    }
  }
  // what a model fixes stays: the feeds are those that it takes
  const fixed = readModelBytes(encode(model(graph({ input: [value("input_ids", T.INT64, ["b", "n"]), value("mask", T.FLOAT, ["b", 1, "n", "n"]), value("use_cache", T.BOOL, [1]), value("encoder", T.FLOAT, [1, "m", 3])], output: [value("y", T.INT64, [])], node: [node("Relu", ["input_ids"], ["y"])] })))); // prettier-ignore
  const [feeds] = await readFeeds(fixed, { text: plain, window: 4, windows: 2 });
  expect(Object.values(feeds).map(({ dims }) => dims.join())).toEqual(["2,4", "2,1,4,4", "1", "1,4,3"]);
  const tokens = [[ids], [input("x", "int64", "b", "n")], [input("x", "int64", "b", "n"), input("y", "int64", "b", "n")], [input("x", "float32", "b", "n")], [input("x", "int64", "n")], [input("x", "int64", "b", "n"), input("tokens", "int32", "b", "n")], [input("ids", "int16", "b", "n"), input("z", "int32", "b", "n")]]; // prettier-ignore
  for (const inputs of tokens) lines.push(tried(() => tokenInput(inputs).name));
  stored("text", lines.join("\n"));
});

test("batches that are held out, parameters of codes", () => {
  const lines: string[] = [];
  for (let batches = 0; batches <= 20; batches++) for (const share of [undefined, 0, 0.05, 0.125, 0.3, 0.5, 0.99]) lines.push(`${batches} ${share}: ${[...heldOutBatches(batches, share)]}`); // prettier-ignore
  for (const share of [-0.1, 1, NaN]) expect(() => heldOutBatches(4, share)).toThrow(RangeError);
  for (const [name, type] of ACTIVATION_TYPES) for (const symmetric of [false, true]) for (const [min, max] of [[0, 0], [-1, 1], [0, 6], [-3, 0], [2, 5], [-5, -2], [-0.1, 100], [1e-40, 1e-39], [-1e-45, 0], [-Infinity, 1]]) lines.push(`${name} ${symmetric} ${min} ${max}: ${text(activationParameters({ min, max }, type, symmetric))}`); // prettier-ignore
  for (const bias of [[0, 1, -1], [1e9, 0, 0], [1e-9, -0, 3], [2 ** 31 - 1, 1, 1], [2 ** 31, 1, 1], [0.5, 1.5, 2.5]]) for (const scales of [[1], [0.5, 1, 2], [0, 1, 1], [1e-3]]) for (const inputScale of [1, 0.25]) { const made = biasCodes(bias, inputScale, scales); lines.push(`${bias} ${scales} ${inputScale}: ${made === undefined ? "none" : `${[...made.codes]} ${[...made.scales]}`}`); } // prettier-ignore
  stored("parameters", lines.join("\n"));
});

// Calibration of models: where data come from, and that the statistics are those of what each operator multiplies. The
// oracle of the Hessian is onnxruntime-node: the sum of squares of a layer's outputs is the trace of W H W^T.
import { openProducts } from "../../src/onnx/calibrate/products.ts";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { crc32, deflateRawSync } from "node:zlib";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { afterAll, describe, expect, test } from "vitest";
import {
  calibrateModel,
  modelLayers,
  modelValues,
  quantizeModel,
  quantizeModelBytes,
  readFeeds,
  readModelBytes,
  readWeight,
  type Feeds,
  type OnnxModel,
} from "../../src/onnx/index.ts";
import { modelRunner } from "../../src/onnx/calibrate/taps.ts";
import { outputError } from "../../src/quantize/index.ts";
import { encode, graph, model, node, raw, T, value, weights, type AttributeValue } from "./build.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-calibrate-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const put = (name: string, bytes: Uint8Array | string): string => {
  writeFileSync(join(folder, name), bytes);
  return join(folder, name);
};

/** A .npy file of version 1. */
function npy(descr: string, dims: number[], data: ArrayBufferView): Uint8Array {
  const head = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${dims.join(", ")}${dims.length === 1 ? "," : ""}), }`;
  const text = head.padEnd(118 - 1) + "\n";
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const out = new Uint8Array(10 + text.length + bytes.length);
  out.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, text.length & 255, text.length >> 8]);
  out.set(new TextEncoder().encode(text), 10);
  out.set(bytes, 10 + text.length);
  return out;
}

/** A zip as numpy writes it: sizes of 64 bits in an extra field where `wide`. */
function zip(files: Record<string, Uint8Array>, wide: boolean): Uint8Array {
  const parts: Uint8Array[] = [];
  const directory: Uint8Array[] = [];
  let at = 0;
  for (const [name, data] of Object.entries(files)) {
    const packed = wide ? data : deflateRawSync(data);
    const label = new TextEncoder().encode(name);
    const local = new Uint8Array(30 + label.length);
    const lv = new DataView(local.buffer);
    lv.setUint32(0, 0x04034b50, true);
    lv.setUint16(26, label.length, true);
    local.set(label, 30);
    const extra = new Uint8Array(wide ? 20 : 0);
    const entry = new Uint8Array(46 + label.length + extra.length);
    const ev = new DataView(entry.buffer);
    ev.setUint32(0, 0x02014b50, true);
    ev.setUint16(10, wide ? 0 : 8, true);
    ev.setUint32(16, crc32(data), true);
    ev.setUint32(20, wide ? 0xffffffff : packed.length, true);
    ev.setUint32(24, wide ? 0xffffffff : data.length, true);
    ev.setUint16(28, label.length, true);
    ev.setUint16(30, extra.length, true);
    ev.setUint32(42, at, true);
    entry.set(label, 46);
    if (wide) {
      const xv = new DataView(extra.buffer);
      xv.setUint16(0, 1, true);
      xv.setUint16(2, 16, true);
      xv.setBigUint64(4, BigInt(data.length), true);
      xv.setBigUint64(12, BigInt(packed.length), true);
      entry.set(extra, 46 + label.length);
    }
    parts.push(local, packed);
    directory.push(entry);
    at += local.length + packed.length;
  }
  const end = new Uint8Array(22);
  const view = new DataView(end.buffer);
  view.setUint32(0, 0x06054b50, true);
  view.setUint16(10, directory.length, true);
  view.setUint32(
    12,
    directory.reduce((sum, entry) => sum + entry.length, 0),
    true,
  );
  view.setUint32(16, at, true);
  return Buffer.concat([...parts, ...directory, end]);
}

function safetensors(name: string, dtype: string, shape: number[], data: Uint8Array): Uint8Array {
  const header = new TextEncoder().encode(JSON.stringify({ [name]: { dtype, shape, data_offsets: [0, data.length] } }));
  const length = new Uint8Array(8);
  new DataView(length.buffer).setBigUint64(0, BigInt(header.length), true);
  return Buffer.concat([length, header, data]);
}

/** x [batch, 6] -> a -> Relu -> b and c, which share their input -> y [batch, 4]. */
const chain = (): OnnxModel =>
  readModelBytes(
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, ["batch", 6])],
          output: [value("y", T.FLOAT, ["batch", 4])],
          initializer: [raw("wa", [6, 5], weights(30, 1)), raw("wb", [5, 4], weights(20, 2)), raw("wc", [5, 4], weights(20, 3))],
          node: [
            node("MatMul", ["x", "wa"], ["h"], {}, "a"),
            node("Relu", ["h"], ["r"]),
            node("MatMul", ["r", "wb"], ["b"], {}, "b"),
            node("MatMul", ["r", "wc"], ["c"], {}, "c"),
            node("Add", ["b", "c"], ["y"]),
          ],
        }),
      ),
    ),
  );

const samples = weights(60, 7);
const feed = (from: number, count: number): Feeds => ({
  x: { type: "float32", data: samples.slice(from * 6, (from + count) * 6), dims: [count, 6] },
});

describe("sources", () => {
  const all = async (source: Parameters<typeof readFeeds>[1]) => {
    const feeds = await readFeeds(chain(), source);
    return { feeds, values: feeds.flatMap((f) => Array.from(f.x.data as Float32Array)) };
  };
  const want = Array.from(samples);
  const file = npy("<f4", [10, 6], samples);

  test("npz, npy, safetensors, a folder, JSON lines, a module and iterables give the same feeds", async () => {
    const bytes = new Uint8Array(samples.buffer);
    mkdirSync(join(folder, "arrays"));
    mkdirSync(join(folder, "parts"));
    put("arrays/x.npy", file);
    put("parts/1.npz", zip({ "x.npy": npy("<f4", [4, 6], samples.slice(0, 24)) }, false));
    put("parts/2.npz", zip({ "x.npy": npy("<f4", [6, 6], samples.slice(24)) }, true));
    const lines = Array.from({ length: 10 }, (_, i) => JSON.stringify({ x: [Array.from(samples.slice(6 * i, 6 * i + 6))] })).join("\n");
    const module = put(
      "feeds.mjs",
      `export default async function* () { for (const line of ${JSON.stringify(lines.split("\n"))}) { const x = JSON.parse(line).x; yield { x: { type: "float32", data: Float32Array.from(x.flat()), dims: [1, 6] } }; } }`,
    );
    const sources = [
      put("a.npz", zip({ "x.npy": file }, false)),
      put("b.npz", zip({ "x.npy": file }, true)),
      put("other.npy", file),
      put("d.npy", npy("<f8", [10, 6], Float64Array.from(samples))),
      put("e.safetensors", safetensors("x", "F32", [10, 6], bytes)),
      join(folder, "arrays"),
      join(folder, "parts"),
      put("f.jsonl", lines),
      module,
      [feed(0, 4), feed(4, 6)],
      () => [feed(0, 10)],
      (async function* () {
        yield feed(0, 3);
        yield feed(3, 7);
      })(),
    ];
    for (const source of sources) expect((await all(source)).values, String(source)).toEqual(want);
    // a dimension more than the input has: whole inputs
    const stacked = (await all(put("g.npy", npy("<f4", [5, 2, 6], samples)))).feeds;
    expect(stacked.map((f) => f.x.dims)).toEqual(Array(5).fill([2, 6]));
  });

  const says = async (source: Parameters<typeof readFeeds>[1], text: RegExp, code = "E_CALIBRATION") => {
    const error: unknown = await readFeeds(chain(), source).catch((e: unknown) => e);
    expect(error).toMatchObject({ code });
    expect((error as Error).message).toMatch(text);
  };
  const f32 = (n: number) => new Float32Array(n);

  test("bad data are refused with what is expected", async () => {
    await says([{ y: { type: "float32", data: f32(6), dims: [1, 6] } }], /arrays for the inputs "x", got "y"/);
    await says([{ x: { type: "float32", data: f32(5), dims: [1, 5] } }], /shape \[batch, 6\], got \[1, 5\]/);
    await says([{ x: { type: "float32", data: f32(6), dims: [6] } }], /2 dimensions/);
    await says([{ x: { type: "int64", data: new BigInt64Array(6), dims: [1, 6] } }], /float32 data, got int64/);
    await says([{ x: { type: "float32", data: f32(6), dims: [2, 6] } }], /12 values/);
    await says([{ x: { type: "float32", data: f32(6).fill(NaN), dims: [1, 6] } }], /finite values, got NaN at index 0/);
    await says([{ x: { type: "float32", data: f32(0), dims: [0, 6] } }], /an empty array/);
    await says([], /at least one batch, got none/);
    await says(put("z.npz", zip({ "z.npy": file }, true)), /arrays named after the inputs "x", got "z"/);
    await says(put("i.npz", zip({ "x.npy": npy("<i4", [10, 6], new Int32Array(60)) }, true)), /float32 data, got int32/);
    await says(put("n.npz", zip({ "x.npy": npy("<f4", [0, 6], f32(0)) }, true)), /an empty array/);
    await says(put("bad.jsonl", '{"x": [[1, 2, 3], [4]]}'), /ragged/);
    await says(put("bad2.jsonl", '{"x": [[1, 2'), /line 1: expected JSON/);
    await says(put("short.npz", zip({ "x.npy": file }, true).slice(0, 200)), /no zip directory/, "E_CONTAINER");
    await says(put("bomb.npz", zip({ "x.npy": file }, false).fill(9, 40, 60)), /bytes of x.npy|damaged/, "E_CONTAINER");
    await says(join(folder, "nowhere.npz"), /no such file/, "E_IO");
    await says(put("data.csv", "1,2"), /another file/);
    await expect(readFeeds(chain(), 3 as never)).rejects.toThrow(TypeError);
  });

  test("text becomes windows of tokens for a language model", async () => {
    const ids = value("input_ids", T.INT64, ["batch", "sequence"]);
    const mask = value("attention_mask", T.INT64, ["batch", "sequence"]);
    const m = readModelBytes(
      encode(
        model(
          graph({ input: [ids, mask], output: [value("y", T.INT64, [])], node: [node("Add", ["input_ids", "attention_mask"], ["y"])] }),
        ),
      ),
    );
    const vocabulary = Object.fromEntries(["[UNK]", "a", "b", "c"].map((word, i) => [word, i]));
    const tokenizer = {
      version: "1.0",
      added_tokens: [],
      normalizer: null,
      pre_tokenizer: { type: "WhitespaceSplit" },
      post_processor: null,
      decoder: null,
      model: { type: "WordLevel", vocab: vocabulary, unk_token: "[UNK]" },
    };
    put("tokenizer.json", JSON.stringify(tokenizer));
    const path = put("text.txt", "a b c a b c a b c a");
    const feeds = await readFeeds(m, { text: path, window: 3, windows: 2 });
    expect(
      feeds.map((f) => [
        f.input_ids.dims,
        Array.from(f.input_ids.data as BigInt64Array),
        Array.from(f.attention_mask.data as BigInt64Array),
      ]),
    ).toEqual([
      [
        [2, 3],
        [1n, 2n, 3n, 1n, 2n, 3n],
        [1n, 1n, 1n, 1n, 1n, 1n],
      ],
    ]);
    await expect(readFeeds(m, path)).rejects.toThrow(/at least 256 tokens, got 10/);
  });
});

/** A model of one node x -> y with a weight, as input `at` of it. */
function single(
  opType: string,
  dims: number[],
  at: number,
  attributes: Record<string, AttributeValue> = {},
  xDims: (number | string)[] = [],
): OnnxModel {
  const inputs = at === 0 ? ["w", "x"] : ["x", "w"];
  const w = raw(
    "w",
    dims,
    weights(
      dims.reduce((a, b) => a * b, 1),
      5,
    ),
  );
  return readModelBytes(
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, xDims)],
          output: [value("y", T.FLOAT, [])],
          initializer: [w],
          node: [node(opType, inputs, ["y"], attributes, "n")],
        }),
      ),
    ),
  );
}

const ints = (...list: number[]) => ({ ints: list });
const cases: [string, OnnxModel, number[]][] = [
  ["MatMul", single("MatMul", [6, 4], 1), [2, 3, 6]],
  ["MatMul, weight on the left", single("MatMul", [4, 6], 0), [2, 6, 5]],
  ["Gemm", single("Gemm", [6, 4], 1), [3, 6]],
  ["Gemm transA transB", single("Gemm", [4, 6], 1, { transA: 1n, transB: 1n }), [6, 3]],
  ["Gemm, weight on the left", single("Gemm", [4, 6], 0), [6, 5]],
  ["Gemm, weight on the left, transA transB", single("Gemm", [6, 4], 0, { transA: 1n, transB: 1n }), [5, 6]],
  ["Conv", single("Conv", [4, 3, 3, 2], 1, { pads: ints(1, 0, 2, 1), strides: ints(2, 1), dilations: ints(1, 2) }), [2, 3, 7, 8]],
  ["Conv in groups", single("Conv", [4, 3, 3, 3], 1, { group: 2n, pads: ints(1, 1, 1, 1) }), [1, 6, 5, 5]],
  ["Conv depthwise", single("Conv", [5, 1, 3, 3], 1, { group: 5n }), [1, 5, 6, 6]],
  ["Conv SAME_UPPER", single("Conv", [2, 3, 4, 3], 1, { auto_pad: "SAME_UPPER", strides: ints(2, 2) }), [1, 3, 7, 6]],
  ["Conv SAME_LOWER", single("Conv", [2, 3, 4, 4], 1, { auto_pad: "SAME_LOWER" }), [1, 3, 5, 6]],
  ["Conv of one dimension", single("Conv", [4, 3, 5], 1, { pads: ints(2, 1), strides: ints(2) }), [2, 3, 11]],
  ["ConvTranspose without overlap", single("ConvTranspose", [6, 2, 2, 2], 1, { strides: ints(2, 2), group: 2n }), [1, 6, 3, 4]],
];

describe("statistics", () => {
  test.each(cases)("%s: tr(W H W^T) is the energy of the outputs", async (_, m, dims) => {
    m.proto.graph!.input[0] = value("x", T.FLOAT, dims);
    const count = dims.reduce((a, b) => a * b, 1);
    const feeds = [1, 2].map((seed) => ({ x: { type: "float32", data: weights(count, seed + 40), dims } }));
    const { layers } = await calibrateModel(m, feeds);
    const { layer, statistics } = layers.get("n")!;
    const w = readWeight(m, layer);
    const each = layer.rows / statistics.length;
    let got = 0;
    statistics.forEach((s, g) => {
      const part = Float64Array.from(
        { length: each * layer.k },
        (_, i) => w.data[w.offset + (g * each + Math.floor(i / layer.k)) * w.stride[0] + (i % layer.k) * w.stride[1]],
      );
      got += outputError(part, new Float64Array(part.length), each, s.hessian!);
    });
    const session = await InferenceSession.create(encode(m.proto), { logSeverityLevel: 4, intraOpNumThreads: 1 });
    let energy = 0;
    for (const { x } of feeds)
      for (const v of (await session.run({ x: new Tensor("float32", x.data, x.dims) })).y.data as Float32Array) energy += v * v;
    await session.release();
    expect(Math.abs(got / energy - 1)).toBeLessThan(1e-5);
  });

  test("a token budget and every take fewer vectors, spread over the batches", async () => {
    const feeds = [feed(0, 5), feed(5, 5)];
    const rows = async (options: object) =>
      (await calibrateModel(chain(), feeds, { layers: ["a"], ...options })).layers.get("a")!.statistics[0].rows;
    expect(await rows({})).toBe(10);
    expect(await rows({ every: 3 })).toBe(4);
    expect(await rows({ maxTokens: 4 })).toBe(4);
    await expect(rows({ maxTokens: 0 })).rejects.toThrow(RangeError);
  });

  test("layers that share an input share statistics; ranges are those of the value; held-out batches are apart", async () => {
    const { layers } = await calibrateModel(chain(), [feed(0, 5), feed(5, 5)], { holdOut: 0.5, observer: { method: "minMax" } });
    const [b, c] = [layers.get("b")!, layers.get("c")!];
    expect(b.statistics).toBe(c.statistics);
    expect([b.statistics[0].rows, b.heldOut![0].rows]).toEqual([5, 5]);
    expect(layers.get("a")!.range).toEqual({ min: Math.min(...samples), max: Math.max(...samples) });
    expect(layers.get("a")!.observer!.ranges().max[0]).toBe(Math.max(...samples));
  });

  test("large sums of outer products by the runtime: several panels, near those in float64; small ones are left to the caller", async () => {
    const [k, tokens] = [128, 2100];
    const [a, b] = [weights(tokens * k, 1), weights(tokens * k, 2)];
    const products = openProducts();
    try {
      expect(await products.of(a.subarray(0, 3 * k), b.subarray(0, 3 * k), k)).toBeNull();
      const got = (await products.of(a, b, k))!;
      for (let i = 0; i < k; i += 7)
        for (let j = 0; j < k; j += 5) {
          let [sum, size] = [0, 0];
          for (let t = 0; t < tokens; t++) {
            sum += a[t * k + i] * b[t * k + j];
            size += Math.abs(a[t * k + i] * b[t * k + j]);
          }
          expect(Math.abs(got[i * k + j] - sum)).toBeLessThan(1e-6 * size);
        }
    } finally {
      await products.close();
    }
  });

  test("maps of any width: the statistics of a convolution are the sums over all of them", async () => {
    const m = single("Conv", [4, 3, 3, 3], 1, { pads: ints(1, 1, 1, 1) });
    m.proto.graph!.input[0] = value("x", T.FLOAT, [1, 3, 6, "width"]);
    const maps = [5, 9, 14].map((width) => ({ x: { type: "float32", data: weights(18 * width, width), dims: [1, 3, 6, width] } }));
    const of = async (feeds: Feeds[]) => (await calibrateModel(m, feeds, { holdOut: 0 })).layers.get("n")!.statistics[0];
    const all = await of(maps);
    const parts = await Promise.all(maps.map((map) => of([map])));
    expect(all.rows).toBe(6 * (5 + 9 + 14));
    for (let i = 0; i < all.hessian!.length; i++)
      expect(all.hessian![i]).toBeCloseTo(
        parts.reduce((sum, part) => sum + part.hessian![i], 0),
        6,
      );
    // a budget is spread over the maps
    expect((await calibrateModel(m, maps, { holdOut: 0, maxTokens: 30 })).layers.get("n")!.statistics[0].rows).toBeLessThanOrEqual(30);
  });

  test("layers inside If are refused by name, with what to do", async () => {
    const branch = (w: string) =>
      graph({ output: [value(`y_${w}`, T.FLOAT, [])], node: [node("MatMul", ["x", w], [`y_${w}`], {}, `inside_${w}`)] });
    const m = readModelBytes(
      encode(
        model(
          graph({
            input: [value("x", T.FLOAT, ["n", 6]), value("c", T.BOOL, [])],
            output: [value("y", T.FLOAT, ["n", 4])],
            initializer: [raw("a", [6, 4], weights(24)), raw("b", [6, 4], weights(24, 2))],
            node: [node("If", ["c"], ["y"], { then_branch: branch("a"), else_branch: branch("b") }, "if")],
          }),
        ),
      ),
    );
    const feeds = [{ ...feed(0, 5), c: { type: "bool", data: Uint8Array.of(1), dims: [] } }];
    await expect(calibrateModel(m, feeds)).rejects.toThrow(/inside_a: it lies in if.then_branch: values inside If, Loop and Scan/);
    await expect(quantizeModelBytes(encode(m.proto), { dtype: "q4", algorithm: "gptq", calibration: feeds })).rejects.toThrow(
      /layer inside_a: .*rtn, mse, hqq/s,
    );
    const rules = [{ match: "inside_*", algorithm: "mse" as const }];
    const { report } = await quantizeModelBytes(encode(m.proto), { dtype: "q4", algorithm: "gptq", rules, calibration: feeds });
    expect(report.layers.map(({ algorithm }) => algorithm)).toEqual(["rtn", "rtn"]);
  });

  test("an abort in the middle of calibration writes nothing", async () => {
    const path = put("abort.onnx", encode(chain().proto));
    const controller = new AbortController();
    const before = readdirSync(folder);
    const feeds = Array.from({ length: 6 }, () => feed(0, 5));
    let stages = 0;
    const onProgress = ({ layer }: { layer: string }): void => {
      if (layer.includes("(calibrate)") && ++stages === 3) controller.abort();
    };
    await expect(
      quantizeModel(path, join(folder, "aborted.onnx"), {
        dtype: "q4",
        algorithm: "gptq",
        calibration: feeds,
        signal: controller.signal,
        onProgress,
      }),
    ).rejects.toMatchObject({ code: "E_ABORTED" });
    expect(stages).toBe(3);
    expect(readdirSync(folder)).toEqual(before);
  });

  test("what cannot be calibrated is refused by name", async () => {
    const table = single("Gather", [8, 4], 0, {}, []);
    table.proto.graph!.input[0] = value("x", T.INT64, ["n"]);
    await expect(calibrateModel(table, [{ x: { type: "int64", data: new BigInt64Array(2), dims: [2] } }])).rejects.toThrow(
      /n: an embedding/,
    );
    await expect(calibrateModel(chain(), [feed(0, 5)], { memory: 100 })).rejects.toThrow(
      /layer a: expected room for its Hessian of 6 inputs.*rtn, mse, hqq/s,
    );
    await expect(calibrateModel(chain(), [feed(0, 5)], { layers: ["nothing*"] })).rejects.toThrow(/nothing\*/);
    const controller = new AbortController();
    controller.abort();
    await expect(calibrateModel(chain(), [feed(0, 5)], { signal: controller.signal })).rejects.toMatchObject({ code: "E_ABORTED" });
  });
});

describe("values inside a model", () => {
  const feeds = [feed(0, 4), feed(4, 6)];
  const flat = async (generator: AsyncIterable<ReadonlyMap<string, { data?: unknown }>>, name: string) => {
    const out: number[] = [];
    for await (const values of generator) out.push(...(values.get(name)!.data as Float32Array));
    return out;
  };
  test.each([2 ** 20, 60, 0])("stages that keep %d bytes give what one run gives", async (keepBytes) => {
    const m = chain();
    const runner = modelRunner(m, feeds, { keepBytes });
    const stages = [["x"], ["r"], ["y"]];
    for (const [i, names] of stages.entries()) {
      const got = await flat(runner.stage(names, stages.slice(i + 1).flat()), names[0]);
      expect(got).toEqual(await flat(modelValues(m, feeds, names), names[0]));
    }
  });
  test("a name that the graph does not have is an error", async () => {
    await expect(flat(modelValues(chain(), feeds, ["nowhere"]), "nowhere")).rejects.toThrow(/"nowhere"/);
  });
});

test("layers are those of the model", () => {
  expect(modelLayers(chain()).map((layer) => layer.name)).toEqual(["a", "b", "c"]);
});

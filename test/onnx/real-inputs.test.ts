// Verification on what models are for: decoders that write (with and without a cache, which must write the same),
// images prepared as models want them, metrics of one's own; and models measured side by side.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PNG } from "pngjs";
import sharp from "sharp";
import { afterAll, describe, expect, test } from "vitest";
import { benchModels, quantizeModelBytes } from "../../src/onnx/index.ts";
import { quantile } from "../../src/onnx/verify/bench.ts";
import { greedyTokens, type DecoderModel } from "../../src/onnx/verify/generate.ts";
import { PRESETS, decodeImage, imageTensor, resize, type Pixels } from "../../src/onnx/verify/images.ts";
import { runtimeEntry } from "../../src/onnx/verify/table.ts";
import { encode, graph, matmulModel, model, node, raw, T, value, weights } from "./build.ts";
import { verifyModels } from "./kept.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-real-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const place = (name: string, bytes: Uint8Array | string): string => {
  writeFileSync(join(folder, name), bytes);
  return join(folder, name);
};

const V = 50;
const D = 16;
const int64 = (name: string, ...values: number[]) => raw(name, [values.length], BigInt64Array.from(values, BigInt), T.INT64);

/** Logits of a token from its embedding and the sum of those before, without and with a cache of what came before. */
function decoder(cached: boolean, seed = 0): Uint8Array {
  const init = [
    raw(
      "table",
      [V, D],
      weights(V * D, 1).map((x) => 6 * x),
    ),
    raw(
      "head",
      [D, V],
      weights(D * V, 2 + seed).map((x) => 6 * x),
    ),
    raw("half", [], Float32Array.of(0.7)),
  ];
  const ids = value("input_ids", T.INT64, ["batch", "sequence"]);
  const logits = value("logits", T.FLOAT, ["batch", "sequence", V]);
  if (!cached)
    return encode(
      model(
        graph({
          input: [ids],
          output: [logits],
          initializer: [...init, raw("axis", [], BigInt64Array.of(1n), T.INT64)],
          node: [
            node("Gather", ["table", "input_ids"], ["e"]),
            node("CumSum", ["e", "axis"], ["sum"]),
            node("Mul", ["sum", "half"], ["scaled"]),
            node("Tanh", ["scaled"], ["h"]),
            node("MatMul", ["h", "head"], ["logits"], {}, "head"),
          ],
        }),
      ),
    );
  return encode(
    model(
      graph({
        input: [
          ids,
          value("attention_mask", T.INT64, ["batch", "total"]),
          value("position_ids", T.INT64, ["batch", "sequence"]),
          value("past_key_values.0.key", T.FLOAT, ["batch", 1, "past_sequence_length", D]),
        ],
        output: [logits, value("present.0.key", T.FLOAT, ["batch", 1, "total", D])],
        initializer: [
          ...init,
          raw("two", [], BigInt64Array.of(2n), T.INT64),
          int64("one1", 1),
          int64("axis1", 1),
          int64("zero1", 0),
          int64("two1", 2),
          int64("three1", 3),
          int64("end", 2 ** 40),
        ],
        node: [
          node("Gather", ["table", "input_ids"], ["e"]),
          node("Unsqueeze", ["e", "one1"], ["e4"]),
          node("Concat", ["past_key_values.0.key", "e4"], ["present.0.key"], { axis: 2n }),
          // only sums at the new positions: as many as there are tokens, from the end
          node("CumSum", ["present.0.key", "two"], ["sums"]),
          node("Squeeze", ["sums", "axis1"], ["flat"]),
          node("Shape", ["past_key_values.0.key"], ["shape"]),
          node("Slice", ["shape", "two1", "three1", "zero1"], ["from"]),
          node("Slice", ["flat", "from", "end", "axis1"], ["new"]),
          // the mask and positions must fit: a wrong length or start changes the logits
          node("ReduceSum", ["attention_mask", "one1"], ["count"], { keepdims: 1n }),
          node("ReduceMax", ["position_ids"], ["last"], { axes: { ints: [1] }, keepdims: 1n }),
          node("Sub", ["count", "last"], ["gap"]), // always 1
          node("Cast", ["gap"], ["gapf"], { to: 1n }),
          node("Mul", ["new", "half"], ["scaled"]),
          node("Tanh", ["scaled"], ["h"]),
          node("MatMul", ["h", "head"], ["raw"], {}, "head"),
          node("Unsqueeze", ["gapf", "one1"], ["gap3"]),
          node("Mul", ["raw", "gap3"], ["logits"]),
        ],
      }),
    ),
  );
}

async function opened(bytes: Uint8Array): Promise<{ model: DecoderModel; close(): Promise<void> }> {
  const runtime = await runtimeEntry("node").start({});
  const session = await runtime.open(bytes);
  return {
    model: {
      label: "m",
      inputs: session.inputs!,
      outputNames: session.outputNames,
      run: async (feeds) => (await session.run(feeds)).outputs,
    },
    close: () => runtime.close(),
  };
}

describe("decoders", () => {
  test("with and without a cache they write the same", async () => {
    const texts: number[][] = [];
    for (const cached of [false, true]) {
      const { model: one, close } = await opened(decoder(cached));
      texts.push(await greedyTokens(one, new Map([["input_ids", { below: V }]]), 24));
      await close();
    }
    expect(new Set(texts[0]).size).toBeGreaterThan(3);
    expect(texts[1]).toEqual(texts[0]);
  });

  test.each([false, true])(
    "a model beside itself never parts; beside another it does, where an oracle says (cache: %s)",
    async (cached) => {
      const a = decoder(cached);
      const same = await verifyModels(a, a, { generate: 12, samples: 2 });
      expect(same.generation).toMatchObject({ agreement: 1, firstDivergence: null, sameTexts: 2, klMean: 0, klMax: 0, random: true });
      const { bytes: b } = await quantizeModelBytes(a, { format: "int2_b16", target: "stored" });
      const input = { input_ids: { type: "int64", data: BigInt64Array.of(3n, 1n, 4n), dims: [1, 3] } };
      // the cache is not in the feeds of the prompt: they are for the decoder without one
      if (cached) return;
      const { generation } = await verifyModels(a, b, { generate: 16, inputs: [input], minSqnrDb: -99 });
      // by hand: logits of both models along the reference's text
      const text = [3, 1, 4, ...generation!.text.reference];
      const logits = async (bytes: Uint8Array) => {
        const { model: one, close } = await opened(bytes);
        const out = await one.run({ input_ids: { type: "int64", data: BigInt64Array.from(text, BigInt), dims: [1, text.length] } });
        await close();
        const data = out.get("logits")!.data as Float32Array;
        return Array.from({ length: 16 }, (_, i) => [...data.subarray((i + 2) * V, (i + 3) * V)]);
      };
      const [p, q] = [await logits(a), await logits(b)];
      const best = (row: number[]) => row.indexOf(Math.max(...row));
      const soft = (row: number[]) => {
        const sum = row.reduce((total, x) => total + Math.exp(x), 0);
        return row.map((x) => Math.exp(x) / sum);
      };
      expect(generation!.text.reference).toEqual(p.map(best));
      expect(generation!.text.model).toEqual(q.map(best));
      const first = p.findIndex((row, i) => best(row) !== best(q[i]));
      expect(first).toBeGreaterThanOrEqual(0);
      expect(generation!.firstDivergence).toBe(first);
      const kl = p.map((row, i) => soft(row).reduce((sum, x, j) => sum + x * Math.log(x / soft(q[i])[j]), 0));
      expect(generation!.klMean).toBeCloseTo(kl.reduce((x, y) => x + y, 0) / 16, 6);
      expect(generation!.klMax).toBeCloseTo(Math.max(...kl), 6);
      await expect(verifyModels(a, b, { generate: 16, inputs: [input], minSqnrDb: -99, minAgreement: 1 })).resolves.toMatchObject({
        ok: false,
      });
    },
  );

  test("what is no decoder says so", async () => {
    const bytes = encode(matmulModel(raw("w", [4, 4], weights(16)), 4, 4));
    await expect(verifyModels(bytes, bytes, { generate: 4 })).rejects.toThrow(
      /expected an input of token ids .* got x\. Leave --generate out/,
    );
    await expect(verifyModels(bytes, bytes, { generate: 0 })).rejects.toThrow(RangeError);
  });
});

const gradient = (width: number, height: number): Pixels => ({
  width,
  height,
  data: Uint8Array.from({ length: width * height * 3 }, (_, i) => (i * 7 + ((i / 3 / width) | 0) * 11) & 255),
});
const png = ({ width, height, data }: Pixels): Uint8Array => {
  const image = new PNG({ width, height });
  for (let i = 0; i < width * height; i++) image.data.set([data[3 * i], data[3 * i + 1], data[3 * i + 2], 255], 4 * i);
  return PNG.sync.write(image);
};
const input = (shape: number[], type = "float32") => ({ name: "x", type, shape });

describe("images", () => {
  test("decoding keeps every pixel", async () => {
    const image = gradient(9, 5);
    expect(await decodeImage(png(image), "a.png")).toEqual({ width: 9, height: 5, data: image.data });
  });

  test("resizing: the same size is the same, halves are weighted by triangles, and it is near to libvips'", async () => {
    const image = gradient(8, 6);
    expect([...resize(image, 8, 6, "linear")]).toEqual([...image.data]);
    const row: Pixels = { width: 4, height: 1, data: Uint8Array.from([0, 100, 200, 100].flatMap((x) => [x, x, x])) };
    // centers 1 and 3, triangle of half-width 2 over pixels at 0.5, 1.5, 2.5 (and 3.5): 3/4, 3/4, 1/4
    const half = resize(row, 2, 1, "linear");
    expect(half[0]).toBeCloseTo((0.75 * 0 + 0.75 * 100 + 0.25 * 200) / 1.75, 4);
    expect(half[3]).toBeCloseTo((0.25 * 100 + 0.75 * 200 + 0.75 * 100) / 1.75, 4);
    const smooth: Pixels = {
      width: 64,
      height: 48,
      data: Uint8Array.from({ length: 64 * 48 * 3 }, (_, i) => 128 + 90 * Math.sin(((i / 3) % 64) / 9) * Math.cos(i / 192 / 7)),
    };
    for (const [filter, kernel] of [
      ["linear", "linear"],
      ["cubic", "cubic"],
    ] as const) {
      const ours = resize(smooth, 32, 24, filter);
      const theirs = await sharp(smooth.data, { raw: { width: 64, height: 48, channels: 3 } })
        .resize(32, 24, { kernel, fit: "fill" })
        .raw()
        .toBuffer();
      expect(Math.max(...ours.map((x, i) => Math.abs(x - theirs[i])))).toBeLessThan(2.5);
    }
  });

  test.each([...PRESETS])("preset %s: a plain color becomes its number, in both layouts", (_, preset) => {
    const image: Pixels = { width: 40, height: 30, data: Uint8Array.from({ length: 3600 }, (_, i) => [200, 100, 50][i % 3]) };
    const expected = [200, 100, 50].map((x, c) => (preset.raw ? x : (x / 255 - preset.mean[c]) / preset.deviation[c]));
    const first = imageTensor(image, input([1, 3, 10, 12]), preset);
    expect(first.dims).toEqual([1, 3, 10, 12]);
    const last = imageTensor(image, input([1, 10, 12, 3]), preset);
    expected.forEach((x, c) => {
      for (let i = 0; i < 120; i++) {
        expect((first.data as Float32Array)[c * 120 + i]).toBeCloseTo(x, 4);
        expect((last.data as Float32Array)[3 * i + c]).toBeCloseTo(x, 4);
      }
    });
  });

  test("the middle is cut out", () => {
    // left and right quarter black, the middle white: a square cut of an image twice as wide is all white
    const image: Pixels = {
      width: 16,
      height: 8,
      data: Uint8Array.from({ length: 16 * 8 * 3 }, (_, i) => (((i / 3) | 0) % 16 >= 4 && ((i / 3) | 0) % 16 < 12 ? 255 : 0)),
    };
    const { data } = imageTensor(image, input([1, 3, 8, 8]), { ...PRESETS.get("unit")!, crop: 1 });
    expect(new Set(data as Float32Array)).toEqual(new Set([1]));
  });

  test("verify takes a folder of them; what cannot be taken says what to give", async () => {
    const shape = [1, 3, 8, 8];
    const proto = model(
      graph({
        input: [value("x", T.FLOAT, shape)],
        output: [value("y", T.FLOAT, [1, 4, 6, 6])],
        initializer: [raw("w", [4, 3, 3, 3], weights(108))],
        node: [node("Conv", ["x", "w"], ["y"], {}, "c")],
      }),
    );
    const bytes = encode(proto);
    const images = join(folder, "images");
    mkdirSync(images);
    writeFileSync(join(images, "a.png"), png(gradient(20, 10)));
    writeFileSync(
      join(images, "b.jpg"),
      await sharp(gradient(20, 10).data, { raw: { width: 20, height: 10, channels: 3 } })
        .jpeg()
        .toBuffer(),
    );
    const report = await verifyModels(bytes, bytes, { images, preprocess: "imagenet" });
    expect(report).toMatchObject({ samples: 2, random: false, ok: true, inputs: { x: shape } });
    proto.graph!.input = [value("x", T.FLOAT, [1, 3, "height", "width"])];
    const open = encode(proto);
    const dims = { height: 8, "x:3": 12 };
    expect((await verifyModels(open, open, { images, preprocess: "unit", dims })).inputs).toEqual({ x: [1, 3, 8, 12] });
    const of = (options: object) => verifyModels(bytes, bytes, options).catch((error: Error) => error.message);
    expect(await of({ images, preprocess: "nope" })).toContain("preprocess: expected one of imagenet, clip, half, unit, raw");
    expect(await of({ images })).toContain("expected both or none");
    expect(await of({ images: join(folder, "none"), preprocess: "clip" })).toContain("expected a folder of images, got no such file");
    writeFileSync(join(images, "c.png"), "no image");
    expect(await of({ images, preprocess: "clip" })).toContain("c.png: expected an image");
    const flat = encode(matmulModel(raw("w", [4, 4], weights(16)), 4, 4));
    await expect(verifyModels(flat, flat, { images, preprocess: "clip" })).rejects.toThrow(
      /expected a model whose one input is an image, got x/,
    );
  });
});

test("a metric of one's own, from a module, for both models", async () => {
  const bytes = encode(matmulModel(raw("w", [4, 4], weights(16)), 4, 4));
  const other = encode(
    matmulModel(
      raw(
        "w",
        [4, 4],
        weights(16).map((x) => 2 * x),
      ),
      4,
      4,
    ),
  );
  const metric = place(
    "metric.mjs",
    `export default async ({ run }) => {
      const { y } = await run({ x: { type: "float32", data: Float32Array.of(1, 1, 1, 1), dims: [1, 4] } });
      return { sum: y.data.reduce((a, b) => a + b, 0) };
    };`,
  );
  const { metrics } = await verifyModels(bytes, other, { metric, minSqnrDb: -99 });
  expect(metrics!.sum.model).toBeCloseTo(2 * metrics!.sum.reference, 5);
  await expect(verifyModels(bytes, other, { metric: () => "good" as never })).rejects.toThrow(/metric: expected a number/);
  await expect(verifyModels(bytes, other, { metric: place("none.mjs", "export const x = 1;") })).rejects.toThrow(
    /expected a default export/,
  );
  await expect(verifyModels(bytes, other, { metric: join(folder, "missing.mjs") })).rejects.toMatchObject({ code: "E_IO" });
});

describe("bench", () => {
  test("models in turn, the first is the measure", async () => {
    const a = place("a.onnx", decoder(false));
    const b = place("b.onnx", (await quantizeModelBytes(decoder(false), { format: "int4_b16", target: "stored" })).bytes);
    const { cells, random, inputs } = await benchModels([a, b], { runs: 5, runtimes: ["node", "web"], generate: 3, dims: { sequence: 6 } });
    expect(cells.map(({ model: path, runtime }) => [path, runtime])).toEqual(
      [a, b].flatMap((path) => [
        [path, "node"],
        [path, "web"],
      ]),
    );
    expect({ random, inputs }).toEqual({ random: true, inputs: { input_ids: [1, 6] } });
    for (const cell of cells) {
      expect(cell.error).toBeUndefined();
      expect(Math.min(cell.loadMs, cell.firstMs, cell.medianMs, cell.ratio, cell.tokensPerSecond!, cell.peakBytes!)).toBeGreaterThan(0);
      expect(cell.p95Ms).toBeGreaterThanOrEqual(cell.medianMs);
    }
    expect(cells.slice(0, 2).map(({ ratio }) => ratio)).toEqual([1, 1]);
  });

  test("a model that does not load is a row with the reason; a missing runtime is an error", async () => {
    const a = place("a.onnx", decoder(false));
    const bad = encode(
      model(
        graph({ input: [value("input_ids", T.INT64, ["b", "s"])], output: [], node: [node("NoSuchOperator", ["input_ids"], ["logits"])] }),
      ),
    );
    const { cells } = await benchModels([a, place("bad.onnx", bad)], { runs: 1 });
    expect(cells[1].error).toMatch(/NoSuchOperator|output/i);
    expect(cells[1].ratio).toBeNaN();
    await expect(benchModels([a], { runtimes: ["torch"] })).rejects.toThrow(/expected some of node, node-disabled, web/);
    await expect(benchModels([])).rejects.toThrow(TypeError);
  });

  test("quantiles are ranks", () => {
    const values = Array.from({ length: 20 }, (_, i) => 20 - i);
    expect([quantile(values, 0.5), quantile(values, 0.95), quantile([7], 0.95)]).toEqual([10, 19, 7]);
  });
});

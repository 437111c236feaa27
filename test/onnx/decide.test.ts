// decideWeights: what it hands out equals the quantizers of lowbit/quantize on statistics collected apart, layer by
// layer; in sequence the error of the model's output is smaller; layers in groups join; errors name the layer.
import { describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import {
  ALGORITHMS,
  decideWeights,
  modelLayers,
  modelValues,
  readBias,
  readModelBytes,
  readWeight,
  writeBias,
  writeModelBytes,
  writeWeight,
  type Algorithm,
  type DecideOptions,
  type Feeds,
  type OnnxModel,
} from "../../src/onnx/index.ts";
import { gptq, layerStatistics, rtn } from "../../src/quantize/index.ts";
import { encode, graph, matmulModel, model, node, raw, T, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const K = 32;
/** x [batch, 32] -> a -> Relu -> b and c -> y, with a bias behind a. */
const chain = (): OnnxModel =>
  readModelBytes(
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, ["batch", K])],
          output: [value("y", T.FLOAT, ["batch", 16])],
          initializer: [
            raw("wa", [K, K], weights(K * K, 1)),
            raw("ba", [K], weights(K, 4)),
            raw("wb", [K, 16], weights(K * 16, 2)),
            raw("wc", [K, 16], weights(K * 16, 3)),
          ],
          node: [
            node("MatMul", ["x", "wa"], ["p"], {}, "a"),
            node("Add", ["p", "ba"], ["h"]),
            node("Relu", ["h"], ["r"]),
            node("MatMul", ["r", "wb"], ["b"], {}, "b"),
            node("MatMul", ["r", "wc"], ["c"], {}, "c"),
            node("Mul", ["b", "c"], ["y"]),
          ],
        }),
      ),
    ),
  );

/** Correlated inputs: neighbours differ little. */
function inputs(rows: number, seed: number): Float32Array {
  const noise = weights(rows * K, seed);
  for (let i = 1; i < noise.length; i++) if (i % K !== 0) noise[i] = 0.9 * noise[i - 1] + 0.4 * noise[i];
  return noise;
}
const batches: Feeds[] = [11, 12, 13, 14].map((seed) => ({ x: { type: "float32", data: inputs(64, seed), dims: [64, K] } }));
const judge: Feeds[] = [{ x: { type: "float32", data: inputs(200, 99), dims: [200, K] } }];
const name = "int3_b16";

async function output(m: OnnxModel): Promise<Float32Array> {
  for await (const values of modelValues(m, judge, ["y"])) return values.get("y")!.data as Float32Array;
  throw new Error("no batch");
}

async function quantized(algorithm: Algorithm, options: DecideOptions = {}) {
  const m = chain();
  const before = writeModelBytes(m);
  const layers = modelLayers(m);
  const decided = await decideWeights(m, layers, () => ({ format: format(name), algorithm }), batches, options);
  expect(writeModelBytes(m)).toEqual(before);
  expect([...decided.keys()].sort((a, b) => (a.name < b.name ? -1 : 1))).toEqual(layers);
  for (const layer of layers) {
    const { packed, biasShift } = decided.get(layer)!;
    writeWeight(m, layer, packed);
    if (biasShift)
      writeBias(
        m,
        layer,
        biasShift.map((v, i) => v + (readBias(m, layer)?.[i] ?? 0)),
      );
  }
  const [want, got] = [await output(chain()), await output(m)];
  return { m, decided, layers, error: want.reduce((sum, v, i) => sum + (v - got[i]) ** 2, 0) };
}

describe("one-shot", () => {
  test("GPTQ equals gptq() on the inputs of the layer", async () => {
    const { decided, layers } = await quantized({ name: "gptq", damp: 0.02, actOrder: true }, { holdOut: 0 });
    for (const layer of layers) {
      const statistics = layerStatistics(K);
      const values = layer.name === "a" ? "x" : "r";
      for await (const v of modelValues(chain(), batches, [values])) statistics.add(v.get(values)!.data as Float32Array);
      const fresh = chain();
      const own = modelLayers(fresh).find((other) => other.name === layer.name)!;
      const want = quantize(readWeight(fresh, own), format(name), gptq({ hessian: statistics.finish(), damp: 0.02, actOrder: true }));
      expect(decided.get(layer)!.packed.codes).toEqual(want.codes);
    }
  });

  test("what is open is chosen on held-out batches: damping, then order, then polish, never worse there than where it began", async () => {
    const chosen = await quantized("gptq", { holdOut: 0.5 });
    for (const choice of [{ damp: 0.05 }, { damp: 0.01 }, { damp: 0.1 }]) {
      const one = await quantized({ name: "gptq", actOrder: false, polish: false, ...choice }, { holdOut: 0.5 });
      one.layers.forEach((layer, i) => {
        const [a, b] = [chosen.decided.get(chosen.layers[i])!.outputSqnr!, one.decided.get(layer)!.outputSqnr!];
        expect(a).toBeGreaterThanOrEqual(b - 1e-9);
      });
    }
    const { recipe } = chosen.decided.get(chosen.layers[0])!.packed;
    expect(recipe.chosenOf).toBe(5);
    const again = await quantized(
      { name: "gptq", damp: recipe.damp as number, actOrder: recipe.actOrder as boolean, polish: recipe.polish !== undefined },
      { holdOut: 0 },
    );
    expect(again.decided.get(again.layers[0])!.packed.recipe.chosenOf).toBeUndefined(); // nothing was open
    // once it is chosen, all batches count
    expect(recipe.calibrationRows).toBe(again.decided.get(again.layers[0])!.packed.recipe.calibrationRows);
    expect(again.decided.get(again.layers[0])!.packed.codes).toEqual(chosen.decided.get(chosen.layers[0])!.packed.codes);
  });

  test("coarse scales: a search is tried too; a wide Hadamard block where it divides k", async () => {
    const tries = async (algorithm: "gptq" | "mrgptq", of: string, k: number, rows = k) => {
      const m = readModelBytes(encode(matmulModel(raw("w", [k, 8], weights(k * 8)), k, 8)));
      const data: Feeds[] = [1, 2].map((seed) => ({ x: { type: "float32", data: weights(rows * k, seed), dims: [rows, k] } }));
      const decided = await decideWeights(m, modelLayers(m), () => ({ format: format(of as "mxfp4"), algorithm }), data, {
        undoes: ["rotation"],
      });
      return [...decided.values()][0].packed.recipe.chosenOf;
    };
    expect(await tries("gptq", "mxfp4", 32)).toBe(6);
    expect(await tries("mrgptq", "mxfp4", 32)).toBe(5);
    expect(await tries("mrgptq", "mxfp4", 128)).toBe(6);
    // fewer vectors than inputs: no error, strong dampings too
    expect(await tries("gptq", "mxfp4", 32, 3)).toBe(8);
  });

  test("algorithms with data beat rounding to nearest at the model's output; those without need none", async () => {
    const { error } = await quantized("rtn");
    for (const algorithm of ["gptq", { name: "adaround", iterations: 100 }] as const)
      expect((await quantized(algorithm)).error).toBeLessThan(0.8 * error);
    const awq = await quantized("awq", { undoes: ["channelScales"] });
    expect(awq.error).toBeLessThan(error);
    expect((await quantized({ name: "mrgptq", damp: 0.05, actOrder: false }, { undoes: ["rotation"] })).error).toBeLessThan(error);
    const m = chain();
    for (const algorithm of ["rtn", "mse"] as const) {
      const decided = await decideWeights(m, modelLayers(m), () => ({ format: format(name), algorithm }));
      const [layer, { packed, signal, noise }] = [...decided][0];
      const w = Float32Array.from(tensorValues(m, layer.name));
      expect(signal).toBeCloseTo(
        w.reduce((sum, v) => sum + v * v, 0),
        4,
      );
      expect(noise).toBeCloseTo(
        w.reduce((sum, v, i) => sum + (v - dequantize(packed)[i]) ** 2, 0),
        6,
      );
    }
    expect(ALGORITHMS).toEqual(["rtn", "mse", "hqq", "awq", "gptq", "mrgptq", "adaround", "refit"]);
  });

  test("a function makes quantizers of one's own from the statistics", async () => {
    const seen: [string, number, number][] = [];
    await quantized((layer) => {
      seen.push([layer.name, layer.k, layer.statistics!.rows + layer.heldOut!.rows]);
      return rtn();
    });
    expect(seen).toEqual([
      ["a", K, 256],
      ["b", K, 256],
      ["c", K, 256],
    ]);
  });
});

const tensorValues = (m: OnnxModel, layer: string): number[] => {
  const { data, shape, stride } = readWeight(
    m,
    modelLayers(m).find((l) => l.name === layer)!,
  );
  return Array.from({ length: shape[0] * shape[1] }, (_, i) => data[Math.floor(i / shape[1]) * stride[0] + (i % shape[1]) * stride[1]]);
};

describe("sequential", () => {
  test("refit in sequence makes up for the layers before", async () => {
    const one = await quantized({ name: "gptq", damp: 0.05, actOrder: false, polish: false });
    const sequence = await quantized({ name: "refit", damp: 0.05, actOrder: false, polish: false });
    expect(sequence.error).toBeLessThan(one.error);
    expect(sequence.decided.get(sequence.layers[0])!.biasShift).toHaveLength(K);
  });
  test("the first layer sees what it sees one-shot", async () => {
    const options = { name: "gptq", damp: 0.05, actOrder: true } as const;
    const [one, sequence] = [await quantized(options), await quantized(options, { sequential: true })];
    expect(sequence.decided.get(sequence.layers[0])!.packed.codes).toEqual(one.decided.get(one.layers[0])!.packed.codes);
    expect(sequence.decided.get(sequence.layers[1])!.packed.codes).not.toEqual(one.decided.get(one.layers[1])!.packed.codes);
  });
});

test("a grouped convolution is quantized group by group and joined", async () => {
  const w = weights(6 * 2 * 9, 5);
  const m = readModelBytes(
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, [1, 4, 8, 8])],
          output: [value("y", T.FLOAT, [1, 6, 6, 6])],
          initializer: [raw("w", [6, 2, 3, 3], w)],
          node: [node("Conv", ["x", "w"], ["y"], { group: 2n }, "n")],
        }),
      ),
    ),
  );
  const feeds = [1, 2].map((seed) => ({ x: { type: "float32", data: weights(256, seed), dims: [1, 4, 8, 8] } }));
  const layers = modelLayers(m);
  const decide = (f: string) => decideWeights(m, layers, () => ({ format: format(f), algorithm: "gptq" }), feeds);
  const { packed } = (await decide("int4_row")).get(layers[0])!;
  expect(packed.shape).toEqual([6, 18]);
  const values = dequantize(packed);
  const plain = dequantize(quantize(tensor(w, [6, 18]), format("int4_row")));
  let [near, far] = [0, 0];
  for (let i = 0; i < w.length; i++) [near, far] = [near + (w[i] - values[i]) ** 2, far + (w[i] - plain[i]) ** 2];
  expect(near).toBeLessThan(3 * far);
  expect(near).toBeGreaterThan(0);
  await expect(decide("nvfp4")).rejects.toThrow(/layer n: expected a format whose scales stay within one of its 2 groups/);
});

describe("errors", () => {
  const m = chain();
  const layers = modelLayers(m);
  const go = (algorithm: unknown, data?: Feeds[]) =>
    decideWeights(m, layers, () => ({ format: format(name), algorithm: algorithm as Algorithm }), data);
  test("names and options that do not exist", async () => {
    await expect(go("gtpq")).rejects.toThrow(RangeError);
    await expect(go("toString")).rejects.toThrow(RangeError);
    await expect(go({ name: "gptq", dmap: 1 })).rejects.toThrow(/options of .*damp.*got "dmap"/);
    await expect(go({ name: "rtn", damp: 1 })).rejects.toThrow(TypeError);
  });
  test("data that are missing, and a basis that the target cannot undo", async () => {
    await expect(go("gptq")).rejects.toThrow(/layer a: expected calibration data for gptq/);
    await expect(go("mrgptq", batches)).rejects.toThrow(/layer a: .*mrgptq.*rotation/s);
    await expect(
      decideWeights(m, layers, () => ({ format: format(name), algorithm: "refit" }), batches, { sequential: false }),
    ).rejects.toThrow(/sequential/);
  });
  test("layers without inputs to look at must have an algorithm without data", async () => {
    const table = readModelBytes(
      encode(
        model(
          graph({
            input: [value("i", T.INT64, ["n"])],
            output: [value("y", T.FLOAT, ["n", K])],
            initializer: [raw("w", [16, K], weights(16 * K))],
            node: [node("Gather", ["w", "i"], ["y"], {}, "table")],
          }),
        ),
      ),
    );
    const gather = modelLayers(table);
    const feeds = [{ i: { type: "int64", data: new BigInt64Array(2), dims: [2] } }];
    await expect(decideWeights(table, gather, () => ({ format: format(name), algorithm: "gptq" }), feeds)).rejects.toThrow(
      /layer table: .*embedding/s,
    );
    expect((await decideWeights(table, gather, () => ({ format: format(name), algorithm: "mse" }))).size).toBe(1);
  });
  test("weights that are not finite", async () => {
    const bad = readModelBytes(writeModelBytes(chain()));
    bad.proto.graph!.initializer[0] = raw("wa", [K, K], weights(K * K).fill(NaN));
    await expect(decideWeights(bad, modelLayers(bad), () => ({ format: format(name), algorithm: "rtn" }))).rejects.toThrow(
      /layer a: expected finite weights/,
    );
  });
});

describe("inputs that never vary", () => {
  /** x -> a -> y, and a vector of ones -> b -> z: nothing can be learned for b. */
  const still = (): Uint8Array =>
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, ["batch", K]), value("mode", T.FLOAT, [1, K])],
          output: [value("y", T.FLOAT, ["batch", K]), value("z", T.FLOAT, [1, K])],
          initializer: [raw("wa", [K, K], weights(K * K, 1)), raw("wb", [K, K], weights(K * K, 2))],
          node: [node("MatMul", ["x", "wa"], ["y"], {}, "a"), node("MatMul", ["mode", "wb"], ["z"], {}, "b")],
        }),
      ),
    );
  const feeds = batches.map((batch): Feeds => ({ ...batch, mode: { type: "float32", data: new Float32Array(K).fill(0.5), dims: [1, K] } }));

  test.each(["gptq", "mrgptq", "adaround", "awq", "refit"] as const)("%s goes on, and says so", async (algorithm) => {
    const { report } = await quantizeModelBytes(still(), { format: "int4_b32", target: "stored", algorithm, calibration: feeds });
    expect(report.layers.map(({ name: of, format: made }) => [of, made])).toEqual([
      ["a", "int4_b32"],
      ["b", "int4_b32"],
    ]);
    expect(report.notes.filter((note) => note.includes("searched"))).toEqual([
      "b: scales searched without data: the inputs are the same in all calibration vectors",
    ]);
    const codes = async (by: Algorithm) => {
      const m = readModelBytes(still());
      const decided = await decideWeights(m, modelLayers(m), () => ({ format: format("int4_b32"), algorithm: by }), feeds, {
        undoes: ["rotation", "channelScales"],
      });
      return Object.fromEntries([...decided].map(([layer, { packed }]) => [layer.name, packed.codes]));
    };
    const [learned, searched] = [await codes(algorithm), await codes("mse")];
    expect(learned.b).toEqual(searched.b);
    expect(learned.a).not.toEqual(searched.a);
  });

  test("a dead channel of a depthwise convolution is searched, the others learn", async () => {
    const channels = 4;
    const conv = encode(
      model(
        graph({
          input: [value("x", T.FLOAT, ["batch", channels, 8, 8])],
          output: [value("y", T.FLOAT, ["batch", channels, 6, 6])],
          initializer: [raw("w", [channels, 1, 3, 3], weights(channels * 9, 1))],
          node: [node("Conv", ["x", "w"], ["y"], { group: BigInt(channels), kernel_shape: { ints: [3, 3] } }, "depthwise")],
        }),
      ),
    );
    const maps = [21, 22, 23, 24].map((seed): Feeds => {
      const data = weights(2 * channels * 64, seed);
      for (const image of [0, 1]) data.fill(0, (image * channels + 1) * 64, (image * channels + 2) * 64);
      return { x: { type: "float32", data, dims: [2, channels, 8, 8] } };
    });
    const { report } = await quantizeModelBytes(conv, { format: "int3_row", target: "stored", algorithm: "gptq", calibration: maps });
    expect(report.layers[0]).toMatchObject({ name: "depthwise", algorithm: "gptq", format: "int3_row" });
    expect(report.layers[0].outputSqnrDb).toBeGreaterThan(5);
    expect(report.notes).toContainEqual(
      "depthwise: scales of 1 of 4 groups searched without data: the inputs are the same in all calibration vectors",
    );
  });
});

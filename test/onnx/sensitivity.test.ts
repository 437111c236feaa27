// Layers to leave out by the outputs of the model: the table against runs of one's own, the choice against the target,
// with few runs too.
import { describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { quantize } from "../../src/index.ts";
import {
  measureSensitivity,
  modelLayers,
  quantizeModelBytes,
  reachSqnr,
  readModelBytes,
  readWeight,
  writeModelBytes,
  writeWeight,
  type SingleRule,
  type QuantizeWith,
} from "../../src/onnx/index.ts";
import type { TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { referenceRun } from "../../src/onnx/passes/check.ts";
import type { Feeds } from "../../src/onnx/verify/feeds.ts";
import { encode, graph, model, node, raw, T, value, weights } from "./build.ts";
import { encoderFeeds, encoderModel } from "./encoder.ts";

/**
 * Conv, depthwise Conv with channels of very different size, Conv, Gemm: what int8 with one scale per tensor spoils in
 * mobile networks.
 */
function mobile(): Uint8Array {
  const uneven = weights(16 * 9, 3).map((v, i) => v * 4 ** -(Math.floor(i / 9) % 8));
  const initializer: TensorProto[] = [
    raw("w1", [16, 3, 3, 3], weights(432, 1)),
    raw("w2", [16, 1, 3, 3], uneven),
    raw(
      "w3",
      [8, 16, 1, 1],
      weights(128, 4).map((v, i) => v * 4 ** ((i % 16) % 8)),
    ),
    raw("w4", [8 * 64, 6], weights(3072, 5)),
  ];
  const nodes = [
    node("Conv", ["x", "w1"], ["a"], { pads: { ints: [1, 1, 1, 1] } }, "first"),
    node("Relu", ["a"], ["ar"]),
    node("Conv", ["ar", "w2"], ["b"], { group: 16n, pads: { ints: [1, 1, 1, 1] } }, "depthwise"),
    node("Relu", ["b"], ["br"]),
    node("Conv", ["br", "w3"], ["c"], {}, "/point/wise"),
    node("Flatten", ["c"], ["f"]),
    node("Gemm", ["f", "w4"], ["y"], {}, "head"),
  ];
  return encode(
    model(graph({ input: [value("x", T.FLOAT, ["n", 3, 8, 8])], output: [value("y", T.FLOAT, [])], initializer, node: nodes })),
  );
}
const images: Feeds[] = [0, 1].map((seed) => ({ x: { type: "float32", data: weights(2 * 192, seed + 50), dims: [2, 3, 8, 8] } }));

async function sqnr(reference: Uint8Array, quantized: Uint8Array | string, feeds: readonly Feeds[]): Promise<number> {
  const [want, got] = [
    await referenceRun(readModelBytes(reference), feeds),
    await referenceRun(readModelBytes(quantized as Uint8Array), feeds),
  ];
  let [signal, noise] = [0, 0];
  want.outputs.forEach((outputs, f) => {
    const [[name, { data }]] = outputs;
    for (let i = 0; i < data.length; i++)
      [signal, noise] = [signal + data[i] ** 2, noise + (data[i] - got.outputs[f].get(name)!.data[i]) ** 2];
  });
  return -10 * Math.log10(noise / signal);
}

const int8With =
  (bytes: Uint8Array): QuantizeWith =>
  async (rules) =>
    (await quantizeModelBytes(bytes, { dtype: "int8", ...(rules.length > 0 ? { rules } : {}) })).bytes;
const NAMES = ["first", "depthwise", "/point/wise", "head"];

describe("int8 of a mobile network", () => {
  test("the table is that of single layers", async () => {
    const bytes = mobile();
    const report = await measureSensitivity(bytes, int8With(bytes), { layers: NAMES, feeds: images });
    expect(report.layers).toHaveLength(4);
    expect(report.runs).toBe(5);
    for (const { name, sqnrDb, together } of report.layers) {
      const alone = await int8With(bytes)(
        NAMES.filter((n) => n !== name).map((n) => ({ match: n === "/point/wise" ? "/^\\/point\\/wise$/" : n, keep: true })),
      );
      expect(together).toBe(1);
      expect(sqnrDb).toBeCloseTo(await sqnr(bytes, alone, images), 3);
    }
    const order = report.layers.map(({ sqnrDb }) => sqnrDb);
    expect(order).toEqual(order.toSorted((a, b) => a - b));
  });

  test("the target is reached with as few layers left out as it takes", async () => {
    const bytes = mobile();
    const quantizeWith = int8With(bytes);
    const plain = await sqnr(bytes, await quantizeWith([]), images);
    const report = await reachSqnr(bytes, quantizeWith, { targetSqnr: 30, layers: NAMES, feeds: images });
    expect(report.before).toBeCloseTo(plain, 3);
    expect(plain).toBeLessThan(30);
    expect(report.rules.length).toBeGreaterThan(0);
    expect(report.rules.length).toBeLessThan(4);
    const reached = await sqnr(bytes, await quantizeWith(report.rules), images);
    expect(reached).toBeGreaterThanOrEqual(30);
    expect(report.sqnrDb).toBeCloseTo(reached, 3);
    expect(await sqnr(bytes, await quantizeWith(report.rules.slice(0, -1)), images)).toBeLessThan(30);
    expect(report.notes[0]).toMatch(/^-?\d+\.\d dB with all 4 layers quantized; \d+\.\d dB with \d left out \(target 30 dB, \d+ runs\)$/);
    expect(report.notes.slice(1)).toEqual(report.keptLayers.map((name) => `left out: ${name}`));
  });

  test("a target that holds already changes nothing", async () => {
    const bytes = mobile();
    const plain = await sqnr(bytes, await int8With(bytes)([]), images);
    const report = await reachSqnr(bytes, int8With(bytes), { targetSqnr: plain - 1, layers: NAMES, feeds: images });
    expect(report.rules).toEqual([]);
    expect(report.runs).toBe(1);
  });
});

/** Every product rounded to int2 blocks, or as its rule says. */
const stored =
  (bytes: Uint8Array, calls: SingleRule[][] = []): QuantizeWith =>
  (rules) => {
    calls.push([...rules]);
    const m = readModelBytes(bytes);
    for (const layer of modelLayers(m)) {
      const rule = rules.find(({ match }) => match === layer.name);
      if (layer.opType !== "MatMul" || rule?.keep === true) continue;
      writeWeight(m, layer, quantize(readWeight(m, layer), format((rule?.format as string | undefined) ?? "int2_b32")));
    }
    return Promise.resolve(writeModelBytes(m));
  };

describe("a transformer in two bits", () => {
  const bytes = encoderModel({ activation: "relu" });
  const names = modelLayers(readModelBytes(bytes))
    .filter((l) => l.opType === "MatMul")
    .map((l) => l.name);
  const feeds = encoderFeeds(1);

  test("layers are raised rather than left out, where that is enough", async () => {
    const report = await reachSqnr(bytes, stored(bytes), { targetSqnr: 12, layers: names, feeds, raise: [{ format: "int8_b32" }] });
    expect(report.raisedLayers.length).toBeGreaterThan(0);
    expect(report.rules.filter(({ format: f }) => f === "int8_b32")).toHaveLength(report.raisedLayers.length);
    expect(await sqnr(bytes, await stored(bytes)(report.rules), feeds)).toBeGreaterThanOrEqual(12);
  });

  test("few runs: layers are measured together, the target still holds", async () => {
    const calls: SingleRule[][] = [];
    const report = await reachSqnr(bytes, stored(bytes, calls), { targetSqnr: 12, layers: names, feeds, maxRuns: 14 });
    expect(report.runs).toBe(calls.length);
    expect(report.layers).toHaveLength(names.length);
    expect(report.layers.some(({ together }) => together > 1)).toBe(true);
    expect(await sqnr(bytes, await stored(bytes)(report.rules), feeds)).toBeGreaterThanOrEqual(12);
  });

  test("what cannot be reached is said; options are checked", async () => {
    const spoiled: QuantizeWith = () => stored(encoderModel({ activation: "gelu", d: 64, outlier: 3 }))([]);
    await expect(reachSqnr(bytes, spoiled, { targetSqnr: 40, layers: names, feeds, maxRuns: 20 })).rejects.toThrow(
      /expected to reach 40 dB, got .* with every layer left out/,
    );
    await expect(reachSqnr(bytes, spoiled, { targetSqnr: NaN, layers: names, feeds })).rejects.toThrow(/targetSqnr: expected a number/);
    await expect(measureSensitivity(bytes, spoiled, { layers: names, feeds: [] })).rejects.toThrow(/at least one input/);
    await expect(measureSensitivity(bytes, spoiled, { layers: names, feeds, maxRuns: 2 })).rejects.toThrow(/maxRuns/);
  });
});

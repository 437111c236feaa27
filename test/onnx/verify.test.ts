// verifyModels: what it measures, which inputs it makes, how it says that models cannot be compared.
import { describe, expect, it } from "vitest";
import { inputDims, inputHints, randomSource, randomTensor } from "../../src/onnx/verify/feeds.ts";
import type { ModelProto, NodeProto, TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { readModelBytes, verifyModels } from "../../src/onnx/index.ts";
import { T, encode, graph, matmulModel, model, node, raw, value, weights } from "./build.ts";

const w = weights(64 * 8);
const original = encode(matmulModel(raw("w", [64, 8], w), 64, 8));
const scaledBy = (factor: number): Uint8Array =>
  encode(
    matmulModel(
      raw(
        "w",
        [64, 8],
        w.map((v) => v * factor),
      ),
      64,
      8,
    ),
  );

describe("figures", () => {
  it("equal models: no error at all", async () => {
    const report = await verifyModels(original, original.slice(), { samples: 3 });
    expect(report).toMatchObject({ samples: 3, ok: true, inputs: { x: [1, 64] } });
    expect(report.outputs).toEqual([
      { name: "y", type: "float32", dims: [1, 8], sqnrDb: Infinity, cosine: 1, maxAbsError: 0, argmaxAgreement: 1 },
    ]);
  });
  it("all weights 1 % larger: 40 dB, the same direction", async () => {
    const { outputs, ok } = await verifyModels(original, scaledBy(1.01));
    expect(outputs[0].sqnrDb).toBeCloseTo(40, 2);
    expect(outputs[0].cosine).toBeCloseTo(1, 6);
    expect(outputs[0].argmaxAgreement).toBe(1);
    expect(ok).toBe(true);
  });
  it("weights negated: -6 dB, cosine -1, below any threshold", async () => {
    const { outputs, ok } = await verifyModels(original, scaledBy(-1), { samples: 8 });
    expect(outputs[0].sqnrDb).toBeCloseTo(-6.02, 2);
    expect(outputs[0].cosine).toBeCloseTo(-1, 6);
    expect(outputs[0].argmaxAgreement).toBe(0);
    expect(ok).toBe(false);
  });
  it("the threshold decides", async () => {
    expect((await verifyModels(original, scaledBy(1.01), { minSqnrDb: 41 })).ok).toBe(false);
    expect((await verifyModels(original, scaledBy(1.01), { minSqnrDb: 39 })).ok).toBe(true);
  });
  it("NaN in one model alone is no agreement", async () => {
    const { outputs, ok } = await verifyModels(original, scaledBy(NaN));
    expect(outputs[0].sqnrDb).toBe(-Infinity);
    expect(ok).toBe(false);
  });
  it("given inputs are run as they are", async () => {
    const x = { type: "float32", data: new Float32Array(128).fill(1), dims: [2, 64] };
    const report = await verifyModels(original, scaledBy(2), { inputs: [{ x }] });
    expect(report.inputs).toEqual({ x: [2, 64] });
    const sums = Array.from({ length: 8 }, (_, j) => Math.abs(Array.from({ length: 64 }, (_, i) => w[i * 8 + j]).reduce((a, b) => a + b)));
    expect(report.outputs[0].maxAbsError).toBeCloseTo(Math.max(...sums), 4);
  });
  it("the same seed gives the same figures, another seed others", async () => {
    const figure = async (seed: number): Promise<number> =>
      (
        await verifyModels(
          original,
          encode(
            matmulModel(
              raw(
                "w",
                [64, 8],
                w.map((v, i) => v + (i % 3) * 0.01),
              ),
              64,
              8,
            ),
          ),
          { seed },
        )
      ).outputs[0].sqnrDb;
    expect(await figure(5)).toBe(await figure(5));
    expect(await figure(5)).not.toBe(await figure(6));
  });
});

describe("errors", () => {
  it("a model that does not load", async () => {
    const bad = matmulModel(raw("w", [64, 8], w), 64, 8);
    bad.graph!.node[0].opType = "NoSuchOperator";
    await expect(verifyModels(original, encode(bad))).rejects.toMatchObject({
      code: "E_RUNTIME",
      message: expect.stringMatching(/second model: expected a model that onnxruntime loads/),
    });
  });
  it("inputs, outputs or shapes that differ", async () => {
    const renamed = matmulModel(raw("w", [64, 8], w), 64, 8);
    renamed.graph!.output[0].name = renamed.graph!.node[0].output[0] = "z";
    await expect(verifyModels(original, encode(renamed))).rejects.toMatchObject({ code: "E_VERIFY" });
    await expect(verifyModels(original, encode(matmulModel(raw("w", [64, 4], w.subarray(0, 256)), 64, 4)))).rejects.toMatchObject({
      code: "E_VERIFY",
    });
  });
  it("feeds that do not fit", async () => {
    const x = { type: "float32", data: new Float32Array(63), dims: [1, 63] };
    await expect(verifyModels(original, original, { inputs: [{ x }] })).rejects.toMatchObject({
      code: "E_RUNTIME",
      message: expect.stringMatching(/x float32\[1, 63\]/),
    });
    await expect(verifyModels(original, original, { samples: 0 })).rejects.toThrow(RangeError);
  });
});

describe("random inputs", () => {
  const input = (name: string, type: string, shape: (number | string)[]) => ({ name, type, shape });
  it("sizes: numbers stay, names share, batch is 1, past is 0, sums add up", () => {
    const dims = (shape: (number | string)[], given = {}): number[] => inputDims(input("x", "float32", shape), given, 16);
    expect(dims([3, 4])).toEqual([3, 4]);
    expect(dims(["N", "sequence", 8])).toEqual([1, 16, 8]);
    expect(dims([2, "batch_size", 128])).toEqual([2, 1, 128]);
    expect(dims(["batch", 4, "past_sequence_length", 8])).toEqual([1, 4, 0, 8]);
    expect(dims(["batch", "past_sequence_length + 1"])).toEqual([1, 1]);
    expect(dims(["batch", "past_length + sequence_length"], { past_length: 5, sequence_length: 2 })).toEqual([1, 7]);
    expect(dims(["batch", "sequence"], { sequence: 7, batch: 3 })).toEqual([3, 7]);
    expect(dims(["", ""], { "x:1": 9 })).toEqual([1, 9]);
  });
  it("indices stay inside their table, compared values are met", async () => {
    const nodes: NodeProto[] = [
      node("Cast", ["ids"], ["wide"], { to: 7n }),
      node("Gather", ["table", "wide"], ["e"]),
      node("Equal", ["rate", "r"], ["is"]),
      node("Cast", ["is"], ["f"], { to: 1n }),
      node("Mul", ["e", "f"], ["y"]),
    ];
    const initializer: TensorProto[] = [raw("table", [13, 4], weights(52)), raw("r", [], BigInt64Array.of(16000n), T.INT64)];
    const proto: ModelProto = model(
      graph({
        input: [value("ids", T.INT32, ["b", "s"]), value("rate", T.INT64, [])],
        output: [value("y", T.FLOAT, ["b", "s", 4])],
        initializer,
        node: nodes,
      }),
    );
    const hints = inputHints(readModelBytes(encode(proto)));
    expect(Object.fromEntries(hints)).toEqual({ ids: { below: 13 }, rate: { equals: 16000 } });
    const ids = randomTensor(input("ids", "int32", []), [50], hints.get("ids"), randomSource(1)).data as Int32Array;
    expect(new Set(ids).size).toBeGreaterThan(8);
    expect(Math.min(...ids)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...ids)).toBeLessThan(13);
    const { outputs } = await verifyModels(encode(proto), encode(proto));
    expect(outputs[0].dims).toEqual([1, 16, 4]);
  });
  it("every element type", () => {
    for (const type of [
      "float32",
      "float64",
      "float16",
      "int64",
      "uint64",
      "int32",
      "uint32",
      "int16",
      "uint16",
      "int8",
      "uint8",
      "bool",
      "string",
    ]) {
      const tensor = randomTensor(input("x", type, []), [2, 3], undefined, randomSource(3));
      expect([tensor.type, tensor.dims, tensor.data.length]).toEqual([type, [2, 3], 6]);
    }
    expect(randomTensor(input("attention_mask", "int64", []), [3], undefined, randomSource(1)).data).toEqual(BigInt64Array.of(1n, 1n, 1n));
  });
});

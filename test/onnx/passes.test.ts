// Passes keep the function of a model: outputs within 1e-4 of their range, on a LayerNorm encoder in every spelling and on kjv-llama; and what
// they are for is true afterwards (gains are ones, ranges are equal, outliers are spread).
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { applyPasses, modelLayers, readModelBytes, writeModelBytes, type PassRequest } from "../../src/onnx/index.ts";
import { findReaders } from "../../src/onnx/edit.ts";
import { buildScopes } from "../../src/onnx/graph/graph.ts";
import { differenceFrom, referenceRun } from "../../src/onnx/passes/check.ts";
import { layersOf, writeWeight } from "../../src/onnx/primitives.ts";
import type { PassContext } from "../../src/onnx/passes/types.ts";
import { findNorms } from "../../src/onnx/passes/norms.ts";
import { readFloats } from "../../src/onnx/file/values.ts";
import { resolveConstant } from "../../src/onnx/graph/graph.ts";
import type { OnnxModel } from "../../src/onnx/index.ts";
import { describeShared, modelPath } from "../helpers/shared.ts";
import { encoderFeeds, encoderModel, type EncoderInit } from "./encoder.ts";

const FORMS: EncoderInit[] = [
  { norm: "operator", activation: "gelu" },
  { norm: "spelled", activation: "relu" },
  { norm: "operator", activation: "swiglu", linear: "gemm" },
  { norm: "spelled", linear: "gemm" },
];

const contextOf = (model: OnnxModel): PassContext => {
  const scopes = buildScopes(model);
  const layers = layersOf(scopes);
  const readers = findReaders(scopes);
  return {
    model,
    scopes,
    layers,
    layerOf: new Map(layers.map((l) => [l.node, l])),
    readers: (scope, name) => readers.get(scope)!.get(name) ?? [],
    refresh: () => {},
    note: () => {},
    statistics: () => Promise.reject(new Error("none")),
  };
};

/** Runs passes and compares by itself: the driver's own check is off. */
async function changed(bytes: Uint8Array, passes: PassRequest[], options = {}) {
  const model = readModelBytes(bytes);
  const reference = await referenceRun(model, encoderFeeds(2));
  const notes = await applyPasses(model, passes, { verify: false, ...options });
  const after = readModelBytes(writeModelBytes(model));
  return { model: after, notes, difference: (await differenceFrom(reference, after)).relative };
}

describe("fold-norm", () => {
  test.each(FORMS)("%o: gains become ones, outputs stay", async (init) => {
    const { model, notes, difference } = await changed(encoderModel({ ...init, outlier: 8 }), ["fold-norm"]);
    expect(notes).toEqual(["fold-norm: 5 of 5 norms folded into the products behind them"]);
    expect(difference).toBeLessThan(1e-5);
    const norms = findNorms(contextOf(model));
    expect(norms).toHaveLength(5);
    for (const { gain, bias, scope } of norms) {
      const values = (at: typeof gain) => readFloats(model, resolveConstant(scope, at!.node.input[at!.input])!.tensor);
      expect(values(gain).every((v) => v === 1)).toBe(true);
      expect(values(bias).every((v) => v === 0)).toBe(true);
    }
  });

  test("a norm that is an output stays, and says why", async () => {
    const { notes, difference } = await changed(encoderModel({ output: "hidden" }), ["fold-norm"]);
    expect(notes[0]).toContain("4 of 5 norms folded");
    expect(notes[1]).toContain("kept final: its output is an output of the graph");
    expect(difference).toBeLessThan(1e-5);
  });

  test("a model without norms is left as it is", async () => {
    const bytes = new Uint8Array(readFileSync("test/fixtures/fashion-cnn/fashion_cnn.onnx"));
    const model = readModelBytes(bytes);
    expect(await applyPasses(model, ["fold-norm"])).toEqual([
      "fold-norm: no LayerNorm or RMSNorm over the last axis was found; nothing changed",
    ]);
    expect(Buffer.compare(writeModelBytes(model), bytes)).toBe(0);
  });
});

describe("the driver", () => {
  test("refuses unknown passes and options", async () => {
    const model = readModelBytes(encoderModel());
    await expect(applyPasses(model, ["fold"])).rejects.toThrow(/expected fold-norm, .*got "fold"/);
    await expect(applyPasses(model, [{ name: "fold-norm", block: 3 }])).rejects.toThrow(/fold-norm: expected options .*got "block"/);
  });

  test("takes back a pass that changed the outputs", async () => {
    const model = readModelBytes(encoderModel());
    const before = writeModelBytes(model);
    const { PASSES } = await import("../../src/onnx/passes/index.ts");
    const passes = PASSES as Map<string, unknown>;
    passes.set("break", {
      name: "break",
      options: [],
      run(context: PassContext) {
        writeWeight(context.model, context.layers[3], new Float32Array(context.layers[3].rows * context.layers[3].k));
        return 1;
      },
    });
    const notes = await applyPasses(model, ["break"]);
    passes.delete("break");
    expect(notes[0]).toMatch(/^break: taken back, because output head differed by /);
    expect(Buffer.compare(writeModelBytes(model), before)).toBe(0);
  });
});

describeShared("passes on kjv-llama", modelPath("kjv-llama/kjv_llama.onnx"), (path) => {
  test("fold-norm", { timeout: 30_000 }, async () => {
    const model = readModelBytes(new Uint8Array(readFileSync(path)));
    const reference = await referenceRun(model);
    const notes = await applyPasses(model, ["fold-norm"], { verify: false });
    expect(notes).toEqual(["fold-norm: 9 of 9 norms folded into the products behind them"]);
    expect((await differenceFrom(reference, model)).relative).toBeLessThan(1e-5);
    expect(modelLayers(model).length).toBeGreaterThan(29);
  });
});

// Passes keep the function of a model: outputs within 1e-4 of their range, on a LayerNorm encoder in every spelling and
// on kjv-llama; and what they are for is true afterwards (gains are ones, ranges are equal, outliers are spread).
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { addOutputs, applyPasses, modelLayers, readModelBytes, readWeight, writeModelBytes } from "../../src/onnx/index.ts";
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
import { calibrationOn } from "./statistics.ts";
import { changed, encoderFeeds, encoderModel, FORMS } from "./encoder.ts";

const contextOf = (model: OnnxModel): PassContext => {
  const scopes = buildScopes(model);
  const layers = layersOf(scopes, model);
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

/** Largest magnitude over root mean square of what a product reads, and of its weight. */
async function crest(model: OnnxModel, name: string): Promise<[number, number]> {
  const layer = modelLayers(model).find((l) => l.name === name)!;
  const of = (values: ArrayLike<number>): number => {
    let [most, sum] = [0, 0];
    for (let i = 0; i < values.length; i++) [most, sum] = [Math.max(most, Math.abs(values[i])), sum + values[i] ** 2];
    return most / Math.sqrt(sum / values.length);
  };
  const copy = readModelBytes(writeModelBytes(model));
  addOutputs(copy, [layer.activation]);
  const { outputs } = await referenceRun(copy, encoderFeeds(1));
  return [of(outputs[0].get(layer.activation)!.data), of(readWeight(model, layer).data)];
}

describe("rotate", () => {
  test.each(FORMS)("%o: LayerNorm becomes RMSNorm, outputs stay", async (init) => {
    for (const settings of [{ block: 16 }, { block: "full", seed: 3 }]) {
      const bytes = encoderModel({ ...init, outlier: 8 });
      const { model, notes, difference } = await changed(bytes, [{ name: "rotate", ...settings }]);
      expect(difference).toBeLessThan(2e-5);
      expect(notes.join("\n")).toMatch(/stream of 64 channels turned in blocks of (16|64): \d+ products read it, 4 write it/);
      expect(notes.join("\n")).toContain("5 LayerNorms, now RMSNorms");
      expect(notes.join("\n")).toContain("2 pairs of value and output projections");
      expect(findNorms(contextOf(model)).map((norm) => norm.kind)).toEqual(["rms", "rms", "rms", "rms", "rms"]);
    }
  });

  test("spreads a large channel of what products read", async () => {
    const bytes = encoderModel();
    const model = readModelBytes(bytes);
    const table = modelLayers(model).find((l) => l.weight.name === "tok_emb")!;
    writeWeight(
      model,
      table,
      readWeight(model, table).data.map((v, i) => (i % 64 === 7 ? 40 * v : v)),
    );
    const [before] = await crest(model, "l0.q/mm/node");
    await applyPasses(model, [{ name: "rotate", block: "full" }], { feeds: encoderFeeds(1) });
    const [after] = await crest(model, "l0.q/mm/node");
    expect(after).toBeLessThan(0.6 * before);
  });

  test("an output of the stream: refused, or a product with the matrix where that is asked for", async () => {
    const bytes = encoderModel({ output: "hidden" });
    const plain = await changed(bytes, [{ name: "rotate", heads: false }]);
    expect(plain.notes.join("\n")).toContain("its output is an output of the graph (boundary: true puts a product there)");
    expect(plain.notes.join("\n")).not.toContain("turned in blocks");
    const asked = await changed(bytes, [{ name: "rotate", boundary: true }]);
    expect(asked.notes.join("\n")).toContain("4 LayerNorms, now RMSNorms; 1 products with the matrix at its bounds");
    expect(asked.difference).toBeLessThan(2e-5);
  });

  test("turns inputs online where asked", async () => {
    const { model, notes, difference } = await changed(encoderModel(), [
      { name: "rotate", block: 32, heads: false, online: ["*fc2*", "*.o/*"] },
    ]);
    expect(notes.join("\n")).toContain("4 products read inputs that 4 groups of nodes turn at run time");
    expect(difference).toBeLessThan(2e-5);
    expect(model.proto.graph!.node.filter((n) => n.opType === "Shape")).toHaveLength(4);
  });

  test("names four of the products that it turns online", async () => {
    const note = async (online: string[]) => (await changed(encoderModel(), [{ name: "rotate", heads: false, online }])).notes.find((line) => line.includes("at run time"))!; // prettier-ignore
    expect(await note(["*fc2*", "*.o/*"])).toMatch(/at run time: [^ ]+, [^ ]+, [^ ]+, [^ ]+$/);
    expect(await note(["*fc2*", "*.o/*", "*head*"])).toMatch(/5 products .* at run time: [^ ]+, [^ ]+, [^ ]+, [^ ]+ \.\.\.$/);
  });

  test("a model without a residual stream stays as it is", async () => {
    const bytes = new Uint8Array(readFileSync("test/fixtures/fashion-cnn/fashion_cnn.onnx"));
    const model = readModelBytes(bytes);
    const notes = await applyPasses(model, ["rotate"]);
    expect(notes).toContain("rotate: no normalization was found, so no residual stream");
    expect(notes.at(-1)).toBe("rotate: nothing changed");
    expect(Buffer.compare(writeModelBytes(model), bytes)).toBe(0);
  });

  test("wrong options are refused before anything is done", async () => {
    const model = readModelBytes(encoderModel());
    await expect(applyPasses(model, [{ name: "rotate", block: 24 }])).rejects.toThrow(/block: expected a power of two or "full", got 24/);
    await expect(applyPasses(model, [{ name: "rotate", online: "fc2" }])).rejects.toThrow(/online: expected a list/);
    await expect(applyPasses(model, [{ name: "rotate", seed: -1 }])).rejects.toThrow(/seed: expected null/);
  });
});

describe("the driver", () => {
  test("refuses unknown passes and options", async () => {
    const model = readModelBytes(encoderModel());
    await expect(applyPasses(model, ["fold"])).rejects.toThrow(/expected fold-batchnorm, .*got "fold"/);
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
  test("fold-norm", async () => {
    const model = readModelBytes(new Uint8Array(readFileSync(path)));
    const reference = await referenceRun(model);
    const notes = await applyPasses(model, ["fold-norm"], { verify: false });
    expect(notes).toEqual(["fold-norm: 9 of 9 norms folded into the products behind them"]);
    expect((await differenceFrom(reference, model)).relative).toBeLessThan(1e-5);
  });

  test("smooth and awq", async () => {
    const model = readModelBytes(new Uint8Array(readFileSync(path)));
    const reference = await referenceRun(model);
    const ids = { type: "int64", data: BigInt64Array.from({ length: 128 }, (_, i) => BigInt((i * 37) % 2048)), dims: [1, 128] };
    const notes = await applyPasses(model, ["smooth", { name: "awq", grid: 3 }], { verify: false, calibration: calibrationOn([{ ids }]) });
    expect(notes[0]).toBe("smooth: scales of 29 products in 17 groups folded into what is before them");
    expect(notes[1]).toMatch(/awq: scales for int4_b32 of \d+ products/);
    expect((await differenceFrom(reference, model)).relative).toBeLessThan(1e-4);
  });

  test("rotate, with nodes before the last products of each block", async () => {
    const model = readModelBytes(new Uint8Array(readFileSync(path)));
    const reference = await referenceRun(model);
    const notes = await applyPasses(model, [{ name: "rotate", block: 128, online: ["*down_proj*"] }], { verify: false });
    expect(notes.join("\n")).toContain("21 products read it, 8 write it, 1 tables");
    expect(notes.join("\n")).toContain("4 pairs of value and output");
    expect((await differenceFrom(reference, model)).relative).toBeLessThan(1e-5);
  });
});

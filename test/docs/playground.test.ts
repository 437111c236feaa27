// What the playground of the site asks of the library is what its controls say.
import { describe, expect, it } from "vitest";
import { ALGORITHM_CHOICES, FORMATS, recipe, type Controls } from "../../docs/.vitepress/playground/options.ts";
import { compare } from "../../docs/.vitepress/playground/compare.ts";
import { format } from "../../formats/index.ts";
import { ALGORITHMS, quantizeModelBytes, summarizeModel, readModelBytes, useRuntime } from "../../src/onnx/index.ts";
import { reportHtml, reportParts } from "../../src/onnx/report/html.ts";
import { parseRecipe, recipeOf } from "../../src/onnx/recipe.ts";
import { readFileSync } from "node:fs";

const bytes = new Uint8Array(readFileSync(new URL("../fixtures/fashion-cnn/fashion_cnn.onnx", import.meta.url)));
const START: Controls = { dtype: "q8", format: "", algorithm: "rtn", layers: {}, more: "" };

describe("the recipe", () => {
  it("has what the controls say, and every one passes the library's checks", () => {
    expect(recipe(START)).toEqual({ dtype: "q8" });
    const made = recipe({ dtype: "", format: " mxfp4 ", algorithm: "hqq", layers: { "/0/Conv": "keep", b: "q8", c: "" }, more: '{"perChannel": true, "rules": [{"match": "x*", "keep": true}]}' }); // prettier-ignore
    expect(made).toEqual({
      format: "mxfp4",
      algorithm: "hqq",
      perChannel: true,
      rules: [
        { match: "/^\\/0\\/Conv$/", keep: true },
        { match: "/^b$/", dtype: "q8" },
        { match: "x*", keep: true },
      ],
    });
    expect(() => parseRecipe(made, "options")).not.toThrow();
  });
  it("names a layer and no other, whatever characters it has", async () => {
    const { layers } = summarizeModel(readModelBytes(bytes));
    const kept = layers[1].name;
    const { report } = await quantizeModelBytes(bytes, parseRecipe(recipe({ ...START, layers: { [kept]: "keep" } }), "options"));
    expect(report.layers.filter((layer) => layer.format === null).map(({ name }) => name)).toEqual([kept]);
  });
  it("refuses what is no object of options", () => {
    expect(() => recipe({ ...START, more: "[1]" })).toThrow(TypeError);
    expect(() => recipe({ ...START, more: "{" })).toThrow(SyntaxError);
    expect(() => parseRecipe(recipe({ ...START, more: '{"perchannel":true}' }), "options")).toThrow(/perchannel: expected one of/);
  });
  it("offers the library's algorithms and formats that exist", () => {
    expect(ALGORITHM_CHOICES.map(({ name }) => name)).toEqual(ALGORITHMS);
    for (const name of FORMATS) expect(format(name).name).toBeTruthy();
  });
});

describe("comparing", () => {
  it("has the figures of both models in a runtime, and the page shows them", async () => {
    const { bytes: made, report } = await quantizeModelBytes(bytes, { dtype: "q8" });
    const verify = await compare(bytes, made, { runtimes: ["lowbit/runtime"], feeds: null, samples: 2, seed: 1, onProgress: () => undefined }); // prettier-ignore
    expect(verify.ok).toBe(true);
    expect(verify.outputs[0].sqnrDb).toBeGreaterThan(25);
    const cells = verify.matrix!.cells;
    expect(cells.map((cell) => [cell.model, cell.state])).toEqual([["reference", "ran"], ["model", "ran"]]); // prettier-ignore
    expect(cells[0].sqnrDb).toBe(Infinity);
    expect(cells[1].sqnrDb).toBe(verify.outputs[0].sqnrDb);
    const content = { input: "a<b>.onnx", report, recipe: recipeOf({ dtype: "q8" }), verify };
    const parts = reportParts(content);
    expect(parts).toContain("lowbit/runtime");
    expect(reportHtml(content)).toContain(parts);
    expect(reportHtml(content)).toContain("a&lt;b&gt;.onnx");
  });
});

it("useRuntime gives calibration another runtime, and takes nothing else", async () => {
  expect(() => useRuntime({} as never)).toThrow(TypeError);
  const ort = await import("onnxruntime-node");
  let opened = 0;
  const create = (...args: Parameters<typeof ort.InferenceSession.create>) => (opened++, ort.InferenceSession.create(...args));
  useRuntime({ InferenceSession: { create }, Tensor: ort.Tensor });
  try {
    const feeds = [1, 2].map((seed) => ({
      image: { type: "float32", dims: [1, 1, 28, 28], data: Float32Array.from({ length: 784 }, (_, i) => Math.sin(i * seed) ** 2) },
    }));
    const { report } = await quantizeModelBytes(bytes, { dtype: "q4", algorithm: "gptq", calibration: feeds, include: ["/14/Gemm"] });
    expect(report.layers.filter((layer) => layer.algorithm === "gptq").length).toBe(1);
    expect(opened).toBeGreaterThan(0);
  } finally {
    useRuntime(undefined);
  }
});

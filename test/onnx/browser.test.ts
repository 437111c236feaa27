// The same code without Node: bundled for a browser and run in a context that has only what browsers have too.
import { readFileSync } from "node:fs";
import { createContext, runInContext } from "node:vm";
import { build } from "esbuild";
import { beforeAll, describe, expect, it } from "vitest";
import type * as Onnx from "../../src/onnx/index.ts";
import { quantizeModelBytes } from "../../src/onnx/index.ts";

const fashion = new Uint8Array(readFileSync(new URL("../fixtures/fashion-cnn/fashion_cnn.onnx", import.meta.url)));

let onnx: typeof Onnx;
beforeAll(async () => {
  const entry = new URL("../../src/onnx/index.ts", import.meta.url).pathname;
  const result = await build({ entryPoints: [entry], bundle: true, platform: "browser", format: "iife", globalName: "onnx", write: false });
  expect(result.warnings).toEqual([]);
  const code = result.outputFiles[0].text;
  // No import of a Node module and no require: names of modules appear as plain arguments only.
  expect(code).not.toMatch(/require\("|from "node:|import\("node:/);
  const context = createContext({ crypto, TextEncoder, TextDecoder, performance, setTimeout, AbortController, console });
  onnx = runInContext(`${code}; onnx`, context) as typeof Onnx;
});

describe("in a browser", () => {
  it.each(["q4", "q8", "fp16"] as const)("%s gives the bytes that Node gives", async (dtype) => {
    const here = await quantizeModelBytes(fashion, { dtype });
    const there = await onnx.quantizeModelBytes(fashion, { dtype });
    expect(Buffer.compare(there.bytes, here.bytes)).toBe(0);
    expect(there.report.layers.length).toBe(here.report.layers.length);
  });
  it("paths and the runtime are refused with the way out", async () => {
    await expect(onnx.quantizeModel("a.onnx", "b.onnx", { dtype: "q4" })).rejects.toMatchObject({
      code: "E_UNSUPPORTED",
      message: expect.stringMatching(/quantizeModelBytes/),
    });
    await expect(onnx.verifyModels(fashion, fashion)).rejects.toMatchObject({
      code: "E_RUNTIME",
      message: expect.stringMatching(/npm install onnxruntime-node/),
    });
  });
});

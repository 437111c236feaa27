// kjv-llama for the bench of GGUF: its weights, weights replaced by dequantized values, perplexity by onnxruntime-node
// over windows of 256 tokens.
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-node";
import { modelLayers, readModelBytes, readWeight, writeModelBytes, writeWeight, type OnnxModel } from "../src/onnx/index.ts";
import type { Tensor } from "../src/index.ts";
import { modelPath } from "../test/helpers/shared.ts";

export interface KjvLayer {
  readonly name: string;
  /** The value that the MatMul multiplies, [.., k]; layers that share it share statistics. */
  readonly input: string;
  /** Name of the weight initializer [k, n]. */
  readonly weight: string;
  readonly k: number;
  readonly n: number;
}

export interface Kjv {
  readonly model: OnnxModel;
  readonly bytes: Uint8Array;
  readonly layers: readonly KjvLayer[];
  readonly validation: Uint16Array;
  /** Text for calibration: these quantizers see none of it. */
  readonly calibration: Uint16Array;
}

const WINDOW = 256;
const VOCABULARY = 2048;
const BATCH = 8;

export function loadKjv(): Kjv | null {
  const path = modelPath("kjv-llama/kjv_llama.onnx");
  if (path === null) return null;
  const bytes = new Uint8Array(readFileSync(path));
  const tokens = (name: string) => {
    const raw = readFileSync(modelPath(`kjv-llama/${name}`)!);
    return new Uint16Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength));
  };
  const model = readModelBytes(bytes);
  const layers = modelLayers(model)
    .filter((layer) => layer.opType === "MatMul")
    .map(({ name, activation, weight, k, rows }): KjvLayer => ({ name, input: activation, weight: weight.name, k, n: rows }));
  return { model, bytes, layers, validation: tokens("val.u16"), calibration: tokens("calibration.u16") };
}

/** Weight of a layer as [n, k], k contracted. */
export const weightOf = (kjv: Kjv, layer: KjvLayer): Tensor =>
  readWeight(
    kjv.model,
    modelLayers(kjv.model).find(({ name }) => name === layer.name)!,
  );

const session = (bytes: Uint8Array) => ort.InferenceSession.create(bytes, { intraOpNumThreads: 2, logSeverityLevel: 3 });

function windows(tokens: Uint16Array, first: number, count: number): ort.Tensor {
  const ids = BigInt64Array.from(tokens.subarray(first * WINDOW, (first + count) * WINDOW), (t) => BigInt(t));
  return new ort.Tensor("int64", ids, [count, WINDOW]);
}

/** Bytes of the model with some weights replaced: values row-major [n, k], by layer name. */
export function withWeights(kjv: Kjv, values: ReadonlyMap<string, Float32Array>): Uint8Array {
  const model = readModelBytes(kjv.bytes);
  for (const layer of modelLayers(model)) if (values.has(layer.name)) writeWeight(model, layer, values.get(layer.name)!);
  return writeModelBytes(model);
}

/** Perplexity over all whole windows of a text, the validation text by default (or the first `limit` windows). */
export async function perplexity(kjv: Kjv, bytes: Uint8Array, limit = Infinity, text = kjv.validation): Promise<number> {
  const each = await windowLosses(bytes, limit, text);
  return Math.exp(each.reduce((sum, loss) => sum + loss, 0) / each.length);
}

/** What one model loses more than another on the same windows, in nats a token, with its standard error. */
export function pairedDifference(a: readonly number[], b: readonly number[]): { readonly mean: number; readonly error: number } {
  const apart = a.map((loss, i) => loss - b[i]);
  const mean = apart.reduce((sum, d) => sum + d, 0) / apart.length;
  const variance = apart.reduce((sum, d) => sum + (d - mean) ** 2, 0) / (apart.length - 1);
  return { mean, error: Math.sqrt(variance / apart.length) };
}

/** The mean loss of each whole window of a text, in nats a token. */
export async function windowLosses(bytes: Uint8Array, limit: number, text: Uint16Array): Promise<number[]> {
  const s = await session(bytes);
  const total = Math.min(limit, Math.floor(text.length / WINDOW));
  const losses: number[] = [];
  for (let i = 0; i < total; i += BATCH) {
    const n = Math.min(BATCH, total - i);
    const { logits } = await s.run({ ids: windows(text, i, n) });
    const data = logits.data as Float32Array;
    for (let b = 0; b < n; b++) {
      let [sum, counted] = [0, 0];
      for (let t = 0; t < WINDOW; t++) {
        const next = (i + b) * WINDOW + t + 1;
        if (next >= text.length) continue;
        const row = data.subarray((b * WINDOW + t) * VOCABULARY, (b * WINDOW + t + 1) * VOCABULARY);
        let max = -Infinity;
        for (const v of row) if (v > max) max = v;
        let exp = 0;
        for (const v of row) exp += Math.exp(v - max);
        sum += max + Math.log(exp) - row[text[next]];
        counted++;
      }
      losses.push(sum / counted);
    }
  }
  await s.release();
  return losses;
}

/** log softmax of a row of logits, in place. */
function logSoftmax(row: Float32Array): void {
  let max = -Infinity;
  for (const v of row) if (v > max) max = v;
  let exp = 0;
  for (const v of row) exp += Math.exp(v - max);
  const log = max + Math.log(exp);
  for (let i = 0; i < row.length; i++) row[i] -= log;
}

/**
 * Mean Kullback-Leibler divergence of a model's predictions from those of the float32 model, in nats per token, over
 * the first windows of the validation text: it tells quantizers apart where perplexities differ by chance.
 */
export async function divergence(kjv: Kjv, bytes: Uint8Array, limit: number): Promise<number> {
  const sessions = [await session(kjv.bytes), await session(bytes)];
  const total = Math.min(limit, Math.floor(kjv.validation.length / WINDOW));
  let sum = 0;
  for (let i = 0; i < total; i += BATCH) {
    const ids = windows(kjv.validation, i, Math.min(BATCH, total - i));
    const [float, given] = [await sessions[0].run({ ids }), await sessions[1].run({ ids })].map((out) => out.logits.data as Float32Array);
    for (let at = 0; at < float.length; at += VOCABULARY) {
      const [p, q] = [float, given].map((data) => data.subarray(at, at + VOCABULARY));
      logSoftmax(p);
      logSoftmax(q);
      for (let j = 0; j < VOCABULARY; j++) sum += Math.exp(p[j]) * (p[j] - q[j]);
    }
  }
  for (const s of sessions) await s.release();
  return sum / (total * WINDOW);
}

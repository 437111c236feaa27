// npm run bench -- integer [encoder|kjv]: integer-only models (integerOnly) in lowbit/runtime, beside the float model
// in onnxruntime-web (one thread each) and in lowbit/runtime: SQNR of the output, time. encoder: of MiniLM's sizes,
// seeded weights; kjv: a trained language model, with its perplexity over `PERPLEXITY_WINDOWS` windows of 256 tokens.
import { existsSync, readFileSync } from "node:fs";
import { wasm } from "../src/index.ts";
import { integerOnly, floatOperators, readModelBytes } from "../src/onnx/index.ts";
import { loadModel, type RuntimeTensor } from "../src/runtime/index.ts";
import { modelPath } from "../test/helpers/shared.ts";
import { encoderModel, sqnr } from "./encode.ts";
import { measure, type Candidate, type Row } from "./measure.ts";
import { load } from "./peers.ts";

type Feeds = Record<string, RuntimeTensor>;

interface Case {
  readonly name: string;
  readonly model: Uint8Array;
  /** Calibration batches, and one that is none of them. */
  readonly calibration: readonly Feeds[];
  readonly feeds: Feeds;
  readonly perplexity?: (run: (ids: BigInt64Array) => Promise<Float32Array>) => Promise<number>;
}

const PERPLEXITY_WINDOWS = 40;
const TOKENS = 128;

/** Seeded ids, spread over the vocabulary. */
const ids = (seed: number): BigInt64Array =>
  BigInt64Array.from({ length: TOKENS }, (_, i) => BigInt(((i + 1) * 7919 * (seed + 1) + i * i * 13) % 1000));

function encoder(): Case {
  const feeds = (seed: number): Feeds => ({
    input_ids: { type: "int64", dims: [1, TOKENS], data: ids(seed) },
    attention_mask: { type: "int64", dims: [1, TOKENS], data: new BigInt64Array(TOKENS).fill(1n) },
  });
  return { name: "encoder", model: encoderModel(), calibration: [1, 2, 3, 4].map(feeds), feeds: feeds(9) };
}

function kjv(): Case | null {
  const path = modelPath("kjv-llama");
  if (path === null || !existsSync(`${path}/kjv_llama.onnx`)) return null;
  const tokens = (file: string): Uint16Array => new Uint16Array(readFileSync(`${path}/${file}`).buffer.slice(0));
  const [training, text] = [tokens("calibration.u16"), tokens("val.u16")];
  const feeds = (of: Uint16Array, from: number): Feeds => ({
    ids: { type: "int64", dims: [1, 256], data: BigInt64Array.from(of.subarray(from, from + 256), BigInt) },
  });
  return {
    name: "kjv-llama",
    model: readFileSync(`${path}/kjv_llama.onnx`),
    calibration: Array.from({ length: 16 }, (_, b) => feeds(training, b * 12000)),
    feeds: feeds(text, 0),
    async perplexity(run) {
      let loss = 0;
      for (let w = 0; w < PERPLEXITY_WINDOWS; w++) {
        const logits = await run(feeds(text, 256 * w).ids.data as BigInt64Array);
        for (let i = 0; i < 256; i++) {
          const row = logits.subarray(i * 2048, (i + 1) * 2048);
          let top = -Infinity;
          for (const v of row) top = Math.max(top, v);
          let sum = 0;
          for (const v of row) sum += Math.exp(v - top);
          loss += top + Math.log(sum) - row[text[256 * w + i + 1]];
        }
      }
      return Math.exp(loss / (256 * PERPLEXITY_WINDOWS));
    },
  };
}

interface Web {
  InferenceSession: {
    create(source: unknown, options: object): Promise<{ run(feeds: object): Promise<Record<string, { data: Float32Array }>> }>;
  };
  Tensor: new (type: string, data: unknown, dims: readonly number[]) => object;
  env: { wasm: { numThreads?: number } };
}

async function web(model: Uint8Array, feeds: Feeds): Promise<() => Promise<Float32Array>> {
  const loaded = (await load("onnxruntime-web")) as unknown as Web & { default?: Web };
  const ort = loaded.InferenceSession === undefined ? loaded.default! : loaded;
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"], logSeverityLevel: 3 });
  const tensors = Object.fromEntries(Object.entries(feeds).map(([key, t]) => [key, new ort.Tensor(t.type, t.data, t.dims)]));
  return async () => Object.values(await session.run(tensors))[0].data;
}

export async function integer(options: { readonly seconds: number; readonly quick: boolean; readonly cases: readonly string[] }): Promise<{
  rows: Row[];
  ratios: Record<string, number>;
  missing: string[];
}> {
  const missing: string[] = [];
  const ratios: Record<string, number> = {};
  const rows: Row[] = [];
  const wanted = (name: string): boolean => options.cases.length === 0 || options.cases.includes(name);
  const language = wanted("kjv") ? kjv() : null;
  if (wanted("kjv") && language === null) missing.push("models/kjv-llama");
  for (const one of [...(wanted("encoder") ? [encoder()] : []), ...(language === null ? [] : [language])]) {
    const { bytes } = await integerOnly(one.model, { calibration: [...one.calibration] as never });
    ratios[`${one.name}: operators on floats between input and output`] = floatOperators(readModelBytes(bytes)).floats.length;
    const backend = await wasm();
    const [float, whole] = [await loadModel(one.model, { backend }), await loadModel(bytes, { backend })];
    const own = (session: typeof float) => async (): Promise<Float32Array> =>
      Object.values(await session.run(one.feeds))[0].data as Float32Array;
    const peer = await web(one.model, one.feeds);
    ratios[`${one.name}: SQNR, dB`] = sqnr((await peer()).slice(), await own(whole)());
    const candidates: Candidate[] = [
      { name: `${one.name}: integer-only`, run: own(whole) },
      { name: `${one.name}: float32`, run: own(float) },
      { name: `${one.name}: float32, onnxruntime-web`, run: peer },
    ];
    const times = await measure(candidates, options.seconds);
    rows.push(...times);
    ratios[`${one.name}: x onnxruntime-web float32`] = times[2].bestMs / times[0].bestMs;
    ratios[`${one.name}: x lowbit float32`] = times[1].bestMs / times[0].bestMs;
    if (one.perplexity !== undefined && !options.quick)
      for (const [name, session] of [
        ["float32", float],
        ["integer-only", whole],
      ] as const)
        // prettier-ignore
        ratios[`${one.name}: perplexity, ${name}`] = await one.perplexity(async (data) => {
          const { logits } = await session.run({ ids: { type: "int64", dims: [1, 256], data } });
          return logits.data as Float32Array;
        });
    await Promise.all([float.release(), whole.release()]);
    backend.dispose();
  }
  return { rows, ratios, missing };
}

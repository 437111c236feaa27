// npm run bench -- gguf-llama [windows] [type ...]: kjv-llama as GGUF in several types, written by this library.
// llama.cpp (node-llama-cpp of bench/peers) loads each: its perplexity beside that of onnxruntime on the same codes,
// and beside llama.cpp's own quantizer (llama-files.ts), and what share of the bytes of the two are equal.
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { scratchFolder } from "../scripts/scratch.mjs";
import type { FloatTensor } from "../src/interop/floats.ts";
import {
  llamaGguf,
  quantizeGguf,
  readGguf,
  writeGguf,
  type FloatModel,
  type LlamaConfig,
  type TokenizerJson,
} from "../src/interop/index.ts";
import { readFloats } from "../src/onnx/file/values.ts";
import { modelPath } from "../test/helpers/shared.ts";
import { divergence, loadKjv, pairedDifference, perplexity, weightOf, windowLosses, withWeights, type Kjv } from "./gguf-kjv.ts";
import { llamaFiles } from "./llama-files.ts";
import { load } from "./peers.ts";
import { readRows, matrixView } from "../src/tensor/tensor.ts";

export const KJV_CONFIG: LlamaConfig = {
  model_type: "llama",
  hidden_size: 256,
  intermediate_size: 768,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  max_position_embeddings: 256,
  rms_norm_eps: 1e-5,
  vocab_size: 2048,
  bos_token_id: 0,
  eos_token_id: 0,
};

const PARTS = [
  ["q_proj", "self_attn.q_proj"],
  ["k_proj", "self_attn.k_proj"],
  ["v_proj", "self_attn.v_proj"],
  ["o_proj", "self_attn.o_proj"],
  ["attn_norm", "input_layernorm"],
  ["mlp_norm", "post_attention_layernorm"],
  ["gate_proj", "mlp.gate_proj"],
  ["up_proj", "mlp.up_proj"],
  ["down_proj", "mlp.down_proj"],
] as const;

/** Names of the ONNX file as those of transformers. */
function transformersName(name: string): string {
  if (name === "tok_emb") return "model.embed_tokens.weight";
  if (name === "final_norm.weight") return "model.norm.weight";
  if (name === "lm_head.weight") return name;
  const [, layer, part] = /^layers\.(\d+)\.(\w+)\.weight$/.exec(name)!;
  return `model.layers.${layer}.${new Map<string, string>(PARTS).get(part)}.weight`;
}

const memory = (data: Float32Array, shape: readonly number[]): FloatTensor => {
  const k = shape[shape.length - 1];
  return {
    shape,
    dtype: "F32",
    values: (row = 0, count = data.length / k - row) => Promise.resolve(data.subarray(row * k, (row + count) * k)),
  };
};

/** The weights of kjv-llama by the names of transformers, matrices as [out, in]. */
export function kjvTensors(kjv: Kjv): Map<string, FloatTensor> {
  const out = new Map<string, FloatTensor>();
  for (const t of kjv.model.proto.graph!.initializer)
    if (/^tok_emb$|norm\.weight$/.test(t.name)) out.set(transformersName(t.name), memory(readFloats(kjv.model, t), t.dims.map(Number)));
  for (const layer of kjv.layers) {
    const data = new Float32Array(layer.n * layer.k);
    readRows(matrixView(weightOf(kjv, layer)), 0, layer.n, data);
    out.set(transformersName(layer.weight), memory(data, [layer.n, layer.k]));
  }
  return out;
}

export function kjvModel(kjv: Kjv): FloatModel {
  const eps = kjv.model.proto.graph!.initializer.find((t) => t.name === "final_norm/eps")!;
  return llamaGguf({
    name: "kjv-llama",
    config: { ...KJV_CONFIG, rms_norm_eps: readFloats(kjv.model, eps)[0] },
    tokenizer: JSON.parse(readFileSync(modelPath("kjv-llama/tokenizer.json")!, "utf8")) as TokenizerJson,
    tensors: kjvTensors(kjv),
  });
}

/** Bytes of the ONNX model with the weights that a GGUF file has, rows of heads put back; token embeddings included. */
async function onnxOf(kjv: Kjv, path: string): Promise<Uint8Array> {
  const file = await readGguf(path);
  const values = new Map<string, Float32Array>();
  const names = new Map([...new Map<string, string>(PARTS)].map(([own, hf]) => [own, hf]));
  const gguf: Record<string, string> = {
    q_proj: "attn_q",
    k_proj: "attn_k",
    v_proj: "attn_v",
    o_proj: "attn_output",
    gate_proj: "ffn_gate",
    up_proj: "ffn_up",
    down_proj: "ffn_down",
  };
  for (const layer of kjv.layers) {
    const m = /^layers\.(\d+)\.(\w+)\.weight$/.exec(layer.weight);
    if (m !== null && !names.has(m[2])) throw new Error(layer.weight);
    const t = file.tensors.get(m === null ? "output.weight" : `blk.${m[1]}.${gguf[m[2]]}.weight`)!;
    const data = await t.values();
    const k = layer.k;
    if (m !== null && (m[2] === "q_proj" || m[2] === "k_proj")) {
      const dim = 64;
      const back = new Float32Array(data.length);
      for (let r = 0; r < layer.n; r++) {
        const [head, place] = [Math.floor(r / dim), r % dim];
        back.set(data.subarray(r * k, (r + 1) * k), (head * dim + (place >> 1) + (place & 1) * (dim / 2)) * k);
      }
      values.set(layer.name, back);
    } else values.set(layer.name, data);
  }
  const embeddings = await file.tensors.get("token_embd.weight")!.values();
  await file.close();
  const target = kjv.model.proto.graph!.initializer.find((t) => t.name === "tok_emb")!;
  const original = readFloats(kjv.model, target).slice();
  const bytes = withWeights(kjv, values);
  return replaced(bytes, original, embeddings);
}

/** The embedding table in the bytes of a model: found by its own bytes, of the same length. */
function replaced(bytes: Uint8Array, original: Float32Array, values: Float32Array): Uint8Array {
  const at = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).indexOf(Buffer.from(original.buffer, 0, 4096));
  if (at < 0) throw new Error("no embeddings");
  const out = bytes.slice();
  out.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), at);
  return out;
}

interface Sequence {
  controlledEvaluate(items: unknown[]): Promise<({ next: { probabilities?: Map<number, number> } } | undefined)[]>;
  clearHistory(): Promise<void>;
}

/** Perplexity by llama.cpp over the first windows of the validation text. */
async function llamaPerplexity(path: string, tokens: Uint16Array, windows: number): Promise<number> {
  const { getLlama } = (await load("node-llama-cpp")) as {
    getLlama: (o: object) => Promise<{ loadModel(o: object): Promise<LlamaCppModel> }>;
  };
  const llama = await getLlama({ gpu: false, build: "never", skipDownload: true, logLevel: "error" });
  const model = await llama.loadModel({ modelPath: path });
  const context = await model.createContext({ contextSize: 256, batchSize: 256, threads: 1 });
  const sequence = context.getSequence();
  let [sum, count] = [0, 0];
  for (let w = 0; w < windows; w++) {
    await sequence.clearHistory();
    const items = Array.from({ length: 256 }, (_, i) => [
      tokens[w * 256 + i],
      { generateNext: { probabilities: true, options: { temperature: 1, topK: 0, topP: 1, minP: 0 } } },
    ]);
    const out = await sequence.controlledEvaluate(items);
    for (let i = 0; i < 256; i++) {
      sum -= Math.log(Math.max(1e-30, out[i]?.next.probabilities?.get(tokens[w * 256 + i + 1]) ?? 0));
      count++;
    }
  }
  await context.dispose();
  await model.dispose();
  return Math.exp(sum / count);
}

/** The share of equal bytes in the matrices of two files of the same types. */
async function equalBytes(a: string, b: string): Promise<number> {
  const [ours, theirs] = [await readGguf(a), await readGguf(b)];
  let [same, all] = [0, 0];
  for (const [name, t] of ours.tensors) {
    const other = theirs.tensors.get(name);
    if (other === undefined || other.type !== t.type || t.shape.length < 2) continue;
    const [x, y] = [await t.bytes(), await other.bytes()];
    for (let i = 0; i < x.length; i++) if (x[i] === y[i]) same++;
    all += x.length;
  }
  await ours.close();
  await theirs.close();
  return same / all;
}

interface LlamaCppModel {
  createContext(o: object): Promise<{ getSequence(): Sequence; dispose(): Promise<void> }>;
  dispose(): Promise<void>;
}

/** Windows of text that quantizers of GGUF never see, for a difference of two files of one type. */
const PAIRED = 256;

/** Our file beside llama-quantize's of the same type. */
async function besideOwn(kjv: Kjv, ours: { path: string; codes: Uint8Array }, own: string, windows: number): Promise<string[]> {
  const equal = await equalBytes(ours.path, own);
  const theirs = await onnxOf(kjv, own);
  const said = [`llama-quantize's file ${(await llamaPerplexity(own, kjv.validation, windows)).toFixed(4)}`];
  if (equal === 1) return [...said, "all bytes of matrices equal"];
  const losses = async (bytes: Uint8Array): Promise<number[]> => [
    ...(await windowLosses(bytes, Infinity, kjv.validation)),
    ...(await windowLosses(bytes, PAIRED, kjv.calibration)),
  ];
  const [a, b] = [await losses(theirs), await losses(ours.codes)];
  const { mean, error } = pairedDifference(a, b);
  return [
    ...said,
    `bytes equal ${(100 * equal).toFixed(2)} %`,
    `over ${a.length} windows it loses ${mean.toExponential(2)} nats a token more than ours, standard error ${error.toExponential(2)}`,
    `its divergence from float32 ${(await divergence(kjv, theirs, windows)).toExponential(3)}`,
  ];
}

const TYPES = ["f16", "q8_0", "q4_0", "q4_k", "q6_k", "mxfp4", "q2_k", "q3_k", "q5_k", "iq4_xs"];

export async function ggufLlama(args: readonly string[]): Promise<void> {
  const kjv = loadKjv();
  if (kjv === null) throw new Error("kjv-llama is not beside the project (LOWBIT_MODELS)");
  const windows = Number(args[0] ?? 24);
  const types = args.length > 1 ? args.slice(1) : TYPES;
  const strange = types.filter((type) => !TYPES.includes(type));
  if (strange.length > 0) throw new RangeError(`gguf-llama: expected some of ${TYPES.join(", ")}, got ${strange.join(", ")}.`);
  const folder = scratchFolder("gguf");
  try {
    const model = kjvModel(kjv);
    console.log(
      `perplexity over ${windows} windows of 256: float32 by onnxruntime ${(await perplexity(kjv, kjv.bytes, windows)).toFixed(4)}`,
    );
    const { gguf } = (await load("@huggingface/gguf")) as {
      gguf: (path: string, o: object) => Promise<{ tensorInfos: { name: string }[] }>;
    };
    const theirs = await llamaFiles(model, types, folder, (why) => console.log(`missing: ${why}`));
    for (const type of types) {
      const path = join(folder, `${type}.gguf`);
      await writeGguf(path, quantizeGguf(model, { type, pure: true }));
      const { tensorInfos } = await gguf(path, { allowLocalFile: true });
      const codes = await onnxOf(kjv, path);
      const ours = await perplexity(kjv, codes, windows);
      const llama = await llamaPerplexity(path, kjv.validation, windows);
      const own = theirs.get(type);
      const parts = [
        `${type.padEnd(7)} llama.cpp ${llama.toFixed(4)}`,
        `onnxruntime, same codes ${ours.toFixed(4)}`,
        `apart ${((100 * Math.abs(llama - ours)) / ours).toFixed(3)} %`,
        ...(own === undefined ? [] : await besideOwn(kjv, { path, codes }, own, windows)),
        `divergence from float32 ${(await divergence(kjv, codes, windows)).toExponential(3)}`,
        `@huggingface/gguf reads ${tensorInfos.length} tensors`,
      ];
      console.log(parts.join(", "));
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

// The decoder of decode-model.ts as GGUF: the same codes and scales as Q4_0, so that llama.cpp computes the same model.
import { encodeHalf } from "../src/onnx/file/half.ts";
import { readModelBytes } from "../src/onnx/index.ts";
import { readFloats, readRaw } from "../src/onnx/file/values.ts";
import { writeGguf, type GgufContent, type GgufValue } from "../src/interop/index.ts";
import { tensor } from "../src/index.ts";
import type { DecoderSizes } from "./decode-model.ts";

const BLOCK = 32;

/**
 * Q4_0: a float16 scale, then codes i and i + 16 in one byte; MatMulNBits has codes 2 i and 2 i + 1 in one, with the
 * same offset.
 */
function q4(codes: Uint8Array, scales: Float32Array): Uint8Array {
  const out = new Uint8Array(scales.length * 18);
  for (let b = 0; b < scales.length; b++) {
    const d = encodeHalf(scales[b]);
    out[18 * b] = d;
    out[18 * b + 1] = d >>> 8;
    for (let i = 0; i < 16; i++) {
      const [low, high] = [codes[16 * b + (i >> 1)], codes[16 * b + 8 + (i >> 1)]];
      const shift = 4 * (i & 1);
      out[18 * b + 2 + i] = ((low >> shift) & 15) | (((high >> shift) & 15) << 4);
    }
  }
  return out;
}

const NAMES: readonly (readonly [own: string, gguf: string])[] = [
  ["q", "attn_q"],
  ["k", "attn_k"],
  ["v", "attn_v"],
  ["o", "attn_output"],
  ["gate", "ffn_gate"],
  ["up", "ffn_up"],
  ["down", "ffn_down"],
];

/** Writes the GGUF file of a model that `decoderModel(sizes)` made. */
export async function writeDecoderGguf(path: string, onnx: Uint8Array, sizes: DecoderSizes): Promise<void> {
  const { hidden, heads, kvHeads, size, ffn, layers, vocabulary, positions } = sizes;
  const model = readModelBytes(onnx);
  const found = new Map(model.proto.graph!.initializer.map((t) => [t.name, t]));
  const tensors = new Map<string, GgufContent>();
  const product = (own: string, name: string): void => {
    const [q, s] = [found.get(`${own}_q`)!, found.get(`${own}_s`)!];
    const scales = readFloats(model, s).slice();
    const k = (BLOCK * scales.length) / Number(q.dims[0]);
    tensors.set(`${name}.weight`, { type: "Q4_0", shape: [Number(q.dims[0]), k], bytes: () => q4(readRaw(model, q), scales) });
  };
  const norm = (own: string, name: string): void => {
    const data = readFloats(model, found.get(own)!).slice();
    tensors.set(`${name}.weight`, tensor(data, [data.length]));
  };
  product("embed", "token_embd");
  for (let l = 0; l < layers; l++) {
    norm(l === 0 ? "norm0" : `layers.${l - 1}.next_w`, `blk.${l}.attn_norm`);
    for (const [own, name] of NAMES) product(`layers.${l}.${own}`, `blk.${l}.${name}`);
    norm(`layers.${l}.qn_w`, `blk.${l}.attn_q_norm`);
    norm(`layers.${l}.kn_w`, `blk.${l}.attn_k_norm`);
    norm(`layers.${l}.post_w`, `blk.${l}.ffn_norm`);
  }
  norm(`layers.${layers - 1}.next_w`, "output_norm");
  product("lm_head", "output");
  const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, "0")}>`);
  const tokens = ["<unk>", "<s>", "</s>", ...bytes];
  for (let i = tokens.length; i < vocabulary; i++) tokens.push(`t${i}`);
  const u32 = (value: number): GgufValue => ({ type: "uint32", value });
  const f32 = (value: number): GgufValue => ({ type: "float32", value });
  const kinds = Int32Array.from(tokens, (_, i) => (i === 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1));
  const metadata: Record<string, GgufValue> = {
    "general.architecture": "qwen3",
    "general.name": "synthetic",
    "general.file_type": u32(2),
    "qwen3.block_count": u32(layers),
    "qwen3.context_length": u32(positions),
    "qwen3.embedding_length": u32(hidden),
    "qwen3.feed_forward_length": u32(ffn),
    "qwen3.attention.head_count": u32(heads),
    "qwen3.attention.head_count_kv": u32(kvHeads),
    "qwen3.attention.key_length": u32(size),
    "qwen3.attention.value_length": u32(size),
    "qwen3.attention.layer_norm_rms_epsilon": f32(1e-6),
    "qwen3.rope.freq_base": f32(1e6),
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.scores": new Float32Array(vocabulary),
    "tokenizer.ggml.token_type": kinds,
    "tokenizer.ggml.bos_token_id": u32(1),
    "tokenizer.ggml.eos_token_id": u32(2),
  };
  await writeGguf(path, { metadata, tensors }, { force: true });
}

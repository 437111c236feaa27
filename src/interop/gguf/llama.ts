// A Llama-style model as transformers keeps it (config.json, tokenizer.json, weights by name) as a GGUF model of
// architecture "llama". After llama.cpp's conversion/llama.py: names, the order of rotary pairs (query and key rows of
// a head: halves become neighbours), tokenizers of byte-level BPE and of sentencepiece with byte fallback.
import { LowbitError } from "../../../formats/core/errors.ts";
import { rowsOf, type FloatTensor } from "../floats.ts";
import type { GgufValue } from "./metadata.ts";
import type { FloatModel } from "./quantize.ts";

/** What of config.json is read. */
export interface LlamaConfig {
  readonly model_type?: string;
  readonly hidden_size: number;
  readonly intermediate_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads?: number;
  readonly head_dim?: number;
  readonly max_position_embeddings: number;
  readonly rms_norm_eps: number;
  readonly rope_theta?: number;
  readonly rope_scaling?: Readonly<Record<string, unknown>> | null;
  readonly vocab_size: number;
  readonly bos_token_id?: number | null;
  readonly eos_token_id?: number | readonly number[] | null;
}

/** What of tokenizer.json is read. */
export interface TokenizerJson {
  readonly model: {
    readonly type?: string;
    readonly vocab: Readonly<Record<string, number>>;
    readonly merges?: readonly (string | readonly string[])[];
    readonly byte_fallback?: boolean;
  };
  readonly added_tokens?: readonly { readonly id: number; readonly content: string; readonly special: boolean }[];
}

/** A Llama or Mistral model as transformers saves it, to be written as GGUF. */
export interface LlamaModel {
  readonly name?: string;
  readonly config: LlamaConfig;
  readonly tokenizer?: TokenizerJson;
  /** Weights by their names in transformers: model.layers.0.self_attn.q_proj.weight, as [out, in]. */
  readonly tensors: ReadonlyMap<string, FloatTensor>;
}

/** Part of a name behind `model.layers.<n>.`, and what ggml calls it behind `blk.<n>.`. */
const LAYER: ReadonlyMap<string, string> = new Map([
  ["input_layernorm", "attn_norm"],
  ["self_attn.q_proj", "attn_q"],
  ["self_attn.k_proj", "attn_k"],
  ["self_attn.v_proj", "attn_v"],
  ["self_attn.o_proj", "attn_output"],
  ["post_attention_layernorm", "ffn_norm"],
  ["mlp.gate_proj", "ffn_gate"],
  ["mlp.up_proj", "ffn_up"],
  ["mlp.down_proj", "ffn_down"],
]);
const OUTER: ReadonlyMap<string, string> = new Map([
  ["model.embed_tokens.weight", "token_embd.weight"],
  ["model.norm.weight", "output_norm.weight"],
  ["lm_head.weight", "output.weight"],
]);
const KINDS: readonly string[] = ["llama", "mistral"];

/** ggml's name of a weight; undefined for what it does not need. */
function ggufName(name: string): string | undefined {
  const outer = OUTER.get(name);
  if (outer !== undefined) return outer;
  const m = /^model\.layers\.(\d+)\.(.+)\.(weight|bias)$/.exec(name);
  const part = m === null ? undefined : LAYER.get(m[2]);
  return m === null || part === undefined ? undefined : `blk.${m[1]}.${part}.${m[3]}`;
}

/**
 * The model for `quantizeGguf` and `writeGguf`; weights are read when written.
 * @throws LowbitError E_UNSUPPORTED for other architectures, weights without a name in ggml, and rotary scalings that
 * are not known
 * @example
 * const config = JSON.parse(await readFile("config.json", "utf8"));
 * const model = llamaGguf({ config, tensors: (await readSafetensors("model.safetensors")).tensors });
 * await writeGguf("model_q4.gguf", quantizeGguf(model, { type: "q4_k_m" }));
 */
export function llamaGguf(model: LlamaModel): FloatModel {
  const { config } = model;
  const kind = config.model_type ?? "llama";
  if (!KINDS.includes(kind))
    throw new LowbitError(
      "E_UNSUPPORTED",
      `config.json model_type: expected ${KINDS.join(" or ")}, got ${JSON.stringify(kind)}. Convert other architectures with llama.cpp's convert_hf_to_gguf.py.`,
    );
  const tensors = new Map<string, FloatTensor>();
  const heads = config.num_attention_heads;
  for (const [name, t] of model.tensors) {
    if (/rotary_emb\.inv_freq$/.test(name)) continue;
    const to = ggufName(name);
    if (to === undefined)
      throw new LowbitError(
        "E_UNSUPPORTED",
        `${name}: expected the names of a Llama model, got one without a place in GGUF. Is it a plain float checkpoint?`,
      );
    const turned = to.includes("attn_q.") ? heads : to.includes("attn_k.") ? (config.num_key_value_heads ?? heads) : 0;
    tensors.set(to, turned > 0 ? rotaryOrder(name, t, turned) : t);
  }
  for (const needed of ["token_embd.weight", "output_norm.weight", `blk.${config.num_hidden_layers - 1}.ffn_down.weight`])
    if (!tensors.has(needed))
      throw new LowbitError("E_CONTAINER", `checkpoint: expected a weight for ${needed}, got none. Are all shards there?`);
  const frequencies = ropeFrequencies(config);
  if (frequencies !== undefined)
    tensors.set("rope_freqs.weight", { shape: [frequencies.length], dtype: "F32", values: () => Promise.resolve(frequencies) });
  return { metadata: metadataOf(model), tensors };
}

const headDim = (c: LlamaConfig): number => c.head_dim ?? c.hidden_size / c.num_attention_heads;

/** Rows of each head: row j and j + half become rows 2 j and 2 j + 1. */
function rotaryOrder(name: string, t: FloatTensor, heads: number): FloatTensor {
  const [rows, k] = t.shape.length === 1 ? [t.shape[0], 1] : rowsOf(t.shape);
  const dim = rows / heads;
  if (!Number.isInteger(dim) || dim % 2 !== 0)
    throw new LowbitError(
      "E_SHAPE",
      `${name}: expected rows for ${heads} heads of an even size, got ${rows}. Does config.json belong to these weights?`,
    );
  return {
    ...t,
    async values(row = 0, count = t.shape.length === 1 ? 1 : rows) {
      const all = await t.values();
      if (t.shape.length === 1) [row, count] = [0, rows];
      const out = new Float32Array(count * k);
      for (let i = 0; i < count; i++) {
        const r = row + i;
        const [head, place] = [Math.floor(r / dim), r % dim];
        const from = head * dim + (place >> 1) + (place & 1) * (dim / 2);
        out.set(all.subarray(from * k, (from + 1) * k), i * k);
      }
      return out;
    },
  };
}

/** Llama 3's stretched wavelengths; linear scaling is metadata. */
function ropeFrequencies(config: LlamaConfig): Float32Array | undefined {
  const s = config.rope_scaling;
  const type = s?.rope_type ?? s?.type ?? "default";
  if (s === undefined || s === null || type === "default" || type === "linear") return undefined;
  const [factor, low, high, context] = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"].map((key) =>
    Number(s[key]),
  );
  if (type !== "llama3" || ![factor, low, high, context].every((v) => v > 0))
    throw new LowbitError(
      "E_UNSUPPORTED",
      `config.json rope_scaling: expected default, linear or llama3 with its factors, got ${JSON.stringify(s).slice(0, 120)}.`,
    );
  const dim = headDim(config);
  return Float32Array.from({ length: dim / 2 }, (_, i) => {
    const wavelength = 2 * Math.PI * (config.rope_theta ?? 10000) ** ((2 * i) / dim);
    if (wavelength < context / high) return 1;
    if (wavelength > context / low) return factor;
    const smooth = (context / wavelength - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  });
}

function metadataOf({ config, name, tokenizer }: LlamaModel): Map<string, GgufValue> {
  const u32 = (value: number): GgufValue => ({ type: "uint32", value });
  const f32 = (value: number): GgufValue => ({ type: "float32", value });
  const out = new Map<string, GgufValue>([
    ["general.architecture", "llama"],
    ["general.type", "model"],
    ["general.name", name ?? "model"],
    ["llama.vocab_size", u32(config.vocab_size)],
    ["llama.context_length", u32(config.max_position_embeddings)],
    ["llama.embedding_length", u32(config.hidden_size)],
    ["llama.block_count", u32(config.num_hidden_layers)],
    ["llama.feed_forward_length", u32(config.intermediate_size)],
    ["llama.rope.dimension_count", u32(headDim(config))],
    ["llama.attention.head_count", u32(config.num_attention_heads)],
    ["llama.attention.head_count_kv", u32(config.num_key_value_heads ?? config.num_attention_heads)],
    ["llama.attention.key_length", u32(headDim(config))],
    ["llama.attention.value_length", u32(headDim(config))],
    ["llama.attention.layer_norm_rms_epsilon", f32(config.rms_norm_eps)],
    ["llama.rope.freq_base", f32(config.rope_theta ?? 10000)],
  ]);
  const scaling = config.rope_scaling;
  if ((scaling?.rope_type ?? scaling?.type) === "linear") {
    out.set("llama.rope.scaling.type", "linear");
    out.set("llama.rope.scaling.factor", f32(Number(scaling?.factor)));
  }
  if (tokenizer !== undefined) for (const [key, value] of tokenizerOf(config, tokenizer)) out.set(key, value);
  return out;
}

/** Kinds of tokens in GGUF. */
const TOKEN = { normal: 1, unknown: 2, control: 3, user: 4, unused: 5, byte: 6 };

function tokenizerOf(config: LlamaConfig, { model, added_tokens: added = [] }: TokenizerJson): Map<string, GgufValue> {
  if (model.type !== undefined && model.type !== "BPE")
    throw new LowbitError(
      "E_UNSUPPORTED",
      `tokenizer.json: expected a BPE model, got ${JSON.stringify(model.type)}. Leave the tokenizer out, and give token ids.`,
    );
  const size = config.vocab_size;
  const tokens = Array.from({ length: size }, (_, i) => `[PAD${i}]`);
  const types = new Int32Array(size).fill(TOKEN.unused);
  const put = (id: number, text: string, type: number): void => {
    if (!(Number.isInteger(id) && id >= 0 && id < size))
      throw new LowbitError(
        "E_CONTAINER",
        `tokenizer.json: expected ids below vocab_size ${size}, got ${id}. Does it belong to this model?`,
      );
    tokens[id] = text;
    types[id] = type;
  };
  for (const [text, id] of Object.entries(model.vocab))
    put(
      id,
      text,
      text === "<unk>" ? TOKEN.unknown : model.byte_fallback === true && /^<0x[0-9A-F]{2}>$/.test(text) ? TOKEN.byte : TOKEN.normal,
    );
  for (const { id, content, special } of added) if (types[id] !== TOKEN.unknown) put(id, content, special ? TOKEN.control : TOKEN.user);
  const eos = Array.isArray(config.eos_token_id) ? (config.eos_token_id as readonly number[])[0] : config.eos_token_id;
  const out = new Map<string, GgufValue>([
    ["tokenizer.ggml.model", model.byte_fallback === true ? "llama" : "gpt2"],
    ...(model.byte_fallback === true ? [] : ([["tokenizer.ggml.pre", "gpt-2"]] as const)),
    ["tokenizer.ggml.tokens", { type: "array", of: "string", value: tokens }],
    ["tokenizer.ggml.token_type", types],
  ]);
  if (model.byte_fallback === true)
    out.set(
      "tokenizer.ggml.scores",
      Float32Array.from(tokens, (_, i) => -i),
    );
  const merges = (model.merges ?? []).map((m) => (typeof m === "string" ? m : m.join(" ")));
  if (merges.length > 0) out.set("tokenizer.ggml.merges", { type: "array", of: "string", value: merges });
  if (typeof config.bos_token_id === "number") out.set("tokenizer.ggml.bos_token_id", { type: "uint32", value: config.bos_token_id });
  if (typeof eos === "number") out.set("tokenizer.ggml.eos_token_id", { type: "uint32", value: eos });
  return out;
}

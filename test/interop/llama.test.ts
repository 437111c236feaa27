// A Llama checkpoint's names, metadata, rotary order and tokenizer in GGUF, by llama.cpp's conversion rules.
import { expect, test } from "vitest";
import { llamaGguf, type LlamaConfig, type LlamaModel, type TokenizerJson } from "../../src/interop/gguf/llama.ts";
import type { FloatTensor } from "../../src/interop/floats.ts";
import { ggufTargets, quantizeGguf } from "../../src/interop/gguf/quantize.ts";
import type { GgufContent } from "../../src/interop/index.ts";

const refuse = (code: string) => expect.objectContaining({ code });
const [hidden, heads, kv] = [8, 2, 1];
const config: LlamaConfig = {
  ...{ hidden_size: hidden, intermediate_size: 12, num_hidden_layers: 2, num_attention_heads: heads, num_key_value_heads: kv },
  ...{ max_position_embeddings: 64, rms_norm_eps: 1e-5, vocab_size: 6, rope_theta: 5e5 },
};

function weights(): Map<string, FloatTensor> {
  let next = 0;
  const make = (...shape: number[]): FloatTensor => {
    const data = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => next++);
    return {
      shape,
      dtype: "F32",
      values: (row = 0, count) => Promise.resolve(data.subarray(row, count === undefined ? undefined : row + count)),
    };
  };
  const out = new Map<string, FloatTensor>([
    ["model.embed_tokens.weight", make(6, hidden)],
    ["model.norm.weight", make(hidden)],
    ["lm_head.weight", make(6, hidden)],
    ["model.layers.0.self_attn.rotary_emb.inv_freq", make(2)],
  ]);
  for (const l of [0, 1])
    for (const [name, ...shape] of [
      ["input_layernorm.weight", hidden],
      ["post_attention_layernorm.weight", hidden],
      ["self_attn.q_proj.weight", hidden, hidden],
      ["self_attn.q_proj.bias", hidden],
      ["self_attn.k_proj.weight", (hidden / heads) * kv, hidden],
      ["self_attn.v_proj.weight", (hidden / heads) * kv, hidden],
      ["self_attn.o_proj.weight", hidden, hidden],
      ["mlp.gate_proj.weight", 12, hidden],
      ["mlp.up_proj.weight", 12, hidden],
      ["mlp.down_proj.weight", hidden, 12],
    ] as [string, ...number[]][])
      out.set(`model.layers.${l}.${name}`, make(...shape));
  return out;
}
const model = (more: Partial<LlamaConfig> = {}, tokenizer?: TokenizerJson): LlamaModel => ({
  config: { ...config, ...more },
  tensors: weights(),
  ...(tokenizer === undefined ? {} : { tokenizer }),
});
const metadata = (m: LlamaModel) =>
  Object.fromEntries([...llamaGguf(m).metadata].map(([k, v]) => [k, typeof v === "object" && "value" in v ? v.value : v]));

test("every weight has ggml's name, and its values; frequencies of other tools are left out", async () => {
  const source = weights();
  const { tensors } = llamaGguf(model());
  const layer = (l: number) => [
    [`blk.${l}.attn_norm.weight`, `model.layers.${l}.input_layernorm.weight`],
    [`blk.${l}.ffn_norm.weight`, `model.layers.${l}.post_attention_layernorm.weight`],
    [`blk.${l}.attn_q.weight`, `model.layers.${l}.self_attn.q_proj.weight`],
    [`blk.${l}.attn_q.bias`, `model.layers.${l}.self_attn.q_proj.bias`],
    [`blk.${l}.attn_k.weight`, `model.layers.${l}.self_attn.k_proj.weight`],
    [`blk.${l}.attn_v.weight`, `model.layers.${l}.self_attn.v_proj.weight`],
    [`blk.${l}.attn_output.weight`, `model.layers.${l}.self_attn.o_proj.weight`],
    [`blk.${l}.ffn_gate.weight`, `model.layers.${l}.mlp.gate_proj.weight`],
    [`blk.${l}.ffn_up.weight`, `model.layers.${l}.mlp.up_proj.weight`],
    [`blk.${l}.ffn_down.weight`, `model.layers.${l}.mlp.down_proj.weight`],
  ];
  const names = [
    ["token_embd.weight", "model.embed_tokens.weight"],
    ["output_norm.weight", "model.norm.weight"],
    ["output.weight", "lm_head.weight"],
    ...layer(0),
    ...layer(1),
  ];
  expect([...tensors.keys()].sort()).toEqual(names.map(([to]) => to).sort());
  for (const [to, from] of names) {
    const [got, given] = [await tensors.get(to)!.values(), await source.get(from)!.values()];
    if (/attn_[qk]\./.test(to)) {
      // a head has four rows: 0, 2, 1, 3 (halves become neighbours)
      const wide = to.endsWith("bias") ? 1 : hidden;
      const order = Array.from({ length: given.length / wide }, (_, r) => r - (r % 4) + [0, 2, 1, 3][r % 4]);
      expect([...got], to).toEqual(order.flatMap((r) => [...given.subarray(r * wide, (r + 1) * wide)]));
      expect(await tensors.get(to)!.values(1, 2), to).toEqual(to.endsWith("bias") ? got : got.subarray(wide, 3 * wide));
    } else expect(got, to).toEqual(given);
  }
});

test("metadata of the model", () => {
  expect(metadata(model())).toEqual({
    ...{ "general.architecture": "llama", "general.type": "model", "general.name": "model" },
    ...{ "llama.vocab_size": 6, "llama.context_length": 64, "llama.embedding_length": 8, "llama.block_count": 2 },
    ...{ "llama.feed_forward_length": 12, "llama.rope.dimension_count": 4, "llama.attention.head_count": 2 },
    ...{ "llama.attention.head_count_kv": 1, "llama.attention.key_length": 4, "llama.attention.value_length": 4 },
    ...{ "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 5e5 },
  });
  const linear = metadata(model({ rope_scaling: { type: "linear", factor: 2 }, head_dim: 4 }));
  expect(linear).toMatchObject({ "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2 });
});

test("Llama 3's stretched wavelengths", async () => {
  const scaling = { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 40 };
  const made = llamaGguf({ ...model({ rope_scaling: scaling, head_dim: 4, rope_theta: 16 }) }).tensors.get("rope_freqs.weight")!;
  expect(made.shape).toEqual([2]);
  // wavelengths 2 pi (below 40 / 4) and 8 pi = 25.13, between: smooth = (40 / 25.13 - 1) / (4 - 1)
  const smooth = (40 / (8 * Math.PI) - 1) / 3;
  expect([...(await made.values())]).toEqual([1, Math.fround(1 / ((1 - smooth) / 8 + smooth))]);
  const far = llamaGguf(model({ rope_scaling: { ...scaling, original_max_position_embeddings: 20 }, rope_theta: 16 }));
  // 6.28 lies between 20 / 4 and 20 / 1, 25.13 beyond: the whole factor
  expect((await far.tensors.get("rope_freqs.weight")!.values())[1]).toBe(8);
  for (const wrong of [
    { ...scaling, factor: 0 },
    { ...scaling, rope_type: "yarn" },
    { rope_type: "llama3", factor: 8 },
  ])
    expect(() => llamaGguf(model({ rope_scaling: wrong }))).toThrow(refuse("E_UNSUPPORTED"));
  expect(llamaGguf(model({ rope_scaling: { rope_type: "default" } })).tensors.has("rope_freqs.weight")).toBe(false);
});

test("tokenizers: byte-level BPE, and sentencepiece with byte fallback", () => {
  const vocab = { a: 0, "<unk>": 1, "<0x0A>": 2 };
  const added = [
    { id: 1, content: "<unk>", special: true },
    { id: 3, content: "<s>", special: true },
    { id: 4, content: "word", special: false },
  ];
  const bpe = metadata(
    model({ bos_token_id: 3, eos_token_id: [4, 3] }, { model: { type: "BPE", vocab, merges: [] }, added_tokens: added }),
  );
  expect(bpe).toMatchObject({
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "<unk>", "<0x0A>", "<s>", "word", "[PAD5]"],
    "tokenizer.ggml.token_type": Int32Array.of(1, 2, 1, 3, 4, 5),
    "tokenizer.ggml.bos_token_id": 3,
    "tokenizer.ggml.eos_token_id": 4,
  });
  expect(bpe).not.toHaveProperty(["tokenizer.ggml.merges"]);
  expect(bpe).not.toHaveProperty(["tokenizer.ggml.scores"]);
  const pieces = metadata(model({ bos_token_id: null }, { model: { vocab, byte_fallback: true, merges: [["a", "b"], "c d"] } }));
  expect(pieces).toMatchObject({
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.token_type": Int32Array.of(1, 2, 6, 5, 5, 5),
    "tokenizer.ggml.scores": Float32Array.of(-0, -1, -2, -3, -4, -5),
    "tokenizer.ggml.merges": ["a b", "c d"],
  });
  for (const name of ["pre", "bos_token_id", "eos_token_id"]) expect(pieces).not.toHaveProperty([`tokenizer.ggml.${name}`]);
});

test("what is refused", () => {
  const damage = (f: (m: Map<string, FloatTensor>) => unknown, more: Partial<LlamaConfig> = {}) => {
    const m = model(more);
    f(m.tensors as Map<string, FloatTensor>);
    return () => llamaGguf(m);
  };
  expect(damage(() => 0, { model_type: "mistral" })).not.toThrow();
  expect(damage(() => 0, { model_type: "qwen2" })).toThrow(refuse("E_UNSUPPORTED"));
  expect(damage((m) => m.set("model.layers.0.mlp.router.weight", m.get("lm_head.weight")!))).toThrow(refuse("E_UNSUPPORTED"));
  for (const name of ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
    expect(damage((m) => m.delete(name))).toThrow(refuse("E_CONTAINER"));
  expect(damage((m) => m.delete("model.layers.0.mlp.down_proj.weight"))).not.toThrow();
  for (const more of [{ num_attention_heads: 3 }, { num_attention_heads: 8 }]) expect(damage(() => 0, more)).toThrow(refuse("E_SHAPE"));
  const tokens = (tokenizer: TokenizerJson) => () => llamaGguf(model({}, tokenizer));
  expect(tokens({ model: { type: "Unigram", vocab: {} } })).toThrow(refuse("E_UNSUPPORTED"));
  for (const id of [-1, 6, 0.5]) expect(tokens({ model: { vocab: { a: id } } })).toThrow(refuse("E_CONTAINER"));
});

// enum llama_ftype of llama.h: the type of most tensors of a file
const FTYPE: Record<string, number> = {
  ...{ f32: 0, f16: 1, q4_0: 2, q4_1: 3, q8_0: 7, q5_0: 8, q5_1: 9, q2_k: 10, q3_k: 11, q3_k_m: 12, q4_k: 14, q4_k_m: 15, q5_k: 16, q5_k_m: 17, q6_k: 18 },
  ...{ iq2_xxs: 19, iq2_xs: 20, iq3_xxs: 23, iq1_s: 24, iq4_nl: 25, iq3_s: 26, iq2_s: 28, iq4_xs: 30, iq1_m: 31, bf16: 32, tq1_0: 36, tq2_0: 37, mxfp4: 38 },
}; // prettier-ignore

test("the file's type by llama.cpp's numbers", () => {
  for (const type of ggufTargets()) {
    const { metadata } = quantizeGguf({ metadata: new Map(), tensors: new Map() }, { type });
    expect(new Map(metadata as ReadonlyMap<string, unknown>).get("general.file_type"), type).toEqual(
      Object.hasOwn(FTYPE, type) ? { type: "uint32", value: FTYPE[type] } : undefined,
    );
  }
});

test("mixes: layers at both ends and every third between take more bits; rows that are no blocks take the next type", () => {
  const typesOf = (type: string, k = 256, names = Array.from({ length: 16 }, (_, l) => `blk.${l}.ffn_down.weight`)) => {
    const tensors = new Map(
      names.map((name) => [name, { shape: [1, k], dtype: "F32", values: () => Promise.resolve(new Float32Array(k)) }] as const),
    );
    const made = quantizeGguf({ metadata: new Map(), tensors }, { type }).tensors as ReadonlyMap<string, GgufContent>;
    return [...made.values()].map((t) => (t as { type: string }).type);
  };
  // 16 layers: the first and last two, then 4, 7, 10, 13
  const more = new Set([0, 1, 14, 15, 4, 7, 10, 13]);
  expect(typesOf("q4_k_m")).toEqual(Array.from({ length: 16 }, (_, l) => (more.has(l) ? "Q6_K" : "Q4_K")));
  expect(typesOf("q3_k_m", 256, ["blk.0.attn_v.weight", "blk.0.attn_q.weight", "output.weight"])).toEqual(["Q5_K", "Q3_K", "Q6_K"]);
  expect(typesOf("q6_k", 256, ["output.weight", "blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight", "rope.bias"])).toEqual(["Q6_K", "F32", "F32", "F32"]); // prettier-ignore
  // llama.cpp's fallbacks (tensor_type_fallback in llama-quant.cpp)
  const fallback = { q2_k: "Q4_0", q3_k: "Q4_0", q4_k: "Q5_0", q5_k: "Q5_1", q6_k: "Q8_0", iq4_xs: "IQ4_NL", iq3_s: "IQ4_NL", iq2_xxs: "IQ4_NL", tq1_0: "Q4_0", tq2_0: "Q4_0" }; // prettier-ignore
  for (const [type, next] of Object.entries(fallback)) expect(typesOf(type, 96, ["blk.0.attn_q.weight"]), type).toEqual([next]);
  for (const type of ["q4_k", "q8_0"]) expect(typesOf(type, 24, ["blk.0.attn_q.weight"]), type).toEqual(["F16"]);
});

test("rotary frequencies at each bound, and scalings that need none", async () => {
  const frequencies = async (scaling: LlamaConfig["rope_scaling"], more: Partial<LlamaConfig> = {}) => {
    const t = llamaGguf(model({ rope_scaling: scaling, head_dim: 8, rope_theta: 16, ...more })).tensors.get("rope_freqs.weight");
    return t === undefined ? undefined : [...(await t.values())];
  };
  for (const none of [undefined, null, {}, { type: "default" }, { rope_type: "default", factor: 8 }, { type: "linear", factor: 2 }, { rope_type: "linear", factor: 2 }]) expect(await frequencies(none)).toBeUndefined(); // prettier-ignore
  // wavelengths 2 pi 16^(i / 4): 6.28, 12.57, 25.13, 50.27
  const want = (factor: number, low: number, high: number, context: number, theta = 16) =>
    [0, 1, 2, 3].map((i) => {
      const wave = 2 * Math.PI * theta ** (i / 4);
      if (wave < context / high) return 1;
      if (wave > context / low) return factor;
      const smooth = (context / wave - low) / (high - low);
      return Math.fround(1 / ((1 - smooth) / factor + smooth));
    });
  for (const [factor, low, high, context] of [[8, 1, 4, 40], [8, 1, 4, 8192], [4, 1, 2, 30], [2, 2, 8, 100], [32, 1, 4, 6]] as const) {
    const scaling = { type: "llama3", factor, low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: context };
    expect(await frequencies(scaling)).toEqual(want(factor, low, high, context));
    expect(await frequencies(scaling, { rope_theta: undefined } as never)).toEqual(want(factor, low, high, context, 10000));
  } // prettier-ignore
  const sound = { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 40 };
  for (const wrong of [{ ...sound, rope_type: "yarn" }, { ...sound, factor: -1 }, { ...sound, low_freq_factor: 0 }, { ...sound, high_freq_factor: "x" }, { ...sound, original_max_position_embeddings: undefined }])
    expect(() => llamaGguf(model({ rope_scaling: wrong }))).toThrow(`config.json rope_scaling: expected default, linear or llama3 with its factors, got ${JSON.stringify(wrong).slice(0, 120)}.`); // prettier-ignore
});

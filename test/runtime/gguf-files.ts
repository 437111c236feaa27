// Small GGUF files for tests: decoders of each architecture, with matrices in any format.
import { format, type FormatName } from "../../formats/index.ts";
import { quantize, tensor } from "../../src/index.ts";
import { ggufBytes, type GgufContent } from "../../src/interop/index.ts";
import { numbers, size } from "./make.ts";

export const [HIDDEN, HEADS, KV, SIZE, FFN, LAYERS, VOCABULARY] = [256, 4, 2, 64, 512, 2, 96];

export interface Form {
  readonly architecture: "llama" | "qwen2" | "qwen3";
  /** Format of the matrices. */
  readonly type: FormatName;
  readonly tied?: boolean;
  readonly biases?: boolean;
  readonly headNorms?: boolean;
  readonly factors?: boolean;
  readonly linear?: number;
  readonly more?: Readonly<Record<string, unknown>>;
}

function tensorsOf({ type, tied, biases, headNorms, factors }: Form): Record<string, GgufContent> {
  let seed = 1;
  const random = (dims: number[], scale: number, shift = 0) =>
    tensor(
      numbers(seed++, size(dims), -1, 1).map((v) => v * scale + shift),
      dims,
    );
  const out: Record<string, GgufContent> = {};
  const matrix = (name: string, n: number, k: number): void =>
    void (out[`${name}.weight`] = quantize(random([n, k], 1.7 / Math.sqrt(k)), format(type)));
  const vector = (name: string, n: number, scale: number, shift: number): void =>
    void (out[name] = quantize(random([n], scale, shift), format("float32")));
  out["token_embd.weight"] = quantize(random([VOCABULARY, HIDDEN], 1), format(type));
  for (let l = 0; l < LAYERS; l++) {
    const p = `blk.${l}`;
    for (const [name, n, k] of [
      ["attn_q", HEADS * SIZE, HIDDEN],
      ["attn_k", KV * SIZE, HIDDEN],
      ["attn_v", KV * SIZE, HIDDEN],
      ["attn_output", HIDDEN, HEADS * SIZE],
      ["ffn_gate", FFN, HIDDEN],
      ["ffn_up", FFN, HIDDEN],
      ["ffn_down", HIDDEN, FFN],
    ] as const)
      // prettier-ignore
      matrix(`${p}.${name}`, n, k);
    vector(`${p}.attn_norm.weight`, HIDDEN, 0.1, 1);
    vector(`${p}.ffn_norm.weight`, HIDDEN, 0.1, 1);
    if (biases) for (const [name, n] of [["q", HEADS * SIZE], ["k", KV * SIZE], ["v", KV * SIZE]] as const) vector(`${p}.attn_${name}.bias`, n, 0.5, 0); // prettier-ignore
    if (headNorms) for (const name of ["q", "k"]) vector(`${p}.attn_${name}_norm.weight`, SIZE, 0.1, 1);
  }
  vector("output_norm.weight", HIDDEN, 0.1, 1);
  if (!tied) matrix("output", VOCABULARY, HIDDEN);
  if (factors) vector("rope_freqs.weight", SIZE / 2, 3, 4);
  return out;
}

function metadataOf({ architecture: a, linear, more = {} }: Form): Record<string, unknown> {
  const f32 = (value: number) => ({ type: "float32", value });
  return {
    "general.architecture": a,
    ...Object.fromEntries(
      Object.entries({ context_length: 128, embedding_length: HIDDEN, block_count: LAYERS, feed_forward_length: FFN, "attention.head_count": HEADS, "attention.head_count_kv": KV, "attention.key_length": SIZE, "attention.value_length": SIZE }).map(([key, value]) => [`${a}.${key}`, { type: "uint32", value }]), // prettier-ignore
    ),
    [`${a}.attention.layer_norm_rms_epsilon`]: f32(1e-5),
    [`${a}.rope.freq_base`]: f32(5000),
    ...(linear === undefined ? {} : { [`${a}.rope.scaling.type`]: "linear", [`${a}.rope.scaling.factor`]: f32(linear) }),
    ...more,
  };
}

export const fileOf = (form: Form, change: (tensors: Record<string, GgufContent>) => void = () => undefined): Promise<Uint8Array> => {
  const tensors = tensorsOf(form);
  change(tensors);
  return ggufBytes({ metadata: metadataOf(form) as never, tensors });
};

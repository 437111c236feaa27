// A tiny model in Whisper's form, as transformers.js loads it: an encoder of 3000 frames with two convolutions, and a
// merged decoder whose keys of the sound are computed in the first call and handed on in later ones (`If` over
// use_cache_branch).
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { GraphProto, ModelProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { encode, graph, model, node, T, value } from "../onnx/build.ts";
import { Written } from "../onnx/written.ts";

const [MELS, FRAMES, WIDTH, HEADS, VOCABULARY, POSITIONS] = [80, 3000, 32, 2, 64, 48];
const SIZE = WIDTH / HEADS;
const SOUND = FRAMES / 2;

class Build extends Written {
  gelu(x: string, name: string): string {
    const over = this.put("Div", [x, "root 2"], `${name}/over`);
    const erf = this.put("Add", [this.put("Erf", [over], `${name}/erf`), "one"], `${name}/erf1`);
    return this.put("Mul", [this.put("Mul", [x, erf], `${name}/twice`), "half"], name);
  }

  /** [batch, tokens, width] as [batch, heads, tokens, size]. */
  heads(x: string): string {
    return this.put("Transpose", [this.put("Reshape", [x, "split"], `${x}/split`)], `${x}/heads`, { perm: { ints: [0, 2, 1, 3] } });
  }

  attend(q: string, k: string, v: string, name: string, mask?: string): string {
    const keys = this.put("Transpose", [k], `${name}/kt`, { perm: { ints: [0, 1, 3, 2] } });
    const scores = this.put("Mul", [this.put("MatMul", [q, keys], `${name}/qk`), "scale"], `${name}/scores`);
    const masked = mask === undefined ? scores : this.put("Add", [scores, mask], `${name}/masked`);
    const context = this.put("MatMul", [this.put("Softmax", [masked], `${name}/p`, { axis: -1n }), v], `${name}/context`);
    const rows = this.put("Transpose", [context], `${name}/rows`, { perm: { ints: [0, 2, 1, 3] } });
    return this.linear(this.put("Reshape", [rows, "joined"], `${name}/flat`), `${name}.out`, WIDTH, WIDTH);
  }

  shared(): void {
    this.number("root 2", Math.SQRT2);
    this.number("one", 1);
    this.number("half", 0.5);
    this.number("scale", 1 / Math.sqrt(SIZE));
    this.ints("split", [0, 0, HEADS, SIZE]);
    this.ints("joined", [0, 0, WIDTH]);
  }
}

function encoder(): ModelProto {
  const b = new Build(100);
  b.shared();
  const conv = (x: string, name: string, from: number, stride: number): string => {
    const y = b.put("Conv", [x, b.weight(`${name}.w`, [WIDTH, from, 3], 1.5), b.weight(`${name}.b`, [WIDTH])], `${name}/conv`, {
      pads: { ints: [1, 1] },
      strides: { ints: [stride] },
    });
    return b.gelu(y, name);
  };
  const sound = conv(conv("input_features", "c1", MELS, 1), "c2", WIDTH, 2);
  const rows = b.put("Transpose", [sound], "rows", { perm: { ints: [0, 2, 1] } });
  const x = b.put("Add", [rows, b.weight("positions", [SOUND, WIDTH], 3)], "x");
  const normed = b.norm(x, "n1", WIDTH);
  const [q, k, v] = ["q", "k", "v"].map((name) => b.heads(b.linear(normed, name, WIDTH, WIDTH)));
  const y = b.put("Add", [x, b.attend(q, k, v, "attention")], "y");
  const inner = b.gelu(b.linear(b.norm(y, "n2", WIDTH), "up", WIDTH, 2 * WIDTH), "act");
  const z = b.put("Add", [y, b.linear(inner, "down", 2 * WIDTH, WIDTH)], "z");
  b.norm(z, "last_hidden_state", WIDTH);
  return model(
    graph({
      input: [value("input_features", T.FLOAT, ["batch_size", MELS, FRAMES])],
      output: [value("last_hidden_state", T.FLOAT, ["batch_size", SOUND, WIDTH])],
      initializer: b.tensors,
      node: b.nodes,
    }),
    { opset: 17 },
  );
}

/** Keys and values of the sound: handed on, or computed. */
function crossBranch(cached: boolean, b: Build): GraphProto {
  const names = ["key", "value"].map((name) => `${cached ? "cached" : "first"}/${name}`);
  const inner = new Build(300);
  if (cached) names.forEach((name, i) => inner.put("Identity", [`past_key_values.0.encoder.${i === 0 ? "key" : "value"}`], name));
  else
    names.forEach((name, i) => {
      const rows = inner.linear("encoder_hidden_states", `cross.${i === 0 ? "k" : "v"}`, WIDTH, WIDTH);
      inner.put("Transpose", [inner.put("Reshape", [rows, "split"], `${name}/split`)], name, { perm: { ints: [0, 2, 1, 3] } });
    });
  b.tensors.push(...inner.tensors);
  return graph({ name: names[0], node: inner.nodes, output: names.map((name) => value(name, T.FLOAT, ["b", HEADS, "t", SIZE])) });
}

function decoder(): ModelProto {
  const b = new Build(200);
  b.shared();
  const cacheOf = (prefix: string): string[] =>
    ["decoder.key", "decoder.value", "encoder.key", "encoder.value"].map((name) => `${prefix}.0.${name}`);
  const length = (x: string, axis: number, name: string): string =>
    b.put("Gather", [b.put("Shape", [x], `${name}/shape`), b.ints(`${name}/axis`, [axis], [])], name, { axis: 0n });
  const past = length("past_key_values.0.decoder.key", 2, "past");
  const total = b.put("Add", [past, length("input_ids", 1, "tokens")], "total");
  const places = b.put("Range", [past, total, b.ints("step", [1], [])], "places");
  const embedded = b.put("Gather", [b.weight("table", [VOCABULARY, WIDTH], 6), "input_ids"], "embedded");
  const x = b.put("Add", [embedded, b.put("Gather", [b.weight("positions", [POSITIONS, WIDTH], 3), places], "placed")], "x");
  // token t sees keys up to its place
  const keys = b.put("Range", [b.ints("zero", [0], []), total, "step"], "keys");
  const seen = b.put("LessOrEqual", [keys, b.put("Unsqueeze", [places, b.ints("last axis", [1])], "column")], "seen");
  const mask = b.put("Where", [seen, b.number("none", 0), b.number("low", -3.4028234663852886e38)], "mask");
  const normed = b.norm(x, "n1", WIDTH);
  const [q, k, v] = ["q", "k", "v"].map((name) => b.heads(b.linear(normed, name, WIDTH, WIDTH)));
  b.put("Concat", ["past_key_values.0.decoder.key", k], "present.0.decoder.key", { axis: 2n });
  b.put("Concat", ["past_key_values.0.decoder.value", v], "present.0.decoder.value", { axis: 2n });
  const y = b.put("Add", [x, b.attend(q, "present.0.decoder.key", "present.0.decoder.value", "self", mask)], "y");
  const branches = { then_branch: crossBranch(true, b), else_branch: crossBranch(false, b) };
  b.nodes.push(node("If", ["use_cache_branch"], ["present.0.encoder.key", "present.0.encoder.value"], branches, "cross"));
  const heard = b.attend(b.heads(b.linear(b.norm(y, "n2", WIDTH), "cross.q", WIDTH, WIDTH)), "present.0.encoder.key", "present.0.encoder.value", "cross"); // prettier-ignore
  const z = b.put("Add", [y, heard], "z");
  b.put("MatMul", [b.norm(z, "n3", WIDTH), b.weight("head", [WIDTH, VOCABULARY], 3)], "logits");
  const cache = (name: string) => value(name, T.FLOAT, ["batch_size", HEADS, `${name} tokens`, SIZE]);
  return model(
    graph({
      input: [
        value("input_ids", T.INT64, ["batch_size", "tokens"]),
        value("encoder_hidden_states", T.FLOAT, ["batch_size", "sound", WIDTH]),
        ...cacheOf("past_key_values").map(cache),
        value("use_cache_branch", T.BOOL, [1]),
      ],
      output: [value("logits", T.FLOAT, ["batch_size", "tokens", VOCABULARY]), ...cacheOf("present").map(cache)],
      initializer: b.tensors,
      node: b.nodes,
    }),
    { opset: 17 },
  );
}

const SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"];

/** Writes the model into `folder`. */
export function writeWhisper(folder: string): void {
  mkdirSync(join(folder, "onnx"), { recursive: true });
  writeFileSync(join(folder, "onnx/encoder_model.onnx"), encode(encoder()));
  writeFileSync(join(folder, "onnx/decoder_model_merged.onnx"), encode(decoder()));
  const words = Array.from({ length: VOCABULARY }, (_, i) => SPECIAL[i - (VOCABULARY - 3)] ?? `w${i}`);
  const [end, start, plain] = SPECIAL.map((name) => words.indexOf(name));
  const ends = { eos_token_id: end, bos_token_id: end, pad_token_id: end, decoder_start_token_id: start };
  const files: Record<string, unknown> = {
    "config.json": {
      ...{ model_type: "whisper", architectures: ["WhisperForConditionalGeneration"], is_encoder_decoder: true, ...ends },
      ...{ d_model: WIDTH, decoder_layers: 1, encoder_layers: 1, decoder_attention_heads: HEADS, encoder_attention_heads: HEADS },
      ...{ vocab_size: VOCABULARY, max_source_positions: SOUND, max_target_positions: POSITIONS, num_mel_bins: MELS },
    },
    "generation_config.json": { ...ends, is_multilingual: false, no_timestamps_token_id: plain, max_length: POSITIONS },
    "preprocessor_config.json": {
      ...{ feature_extractor_type: "WhisperFeatureExtractor", processor_class: "WhisperProcessor", feature_size: MELS },
      ...{ sampling_rate: 16000, hop_length: 160, n_fft: 400, chunk_length: 30, n_samples: 480000, nb_max_frames: FRAMES },
    },
    "tokenizer.json": {
      ...{ version: "1.0", normalizer: null, pre_tokenizer: { type: "WhitespaceSplit" }, post_processor: null, decoder: null },
      added_tokens: SPECIAL.map((content) => ({ id: words.indexOf(content), content, special: true })),
      model: { type: "WordLevel", vocab: Object.fromEntries(words.map((text, i) => [text, i])), unk_token: SPECIAL[0] },
    },
    "tokenizer_config.json": { tokenizer_class: "WhisperTokenizer", unk_token: SPECIAL[0], eos_token: SPECIAL[0], pad_token: SPECIAL[0] },
  };
  for (const [name, data] of Object.entries(files)) writeFileSync(join(folder, name), JSON.stringify(data));
}

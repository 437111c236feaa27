// Folders of tiny models as transformers.js loads them, one for each of five pipelines. Weights are seeded noise.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { NodeProto, TensorProto, ValueInfoProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { encode, graph, model, node, raw, T, value, weights, type AttributeValue } from "../onnx/build.ts";
import { writeLanguageModel } from "../onnx/transformers-models.ts";
import { writeWhisper } from "./whisper.ts";

const WORDS = 64;
const WIDTH = 32;

const word = (i: number): string => ["<pad>", "<unk>", "</s>"][i] ?? `w${i}`;

const tokenizer = {
  version: "1.0",
  added_tokens: [],
  normalizer: null,
  pre_tokenizer: { type: "WhitespaceSplit" },
  post_processor: null,
  decoder: null,
  model: { type: "WordLevel", vocab: Object.fromEntries(Array.from({ length: WORDS }, (_, i) => [word(i), i])), unk_token: "<unk>" },
};

/** Nodes and weights as they are put together. */
class Build {
  readonly nodes: NodeProto[] = [];
  readonly tensors: TensorProto[] = [];
  #seed = 3;

  weight(name: string, dims: number[], gain = 1): string {
    const count = dims.reduce((a, b) => a * b, 1);
    this.tensors.push(raw(name, dims, weights(count, this.#seed++).map((v) => gain * v))); // prettier-ignore
    return name;
  }

  ints(name: string, ...list: number[]): string {
    this.tensors.push(raw(name, [list.length], BigInt64Array.from(list, BigInt), T.INT64));
    return name;
  }

  put(opType: string, input: string[], output: string, attributes: Record<string, AttributeValue> = {}): string {
    this.nodes.push(node(opType, input, [output], attributes, output));
    return output;
  }

  bytes(input: ValueInfoProto[], output: ValueInfoProto[]): Uint8Array {
    return encode(model(graph({ input, output, initializer: this.tensors, node: this.nodes }), { opset: 17 }));
  }
}

/**
 * Embeddings, an attention whose mask hides padding, a feed-forward part; `labels`: logits of the first token instead
 * of hidden states.
 */
function textModel(labels: number): Uint8Array {
  const b = new Build();
  const tokens = b.put("Gather", [b.weight("tokens", [WORDS, WIDTH], 4), "input_ids"], "embedded");
  const types = b.put("Gather", [b.weight("types", [2, WIDTH], 2), "token_type_ids"], "typed");
  const norm = (x: string, name: string): string =>
    b.put("LayerNormalization", [x, b.weight(`${name}.w`, [WIDTH], 3), b.weight(`${name}.b`, [WIDTH])], name, { axis: -1n });
  const linear = (x: string, name: string, n: number): string =>
    b.put("Add", [b.put("MatMul", [x, b.weight(`${name}.w`, [WIDTH, n], 0.7)], `${name}.mm`), b.weight(`${name}.b`, [n])], name);
  const x = norm(b.put("Add", [tokens, types], "sum"), "n0");
  const [q, k, v] = ["q", "k", "v"].map((name) => linear(x, name, WIDTH));
  const scores = b.put("MatMul", [q, b.put("Transpose", [k], "kt", { perm: { ints: [0, 2, 1] } })], "scores");
  const seen = b.put("Unsqueeze", [b.put("Cast", ["attention_mask"], "seen.f", { to: 1n }), b.ints("axis1", 1)], "seen");
  b.tensors.push(raw("one", [], Float32Array.of(1)), raw("low", [], Float32Array.of(-1e4)));
  const mask = b.put("Mul", [b.put("Sub", ["one", seen], "unseen"), "low"], "mask");
  const context = b.put("MatMul", [b.put("Softmax", [b.put("Add", [scores, mask], "masked")], "p", { axis: -1n }), v], "context");
  const hidden = norm(b.put("Add", [x, b.put("Tanh", [linear(context, "o", WIDTH)], "t")], "res"), "last_hidden_state");
  const ids = ["input_ids", "attention_mask", "token_type_ids"].map((name) => value(name, T.INT64, ["batch_size", "sequence_length"]));
  if (labels === 0) return b.bytes(ids, [value(hidden, T.FLOAT, ["batch_size", "sequence_length", WIDTH])]);
  b.tensors.push(raw("first", [], BigInt64Array.of(0n), T.INT64));
  const pooled = b.put("Gather", [hidden, "first"], "pooled", { axis: 1n });
  b.put("Gemm", [pooled, b.weight("classes", [WIDTH, labels], 2), b.weight("bias", [labels])], "logits");
  return b.bytes(ids, [value("logits", T.FLOAT, ["batch_size", labels])]);
}

/** Strided convolutions over the sound, then letters: wav2vec2 with CTC. */
function speechModel(): Uint8Array {
  const b = new Build();
  let x = b.put("Unsqueeze", ["input_values", b.ints("axis", 1)], "channel");
  [
    [1, 16],
    [16, WIDTH],
  ].forEach(([from, to], i) => {
    const conv = b.put("Conv", [x, b.weight(`c${i}.w`, [to, from, 16], 2), b.weight(`c${i}.b`, [to])], `c${i}`, {
      strides: { ints: [16] },
    });
    x = b.put("Tanh", [conv], `c${i}.act`);
  });
  const rows = b.put("Transpose", [x], "rows", { perm: { ints: [0, 2, 1] } });
  const lstm = b.put(
    "LSTM",
    [
      b.put("Transpose", [rows], "steps", { perm: { ints: [1, 0, 2] } }),
      b.weight("lstm.w", [1, 4 * WIDTH, WIDTH], 2),
      b.weight("lstm.r", [1, 4 * WIDTH, WIDTH]),
    ],
    "recurrent",
    { hidden_size: BigInt(WIDTH) },
  );
  const flat = b.put("Transpose", [b.put("Squeeze", [lstm, "axis"], "squeezed")], "states", { perm: { ints: [1, 0, 2] } });
  b.put("MatMul", [flat, b.weight("letters", [WIDTH, 32], 6)], "logits");
  return b.bytes([value("input_values", T.FLOAT, ["batch_size", "length"])], [value("logits", T.FLOAT, ["batch_size", "frames", 32])]);
}

function imageModel(): Uint8Array {
  const b = new Build();
  const conv = b.put("Conv", ["pixel_values", b.weight("c.w", [8, 3, 3, 3], 2), b.weight("c.b", [8])], "c", { strides: { ints: [2, 2] } });
  const norms = ["g", "b", "m"].map((name) => b.weight(`bn.${name}`, [8]));
  b.tensors.push(raw("bn.v", [8], weights(8, 50).map((v) => 0.5 + Math.abs(v)))); // prettier-ignore
  const normed = b.put("BatchNormalization", [conv, ...norms, "bn.v"], "bn");
  const wide = b.put("Conv", [b.put("HardSwish", [normed], "act"), b.weight("d.w", [16, 8, 3, 3], 2)], "d");
  const flat = b.put("Flatten", [b.put("GlobalAveragePool", [wide], "pool")], "flat");
  b.put("Gemm", [flat, b.weight("f.w", [5, 16], 9), b.weight("f.b", [5])], "logits", { transB: 1n });
  return b.bytes([value("pixel_values", T.FLOAT, ["batch_size", 3, "height", "width"])], [value("logits", T.FLOAT, ["batch_size", 5])]);
}

function write(folder: string, name: string, bytes: Uint8Array, files: Readonly<Record<string, unknown>>): void {
  mkdirSync(join(folder, name, "onnx"), { recursive: true });
  writeFileSync(join(folder, name, "onnx/model.onnx"), bytes);
  for (const [file, data] of Object.entries(files)) writeFileSync(join(folder, name, file), JSON.stringify(data));
}

const labelsOf = (count: number): Record<string, string> => Object.fromEntries(Array.from({ length: count }, (_, i) => [i, `label ${i}`]));

/** Writes features, classes, speech, whisper, images and language into a folder. */
export function writePipelines(folder: string): void {
  const text = {
    "tokenizer.json": tokenizer,
    "tokenizer_config.json": { tokenizer_class: "BertTokenizer", unk_token: "<unk>", pad_token: "<pad>" },
  };
  const bert = { model_type: "bert", hidden_size: WIDTH };
  write(folder, "features", textModel(0), { ...text, "config.json": { ...bert, architectures: ["BertModel"] } });
  write(folder, "classes", textModel(3), {
    ...text,
    "config.json": { ...bert, architectures: ["BertForSequenceClassification"], id2label: labelsOf(3) },
  });
  const letters = ["<pad>", "<s>", "</s>", "<unk>", "|", ..."abcdefghijklmnopqrstuvwxyz'"];
  write(folder, "speech", speechModel(), {
    "config.json": { model_type: "wav2vec2", architectures: ["Wav2Vec2ForCTC"] },
    "preprocessor_config.json": { feature_extractor_type: "Wav2Vec2FeatureExtractor", sampling_rate: 16000, do_normalize: true },
    "tokenizer.json": {
      ...tokenizer,
      pre_tokenizer: { type: "Split", pattern: { Regex: "" }, behavior: "Isolated", invert: false },
      decoder: { type: "CTC", pad_token: "<pad>", word_delimiter_token: "|", cleanup: true },
      model: { type: "WordLevel", vocab: Object.fromEntries(letters.map((letter, i) => [letter, i])), unk_token: "<unk>" },
    },
    "tokenizer_config.json": { tokenizer_class: "Wav2Vec2CTCTokenizer", pad_token: "<pad>", unk_token: "<unk>" },
  });
  write(folder, "images", imageModel(), {
    "config.json": { model_type: "vit", architectures: ["ViTForImageClassification"], id2label: labelsOf(5) },
    "preprocessor_config.json": {
      image_processor_type: "ViTImageProcessor",
      ...{ do_resize: false, do_rescale: true, rescale_factor: 1 / 255, do_normalize: true },
      ...{ image_mean: [0.5, 0.5, 0.5], image_std: [0.5, 0.5, 0.5] },
    },
  });
  writeWhisper(join(folder, "whisper"));
  writeLanguageModel(join(folder, "language"));
}

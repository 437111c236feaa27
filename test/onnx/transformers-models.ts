// Small models in the form of which transformers.js wants them: a language model, and a model of images and text in
// three files (embeddings, an image encoder, a decoder that is merged: an If takes the branch with or without the
// cache). Weights are seeded noise.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { T, encode, graph, model, node, raw, value, weights } from "./build.ts";

export const SIZES = { vocabulary: 96, width: 64, heads: 2, layers: 2, inner: 128, positions: 64, image: 32, patch: 16 } as const;
const { vocabulary, width, heads, layers, inner, positions, image, patch } = SIZES;
const headWidth = width / heads;

/** The token in whose place the features of an image go; the last of the vocabulary. */
export const IMAGE_TOKEN = vocabulary - 1;
export const IMAGE_FEATURES = (image / patch) ** 2;

const int64 = (name: string, ...values: number[]): TensorProto => raw(name, [values.length], BigInt64Array.from(values, BigInt), T.INT64);
const floats = (name: string, dims: number[], seed: number, gain = 1): TensorProto =>
  raw(
    name,
    dims,
    weights(
      dims.reduce((a, b) => a * b, 1),
      seed,
    ).map((v) => gain * v),
  );
const scalar = (name: string, number: number): TensorProto => raw(name, [], Float32Array.of(number));
const ones = (name: string): TensorProto => raw(name, [width], new Float32Array(width).fill(1));

const cacheNames = (kind: "past_key_values" | "present"): string[] =>
  Array.from({ length: layers }, (_, l) => [`${kind}.${l}.key`, `${kind}.${l}.value`]).flat();
const cacheValues = (kind: "past_key_values" | "present", length: string): ValueInfoProto[] =>
  cacheNames(kind).map((name) => value(name, T.FLOAT, ["batch_size", heads, length, headWidth]));

/** Weights of the decoder, which both branches of a merged one read. */
function decoderWeights(): TensorProto[] {
  const tensors = [
    floats("position_table", [positions, width], 90, 2),
    floats("lm_head", [width, vocabulary], 91, 2),
    ones("norm"),
    int64("shape.heads", 0, 0, heads, headWidth),
    int64("shape.merged", 0, 0, width),
    int64("axes.mask", 1),
    int64("axes.batch", 0),
    int64("axes.last", -1),
    int64("axes.both", 1, 2),
    int64("zero", 0),
    int64("two", 2),
    raw("start", [], BigInt64Array.of(0n), T.INT64),
    raw("step", [], BigInt64Array.of(1n), T.INT64),
    raw("axis.length", [], BigInt64Array.of(1n), T.INT64),
    scalar("visible", 0),
    scalar("hidden", -1e4),
    scalar("root", 1 / Math.sqrt(headWidth)),
  ];
  for (let l = 0; l < layers; l++)
    for (const [what, dims, seed] of [
      ["q", [width, width], 1],
      ["k", [width, width], 2],
      ["v", [width, width], 3],
      ["o", [width, width], 4],
      ["up", [width, inner], 5],
      ["down", [inner, width], 6],
    ] as const)
      tensors.push(floats(`layers.${l}.${what}`, [...dims], 10 * l + seed, 1.5));
  return tensors;
}

/**
 * From `hidden_in` [batch, n, width], attention_mask [batch, total] and position_ids [batch, n] to logits and present
 * caches.
 */
function decoderNodes(hiddenIn: string, prefix: string, withPast: boolean): NodeProto[] {
  const nodes: NodeProto[] = [];
  const add = (op: string, inputs: string[], out: string, attributes: Parameters<typeof node>[3] = {}): string => {
    nodes.push(node(op, inputs, [prefix + out], attributes, `${prefix}${out}/${op}`));
    return prefix + out;
  };
  // a place sees those up to it that the mask has: [batch, 1, n, total]
  const total = add("Shape", ["attention_mask"], "mask_shape");
  const count = add("Gather", [total, "axis.length"], "total");
  const all = add("Range", ["start", count, "step"], "places");
  const own = add("Unsqueeze", ["position_ids", "axes.last"], "own_place");
  const before = add("LessOrEqual", [all, own], "before");
  const masked = add("Unsqueeze", [add("Cast", ["attention_mask"], "mask", { to: 9n }), "axes.mask"], "mask_rows");
  const seen = add("Unsqueeze", [add("And", [before, masked], "seen_of"), "axes.mask"], "seen");
  const bias = add("Where", [seen, "visible", "hidden"], "bias");
  let x = add("Add", [hiddenIn, add("Gather", ["position_table", "position_ids"], "positions")], "embedded");
  for (let l = 0; l < layers; l++) {
    const at = (what: string): string => `layers.${l}.${what}`;
    const norm = add("LayerNormalization", [x, "norm"], at("norm1_out"));
    const [q, k, v] = ["q", "k", "v"].map((what) => {
      const split = add("Reshape", [add("MatMul", [norm, at(what)], at(`${what}_out`)), "shape.heads"], at(`${what}_split`));
      const turned = add("Transpose", [split], at(`${what}_heads`), { perm: { ints: [0, 2, 1, 3] } });
      const past = what === "k" ? "key" : "value";
      if (what === "q") return turned;
      const name = `present.${l}.${past}`;
      return withPast ? add("Concat", [`past_key_values.${l}.${past}`, turned], name, { axis: 2n }) : add("Identity", [turned], name);
    });
    const across = add("Transpose", [k], at("k_across"), { perm: { ints: [0, 1, 3, 2] } });
    const scores = add("Add", [add("Mul", [add("MatMul", [q, across], at("scores")), "root"], at("scaled")), bias], at("masked"));
    const read = add("MatMul", [add("Softmax", [scores], at("shares"), { axis: -1n }), v], at("read"));
    const merged = add("Reshape", [add("Transpose", [read], at("back"), { perm: { ints: [0, 2, 1, 3] } }), "shape.merged"], at("merged"));
    x = add("Add", [x, add("MatMul", [merged, at("o")], at("o_out"))], at("middle"));
    const up = add("MatMul", [add("LayerNormalization", [x, "norm"], at("norm2_out")), at("up")], at("up_out"));
    const gated = add("Mul", [up, add("Sigmoid", [up], at("gate"))], at("gated"));
    x = add("Add", [x, add("MatMul", [gated, at("down")], at("down_out"))], at("out"));
  }
  add("MatMul", [add("LayerNormalization", [x, "norm"], "norm_out"), "lm_head"], "logits");
  return nodes;
}

const decoderInputs = (): ValueInfoProto[] => [
  value("attention_mask", T.INT64, ["batch_size", "total_length"]),
  value("position_ids", T.INT64, ["batch_size", "length"]),
  ...cacheValues("past_key_values", "past_length"),
];
const decoderOutputs = (): ValueInfoProto[] => [
  value("logits", T.FLOAT, ["batch_size", "length", vocabulary]),
  ...cacheValues("present", "total_length"),
];

/**
 * input_ids, attention_mask, position_ids and caches -> logits and caches, as a model of text generation is exported.
 */
export const languageModel = (): ModelProto =>
  model(
    graph({
      input: [value("input_ids", T.INT64, ["batch_size", "length"]), ...decoderInputs()],
      output: decoderOutputs(),
      initializer: [floats("embed_tokens", [vocabulary, width], 80, 4), ...decoderWeights()],
      node: [node("Gather", ["embed_tokens", "input_ids"], ["tokens"], {}, "embed_tokens/Gather"), ...decoderNodes("tokens", "", true)],
    }),
  );

/** The same from embeddings, both ways in one: with the cache, or (use_cache_branch false) without. */
export function mergedDecoder(): ModelProto {
  const branch = (prefix: string, withPast: boolean): GraphProto => {
    const outputs = ["logits", ...cacheNames("present")];
    return graph({
      name: prefix,
      output: outputs.map((name) =>
        value(prefix + name, T.FLOAT, name === "logits" ? ["b", "n", vocabulary] : ["b", heads, "t", headWidth]),
      ),
      node: decoderNodes("inputs_embeds", prefix, withPast),
    });
  };
  return model(
    graph({
      input: [value("inputs_embeds", T.FLOAT, ["batch_size", "length", width]), ...decoderInputs(), value("use_cache_branch", T.BOOL, [1])],
      output: decoderOutputs(),
      initializer: decoderWeights(),
      node: [
        node(
          "If",
          ["use_cache_branch"],
          ["logits", ...cacheNames("present")],
          { then_branch: branch("cached/", true), else_branch: branch("first/", false) },
          "merged",
        ),
      ],
    }),
  );
}

/** input_ids -> inputs_embeds: nothing but a table. */
export const embedTokens = (): ModelProto =>
  model(
    graph({
      input: [value("input_ids", T.INT64, ["batch_size", "length"])],
      output: [value("inputs_embeds", T.FLOAT, ["batch_size", "length", width])],
      initializer: [floats("embed_tokens", [vocabulary, width], 80, 4)],
      node: [node("Gather", ["embed_tokens", "input_ids"], ["inputs_embeds"], {}, "embed_tokens/Gather")],
    }),
  );

/** pixel_values [b, 3, 32, 32] -> image_features [b, 4, width]: patches by a convolution, then a product. */
export const visionEncoder = (): ModelProto =>
  model(
    graph({
      input: [value("pixel_values", T.FLOAT, ["batch_size", 3, image, image])],
      output: [value("image_features", T.FLOAT, ["batch_size", IMAGE_FEATURES, width])],
      initializer: [
        floats("patches", [width, 3, patch, patch], 70),
        floats("projection", [width, width], 71, 1.5),
        int64("shape.rows", 0, width, -1),
      ],
      node: [
        node("Conv", ["pixel_values", "patches"], ["grid"], { strides: { ints: [patch, patch] } }, "patches/Conv"),
        node("Reshape", ["grid", "shape.rows"], ["rows"], {}, "patches/Reshape"),
        node("Transpose", ["rows"], ["places"], { perm: { ints: [0, 2, 1] } }, "patches/Transpose"),
        node("Tanh", ["places"], ["bent"], {}, "projection/Tanh"),
        node("MatMul", ["bent", "projection"], ["image_features"], {}, "projection/MatMul"),
      ],
    }),
  );

const textConfig = {
  model_type: "llama",
  hidden_size: width,
  intermediate_size: inner,
  num_hidden_layers: layers,
  num_attention_heads: heads,
  num_key_value_heads: heads,
  vocab_size: vocabulary,
  max_position_embeddings: positions,
  bos_token_id: 0,
  eos_token_id: 1,
};

const word = (i: number): string => ["<s>", "</s>", "<unk>"][i] ?? (i === IMAGE_TOKEN ? "<image>" : `w${i}`);

/** The tokenizer of words w3, w4 ... parted by blanks. */
const tokenizer = {
  version: "1.0",
  truncation: null,
  padding: null,
  added_tokens: [],
  normalizer: null,
  pre_tokenizer: { type: "WhitespaceSplit" },
  post_processor: null,
  decoder: null,
  model: {
    type: "WordLevel",
    vocab: Object.fromEntries(Array.from({ length: vocabulary }, (_, i) => [word(i), i])),
    unk_token: "<unk>",
  },
};

const writeJson = (path: string, data: unknown): void => writeFileSync(path, JSON.stringify(data));

/** A folder as one of a model hub: models in onnx/, config.json and the tokenizer beside it. */
function writeRepository(folder: string, config: unknown, models: Readonly<Record<string, ModelProto>>): string {
  const onnx = join(folder, "onnx");
  mkdirSync(onnx, { recursive: true });
  for (const [name, proto] of Object.entries(models)) writeFileSync(join(onnx, `${name}.onnx`), encode(proto));
  writeJson(join(folder, "config.json"), config);
  writeJson(join(folder, "generation_config.json"), { bos_token_id: 0, eos_token_id: 1 });
  writeJson(join(folder, "tokenizer.json"), tokenizer);
  writeJson(join(folder, "tokenizer_config.json"), { tokenizer_class: "PreTrainedTokenizerFast", unk_token: "<unk>", eos_token: "</s>" });
  return onnx;
}

export const writeLanguageModel = (folder: string): string =>
  writeRepository(folder, { ...textConfig, architectures: ["LlamaForCausalLM"] }, { model: languageModel() });

export const writeImageTextModel = (folder: string): string =>
  writeRepository(
    folder,
    {
      model_type: "llava",
      architectures: ["LlavaForConditionalGeneration"],
      image_token_index: IMAGE_TOKEN,
      text_config: textConfig,
      vision_config: { model_type: "clip_vision_model", image_size: image, patch_size: patch },
    },
    { embed_tokens: embedTokens(), vision_encoder: visionEncoder(), decoder_model_merged: mergedDecoder() },
  );

// The synthetic decoder of the decode bench, as onnxruntime-genai's builder writes Qwen3: packed int4 products, norms
// of queries and keys, GroupQueryAttention with its own rotary embedding, SwiGLU, embedding and head in int4. Random
// codes of mean zero: codes of another mean drown all activations in one direction.
import { create, toBinary } from "@bufbuild/protobuf";
import type { NodeProto, TensorProto } from "../src/onnx/file/gen/onnx_pb.ts";
import { ModelProtoSchema, OperatorSetIdProtoSchema } from "../src/onnx/file/gen/onnx_pb.ts";
import { encodeHalf, halfTable } from "../src/onnx/file/half.ts";
import { graph, model, node, raw, T, value, type AttributeValue } from "../test/onnx/build.ts";

export interface DecoderSizes {
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly size: number;
  readonly ffn: number;
  readonly layers: number;
  readonly vocabulary: number;
  readonly positions: number;
  /** accuracy_level of the products: 0 float32, 4 int8 activations. */
  readonly level: number;
  readonly seed?: number;
  /** Caches of int8 with a static scale, as onnxruntime has them; default float32. */
  readonly cache?: "int8";
  /** Whether queries and keys turn by their positions; default true. */
  readonly rotary?: boolean;
}

/** The decoder of the table: 158.6 M weights in products. */
export const QWEN_LIKE: DecoderSizes = {
  hidden: 1024,
  heads: 16,
  kvHeads: 8,
  size: 128,
  ffn: 3072,
  layers: 8,
  vocabulary: 32000,
  positions: 4096,
  level: 4,
};

const BLOCK = 32;

export function decoderModel(sizes: DecoderSizes): Uint8Array {
  const { hidden, heads, kvHeads, size, ffn, layers, vocabulary, level } = sizes;
  let state = sizes.seed ?? 1;
  const next = (): number => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0);
  const initializer: TensorProto[] = [];
  const nodes: NodeProto[] = [];
  const add = (tensor: TensorProto): string => (initializer.push(tensor), tensor.name);
  const put = (opType: string, input: string[], output: string[], attributes: Record<string, AttributeValue> = {}, domain = ""): string => {
    const made = node(
      opType,
      input,
      output,
      attributes,
      output.find((name) => name !== "")!,
    );
    made.domain = domain;
    nodes.push(made);
    return output[0];
  };
  const floats = (name: string, dims: number[], make: (i: number) => number): string => {
    const data = Float32Array.from({ length: dims.reduce((a, b) => a * b, 1) }, (_, i) => make(i));
    return add(raw(name, dims, data));
  };
  const codes = (bytes: number): Uint8Array => {
    const words = new Uint32Array(bytes / 4);
    // code 0 (-8 without a partner) becomes 8 (0): nibbles from 1 to 15
    for (let i = 0; i < words.length; i++) {
      let word = (next() ^ (next() >>> 16)) >>> 0;
      for (let shift = 0; shift < 32; shift += 4) if (((word >>> shift) & 15) === 0) word = (word | (8 << shift)) >>> 0;
      words[i] = word;
    }
    return new Uint8Array(words.buffer);
  };
  const scale = (k: number): number => 1 / (4.3 * Math.sqrt(k));
  /** A scale that float16 holds: the GGUF of the same model has those. */
  const half = (v: number): number => halfTable()[encodeHalf(v)];
  const product = (x: string, name: string, n: number, k: number, out = name): string => {
    const q = add(raw(`${name}_q`, [n, k / BLOCK, BLOCK / 2], codes((n * k) / 2), T.UINT8));
    const s = floats(`${name}_s`, [(n * k) / BLOCK], () => half(scale(k) * (0.5 + next() / 2 ** 32)));
    const attributes = { K: BigInt(k), N: BigInt(n), bits: 4n, block_size: BigInt(BLOCK), accuracy_level: BigInt(level) };
    return put("MatMulNBits", [x, q, s], [out], attributes, "com.microsoft");
  };
  const ones = (name: string, width: number): string => floats(name, [width], () => 0.8 + 0.4 * (next() / 2 ** 32));
  const shape = (name: string, dims: number[]): string => add(raw(name, [dims.length], BigInt64Array.from(dims, BigInt), T.INT64));
  const pairs = size / 2;
  const angle = (i: number): number => Math.floor(i / pairs) * 1e6 ** (-(i % pairs) / pairs);
  const cos = floats("cos_cache", [sizes.positions, pairs], (i) => Math.cos(angle(i)));
  const sin = floats("sin_cache", [sizes.positions, pairs], (i) => Math.sin(angle(i)));
  const perHead = shape("per_head", [0, 0, -1, size]);
  const flat = shape("flat", [0, 0, -1]);

  put("ReduceSum", ["attention_mask", shape("one_axis", [1])], ["mask_sum"], { keepdims: 1n });
  put("Sub", ["mask_sum", shape("one", [1])], ["mask_last"]);
  put("Cast", ["mask_last"], ["seqlens_k"], { to: BigInt(T.INT32) });
  put("Shape", ["attention_mask"], ["mask_shape"]);
  put("Gather", ["mask_shape", add(raw("index1", [], BigInt64Array.of(1n), T.INT64))], ["total64"], { axis: 0n });
  put("Cast", ["total64"], ["total"], { to: BigInt(T.INT32) });
  const table = add(raw("embed_q", [vocabulary, hidden / 2], codes((vocabulary * hidden) / 2), T.UINT8));
  const tableScales = floats("embed_s", [vocabulary, hidden / BLOCK], () => half(0.2 * (0.5 + next() / 2 ** 32)));
  const lookup = { bits: 4n, block_size: BigInt(BLOCK), gather_axis: 0n, quantize_axis: 1n };
  let x = put("GatherBlockQuantized", [table, "input_ids", tableScales], ["embedding"], lookup, "com.microsoft");
  const isInt8 = sizes.cache === "int8";
  if (isInt8) floats("cache_scale", [1], () => 4 / 127);
  let normed = put("SimplifiedLayerNormalization", [x, ones("norm0", hidden)], ["layers.0.in"], { epsilon: 1e-6, axis: -1n });
  for (let l = 0; l < layers; l++) {
    const p = `layers.${l}`;
    const normHeads = (from: string, name: string): string => {
      const split = put("Reshape", [from, perHead], [`${p}.${name}_r`]);
      const done = put("SimplifiedLayerNormalization", [split, ones(`${p}.${name}_w`, size)], [`${p}.${name}_n`], {
        epsilon: 1e-6,
        axis: -1n,
      });
      return put("Reshape", [done, flat], [`${p}.${name}_f`]);
    };
    const q = normHeads(product(normed, `${p}.q`, heads * size, hidden), "qn");
    const k = normHeads(product(normed, `${p}.k`, kvHeads * size, hidden), "kn");
    const v = product(normed, `${p}.v`, kvHeads * size, hidden);
    const past = [`past_key_values.${l}.key`, `past_key_values.${l}.value`];
    const present = [`present.${l}.key`, `present.${l}.value`];
    const quantized = { k_quant_type: "PER_TENSOR", v_quant_type: "PER_TENSOR", kv_cache_bit_width: 8n };
    const grouped = {
      ...{
        num_heads: BigInt(heads),
        kv_num_heads: BigInt(kvHeads),
        do_rotary: sizes.rotary === false ? 0n : 1n,
        rotary_interleaved: 0n,
        scale: 1 / Math.sqrt(size),
      },
      ...(isInt8 ? quantized : {}),
    };
    const attention = put(
      "GroupQueryAttention",
      [q, k, v, ...past, "seqlens_k", "total", cos, sin, ...(isInt8 ? ["", "", "", "cache_scale", "cache_scale"] : [])],
      [`${p}.attn`, ...present],
      grouped,
      "com.microsoft",
    );
    const o = product(attention, `${p}.o`, hidden, heads * size);
    put(
      "SkipSimplifiedLayerNormalization",
      [x, o, ones(`${p}.post_w`, hidden)],
      [`${p}.post`, "", "", `${p}.mid`],
      { epsilon: 1e-6 },
      "com.microsoft",
    );
    const gate = product(`${p}.post`, `${p}.gate`, ffn, hidden);
    const up = product(`${p}.post`, `${p}.up`, ffn, hidden);
    const sigmoid = put("Sigmoid", [gate], [`${p}.sigmoid`]);
    const act = put("Mul", [put("Mul", [gate, sigmoid], [`${p}.silu`]), up], [`${p}.act`]);
    const down = product(act, `${p}.down`, hidden, ffn);
    const last = l === layers - 1;
    normed = `layers.${l + 1}.in`;
    x = `${p}.out`;
    put(
      "SkipSimplifiedLayerNormalization",
      [`${p}.mid`, down, ones(`${p}.next_w`, hidden)],
      last ? [normed] : [normed, "", "", x],
      { epsilon: 1e-6 },
      "com.microsoft",
    );
  }
  product(normed, "lm_head", vocabulary, hidden, "logits");
  const cache = (name: string, length: string) => value(name, isInt8 ? T.INT8 : T.FLOAT, ["batch_size", kvHeads, length, size]);
  const each = (prefix: string, length: string) =>
    Array.from({ length: 2 * layers }, (_, i) => cache(`${prefix}.${i >> 1}.${i & 1 ? "value" : "key"}`, length));
  const proto = model(
    graph({
      input: [
        value("input_ids", T.INT64, ["batch_size", "sequence_length"]),
        value("attention_mask", T.INT64, ["batch_size", "total_sequence_length"]),
        ...each("past_key_values", "past_sequence_length"),
      ],
      output: [value("logits", T.FLOAT, ["batch_size", "sequence_length", vocabulary]), ...each("present", "total_sequence_length")],
      initializer,
      node: nodes,
    }),
    { opset: 21, ir: 10 },
  );
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return toBinary(ModelProtoSchema, proto);
}

// npm run bench -- cache-perplexity [windows]: kjv-llama with GroupQueryAttention over caches, token by token through a
// decoder of the runtime: what each type of cache, and int8 activations over 8-bit weights, cost in perplexity over
// windows of 256 tokens of the evaluation text. Beside it onnxruntime on the model as it came.
import { create, toBinary } from "@bufbuild/protobuf";
import type { NodeProto, TensorProto } from "../src/onnx/file/gen/onnx_pb.ts";
import { ModelProtoSchema, OperatorSetIdProtoSchema } from "../src/onnx/file/gen/onnx_pb.ts";
import { readFloats } from "../src/onnx/file/values.ts";
import { loadModel, type DecoderOptions } from "../src/runtime/index.ts";
import { graph, model, node, raw, T, value, type AttributeValue } from "../test/onnx/build.ts";
import { loadKjv, perplexity, type Kjv } from "./gguf-kjv.ts";

const [LAYERS, HEADS, SIZE, WINDOW, VOCABULARY, BLOCK] = [4, 4, 64, 256, 2048, 32];

/**
 * The model as a decoder; `int8`: products of codes of 8 bits in blocks of 32, and whether their activations may be
 * int8.
 */
function decoderOf(kjv: Kjv, int8: { readonly level: 0 | 4 } | undefined): Uint8Array {
  const found = new Map(kjv.model.proto.graph!.initializer.map((t) => [t.name, t]));
  const initializer: TensorProto[] = [];
  const nodes: NodeProto[] = [];
  const floats = (name: string): Float32Array => readFloats(kjv.model, found.get(name)!).slice();
  const add = (tensor: TensorProto): string => (initializer.push(tensor), tensor.name);
  const weight = (name: string): string => add(raw(name, found.get(name)!.dims.map(Number), floats(name)));
  const put = (opType: string, input: string[], output: string[], attributes: Record<string, AttributeValue> = {}, domain = ""): string => {
    const made = node(opType, input, output, attributes, output[0]);
    made.domain = domain;
    nodes.push(made);
    return output[0];
  };
  const product = (x: string, name: string, to = name): string => {
    if (int8 === undefined) return put("MatMul", [x, weight(`${name}.weight`)], [to]);
    const [k, n] = found.get(`${name}.weight`)!.dims.map(Number);
    const [q, s] = quantized(floats(`${name}.weight`), k, n);
    const inputs = [x, add(raw(`${name}_q`, [n, k / BLOCK, BLOCK], q, T.UINT8)), add(raw(`${name}_s`, [n, k / BLOCK], s))];
    const sizes = { K: BigInt(k), N: BigInt(n), bits: 8n, block_size: BigInt(BLOCK), accuracy_level: BigInt(int8.level) };
    return put("MatMulNBits", inputs, [to], sizes, "com.microsoft");
  };
  const epsilon = floats("final_norm/eps")[0];
  const norm = (x: string, name: string): string =>
    put("SimplifiedLayerNormalization", [x, weight(`${name}.weight`)], [name], { epsilon, axis: -1n });
  const half = (name: string): string => {
    const table = floats(name);
    const data = Float32Array.from({ length: (WINDOW * SIZE) / 2 }, (_, i) => table[Math.floor(i / 32) * SIZE + (i % 32)]);
    return add(raw(name, [WINDOW, SIZE / 2], data));
  };
  const [cos, sin] = [half("cos_tab"), half("sin_tab")];
  const integer = (name: string, dims: number[], data: bigint[]): string => add(raw(name, dims, BigInt64Array.from(data), T.INT64));
  put("ReduceSum", ["attention_mask", integer("one_axis", [1], [1n])], ["mask_sum"], { keepdims: 1n });
  put("Sub", ["mask_sum", integer("one", [1], [1n])], ["mask_last"]);
  put("Cast", ["mask_last"], ["seqlens_k"], { to: BigInt(T.INT32) });
  put("Shape", ["attention_mask"], ["mask_shape"]);
  put("Gather", ["mask_shape", integer("index1", [], [1n])], ["total64"], { axis: 0n });
  put("Cast", ["total64"], ["total"], { to: BigInt(T.INT32) });
  let x = put("Gather", [weight("tok_emb"), "input_ids"], ["x0"]);
  const heads = { num_heads: BigInt(HEADS), kv_num_heads: BigInt(HEADS), do_rotary: 1n };
  for (let l = 0; l < LAYERS; l++) {
    const p = `layers.${l}`;
    const normed = norm(x, `${p}.attn_norm`);
    const qkv = ["q", "k", "v"].map((part) => product(normed, `${p}.${part}_proj`));
    const caches = ["key", "value"].map((side) => `past_key_values.${l}.${side}`);
    const out = [`${p}.attn`, `present.${l}.key`, `present.${l}.value`];
    const attention = put("GroupQueryAttention", [...qkv, ...caches, "seqlens_k", "total", cos, sin], out, heads, "com.microsoft");
    const middle = put("Add", [x, product(attention, `${p}.o_proj`)], [`${p}.r1`]);
    const second = norm(middle, `${p}.mlp_norm`);
    const gate = product(second, `${p}.gate_proj`);
    const silu = put("Mul", [gate, put("Sigmoid", [gate], [`${p}.sigmoid`])], [`${p}.silu`]);
    const act = put("Mul", [silu, product(second, `${p}.up_proj`)], [`${p}.act`]);
    x = put("Add", [middle, product(act, `${p}.down_proj`)], [`${p}.r2`]);
  }
  product(norm(x, "final_norm"), "lm_head", "logits");
  const caches = (prefix: string, length: string) =>
    Array.from({ length: 2 * LAYERS }, (_, i) =>
      value(`${prefix}.${i >> 1}.${i & 1 ? "value" : "key"}`, T.FLOAT, ["batch", HEADS, length, SIZE]),
    );
  const ids = value("input_ids", T.INT64, ["batch", "tokens"]);
  const proto = model(
    graph({
      input: [ids, value("attention_mask", T.INT64, ["batch", "total"]), ...caches("past_key_values", "past")],
      output: [value("logits", T.FLOAT, ["batch", "tokens", VOCABULARY]), ...caches("present", "total")],
      initializer,
      node: nodes,
    }),
    { opset: 21, ir: 10 },
  );
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return toBinary(ModelProtoSchema, proto);
}

/** [k, n] in blocks of 32 along k, codes around 128 with scale amax / 127: [n, k] and scales. */
function quantized(w: Float32Array, k: number, n: number): [Uint8Array, Float32Array] {
  const codes = new Uint8Array(n * k);
  const scales = new Float32Array((n * k) / BLOCK);
  for (let r = 0; r < n; r++)
    for (let b = 0; b < k / BLOCK; b++) {
      let most = 0;
      for (let i = 0; i < BLOCK; i++) most = Math.max(most, Math.abs(w[(b * BLOCK + i) * n + r]));
      const scale = (scales[(r * k) / BLOCK + b] = most / 127);
      for (let i = 0; i < BLOCK; i++) codes[r * k + b * BLOCK + i] = 128 + Math.round(scale === 0 ? 0 : w[(b * BLOCK + i) * n + r] / scale);
    }
  return [codes, scales];
}

/** Perplexity over windows, each token a step. */
async function stepped(kjv: Kjv, bytes: Uint8Array, cache: DecoderOptions["cache"], windows: number): Promise<number> {
  const session = await loadModel(bytes);
  const decoder = session.decoder({ capacity: WINDOW, ...(cache === undefined ? {} : { cache }) });
  const text = kjv.validation;
  let sum = 0;
  for (let w = 0; w < windows; w++) {
    decoder.reset();
    for (let t = 0; t < WINDOW; t++) {
      const logits = decoder.step(text[w * WINDOW + t]);
      let most = -Infinity;
      for (const v of logits) most = Math.max(most, v);
      let all = 0;
      for (const v of logits) all += Math.exp(v - most);
      sum += most + Math.log(all) - logits[text[w * WINDOW + t + 1]];
    }
  }
  await session.release();
  return Math.exp(sum / (windows * WINDOW));
}

export async function cachePerplexity(args: readonly string[]): Promise<void> {
  const kjv = loadKjv();
  if (kjv === null) throw new Error("kjv-llama is not beside the project (LOWBIT_MODELS)");
  const windows = Number(args[0] ?? 48);
  const say = (name: string, ppl: number, base: number): void =>
    console.log(`${name.padEnd(44)} ${ppl.toFixed(4)}  ${ppl >= base ? "+" : ""}${((100 * (ppl - base)) / base).toFixed(3)} %`);
  const theirs = await perplexity(kjv, kjv.bytes, windows);
  say(`onnxruntime-node, ${windows} windows of ${WINDOW}`, theirs, theirs);
  const plain = decoderOf(kjv, undefined);
  const base = await stepped(kjv, plain, "float32", windows);
  say("this runtime, cache float32", base, theirs);
  for (const cache of ["float16", "int8", "k8v4", "int4"] as const) say(`cache ${cache}`, await stepped(kjv, plain, cache, windows), base);
  const wide = await stepped(kjv, decoderOf(kjv, { level: 0 }), "float32", windows);
  say("weights int8, activations float32", wide, base);
  say("weights int8, activations int8: over float32", await stepped(kjv, decoderOf(kjv, { level: 4 }), "float32", windows), wide);
}

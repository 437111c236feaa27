// The decoder of a GGUF file as an ONNX graph of the operators that onnxruntime-genai's builder uses: embedding, RMS
// norms, GroupQueryAttention with its rotary embedding over caches, SwiGLU. Weights are named, not held: whoever
// prepares the graph has them as packed tensors.
import { create, toBinary } from "@bufbuild/protobuf";
import { LowbitError } from "../../../formats/core/errors.ts";
import type { AttributeProto, NodeProto, TensorProto, ValueInfoProto } from "../../onnx/file/gen/onnx_pb.ts";
import {
  AttributeProtoSchema,
  AttributeProto_AttributeType as A,
  GraphProtoSchema,
  ModelProtoSchema,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  TensorProtoSchema,
  TensorProto_DataType as T,
  TensorShapeProtoSchema,
  TensorShapeProto_DimensionSchema,
  TypeProtoSchema,
  TypeProto_TensorSchema,
  ValueInfoProtoSchema,
} from "../../onnx/file/gen/onnx_pb.ts";
import { floatAttribute, intAttribute } from "../../onnx/graph/nodes.ts";
import type { GgufConfig } from "./config.ts";

/** The tensors of a file by name: float32 values where they are vectors, and whether they are there. */
export interface Tensors {
  has(name: string): boolean;
  shape(name: string): readonly number[];
  vector(name: string): Float32Array;
}

/** A tensor of the file, and the value of the graph that holds it. */
export interface GgufGraph {
  readonly bytes: Uint8Array;
  /** Matrices that products read, as they are in the file: [n, k]. */
  readonly weights: readonly string[];
  /** The matrix that ids look up. */
  readonly table: string;
}

/** Tokens that the rotary tables hold at most: 16 MiB each for heads of 128. */
const POSITIONS_MAX = 65536;

const bytesOf = (data: ArrayBufferView): Uint8Array => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
const tensor = (name: string, dims: readonly number[], data: ArrayBufferView, dataType = T.FLOAT): TensorProto =>
  create(TensorProtoSchema, { name, dataType, dims: dims.map(BigInt), rawData: bytesOf(data) });

function value(name: string, elemType: T, dims: readonly (number | string)[]): ValueInfoProto {
  const dim = dims.map((d) =>
    create(TensorShapeProto_DimensionSchema, {
      value: typeof d === "number" ? { case: "dimValue", value: BigInt(d) } : { case: "dimParam", value: d },
    }),
  );
  const shape = create(TensorShapeProtoSchema, { dim });
  const type = create(TypeProtoSchema, { value: { case: "tensorType", value: create(TypeProto_TensorSchema, { elemType, shape }) } });
  return create(ValueInfoProtoSchema, { name, type });
}

/** A graph under construction. */
class Builder {
  readonly nodes: NodeProto[] = [];
  readonly initializers: TensorProto[] = [];
  readonly weights = new Set<string>();
  readonly used = new Set<string>();
  readonly tensors: Tensors;

  constructor(tensors: Tensors) {
    this.tensors = tensors;
  }

  put(opType: string, input: readonly string[], output: readonly string[], attribute: readonly AttributeProto[] = [], domain = ""): string {
    this.nodes.push(
      create(NodeProtoSchema, { opType, domain, name: output[0], input: [...input], output: [...output], attribute: [...attribute] }),
    );
    return output[0];
  }

  constant(name: string, dims: readonly number[], data: ArrayBufferView, type = T.FLOAT): string {
    this.initializers.push(tensor(name, dims, data, type));
    return name;
  }

  integers(name: string, values: readonly number[]): string {
    return this.constant(name, [values.length], BigInt64Array.from(values, BigInt), T.INT64);
  }

  #check(name: string, wanted: readonly number[]): void {
    if (!this.tensors.has(name))
      throw new LowbitError("E_CONTAINER", `GGUF model: expected a tensor ${JSON.stringify(name)}, got none. Is the file whole?`);
    const shape = this.tensors.shape(name);
    if (shape.join() !== wanted.join())
      throw new LowbitError(
        "E_SHAPE",
        `GGUF model: expected ${JSON.stringify(name)} of [${wanted.join(", ")}], got [${shape.join(", ")}]. Its metadata does not fit its tensors.`,
      );
    this.used.add(name);
  }

  vector(name: string, size: number): string {
    this.#check(name, [size]);
    return this.constant(name, [size], this.tensors.vector(name));
  }

  /** x W^T, and the bias where the file has one. */
  product(x: string, name: string, n: number, k: number, output: string): string {
    const weight = `${name}.weight`;
    this.#check(weight, [n, k]);
    this.#place(weight);
    if (!this.weights.has(weight)) this.put("Transpose", [weight], [`${weight}/k`], [ints("perm", [1, 0])]);
    this.weights.add(weight);
    const bias = `${name}.bias`;
    if (!this.tensors.has(bias)) return this.put("MatMul", [x, `${weight}/k`], [output]);
    return this.put("Add", [this.put("MatMul", [x, `${weight}/k`], [`${output}/product`]), this.vector(bias, n)], [output]);
  }

  table(name: string, rows: number, k: number): string {
    this.#check(name, [rows, k]);
    this.#place(name);
    return name;
  }

  /** Matrices have a name in the graph only: their values are the caller's. */
  #place(name: string): void {
    if (!this.initializers.some((known) => known.name === name)) this.constant(name, [0], new Float32Array(0));
  }
}

const ints = (name: string, values: readonly number[]): AttributeProto =>
  create(AttributeProtoSchema, { name, type: A.INTS, ints: values.map(BigInt) });

/** Tables of rotary embedding; `factors` divide the frequencies (Llama 3). */
function rotaryTables(b: Builder, { rotary, context }: GgufConfig): void {
  const half = rotary.rotated / 2;
  const rows = Math.min(context, POSITIONS_MAX);
  const name = "rope_freqs.weight";
  const factors = b.tensors.has(name) ? b.tensors.vector(name) : undefined;
  if (factors !== undefined) b.used.add(name);
  if (factors !== undefined && factors.length !== half)
    throw new LowbitError("E_SHAPE", `GGUF model: expected ${half} values in ${name}, got ${factors.length}. The file is damaged.`);
  const [cos, sin] = [new Float32Array(rows * half), new Float32Array(rows * half)];
  for (let i = 0; i < half; i++) {
    const rate = (rotary.base ** (-i / half) * rotary.factor) / (factors?.[i] ?? 1);
    for (let row = 0; row < rows; row++) {
      cos[row * half + i] = Math.cos(row * rate);
      sin[row * half + i] = Math.sin(row * rate);
    }
  }
  b.constant("cos", [rows, half], cos);
  b.constant("sin", [rows, half], sin);
}

/** Lengths of GroupQueryAttention out of the attention mask. */
function lengths(b: Builder): void {
  b.put("ReduceSum", ["attention_mask", b.integers("axis 1", [1])], ["valid"], [intAttribute("keepdims", 1)]);
  b.put("Sub", ["valid", b.integers("one", [1])], ["last"]);
  b.put("Cast", ["last"], ["seqlens_k"], [intAttribute("to", T.INT32)]);
  b.put("Shape", ["attention_mask"], ["mask shape"]);
  b.put("Gather", ["mask shape", b.constant("second", [], BigInt64Array.of(1n), T.INT64)], ["total64"]);
  b.put("Cast", ["total64"], ["total"], [intAttribute("to", T.INT32)]);
}

/** Attention and feed-forward of one layer on the residual `x`. @returns the next residual */
function layer(b: Builder, config: GgufConfig, l: number, x: string): string {
  const { hidden, heads, kvHeads, size, ffn, epsilon, rotary } = config;
  const p = `blk.${l}`;
  const norm = (of: string, name: string, width: number, output: string): string =>
    b.put("SimplifiedLayerNormalization", [of, b.vector(`${name}.weight`, width)], [output], [floatAttribute("epsilon", epsilon), intAttribute("axis", -1)]); // prettier-ignore
  const normed = norm(x, `${p}.attn_norm`, hidden, `${p}/normed`);
  /** Each head normed, where the model does so. */
  const perHead = (of: string, name: string): string => {
    if (!b.tensors.has(`${name}.weight`)) return of;
    const parts = norm(b.put("Reshape", [of, "heads"], [`${of}/heads`]), name, size, `${of}/normed`);
    return b.put("Reshape", [parts, "flat"], [`${of}/flat`]);
  };
  const q = perHead(b.product(normed, `${p}.attn_q`, heads * size, hidden, `${p}/q`), `${p}.attn_q_norm`);
  const k = perHead(b.product(normed, `${p}.attn_k`, kvHeads * size, hidden, `${p}/k`), `${p}.attn_k_norm`);
  const v = b.product(normed, `${p}.attn_v`, kvHeads * size, hidden, `${p}/v`);
  const attributes = [
    ...[intAttribute("num_heads", heads), intAttribute("kv_num_heads", kvHeads), intAttribute("do_rotary", 1)],
    ...[intAttribute("rotary_interleaved", rotary.interleaved ? 1 : 0), floatAttribute("scale", config.scale)],
  ];
  const attended = b.put(
    "GroupQueryAttention",
    [q, k, v, `past_key_values.${l}.key`, `past_key_values.${l}.value`, "seqlens_k", "total", "cos", "sin"],
    [`${p}/attended`, `present.${l}.key`, `present.${l}.value`],
    attributes,
    "com.microsoft",
  );
  const middle = b.put("Add", [x, b.product(attended, `${p}.attn_output`, hidden, heads * size, `${p}/attn`)], [`${p}/middle`]);
  const inner = norm(middle, `${p}.ffn_norm`, hidden, `${p}/ffn normed`);
  const gate = b.product(inner, `${p}.ffn_gate`, ffn, hidden, `${p}/gate`);
  const gated = b.put("Mul", [gate, b.put("Sigmoid", [gate], [`${p}/sigmoid`])], [`${p}/silu`]);
  const up = b.put("Mul", [gated, b.product(inner, `${p}.ffn_up`, ffn, hidden, `${p}/up`)], [`${p}/product`]);
  return b.put("Add", [middle, b.product(up, `${p}.ffn_down`, hidden, ffn, `${p}/ffn`)], [`${p}/out`]);
}

/** Tensors that old files have and nothing needs. */
const NEEDLESS = /^blk\.\d+\.(attn_rot_embd|attn\.rot_embd|rope_freqs)\b/;

/**
 * The model, without its matrices.
 * @throws LowbitError E_CONTAINER for tensors that are missing, E_SHAPE, E_UNSUPPORTED for tensors without a place
 */
export function ggufGraph(config: GgufConfig, tensors: Tensors & { readonly names: readonly string[] }): GgufGraph {
  const b = new Builder(tensors);
  const { layers, hidden, kvHeads, size } = config;
  const table = "token_embd.weight";
  const vocabulary = tensors.has(table) ? (tensors.shape(table)[0] ?? 0) : 0;
  b.table(table, vocabulary, hidden);
  rotaryTables(b, config);
  lengths(b);
  b.integers("heads", [0, 0, -1, size]);
  b.integers("flat", [0, 0, -1]);
  let x = b.put("Gather", [table, "input_ids"], ["embedded"]);
  for (let l = 0; l < layers; l++) x = layer(b, config, l, x);
  const attribute = [floatAttribute("epsilon", config.epsilon), intAttribute("axis", -1)];
  const last = b.put("SimplifiedLayerNormalization", [x, b.vector("output_norm.weight", hidden)], ["last normed"], attribute);
  b.product(last, tensors.has("output.weight") ? "output" : "token_embd", vocabulary, hidden, "logits");
  const strange = tensors.names.filter((name) => !b.used.has(name) && !NEEDLESS.test(name));
  if (strange.length > 0)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `GGUF model: expected the tensors of ${config.architecture}, got also ${strange.slice(0, 4).join(", ")}${strange.length > 4 ? ` and ${strange.length - 4} more` : ""}. Run it with llama.cpp.`,
    );
  const caches = (prefix: string, tokens: string): ValueInfoProto[] =>
    Array.from({ length: 2 * layers }, (_, i) =>
      value(`${prefix}.${i >> 1}.${i & 1 ? "value" : "key"}`, T.FLOAT, ["batch", kvHeads, tokens, size]),
    );
  const graph = create(GraphProtoSchema, {
    name: "gguf",
    node: b.nodes,
    initializer: b.initializers,
    input: [value("input_ids", T.INT64, ["batch", "tokens"]), value("attention_mask", T.INT64, ["batch", "total"]), ...caches("past_key_values", "past")], // prettier-ignore
    output: [value("logits", T.FLOAT, ["batch", "tokens", vocabulary]), ...caches("present", "total")],
  });
  const opsetImport = [create(OperatorSetIdProtoSchema, { version: 21n }), create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n })]; // prettier-ignore
  const bytes = toBinary(ModelProtoSchema, create(ModelProtoSchema, { irVersion: 10n, opsetImport, graph }));
  return { bytes, weights: [...b.weights], table };
}

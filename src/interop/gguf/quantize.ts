// Quantizing a model into a GGUF file, as llama-quantize does: which type each tensor gets, and its bytes, made when
// they are written. Choices after llama.cpp's src/llama-quant.cpp: vectors and norms stay F32, rows that are no whole
// super-blocks get the nearest type of 32, the output matrix gets Q6_K below that; the mixes _m give more bits to
// attn_v and ffn_down of some layers.
import { LowbitError } from "../../../formats/core/errors.ts";
import { nearest } from "../../../formats/registry.ts";
import type { Format, OpaqueFormat, PackedTensor } from "../../../formats/core/types.ts";
import { quantize, type WeightQuantizer } from "../../tensor/quantize/index.ts";
import { codecHere } from "../../tensor/quantize/measure.ts";
import { tensor } from "../../tensor/tensor.ts";
import { rowsOf, type FloatTensor } from "../floats.ts";
import type { GgufModel } from "./write.ts";
import type { GgufValue } from "./metadata.ts";
import { packGguf } from "./read.ts";
import { ggufTypeByName, ggufTypes, type GgufType } from "./types.ts";

/** A model before it is quantized. */
export interface FloatModel {
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, FloatTensor & { bytes?(): Promise<Uint8Array> }>;
}

/** Types of a GGUF file's tensors: one for all, and rules by name. */
export interface GgufQuantizeOptions {
  /** A type of ggml (q4_k, q8_0, f16) or one of the mixes q3_k_m, q4_k_m, q5_k_m. */
  readonly type: string;
  /** First match wins. `match` is a glob of tensor names (`blk.*.attn_v.weight`); "keep" leaves a tensor as it is. */
  readonly rules?: readonly { readonly match: string; readonly type: string }[];
  /** Every matrix gets the type, the output matrix too. */
  readonly pure?: boolean;
  /** Mean squares of a layer's inputs, one per column, by tensor name: an importance matrix (`readImatrix`). */
  readonly importance?: ReadonlyMap<string, Float32Array>;
  /** Another quantizer than the format's own encoder, per tensor: GPTQ with the statistics of this layer, say. */
  readonly quantizer?: (name: string) => WeightQuantizer | undefined;
  /** Tensors that are quantized already are quantized again, on top of their error. */
  readonly allowRequantize?: boolean;
  /** Told before each tensor is made. */
  readonly onTensor?: (name: string, type: string) => void;
}

/** What a row that is no whole number of super-blocks gets instead. */
const FALLBACK: ReadonlyMap<string, string> = new Map([
  ["Q2_K", "Q4_0"], ["Q3_K", "Q4_0"], ["Q4_K", "Q5_0"], ["Q5_K", "Q5_1"], ["Q6_K", "Q8_0"], ["IQ4_XS", "IQ4_NL"], ["IQ3_S", "IQ4_NL"], ["IQ3_XXS", "IQ4_NL"],
  ["IQ2_S", "IQ4_NL"], ["IQ2_XS", "IQ4_NL"], ["IQ2_XXS", "IQ4_NL"], ["IQ1_S", "IQ4_NL"], ["IQ1_M", "IQ4_NL"], ["TQ1_0", "Q4_0"], ["TQ2_0", "Q4_0"],
]); // prettier-ignore

/** Mixes: the type, and the one of layers that matter more. */
const MIXES: ReadonlyMap<string, readonly [base: string, more: string]> = new Map([
  ["Q3_K_M", ["Q3_K", "Q5_K"]],
  ["Q4_K_M", ["Q4_K", "Q6_K"]],
  ["Q5_K_M", ["Q5_K", "Q6_K"]],
]);

/** llama.cpp's numbers of whole-file types (enum llama_ftype), for `general.file_type`. */
const FILE_TYPES: ReadonlyMap<string, number> = new Map([
  ["F32", 0], ["F16", 1], ["Q4_0", 2], ["Q4_1", 3], ["Q8_0", 7], ["Q5_0", 8], ["Q5_1", 9], ["Q2_K", 10], ["Q3_K", 11], ["Q3_K_M", 12], ["Q4_K", 14],
  ["Q4_K_M", 15], ["Q5_K", 16], ["Q5_K_M", 17], ["Q6_K", 18], ["IQ2_XXS", 19], ["IQ2_XS", 20], ["IQ3_XXS", 23], ["IQ1_S", 24], ["IQ4_NL", 25], ["IQ3_S", 26],
  ["IQ2_S", 28], ["IQ4_XS", 30], ["IQ1_M", 31], ["BF16", 32], ["TQ1_0", 36], ["TQ2_0", 37], ["MXFP4", 38],
]); // prettier-ignore

const PLAIN: readonly string[] = ["F32", "F16", "BF16", "F64"];

/**
 * Types that tensors can be quantized to, mixes included.
 * @example ggufTargets().includes("q4_k_m") // true
 */
export const ggufTargets = (): string[] => [
  ...[...ggufTypes().values()].filter((t) => t.format !== undefined && t.name !== "I8").map((t) => t.name.toLowerCase()),
  ...[...MIXES.keys()].map((m) => m.toLowerCase()),
];

const glob = (pattern: string): RegExp => new RegExp(`^${pattern.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replaceAll("*", ".*")}$`);

/**
 * The model with its matrices in the types that the options ask for; bytes are made one tensor at a time, when
 * `writeGguf` asks for them.
 * @throws LowbitError E_UNSUPPORTED for unknown types, and for tensors that are quantized already
 * @example
 * const model = floatModel(await readGguf("model.gguf"));
 * await writeGguf("q8.gguf", quantizeGguf(model, { type: "q8_0" }));
 */
export function quantizeGguf(model: FloatModel, options: GgufQuantizeOptions): GgufModel {
  const wanted = options.type.toUpperCase();
  const mix = MIXES.get(wanted);
  const base = target(mix?.[0] ?? wanted, options.type);
  const rules = (options.rules ?? []).map(({ match, type }) => ({
    test: glob(match),
    type: type.toLowerCase() === "keep" ? null : target(type, type),
  }));
  const layers = layerCount(model.tensors.keys());
  const tensors = new Map(
    [...model.tensors].map(([name, t]) => {
      const rule = rules.find(({ test }) => test.test(name));
      const keep = rule === undefined ? !isMatrix(name, t) : rule.type === null;
      const type = keep ? null : (rule?.type ?? chosen(name, base, mix, layers, options.pure === true));
      return [name, contentOf(name, t, type === null ? null : fitting(type, t.shape), options)] as const;
    }),
  );
  const metadata = new Map(model.metadata);
  const fileType = FILE_TYPES.get(wanted);
  if (fileType !== undefined) metadata.set("general.file_type", { type: "uint32", value: fileType });
  metadata.set("general.quantization_version", { type: "uint32", value: 2 });
  return { metadata, tensors };
}

function target(name: string, given: string): GgufType {
  const type = ggufTypeByName(name);
  if (type?.format === undefined || type.name === "I8")
    throw new LowbitError(
      "E_UNSUPPORTED",
      `GGUF type: expected one of ${ggufTargets().join(", ")}, got ${JSON.stringify(given)}. Nearest: ${nearest(given.toLowerCase(), ggufTargets())[0]}.`,
    );
  return type;
}

/** Norms, biases and whatever else is small stay as they are. */
const isMatrix = (name: string, t: FloatTensor): boolean =>
  t.shape.length >= 2 && name.endsWith("weight") && !name.includes("_norm.") && !name.includes("ffn_gate_inp");

const layerOf = (name: string): number => Number(/^blk\.(\d+)\./.exec(name)?.[1] ?? -1);
const layerCount = (names: Iterable<string>): number => Math.max(0, ...[...names].map((n) => layerOf(n) + 1));

function chosen(name: string, base: GgufType, mix: readonly [string, string] | undefined, layers: number, pure: boolean): GgufType {
  if (pure) return base;
  const bits = (8 * base.blockBytes) / base.blockSize;
  if (name === "output.weight" && base.format?.kind === "opaque" && bits < 6.5) return ggufTypeByName("Q6_K")!;
  const layer = layerOf(name);
  const eighth = Math.floor(layers / 8);
  const more = layer < eighth || layer >= Math.floor((7 * layers) / 8) || (layer - eighth) % 3 === 2;
  return mix !== undefined && layer >= 0 && more && /\.(attn_v|ffn_down)\./.test(name) ? ggufTypeByName(mix[1])! : base;
}

function fitting(type: GgufType, shape: readonly number[]): GgufType {
  const k = shape[shape.length - 1];
  let fit = type;
  if (k % fit.blockSize !== 0) fit = ggufTypeByName(FALLBACK.get(fit.name) ?? "F16")!;
  return k % fit.blockSize === 0 ? fit : ggufTypeByName("F16")!;
}

function contentOf(
  name: string,
  t: FloatTensor & { bytes?(): Promise<Uint8Array> },
  type: GgufType | null,
  options: GgufQuantizeOptions,
): GgufModel["tensors"] extends ReadonlyMap<string, infer C> | Readonly<Record<string, infer C>> ? C : never {
  const same = t.bytes !== undefined && (type === null || type.name === t.dtype);
  if (same) return { type: t.dtype, shape: t.shape, bytes: () => t.bytes!() };
  const to = type ?? ggufTypeByName("F32")!;
  if (type !== null && !PLAIN.includes(t.dtype) && options.allowRequantize !== true)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `${name}: expected float weights, got ${t.dtype}. Quantizing again adds its error to the one that is there: begin with an F16 file, or allow it (allowRequantize).`,
    );
  return {
    type: to.name,
    shape: t.shape,
    async bytes() {
      options.onTensor?.(name, to.name);
      return encode(name, t, to, options);
    },
  };
}

async function encode(name: string, t: FloatTensor, type: GgufType, options: GgufQuantizeOptions): Promise<Uint8Array> {
  const format = type.format as Format;
  const [rows, k] = rowsOf(t.shape);
  if (type.name === "F32") {
    const values = await t.values();
    return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  }
  const quantizer = options.quantizer?.(name);
  if (quantizer !== undefined) return quantize(tensor(await t.values(), [rows, k]), format, quantizer).codes;
  const importance = options.importance?.get(name);
  if (importance !== undefined && importance.length !== k)
    throw new LowbitError(
      "E_SHAPE",
      `${name}: expected an importance of ${k} columns, got ${importance.length}. Is the matrix of this model?`,
    );
  const out = new Uint8Array(rows * (k / type.blockSize) * type.blockBytes);
  // rows by the megabyte: a matrix is never held in full
  const step = Math.max(1, Math.floor((1 << 20) / k));
  for (let row = 0; row < rows; row += step) {
    const count = Math.min(step, rows - row);
    const x = await t.values(row, count);
    const at = row * (k / type.blockSize) * type.blockBytes;
    out.set(
      format.kind === "opaque"
        ? encodeRows(format, x, k, importance)
        : quantize(tensor(x, [count, k]), format, { overflow: "error" }).codes,
      at,
    );
  }
  return out;
}

function encodeRows(format: OpaqueFormat, x: Float32Array, k: number, importance: Float32Array | undefined): Uint8Array {
  const codec = codecHere();
  const encode = (weights?: Float32Array): Uint8Array =>
    codec === null ? format.encodeBytes(x, weights) : codec.encodeBlocks(format, x, weights);
  if (importance === undefined) return encode();
  const weights = new Float32Array(x.length);
  for (let at = 0; at < x.length; at += k) weights.set(importance, at);
  return encode(weights);
}

/**
 * A quantizer that weighs the error of each column: the mean square of what it is multiplied with. For formats whose
 * encoder takes an importance.
 * @throws LowbitError, when it quantizes: E_SHAPE for another number of columns, E_UNSUPPORTED for formats not of ggml
 * @example
 * const importance = new Float32Array(256).fill(1); // of a column each; larger: kept better
 * quantize(w, ggml_q4_k, byImportance(importance))
 */
export function byImportance(importance: Float32Array): WeightQuantizer {
  return {
    algorithm: "importance",
    quantizeWeight(weight, format): PackedTensor {
      if (format.kind !== "opaque")
        throw new LowbitError(
          "E_UNSUPPORTED",
          `byImportance: expected a format of ggml, got ${format.name}. Use awq() or gptq() for others.`,
        );
      const plain = quantize(weight, format);
      if (importance.length !== plain.k)
        throw new LowbitError("E_SHAPE", `byImportance: expected ${plain.k} weights, one for each column, got ${importance.length}.`);
      const x = new Float32Array(plain.rows * plain.k);
      const { data, shape, stride, offset } = weight;
      const inner = shape.length === 1 ? [stride[0]] : stride.slice(1);
      if (shape.length > 2) throw new LowbitError("E_SHAPE", `byImportance: expected a matrix, got [${shape.join(", ")}].`);
      for (let r = 0; r < plain.rows; r++)
        for (let j = 0; j < plain.k; j++) x[r * plain.k + j] = data[offset + (shape.length === 1 ? 0 : r * stride[0]) + j * inner[0]];
      const type = ggufTypes().get(format.gguf ?? -1);
      if (type === undefined) throw new LowbitError("E_UNSUPPORTED", `byImportance: expected a format of ggml, got ${format.name}.`);
      const packed = packGguf(type, shape, encodeRows(format, x, plain.k, importance));
      return { ...packed, recipe: { version: 1, algorithm: "importance" } };
    },
  };
}

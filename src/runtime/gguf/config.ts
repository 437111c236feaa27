// What the metadata of a GGUF file says of a decoder: sizes, norms, rotary embedding. Keys: ggml-org/ggml docs/gguf.md;
// how they are read: llama.cpp src/llama-model.cpp (LLM_ARCH_LLAMA, LLM_ARCH_QWEN2, LLM_ARCH_QWEN3).
import { LowbitError } from "../../../formats/core/errors.ts";
import type { GgufFile } from "../../interop/gguf/read.ts";

export interface GgufConfig {
  readonly architecture: string;
  readonly layers: number;
  readonly hidden: number;
  readonly ffn: number;
  readonly heads: number;
  readonly kvHeads: number;
  /** Values of a head. */
  readonly size: number;
  readonly epsilon: number;
  readonly scale: number;
  /** Tokens that the model was made for. */
  readonly context: number;
  readonly rotary: { readonly base: number; readonly rotated: number; readonly factor: number; readonly interleaved: boolean };
}

/** Architectures, and whether rotary pairs are neighbours (else halves of a head). */
const ARCHITECTURES: ReadonlyMap<string, { readonly interleaved: boolean }> = new Map([
  ["llama", { interleaved: true }],
  ["qwen2", { interleaved: false }],
  ["qwen3", { interleaved: false }],
]);

const outside = (expected: string, got: string): LowbitError =>
  new LowbitError("E_UNSUPPORTED", `GGUF model: expected ${expected}, got ${got}. Run it with llama.cpp, or as an ONNX model.`);

/** @throws LowbitError E_UNSUPPORTED for other architectures and forms, E_CONTAINER for metadata that is missing */
export function ggufConfig(file: GgufFile): GgufConfig {
  const architecture = file.get("general.architecture");
  const known = typeof architecture === "string" ? ARCHITECTURES.get(architecture) : undefined;
  if (known === undefined)
    throw outside(`one of the architectures ${[...ARCHITECTURES.keys()].join(", ")}`, JSON.stringify(architecture ?? "none"));
  const name = architecture as string;
  const number = (key: string, fallback?: number): number => {
    const value = file.get(`${name}.${key}`) ?? fallback;
    if (Array.isArray(value) || ArrayBuffer.isView(value)) throw outside(`one ${name}.${key} for all layers`, "one for each");
    if ((typeof value === "number" || typeof value === "bigint") && Number.isFinite(Number(value))) return Number(value);
    throw new LowbitError(
      "E_CONTAINER",
      `GGUF model: expected a number for ${name}.${key}, got ${String(value)}. The file is damaged, or was written by hand.`,
    );
  };
  const count = (key: string, fallback?: number): number => {
    const value = number(key, fallback);
    if (Number.isSafeInteger(value) && value >= 1 && value <= 2 ** 31) return value;
    throw new LowbitError("E_CONTAINER", `GGUF model: expected a size for ${name}.${key}, got ${value}. The file is damaged.`);
  };
  if (number("expert_count", 0) > 0) throw outside("a model without experts", `${name}.expert_count ${number("expert_count", 0)}`);
  const [hidden, heads] = [count("embedding_length"), count("attention.head_count")];
  const kvHeads = count("attention.head_count_kv", heads);
  const size = count("attention.key_length", hidden / heads);
  const rotated = count("rope.dimension_count", size);
  if (count("attention.value_length", size) !== size) throw outside(`values as wide as keys (${size})`, String(count("attention.value_length", size))); // prettier-ignore
  if (heads % kvHeads !== 0 || rotated > size || rotated % 2 !== 0)
    throw outside("heads that share keys evenly, and an even rotary length", `${heads}, ${kvHeads} heads and ${rotated} of ${size}`);
  const scaling = file.get(`${name}.rope.scaling.type`) ?? "none";
  if (scaling !== "none" && scaling !== "linear") throw outside("rope scaling none or linear", JSON.stringify(scaling));
  // older files have the factor under another name, and no type
  const factor = scaling === "none" ? 1 / number("rope.scale_linear", 1) : 1 / number("rope.scaling.factor", 1);
  return {
    ...{ architecture: name, hidden, heads, kvHeads, size, layers: count("block_count"), ffn: count("feed_forward_length") },
    ...{ epsilon: number("attention.layer_norm_rms_epsilon"), context: count("context_length", 4096) },
    scale: number("attention.scale", 1 / Math.sqrt(size)),
    rotary: { base: number("rope.freq_base", 10000), rotated, factor, interleaved: known.interleaved },
  };
}

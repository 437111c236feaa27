// writeGguf: GGUF version 3. Spec: ggml-org/ggml docs/gguf.md; tensors in the order given, each aligned, as
// src/gguf.cpp asks for.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import { matrixView, readRows, type Tensor } from "../../tensor/tensor.ts";
import { writeFileWhole } from "../source.ts";
import { entryOf, HeaderWriter, type GgufValue } from "./metadata.ts";
import { ggufTypeByName, ggufTypeOf, type GgufType } from "./types.ts";

/** Bytes in the layout of a type, made when they are written: one tensor is in memory at a time. */
export interface GgufData {
  /** ggml's name: "Q4_K". */
  readonly type: string;
  /** Outermost first. */
  readonly shape: readonly number[];
  readonly bytes: () => Uint8Array | Promise<Uint8Array>;
}

/** What a tensor of the file is made of: a packed tensor as it is, a tensor of floats (F32), or bytes. */
export type GgufContent = PackedTensor | Tensor | GgufData;

/** What a GGUF file is made of: metadata and tensors by name. */
export interface GgufModel {
  /** Keys in their order. `general.architecture` is what llama.cpp asks for first. */
  readonly metadata: ReadonlyMap<string, GgufValue> | Readonly<Record<string, GgufValue>>;
  readonly tensors: ReadonlyMap<string, GgufContent> | Readonly<Record<string, GgufContent>>;
  /** A power of two; default that of metadata's `general.alignment`, else 32. */
  readonly alignment?: number;
}

/** Names in ggml are shorter than this. */
const NAME_MAX = 64;

interface Placed {
  readonly type: GgufType;
  readonly shape: readonly number[];
  readonly byteLength: number;
  readonly bytes: () => Uint8Array | Promise<Uint8Array>;
}

const entriesOf = <T>(given: ReadonlyMap<string, T> | Readonly<Record<string, T>>): [string, T][] =>
  given instanceof Map ? [...given] : Object.entries(given as Readonly<Record<string, T>>);

/**
 * Writes a GGUF file, under a temporary name until it is whole.
 * @throws LowbitError E_UNSUPPORTED for formats that ggml has no type of, E_SHAPE, E_VALUE, E_EXISTS, E_IO
 * @example
 * const tensors = { "output.weight": quantize(w, ggml_q4_k) };
 * await writeGguf("out.gguf", { metadata: { "general.architecture": "llama" }, tensors });
 */
export async function writeGguf(path: string, model: GgufModel, options: { readonly force?: boolean } = {}): Promise<void> {
  await writeFileWhole(path, pieces(model), options.force);
}

/**
 * The bytes of a GGUF file. @throws as writeGguf
 * @example
 * const tensors = { "output.weight": quantize(w, ggml_q8_0) };
 * const bytes = await ggufBytes({ metadata: { "general.architecture": "none" }, tensors });
 * new TextDecoder().decode(bytes.subarray(0, 4)) // "GGUF"
 */
export async function ggufBytes(model: GgufModel): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for await (const piece of pieces(model)) parts.push(piece);
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

async function* pieces(model: GgufModel): AsyncGenerator<Uint8Array> {
  const metadata = new Map(entriesOf(model.metadata).map(([key, value]) => [key, entryOf(value, key)]));
  if (model.alignment !== undefined) metadata.set("general.alignment", { type: "uint32", value: model.alignment });
  const alignment = Number(metadata.get("general.alignment")?.value ?? 32);
  if (!(alignment >= 1 && alignment <= 2 ** 20 && (alignment & (alignment - 1)) === 0))
    throw new LowbitError("E_VALUE", `GGUF alignment: expected a power of two up to 2^20, got ${alignment}. Leave it out for 32.`);
  const placed = entriesOf(model.tensors).map(([name, content]) => [name, place(name, content)] as const);
  const header = new HeaderWriter();
  header.u32(0x46554747);
  header.u32(3);
  header.u64(placed.length);
  header.u64(metadata.size);
  for (const [key, entry] of metadata) {
    header.text(key);
    header.entry(entry, key);
  }
  let offset = 0;
  for (const [name, { type, shape, byteLength }] of placed) {
    header.text(name);
    header.u32(shape.length);
    for (const size of [...shape].reverse()) header.u64(size);
    header.u32(type.id);
    header.u64(offset);
    offset += Math.ceil(byteLength / alignment) * alignment;
  }
  header.pad(alignment);
  yield header.done();
  for (const [name, { byteLength, bytes }] of placed) {
    const data = await bytes();
    if (data.length !== byteLength)
      throw new LowbitError("E_SHAPE", `${name}: expected ${byteLength} bytes, got ${data.length}. Give the bytes of its type and shape.`);
    yield data;
    yield new Uint8Array((alignment - (byteLength % alignment)) % alignment);
  }
}

const isPacked = (c: GgufContent): c is PackedTensor => "codes" in c;

function place(name: string, content: GgufContent): Placed {
  if (new TextEncoder().encode(name).length >= NAME_MAX)
    throw new LowbitError(
      "E_VALUE",
      `tensor ${JSON.stringify(name)}: expected a name below ${NAME_MAX} bytes, which is ggml's limit. Shorten it.`,
    );
  if (isPacked(content)) {
    const type = ggufTypeOf(content.format);
    if (type === undefined)
      throw new LowbitError(
        "E_UNSUPPORTED",
        `${name}: expected a format with a ggml type, got ${content.format.name}. Quantize to one of ggml's, or float16.`,
      );
    return sized(name, type, content.shape, () => content.codes);
  }
  if ("bytes" in content) {
    const type = ggufTypeByName(content.type);
    if (type === undefined)
      throw new LowbitError("E_UNSUPPORTED", `${name}: expected a type of ggml, got ${JSON.stringify(content.type)}.`);
    return sized(name, type, content.shape, content.bytes);
  }
  const view = matrixView(content);
  return sized(name, ggufTypeByName("F32")!, content.shape, () => {
    const out = new Float32Array(view.rows * view.k);
    readRows(view, 0, view.rows, out);
    return new Uint8Array(out.buffer);
  });
}

function sized(name: string, type: GgufType, shape: readonly number[], bytes: () => Uint8Array | Promise<Uint8Array>): Placed {
  const row = shape[shape.length - 1];
  const ok = shape.length >= 1 && shape.length <= 4 && shape.every((d) => Number.isSafeInteger(d) && d > 0);
  if (!ok || row % type.blockSize !== 0)
    throw new LowbitError(
      "E_SHAPE",
      `${name}: expected 1 to 4 positive sizes, the last a multiple of ${type.blockSize} (${type.name}), got [${shape.join(", ")}].`,
    );
  return { type, shape, byteLength: (shape.reduce((n, d) => n * d, 1) / type.blockSize) * type.blockBytes, bytes };
}

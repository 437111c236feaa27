// writeSafetensors: a file of plain tensors. Spec: huggingface/safetensors README. (Packed tensors of this library:
// toSafetensors in lowbit.)
import { LowbitError } from "../../../formats/core/errors.ts";
import { writeFileWhole } from "../source.ts";
import { SAFE_DTYPES } from "./dtypes.ts";

/** One tensor: its bytes, or a function that makes them when they are written. */
export interface SafeContent {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array | (() => Uint8Array | Promise<Uint8Array>);
}

/** What a safetensors file is made of. */
export interface SafetensorsModel {
  readonly metadata?: Readonly<Record<string, string>>;
  readonly tensors: ReadonlyMap<string, SafeContent> | Readonly<Record<string, SafeContent>>;
}

/**
 * Writes a file, under a temporary name until it is whole; one tensor is in memory at a time.
 * @throws LowbitError E_SHAPE, E_UNSUPPORTED, E_EXISTS, E_IO
 * @example
 * const scale = { dtype: "F32", shape: [1], bytes: new Uint8Array(Float32Array.of(0.5).buffer) };
 * await writeSafetensors("scales.safetensors", { metadata: { format: "pt" }, tensors: { scale } });
 */
export async function writeSafetensors(path: string, model: SafetensorsModel, options: { readonly force?: boolean } = {}): Promise<void> {
  await writeFileWhole(path, pieces(model), options.force);
}

/**
 * The bytes of a file. @throws as writeSafetensors
 * @example
 * const scale = { dtype: "F32", shape: [1], bytes: new Uint8Array(Float32Array.of(0.5).buffer) };
 * const bytes = await safetensorsBytes({ tensors: { scale } });
 */
export async function safetensorsBytes(model: SafetensorsModel): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for await (const piece of pieces(model)) parts.push(piece);
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  parts.reduce((at, p) => (out.set(p, at), at + p.length), 0);
  return out;
}

async function* pieces(model: SafetensorsModel): AsyncGenerator<Uint8Array> {
  const list = model.tensors instanceof Map ? [...model.tensors] : Object.entries(model.tensors as Readonly<Record<string, SafeContent>>);
  // wide elements first, as the reference writes them: every tensor is aligned to its elements
  const bitsOf = (name: string, { dtype }: SafeContent): number => {
    const known = SAFE_DTYPES.get(dtype);
    if (known === undefined)
      throw new LowbitError(
        "E_UNSUPPORTED",
        `${name}: expected a dtype of safetensors (${[...SAFE_DTYPES.keys()].join(", ")}), got ${JSON.stringify(dtype)}.`,
      );
    return known.bits;
  };
  const sorted = list
    .map(([name, t]) => ({ name, t, bits: bitsOf(name, t) }))
    .sort((a, b) => b.bits - a.bits || (a.name < b.name ? -1 : 1));
  const header: Record<string, unknown> = Object.create(null);
  if (model.metadata !== undefined) header["__metadata__"] = model.metadata;
  const lengths: number[] = [];
  let at = 0;
  for (const { name, t, bits } of sorted) {
    const total = t.shape.reduce((n: number, d: number) => n * d, bits);
    if (
      !t.shape.every((d: number) => Number.isSafeInteger(d) && d >= 0) ||
      !Number.isSafeInteger(total) ||
      total % 8 !== 0 ||
      name === "__metadata__"
    )
      throw new LowbitError(
        "E_SHAPE",
        `${name}: expected a shape of natural sizes whose elements fill whole bytes, got ${t.dtype} [${t.shape.join(", ")}].`,
      );
    header[name] = { dtype: t.dtype, shape: t.shape, data_offsets: [at, at + total / 8] };
    at += total / 8;
    lengths.push(total / 8);
  }
  const json = new TextEncoder().encode(JSON.stringify(header));
  const padded = Math.ceil(json.length / 8) * 8;
  const head = new Uint8Array(8 + padded).fill(0x20);
  new DataView(head.buffer).setBigUint64(0, BigInt(padded), true);
  head.set(json, 8);
  yield head;
  for (const [i, { name, t }] of sorted.entries()) {
    const bytes = typeof t.bytes === "function" ? await t.bytes() : t.bytes;
    if (bytes.length !== lengths[i])
      throw new LowbitError(
        "E_SHAPE",
        `${name}: expected ${lengths[i]} bytes for ${t.dtype} [${t.shape.join(", ")}], got ${bytes.length}.`,
      );
    yield bytes;
  }
}

// loadLossless: bfloat16 weights of safetensors files as lossless tensors, Huffman-coded as they are read, one at a
// time; and checkpoints of DFloat11 (LeanModels/DFloat11, dfloat11_utils.py; arXiv 2504.11651), whose exponents are
// coded in the file: those are decoded and coded anew by rows.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { LosslessTensor } from "../../../formats/core/huffman.ts";
import { losslessTensor } from "../../tensor/lossless-tensor.ts";
import type { ByteSource } from "../source.ts";
import { readSafetensors, type SafeTensor } from "./read.ts";

/** Suffixes of the tensors of a DFloat11 module. */
const PARTS = ["luts", "encoded_exponent", "sign_mantissa", "output_positions"] as const;
/** Entries of a table from here on name another table: 256 - entry. */
const POINTERS = 240;

/** Which tensors of a checkpoint are loaded compressed. */
export interface LoadLosslessOptions {
  /** Shards by name, for an index that is no path. */
  readonly shards?: Readonly<Record<string, ByteSource>>;
  /** Which tensors; default all of bfloat16. */
  readonly filter?: (name: string, shape: readonly number[]) => boolean;
  /**
   * Shape of a weight of a DFloat11 checkpoint, which does not hold them: `name` is the module, and `part` which of
   * its weights where a block's are stored together. Default: one row.
   */
  readonly shapeOf?: (name: string, part: number, values: number) => readonly number[] | undefined;
}

/**
 * Weights of a safetensors file (or an index of shards) as lossless tensors by name: BF16 tensors, and modules of
 * DFloat11 (several weights that are stored together: `module.0`, `module.1`).
 * @throws LowbitError E_CONTAINER, E_SHAPE, E_IO
 * @example const weights = await loadLossless("model.safetensors"); prepareLossless(weights.get("lm_head.weight")!)
 */
export async function loadLossless(source: ByteSource, options: LoadLosslessOptions = {}): Promise<Map<string, LosslessTensor>> {
  const { filter = () => true, shapeOf = () => undefined } = options;
  const file = await readSafetensors(source, options.shards === undefined ? {} : { shards: options.shards });
  try {
    const out = new Map<string, LosslessTensor>();
    for (const [name, entry] of file.tensors) {
      const module = name.endsWith(".luts") ? name.slice(0, -".luts".length) : null;
      if (module !== null && PARTS.every((part) => file.tensors.has(`${module}.${part}`))) {
        const words = await decodeModule(module, file.tensors);
        for (const [i, part] of words.entries()) {
          const own = words.length === 1 ? module : `${module}.${i}`;
          const shape = shapeOf(module, i, part.length) ?? [part.length];
          if (filter(own, shape)) out.set(own, losslessTensor(part, shape));
        }
      } else if (entry.dtype === "BF16" && entry.byteLength > 0 && filter(name, entry.shape))
        out.set(name, losslessTensor((await entry.elements()) as Uint16Array, entry.shape.length === 0 ? [1] : entry.shape));
    }
    return out;
  } finally {
    await file.close();
  }
}

/** The words of a DFloat11 module, cut where several weights are stored together. */
async function decodeModule(module: string, tensors: ReadonlyMap<string, SafeTensor>): Promise<Uint16Array[]> {
  const bad = (expected: string, got: unknown): LowbitError =>
    new LowbitError("E_CONTAINER", `${module}: expected ${expected}, got ${String(got)}. Is it a whole checkpoint of DFloat11?`);
  const read = (part: string): Promise<Uint8Array> => tensors.get(`${module}.${part}`)!.bytes();
  const [luts, stream, plain, positions] = [await read(PARTS[0]), await read(PARTS[1]), await read(PARTS[2]), await read(PARTS[3])];
  if (luts.length < 512 || luts.length % 256 !== 0) throw bad("tables of 256 entries and a row of code lengths", `${luts.length} bytes`);
  if (positions.length < 4 || positions.length % 4 !== 0) throw bad("output_positions: 32-bit words", `${positions.length} bytes`);
  const count = new DataView(positions.buffer, positions.byteOffset).getUint32(positions.length - 4, true);
  if (count !== plain.length) throw bad(`${plain.length} values, as sign_mantissa has`, count);
  const tables = luts.length / 256 - 1;
  const out = new Uint16Array(count);
  let bit = 0;
  for (let i = 0; i < count; i++) {
    let table = 0;
    let at = bit;
    let entry: number;
    for (;;) {
      const byte = Math.floor(at / 8);
      if (byte >= stream.length) throw bad(`codes of ${count} values`, `${i}`);
      const window = (stream[byte] << 8) | (stream[byte + 1] ?? 0);
      entry = luts[256 * table + ((window >> (8 - (at % 8))) & 255)];
      if (entry < POINTERS) break;
      table = 256 - entry;
      at += 8;
      if (table >= tables) throw bad(`a table below ${tables}`, table);
    }
    const length = luts[256 * tables + entry];
    if (length === 0 || length > 32 || bit + length > 8 * stream.length) throw bad("codes of 1 to 32 bits within the stream", length);
    bit += length;
    out[i] = ((plain[i] & 128) << 8) | (entry << 7) | (plain[i] & 127);
  }
  const splits = tensors.get(`${module}.split_positions`);
  if (splits === undefined || splits.byteLength === 0) return [out];
  const cuts = Array.from((await splits.elements()) as ArrayLike<number | bigint>, Number);
  const bounds = [0, ...cuts.filter((c) => c > 0 && c < count), count];
  if (bounds.some((b, i) => i > 0 && b <= bounds[i - 1])) throw bad("split_positions in ascending order", cuts.slice(0, 8).join(", "));
  return bounds.slice(1).map((end, i) => out.subarray(bounds[i], end));
}

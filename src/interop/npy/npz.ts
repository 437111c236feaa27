// NumPy's .npz: zip archives of .npy files, read by ranges (arrays when asked for) and written piece by piece.
import { openSource, writeFileWhole, type ByteSource } from "../source.ts";
import { npyBytes, parseNpy, type NpyArray, type NpyInput } from "./npy.ts";
import {
  TAIL,
  checkDirectory,
  crc32,
  dataOffset,
  deflate,
  findDirectory,
  parseDirectory,
  unpackEntry,
  unpackEntryAsync,
  wideDirectory,
  zipPieces,
  type NewEntry,
} from "./zip.ts";

/** An opened archive. */
export interface NpzFile {
  /** By the name that `numpy.savez` gave them, each read when asked for. */
  readonly arrays: ReadonlyMap<string, () => Promise<NpyArray>>;
  close(): Promise<void>;
}

const SUFFIX = ".npy";

/**
 * Opens a .npz file: its directory is read, and each array when asked for.
 * @throws LowbitError E_CONTAINER for damaged files, E_IO
 * @example
 * const { arrays } = await readNpz("data.npz");
 * (await arrays.get("image")!()).shape // [16, 1, 28, 28]
 */
export async function readNpz(source: ByteSource): Promise<NpzFile> {
  const input = await openSource(source, "npz file");
  const { size, label } = input;
  try {
    const from = Math.max(0, size - TAIL);
    const tail = await input.read(from, size - from);
    let directory = findDirectory(tail, from, label);
    if (directory.zip64 !== undefined) directory = wideDirectory(await input.read(directory.zip64, 56), label);
    checkDirectory(directory, size, label);
    const entries = parseDirectory(await input.read(directory.at, directory.length), directory.count, size, label);
    const arrays = new Map(
      entries
        .filter(({ name }) => name.endsWith(SUFFIX))
        .map((entry) => [
          entry.name.slice(0, -SUFFIX.length),
          async () => {
            const at = dataOffset(entry, await input.read(entry.local, 30), size, label);
            return parseNpy(await unpackEntryAsync(entry, await input.read(at, entry.packed), label), `${label}: ${entry.name}`);
          },
        ]),
    );
    return { arrays, close: () => input.close() };
  } catch (error) {
    await input.close();
    throw error;
  }
}

/** All arrays of an archive at once (deflated ones in Node only). @throws LowbitError E_CONTAINER */
export function parseNpz(bytes: Uint8Array, label = "npz file"): Map<string, NpyArray> {
  const size = bytes.length;
  let directory = findDirectory(bytes, 0, label);
  if (directory.zip64 !== undefined) directory = wideDirectory(bytes.subarray(directory.zip64, directory.zip64 + 56), label);
  checkDirectory(directory, size, label);
  const out = new Map<string, NpyArray>();
  for (const entry of parseDirectory(bytes.subarray(directory.at, directory.at + directory.length), directory.count, size, label)) {
    if (!entry.name.endsWith(SUFFIX)) continue;
    const at = dataOffset(entry, bytes.subarray(entry.local, entry.local + 30), size, label);
    const data = unpackEntry(entry, bytes.subarray(at, at + entry.packed), label);
    out.set(entry.name.slice(0, -SUFFIX.length), parseNpy(data, `${label}: ${entry.name}`));
  }
  return out;
}

/** How an .npz file is written. */
export interface NpzOptions {
  /** Deflate the arrays. Default false, as `numpy.savez`. */
  readonly compress?: boolean;
  /** Sizes of 64 bits even where 32 would do. Default false. */
  readonly zip64?: boolean;
}

/** Arrays by name, as they are read too. */
export type NpzArrays = ReadonlyMap<string, NpyInput> | Readonly<Record<string, NpyInput>>;

async function* entriesOf(arrays: NpzArrays, compress: boolean): AsyncGenerator<NewEntry> {
  const list = arrays instanceof Map ? [...(arrays as ReadonlyMap<string, NpyInput>)] : Object.entries(arrays);
  for (const [name, input] of list) {
    const bytes = npyBytes(input);
    const data = compress ? await deflate(bytes) : bytes;
    yield { name: `${name}${SUFFIX}`, method: compress ? 8 : 0, crc: crc32(bytes), size: bytes.length, data };
  }
}

/**
 * The bytes of a .npz file. @throws TypeError, LowbitError E_SHAPE
 * @example
 * const bytes = await npzBytes({ input: { data: new Float32Array(784), shape: [1, 1, 28, 28] } }, { compress: true });
 */
export async function npzBytes(arrays: NpzArrays, options: NpzOptions = {}): Promise<Uint8Array<ArrayBuffer>> {
  const pieces: Uint8Array[] = [];
  for await (const piece of zipPieces(entriesOf(arrays, options.compress ?? false), options.zip64)) pieces.push(piece);
  const out = new Uint8Array(pieces.reduce((n, piece) => n + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    out.set(piece, at);
    at += piece.length;
  }
  return out;
}

/**
 * Writes a .npz file (Node), which appears whole or not at all; one array is in memory at a time.
 * @throws TypeError, LowbitError E_SHAPE, E_IO, E_EXISTS
 * @example await writeNpz("x.npz", { x: { data: new Float32Array(6), shape: [2, 3] } }, { compress: true });
 */
export async function writeNpz(path: string, arrays: NpzArrays, options: NpzOptions & { readonly force?: boolean } = {}): Promise<void> {
  await writeFileWhole(path, zipPieces(entriesOf(arrays, options.compress ?? false), options.zip64), options.force ?? false);
}

// readGguf: the header of a GGUF file (versions 2 and 3), and its tensors as views that are read when asked for.
// Spec: ggml-org/ggml docs/gguf.md and src/gguf.cpp, whose refusals this reader shares.
import { LowbitError } from "../../../formats/core/errors.ts";
import { dequantize, packedSizes } from "../../../formats/core/packed.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import { openSource, type ByteSource, type OpenSource } from "../source.ts";
import { HeaderCursor, SHORT, type GgufEntry } from "./metadata.ts";
import { ggufTypes, type GgufType } from "./types.ts";

/** A tensor of a file; nothing of it is in memory. */
export interface GgufTensor {
  readonly name: string;
  readonly type: GgufType;
  /** Outermost first, as everywhere in this library: ggml counts the other way. */
  readonly shape: readonly number[];
  /** Where its bytes lie in the file. */
  readonly offset: number;
  readonly byteLength: number;
  /** All its bytes, or those of `count` rows from `row` on; a row is the innermost dimension. */
  bytes(row?: number, count?: number): Promise<Uint8Array>;
  /**
   * The packed tensor with exactly these codes.
   * @throws LowbitError E_UNSUPPORTED for types of integers above 8 bits and float64
   */
  packed(): Promise<PackedTensor>;
  /** Its values, or those of some rows. 64-bit integers are rounded to doubles first. */
  values(row?: number, count?: number): Promise<Float32Array>;
}

/** An opened GGUF file. */
export interface GgufFile {
  readonly version: number;
  readonly alignment: number;
  /** Values with their types, in the order of the file. */
  readonly metadata: ReadonlyMap<string, GgufEntry>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  /** The value of a key without its type. */
  get(key: string): GgufEntry["value"] | undefined;
  /** Closes the file. */
  close(): Promise<void>;
}

/** Bytes that are fetched for a header at first; four times as many where they do not suffice. */
const FIRST = 1 << 18;
/** Headers are at most this long: vocabularies of a million tokens stay below a tenth of it. */
const HEADER_MAX = 1 << 30;
const DIMENSIONS_MAX = 4;

/**
 * Reads the header of a GGUF file; tensors are read from the source when asked for.
 * @throws LowbitError E_CONTAINER for damaged or hostile files, E_UNSUPPORTED for versions other than 2 and 3 and for
 * big-endian files, E_IO
 * @example const file = await readGguf("model.gguf"); const w = await file.tensors.get("output.weight")!.packed();
 */
export async function readGguf(source: ByteSource): Promise<GgufFile> {
  const input = await openSource(source, "GGUF file");
  try {
    for (let length = Math.min(FIRST, input.size); ; length = Math.min(4 * length, input.size)) {
      const cursor = new HeaderCursor(await input.read(0, length), input.size, input.label);
      try {
        return parse(cursor, input);
      } catch (error) {
        if (error !== SHORT) throw error;
        if (length >= HEADER_MAX) throw cursor.bad(`a header of at most ${HEADER_MAX} bytes`, "a longer one");
      }
    }
  } catch (error) {
    await input.close();
    throw error;
  }
}

function parse(cursor: HeaderCursor, input: OpenSource): GgufFile {
  const magic = cursor.u32("magic number");
  if (magic !== 0x46554747) throw cursor.bad('a file that begins with "GGUF"', `0x${magic.toString(16)}`);
  const version = cursor.u32("version");
  if (version !== 2 && version !== 3)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `${input.label}: expected GGUF version 2 or 3 (little-endian), got ${(version & 0xffff) === 0 ? "a big-endian file" : `version ${version}`}. Convert it with llama.cpp's tools.`,
    );
  // a tensor takes at least a name's length, a dimension count, a type and an offset; a value a key, a type and a byte
  const tensorCount = cursor.count("number of tensors", 24);
  const valueCount = cursor.count("number of metadata values", 13);
  const metadata = new Map<string, GgufEntry>();
  for (let i = 0; i < valueCount; i++) {
    const key = cursor.name("a metadata key");
    if (key === "" || metadata.has(key)) throw cursor.bad("distinct metadata keys", JSON.stringify(key.slice(0, 80)));
    metadata.set(key, cursor.entry());
  }
  const alignment = alignmentOf(metadata, cursor);
  const infos = new Map<string, TensorInfo>();
  for (let i = 0; i < tensorCount; i++) {
    const info = tensorInfo(cursor, alignment);
    if (infos.has(info.name)) throw cursor.bad("distinct tensor names", JSON.stringify(info.name.slice(0, 80)));
    infos.set(info.name, info);
  }
  const start = Math.ceil(cursor.at / alignment) * alignment;
  checkPlaces([...infos.values()], start, input.size, cursor);
  return {
    version,
    alignment,
    metadata,
    tensors: new Map([...infos].map(([name, info]) => [name, view(info, start, input)])),
    get: (key) => metadata.get(key)?.value,
    close: () => input.close(),
  };
}

function alignmentOf(metadata: ReadonlyMap<string, GgufEntry>, cursor: HeaderCursor): number {
  const entry = metadata.get("general.alignment");
  if (entry === undefined) return 32;
  const value = entry.value;
  if (entry.type !== "uint32" || typeof value !== "number" || value < 1 || value > 2 ** 20 || (value & (value - 1)) !== 0)
    throw cursor.bad("general.alignment to be a power of two up to 2^20", String(value).slice(0, 40));
  return value;
}

interface TensorInfo {
  readonly name: string;
  readonly type: GgufType;
  readonly shape: readonly number[];
  readonly offset: number;
  readonly byteLength: number;
}

function tensorInfo(cursor: HeaderCursor, alignment: number): TensorInfo {
  const name = cursor.name("a tensor name");
  const label = JSON.stringify(name.slice(0, 80));
  const dimensions = cursor.u32(`dimensions of ${label}`);
  if (dimensions > DIMENSIONS_MAX) throw cursor.bad(`at most ${DIMENSIONS_MAX} dimensions of ${label}`, String(dimensions));
  const sizes = Array.from({ length: dimensions }, () => cursor.size(`size of ${label}`));
  const id = cursor.u32(`type of ${label}`);
  const offset = cursor.size(`offset of ${label}`);
  const type = ggufTypes().get(id);
  if (type === undefined)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `tensor ${label}: expected a type of ggml, got ${id}. It was removed from ggml, or is newer than this library.`,
    );
  const row = sizes[0] ?? 1;
  const count = sizes.reduce((n, d) => n * d, 1);
  if (row % type.blockSize !== 0)
    throw cursor.bad(`rows of ${label} to be whole blocks of ${type.blockSize} (${type.name})`, `rows of ${row}`);
  const byteLength = (count / type.blockSize) * type.blockBytes;
  if (!Number.isSafeInteger(count) || !Number.isSafeInteger(byteLength))
    throw cursor.bad(`a possible shape of ${label}`, `[${sizes.join(", ")}]`);
  if (offset % alignment !== 0) throw cursor.bad(`an offset of ${label} that is a multiple of ${alignment}`, String(offset));
  return { name, type, shape: sizes.length === 0 ? [1] : sizes.reverse(), offset, byteLength };
}

/** Tensors lie inside the file and do not overlap. */
function checkPlaces(infos: TensorInfo[], start: number, size: number, cursor: HeaderCursor): void {
  let end = 0;
  for (const { name, offset, byteLength } of infos.sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength)) {
    const label = JSON.stringify(name.slice(0, 80));
    if (start + offset + byteLength > size) throw cursor.bad(`${byteLength} bytes of ${label} at ${start + offset}`, `a file of ${size}`);
    if (offset < end) throw cursor.bad(`${label} behind the tensor before it, at ${end} or later`, `offset ${offset}`);
    end = offset + byteLength;
  }
}

function view(info: TensorInfo, start: number, input: OpenSource): GgufTensor {
  const { name, type, shape, byteLength } = info;
  const offset = start + info.offset;
  const rowLength = shape[shape.length - 1];
  const rowBytes = (rowLength / type.blockSize) * type.blockBytes;
  const rows = rowLength === 0 ? 0 : shape.slice(0, -1).reduce((n, d) => n * d, 1);
  const bytes = async (row = 0, count = rows - row): Promise<Uint8Array> => {
    if (!(Number.isInteger(row) && Number.isInteger(count) && row >= 0 && count >= 0 && row + count <= rows))
      throw new RangeError(`${name}: expected rows within ${rows}, got ${count} from ${row} on.`);
    return input.read(offset + row * rowBytes, count * rowBytes);
  };
  return {
    name,
    type,
    shape,
    offset,
    byteLength,
    bytes,
    async packed() {
      if (type.format === undefined || byteLength === 0)
        throw new LowbitError(
          "E_UNSUPPORTED",
          `${name}: expected a type with a format, and values, got ${type.name} [${shape.join(", ")}]. Read its bytes or values.`,
        );
      return packGguf(type, shape, await bytes());
    },
    async values(row, count) {
      return ggufValues(type, await bytes(row, count));
    },
  };
}

/** A packed tensor of bytes as GGUF has them. */
export function packGguf(type: GgufType, shape: readonly number[], bytes: Uint8Array): PackedTensor {
  const format = type.format!;
  const { rows, k, rowBytes } = packedSizes(format, shape);
  return {
    ...{ format, shape: [...shape], rows, k, rowBytes, codes: bytes },
    ...{ scales: null, superScales: null, offsets: null, recipe: { version: 1, algorithm: "gguf", type: type.name } },
  };
}

/** Values of whole blocks. */
export function ggufValues(type: GgufType, bytes: Uint8Array): Float32Array {
  const aligned = (): ArrayBuffer => bytes.slice().buffer;
  if (type.name === "F32") return new Float32Array(aligned());
  if (type.name === "F64") return Float32Array.from(new Float64Array(aligned()));
  if (type.name === "I16") return Float32Array.from(new Int16Array(aligned()));
  if (type.name === "I32") return Float32Array.from(new Int32Array(aligned()));
  if (type.name === "I64") return Float32Array.from(new BigInt64Array(aligned()), Number);
  const count = (bytes.length / type.blockBytes) * type.blockSize;
  return count === 0 ? new Float32Array(0) : Float32Array.from(dequantize(packGguf(type, [count], bytes)));
}

// readSafetensors: the header of a file of anyone, or of all shards that an index names, and its tensors as views that
// are read when asked for.
// Spec: huggingface/safetensors README and tensor.rs: u64 length, JSON, data without holes; headers up to 100 MB.
import { LowbitError } from "../../../formats/core/errors.ts";
import { nodePath } from "../../files/calls.ts";
import { openSource, type ByteSource, type OpenSource } from "../source.ts";
import { floatElements, SAFE_DTYPES, typedElements, type SafeDtype } from "./dtypes.ts";

/** A tensor of a file; nothing of it is in memory. */
export interface SafeTensor {
  readonly name: string;
  /** F64 to F4, BF16, I64 to I8, U64 to U8, BOOL. */
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly byteLength: number;
  /** All its bytes, or those of `count` rows from `row` on; a row is the innermost dimension. */
  bytes(row?: number, count?: number): Promise<Uint8Array>;
  /** Its elements as numbers of their kind: float16 and smaller floats as codes, 64-bit integers as bigints. */
  elements(): Promise<ReturnType<typeof typedElements>>;
  /** Its values, or those of some rows. */
  values(row?: number, count?: number): Promise<Float32Array>;
}

/** An opened file, or all shards of a checkpoint. */
export interface SafetensorsFile {
  /** The free text of `__metadata__`. */
  readonly metadata: ReadonlyMap<string, string>;
  readonly tensors: ReadonlyMap<string, SafeTensor>;
  close(): Promise<void>;
}

const HEADER_MAX = 100_000_000;
const SHARDS_MAX = 10_000;
const damaged = (label: string, expected: string, got: string, cause?: unknown): LowbitError =>
  new LowbitError("E_CONTAINER", `${label}: expected ${expected}, got ${got}. Is it a whole safetensors file?`, { cause });
const isObject = (x: unknown): x is Record<string, unknown> => typeof x === "object" && x !== null && !Array.isArray(x);
const short = (x: unknown): string => (JSON.stringify(x) ?? "nothing").slice(0, 80);

/**
 * Reads the header of a safetensors file. A source that is an index (`*.index.json`) opens every shard that it names,
 * from the index's own folder or, where the index is not a path, from `shards`.
 * @throws LowbitError E_CONTAINER for damaged or hostile files and missing shards, E_IO
 * @example
 * const file = await readSafetensors("model.safetensors"); // or model.safetensors.index.json, all shards
 * (await file.tensors.get("lm_head.weight")!.values()).length // 16384
 */
export async function readSafetensors(
  source: ByteSource,
  options: { readonly shards?: Readonly<Record<string, ByteSource>> } = {},
): Promise<SafetensorsFile> {
  const input = await openSource(source, "safetensors file");
  try {
    if (input.size > 0 && (await input.read(0, 1))[0] === 0x7b && options.shards !== undefined)
      return await readIndex(input, source, options.shards);
    if (typeof source === "string" && source.endsWith(".json")) return await readIndex(input, source, undefined);
    return await readOne(input);
  } catch (error) {
    await input.close();
    throw error;
  }
}

function parseJson(label: string, bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw damaged(label, "JSON in UTF-8", (cause as Error).message.slice(0, 80), cause);
  }
}

async function readOne(input: OpenSource): Promise<SafetensorsFile> {
  const { label, size } = input;
  if (size < 10) throw damaged(label, "at least 10 bytes", String(size));
  const length = new DataView((await input.read(0, 8)).slice().buffer).getBigUint64(0, true);
  const most = Math.min(HEADER_MAX, size - 8);
  if (length > BigInt(most)) throw damaged(label, `a header of at most ${most} bytes`, String(length));
  const header = parseJson(label, await input.read(8, Number(length)));
  if (!isObject(header)) throw damaged(label, "a header { name: { dtype, shape, data_offsets } }", short(header));
  const start = 8 + Number(length);
  const metadata = new Map<string, string>();
  const tensors = new Map<string, SafeTensor>();
  const places: (readonly [from: number, to: number, name: string])[] = [];
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") {
      if (!isObject(entry) || Object.values(entry).some((v) => typeof v !== "string"))
        throw damaged(label, "text in __metadata__", short(entry));
      for (const [key, value] of Object.entries(entry)) metadata.set(key, value as string);
      continue;
    }
    const place = placeOf(label, name, entry);
    places.push([place.from, place.to, name]);
    tensors.set(name, view(input, name, place, start));
  }
  let at = 0;
  for (const [from, to, name] of places.sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
    if (from !== at) throw damaged(label, `${short(name)} at ${at}, without holes or overlaps`, `offset ${from}`);
    at = to;
  }
  if (at !== size - start) throw damaged(label, `${at} bytes of data`, `${size - start}`);
  return { metadata, tensors, close: () => input.close() };
}

interface Place {
  readonly dtype: SafeDtype;
  readonly shape: readonly number[];
  readonly from: number;
  readonly to: number;
}

function placeOf(label: string, name: string, entry: unknown): Place {
  const { dtype: given, shape, data_offsets: offsets } = isObject(entry) ? entry : {};
  const dtype = SAFE_DTYPES.get(String(given));
  if (dtype === undefined) throw damaged(label, `a dtype of safetensors for ${short(name)}`, short(given));
  const whole = (list: unknown): list is number[] => Array.isArray(list) && list.every((v) => Number.isSafeInteger(v) && v >= 0);
  if (!whole(shape) || shape.length > 8 || !whole(offsets) || offsets.length !== 2)
    throw damaged(label, `shape and data_offsets of ${short(name)}`, short(entry));
  const bits = shape.reduce((n, d) => n * d, dtype.bits);
  if (!Number.isSafeInteger(bits) || bits % 8 !== 0 || offsets[1] - offsets[0] !== bits / 8)
    throw damaged(label, `${bits / 8} bytes of ${short(name)} (${dtype.name} [${shape.join(", ")}])`, `offsets ${offsets.join(" to ")}`);
  return { dtype, shape, from: offsets[0], to: offsets[1] };
}

function view(input: OpenSource, name: string, { dtype, shape, from, to }: Place, start: number): SafeTensor {
  const k = shape.length === 0 ? 1 : shape[shape.length - 1];
  const rowBits = k * dtype.bits;
  const rows = shape.slice(0, -1).reduce((n, d) => n * d, 1);
  const bytes = async (row?: number, count?: number): Promise<Uint8Array> => {
    if (row === undefined && count === undefined) return input.read(start + from, to - from);
    const [r, n] = [row ?? 0, count ?? rows - (row ?? 0)];
    if (!(Number.isInteger(r) && Number.isInteger(n) && r >= 0 && n >= 0 && r + n <= rows))
      throw new RangeError(`${name}: expected rows within ${rows}, got ${n} from ${r} on.`);
    if (rowBits % 8 !== 0)
      throw new LowbitError("E_UNSUPPORTED", `${name}: expected rows of whole bytes, got rows of ${rowBits} bits. Read all of it.`);
    return input.read(start + from + (r * rowBits) / 8, (n * rowBits) / 8);
  };
  return {
    ...{ name, dtype: dtype.name, shape, byteLength: to - from, bytes },
    elements: async () => typedElements(dtype, await bytes()),
    values: async (row, count) => floatElements(dtype, await bytes(row, count)),
  };
}

/** Every shard of an index. */
async function readIndex(
  input: OpenSource,
  source: ByteSource,
  shards: Readonly<Record<string, ByteSource>> | undefined,
): Promise<SafetensorsFile> {
  const { label } = input;
  if (input.size > HEADER_MAX) throw damaged(label, `an index of at most ${HEADER_MAX} bytes`, String(input.size));
  const index = parseJson(label, await input.read(0, input.size));
  await input.close();
  const map = isObject(index) ? index.weight_map : undefined;
  if (!isObject(map) || Object.values(map).some((v) => typeof v !== "string"))
    throw damaged(label, "weight_map: a file by tensor name", short(map));
  const files = [...new Set(Object.values(map) as string[])];
  if (files.length > SHARDS_MAX) throw damaged(label, `at most ${SHARDS_MAX} shards`, String(files.length));
  const opened = new Map<string, SafetensorsFile>();
  const close = async (): Promise<void> => void (await Promise.all([...opened.values()].map((f) => f.close())));
  try {
    for (const file of files) {
      if (!/^[^/\\:]+$/.test(file) || file === ".." || file === ".") throw damaged(label, "names of shards beside the index", short(file));
      const shard =
        shards === undefined
          ? nodePath().join(nodePath().dirname(source as string), file)
          : Object.hasOwn(shards, file)
            ? shards[file]
            : undefined;
      if (shard === undefined) throw damaged(label, `a shard ${short(file)}`, `only ${Object.keys(shards ?? {}).length} others`);
      opened.set(file, await openShard(label, file, shard));
    }
    const tensors = new Map<string, SafeTensor>();
    for (const [name, file] of Object.entries(map) as [string, string][]) {
      const found = opened.get(file)!.tensors.get(name);
      if (found === undefined) throw damaged(label, `${short(name)} in ${file}`, "a shard without it");
      tensors.set(name, found);
    }
    const metadata = new Map([...opened.values()].flatMap((f) => [...f.metadata]));
    return { metadata, tensors, close };
  } catch (error) {
    await close();
    throw error;
  }
}

async function openShard(label: string, file: string, source: ByteSource): Promise<SafetensorsFile> {
  try {
    return await readSafetensors(source);
  } catch (cause) {
    if (cause instanceof LowbitError && cause.code === "E_IO")
      throw new LowbitError("E_CONTAINER", `${label}: expected the shard ${file} beside it, got none that can be read. Download it too.`, {
        cause,
      });
    throw cause;
  }
}

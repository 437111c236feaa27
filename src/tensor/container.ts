// Packed tensors as bytes: a safetensors file whose tensors are the byte planes (<name>.codes, .scales, .superScales,
// .offsets) and whose __metadata__ holds, under "lowbit", versioned JSON with the definition of each format, shapes and
// recipes. Any safetensors reader opens it. Reading trusts nothing: lengths, offsets, shapes and definitions are
// checked before a byte is used.
import { plainBytes } from "../../formats/core/check.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, FormatDefinition, PackedTensor, QuantConfig } from "../../formats/core/types.ts";
import { defineFormat } from "../../formats/define/index.ts";
import { format as formatByName } from "../../formats/registry.ts";
import { packedSizes } from "../../formats/core/packed.ts";

const VERSION = 1;
/** A header of JSON beyond this is refused, as safetensors itself does (100 MB). */
const MAX_HEADER = 100_000_000;
const PLANES = ["codes", "scales", "superScales", "offsets"] as const;

interface TensorMeta {
  readonly name: string;
  readonly format: FormatDefinition;
  readonly shape: readonly number[];
  readonly recipe: QuantConfig;
}

/**
 * Named packed tensors as one safetensors file.
 * @throws TypeError for an empty or reserved name
 * @example
 * const file = toSafetensors({ "layers.0.query": packed, "layers.0.key": packed }); // write it to layers.safetensors
 */
export function toSafetensors(tensors: Readonly<Record<string, PackedTensor>>): Uint8Array<ArrayBuffer> {
  const header: Record<string, unknown> = {};
  const metas: TensorMeta[] = [];
  const chunks: Uint8Array[] = [];
  let at = 0;
  for (const [name, w] of Object.entries(tensors)) {
    if (name === "" || name === "__metadata__") throw new TypeError(`toSafetensors name: expected a tensor name, got "${name}".`);
    metas.push({ name, format: w.format.definition, shape: w.shape, recipe: w.recipe });
    for (const plane of PLANES) {
      const bytes = w[plane];
      if (bytes === null) continue;
      header[`${name}.${plane}`] = { dtype: "U8", shape: [bytes.length], data_offsets: [at, at + bytes.length] };
      chunks.push(bytes);
      at += bytes.length;
    }
  }
  header["__metadata__"] = { lowbit: JSON.stringify({ version: VERSION, tensors: metas }) };
  const json = new TextEncoder().encode(JSON.stringify(header));
  const headerBytes = Math.ceil(json.length / 8) * 8; // space padded, so that data starts aligned
  const out = new Uint8Array(8 + headerBytes + at);
  new DataView(out.buffer).setBigUint64(0, BigInt(headerBytes), true);
  out.fill(0x20, 8, 8 + headerBytes);
  out.set(json, 8);
  let to = 8 + headerBytes;
  for (const c of chunks) {
    out.set(c, to);
    to += c.length;
  }
  return out;
}

/**
 * One packed tensor as a safetensors file; `fromBytes` reads it back.
 * @example
 * const bytes = toBytes(packed);
 * new TextDecoder().decode(bytes.subarray(8, 10)) // '{"': a safetensors header behind its length
 */
export function toBytes(w: PackedTensor): Uint8Array<ArrayBuffer> {
  return toSafetensors({ weight: w });
}

/**
 * The packed tensor of `toBytes`. Its planes are views of `bytes`, not copies.
 * @throws LowbitError E_CONTAINER for anything that `toBytes` did not write, E_FORMAT for an unsound definition
 * @example dequantize(fromBytes(toBytes(packed))).length // 16384
 */
export function fromBytes(bytes: Uint8Array): PackedTensor {
  const tensors = Object.values(fromSafetensors(bytes));
  if (tensors.length !== 1) throw broken(`expected one packed tensor, got ${tensors.length}. Use fromSafetensors for files with several`);
  return tensors[0];
}

const broken = (what: string, cause?: unknown) => new LowbitError("E_CONTAINER", `packed tensor file: ${what}.`, { cause });
const shown = (x: unknown): string => JSON.stringify(x)?.slice(0, 80) ?? "nothing";
const isObject = (x: unknown): x is Record<string, unknown> => typeof x === "object" && x !== null && !Array.isArray(x);

/**
 * All packed tensors of a file by name. @throws as fromBytes
 * @example
 * const { query, key } = fromSafetensors(toSafetensors({ query: packed, key: packed }));
 * [query.format.name, key.shape] // ["int4_b32", [64, 256]]
 */
export function fromSafetensors(file: Uint8Array): Record<string, PackedTensor> {
  const bytes = plainBytes("fromSafetensors", file);
  if (bytes.length < 10) throw broken(`expected at least 10 bytes, got ${bytes.length}. Is the file whole?`);
  const length = new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true);
  if (length > BigInt(Math.min(MAX_HEADER, bytes.length - 8)))
    throw broken(
      `expected a header of at most ${Math.min(MAX_HEADER, bytes.length - 8)} bytes, got ${length}. Is the file whole, and a safetensors file?`,
    );
  const dataStart = 8 + Number(length);
  const header = parse(bytes.subarray(8, dataStart), "header");
  const meta = isObject(header) && isObject(header["__metadata__"]) ? header["__metadata__"]["lowbit"] : undefined;
  if (!isObject(header) || typeof meta !== "string")
    throw broken(`expected "lowbit" in __metadata__, got none. Only files written by toBytes or toSafetensors can be read`);
  const info = parse(new TextEncoder().encode(meta), "__metadata__.lowbit");
  if (!isObject(info) || !Array.isArray(info.tensors))
    throw broken(`expected { version, tensors } in __metadata__.lowbit, got ${shown(info)}`);
  if (info.version !== VERSION)
    throw broken(
      `expected version ${VERSION}, got ${JSON.stringify(info.version)}. Read it with the version of lowbit that wrote it, or a newer one`,
    );

  const planes = readPlanes(header, bytes.length - dataStart);
  const out: Record<string, PackedTensor> = Object.create(null);
  let used = 0;
  for (const t of info.tensors as unknown[]) {
    if (!isObject(t) || typeof t.name !== "string" || !isObject(t.format) || !isObject(t.recipe))
      throw broken(`expected { name, format, shape, recipe } for each tensor, got ${shown(t)}`);
    if (t.name in out) throw broken(`expected distinct names, got "${t.name}" twice`);
    const shape = readShape(t.shape, t.name);
    const format = knownFormat(t.format as unknown as FormatDefinition);
    const sizes = packedSizes(format, shape);
    const plane = (which: (typeof PLANES)[number]): Uint8Array | null => {
      const want = sizes[which];
      const range = planes.get(`${t.name}.${which}`);
      if (want === null && range === undefined) return null;
      if (want === null || range === undefined || range[1] - range[0] !== want)
        throw broken(
          `${t.name}.${which}: expected ${want ?? "no"} bytes for ${format.name} [${shape.join(", ")}], got ${range ? range[1] - range[0] : "none"}`,
        );
      used++;
      return bytes.subarray(dataStart + range[0], dataStart + range[1]);
    };
    out[t.name] = {
      format,
      shape,
      rows: sizes.rows,
      k: sizes.k,
      rowBytes: sizes.rowBytes,
      codes: plane("codes")!,
      scales: plane("scales"),
      superScales: plane("superScales"),
      offsets: plane("offsets"),
      recipe: t.recipe as unknown as QuantConfig,
    };
  }
  if (used !== planes.size)
    throw broken(`expected ${used} byte planes, got ${planes.size}. The file holds tensors that its metadata does not name`);
  return out;
}

function parse(bytes: Uint8Array, what: string): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes))); // a copy: decoders refuse shared memory
  } catch (cause) {
    throw broken(`expected JSON in ${what}, got something else. Is the file whole?`, cause);
  }
}

/** Byte ranges by tensor name: inside the data, without holes or overlaps. */
function readPlanes(header: Record<string, unknown>, dataBytes: number): Map<string, readonly [number, number]> {
  const planes = new Map<string, readonly [number, number]>();
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const range = isObject(entry) ? entry.data_offsets : undefined;
    const ok =
      isObject(entry) &&
      entry.dtype === "U8" &&
      Array.isArray(range) &&
      range.length === 2 &&
      range.every((n) => Number.isSafeInteger(n) && n >= 0);
    if (!ok) throw broken(`${name.slice(0, 80)}: expected dtype U8 and data_offsets of two natural numbers, got ${shown(entry)}`);
    planes.set(name, range as unknown as readonly [number, number]);
  }
  let at = 0;
  for (const [name, [from, to]] of [...planes].sort((a, b) => a[1][0] - b[1][0] || a[1][1] - b[1][1])) {
    if (from !== at || to < from) throw broken(`${name.slice(0, 80)}: expected data_offsets that start at ${at}, got [${from}, ${to}]`);
    at = to;
  }
  if (at !== dataBytes) throw broken(`expected ${at} bytes of data, got ${dataBytes}. Is the file whole?`);
  return planes;
}

function readShape(shape: unknown, name: string): number[] {
  const ok =
    Array.isArray(shape) &&
    shape.length >= 1 &&
    shape.length <= 8 &&
    shape.every((d) => Number.isSafeInteger(d) && d > 0) &&
    Number.isSafeInteger(shape.reduce((n: number, d: number) => n * d, 1));
  if (!ok) throw broken(`${name}: expected a shape of 1 to 8 positive sizes, got ${JSON.stringify(shape)?.slice(0, 80)}`);
  return shape as number[];
}

/** The package's own descriptor where the definition is its; a user's format by its definition. */
function knownFormat(definition: FormatDefinition): Format {
  const made = defineFormat(definition);
  try {
    const known = formatByName(made.name);
    if (JSON.stringify(known.definition) === JSON.stringify(made.definition)) return known;
  } catch {
    // not a name of the package
  }
  return made;
}

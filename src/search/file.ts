// Reads the file of an index (save.ts). Nothing in it is trusted: lengths, names, counts and definitions are checked
// before a byte is used.
import { plainBytes } from "../../formats/core/check.ts";
import { binary } from "../../formats/binary.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, FormatDefinition, PackedTensor } from "../../formats/core/types.ts";
import { defineFormat } from "../../formats/define/index.ts";
import { format as formatByName } from "../../formats/registry.ts";
import { fromSafetensors } from "../tensor/container.ts";
import { emptyIndex, type SearchIndex } from "./create.ts";
import { MOST_DIMS } from "./options.ts";
import { HEAD_BYTES, MAGIC, VERSIONS, type Header } from "./save.ts";
import type { Metric, Projection } from "./types.ts";

const broken = (what: string, cause?: unknown): LowbitError =>
  new LowbitError("E_CONTAINER", `search index file: ${what}. Make it again with index.toBytes().`, { cause });
const isObject = (x: unknown): x is Record<string, unknown> => typeof x === "object" && x !== null && !Array.isArray(x);
const isLeft = (x: unknown): boolean => isCount(x) && x >= 1 && x < 2 ** 32;
const isCount = (x: unknown): x is number => Number.isSafeInteger(x) && (x as number) >= 0;

/**
 * The index of `index.toBytes()`.
 * @param options backend: as for createIndex
 * @throws LowbitError E_CONTAINER for anything else: truncated, damaged, of another version; E_DEVICE where memory runs
 * out
 * @example
 * const bytes = createIndex(vectors, { dims: 64, precision: "int8" }).toBytes(); // to a file or IndexedDB
 * indexFromBytes(bytes).search(query, { k: 10 }).ids.length // 10
 */
export function indexFromBytes(bytes: Uint8Array, options: { readonly backend?: object } = {}): SearchIndex {
  const file = plainBytes("indexFromBytes", bytes);
  const { header, sections } = readSections(file);
  const { dims, rows } = header;
  const formats = header.formats.map((definition) => knownFormat(definition as FormatDefinition));
  const ids = words(sections, "ids", rows, Uint32Array);
  const live = sections.get("live") ?? null;
  if (live !== null && live.length !== Math.ceil(rows / 8))
    throw broken(`expected ${Math.ceil(rows / 8)} bytes in live, got ${live.length}`);
  const short = header.projection?.to ?? dims;
  const stages = formats.map((format, i) => readStage(sections.get(`stage${i}`), format, rows, i === 0 ? short : dims));
  const known = [
    "ids",
    "live",
    ...(header.projection === null ? [] : ["matrix", "mean"]),
    ...stages.map((_, i) => `stage${i}`),
    ...(header.sketch === undefined ? [] : ["centre", "sketch"]),
  ];
  const centre = header.sketch === undefined ? null : readCentre(sections, short);
  const signs = header.sketch === undefined ? [] : readStage(sections.get("sketch"), binary, rows, centre!.length);
  for (const name of sections.keys())
    if (!known.includes(name)) throw broken(`expected no section ${JSON.stringify(name).slice(0, 60)}, got one`);
  try {
    const index = emptyIndex(
      {
        dims,
        metric: header.metric as Metric,
        first: formats[0],
        later: formats[1] ?? null,
        candidates: header.candidates,
        fit: null,
        sketch: "auto",
      },
      readProjection(header, sections),
      options.backend,
      centre === null ? null : { ...header.sketch!, centre },
    );
    try {
      if (rows > 0) index.fillPacked(stages, signs, distinct(ids, live), live);
    } catch (error) {
      index.dispose();
      throw error;
    }
    return index;
  } catch (error) {
    const { code } = error as { code?: string };
    if (code === "E_VALUE" || code === "E_SHAPE" || error instanceof TypeError)
      throw broken(`expected sound contents, got: ${(error as Error).message}`, error);
    throw error;
  }
}

/** @throws LowbitError E_CONTAINER */
function distinct(ids: Uint32Array, live: Uint8Array | null): Uint32Array {
  const sorted = ids.filter((_, row) => live === null || ((live[row >> 3] >> (row & 7)) & 1) === 1).sort();
  for (let i = 0; i < sorted.length; i++)
    if (sorted[i] === 0xffffffff || (i > 0 && sorted[i] === sorted[i - 1]))
      throw broken(`expected distinct ids, got ${sorted[i]} twice, or no id`);
  return ids;
}

function readSections(bytes: Uint8Array): { header: Header; sections: Map<string, Uint8Array> } {
  const magic = String.fromCharCode(...bytes.subarray(0, 8));
  if (bytes.length < HEAD_BYTES || magic !== MAGIC)
    throw broken(`expected a file that begins with ${MAGIC}, got another, or a truncated one`);
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(8, true);
  const start = HEAD_BYTES + length;
  if (start > bytes.length)
    throw broken(`expected a header of at most ${bytes.length - HEAD_BYTES} bytes, got ${length}. Is the file whole?`);
  const header = readHeader(bytes.subarray(HEAD_BYTES, start));
  const sections = new Map<string, Uint8Array>();
  let at = start;
  for (const { name, bytes: size } of header.sections) {
    if (at + size > bytes.length)
      throw broken(`expected ${size} bytes of ${name}, got ${Math.max(0, bytes.length - at)}. Is the file whole?`);
    if (sections.has(name)) throw broken(`expected distinct sections, got ${name} twice`);
    sections.set(name, bytes.subarray(at, at + size));
    at += 8 * Math.ceil(size / 8);
  }
  if (at !== bytes.length) throw broken(`expected ${at} bytes, got ${bytes.length}. Is the file whole?`);
  return { header, sections };
}

function readHeader(bytes: Uint8Array): Header {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes)));
  } catch (cause) {
    throw broken("expected JSON in the header, got something else", cause);
  }
  if (!isObject(json)) throw broken("expected an object in the header, got something else");
  if (!VERSIONS.includes(json.version))
    throw broken(
      `expected version ${VERSIONS.join(" or ")}, got ${JSON.stringify(json.version)?.slice(0, 40)}. Read it with the version of lowbit that wrote it`,
    );
  const { version, dims, rows, metric, candidates, formats, projection, sketch, sections } = json;
  const ok =
    isCount(dims) &&
    dims >= 1 &&
    dims <= MOST_DIMS &&
    isCount(rows) &&
    rows < 2 ** 32 - 1 &&
    ["cosine", "dot", "euclidean"].includes(metric as string) &&
    (candidates === null || (isCount(candidates) && candidates >= 1 && candidates <= 1e6)) &&
    Array.isArray(formats) &&
    (formats.length === 1 || formats.length === 2) &&
    formats.every(isObject) &&
    (version === 1) === (sketch === undefined) &&
    (sketch === undefined || (isObject(sketch) && isLeft(sketch.candidates) && isLeft(sketch.tested) && formats.length === 2)) &&
    (projection === null || (isObject(projection) && isCount(projection.to) && projection.to >= 1 && projection.to <= dims)) &&
    Array.isArray(sections) &&
    sections.length <= 10 &&
    sections.every((s) => isObject(s) && typeof s.name === "string" && isCount(s.bytes));
  if (!ok) throw broken("expected dims, rows, metric, formats, projection and sections in the header, got others");
  return json as unknown as Header;
}

function words<T extends Uint32Array | Float32Array>(
  sections: ReadonlyMap<string, Uint8Array>,
  name: string,
  count: number,
  As: new (buffer: ArrayBuffer) => T,
): T {
  const bytes = sections.get(name);
  if (bytes?.length !== 4 * count) throw broken(`expected ${4 * count} bytes in ${name}, got ${bytes?.length ?? "none"}`);
  return new As(new Uint8Array(bytes).buffer);
}

/** Of the dimensions of the first stage, or of the first of them. */
function readCentre(sections: ReadonlyMap<string, Uint8Array>, dims: number): Float32Array {
  const given = (sections.get("centre")?.length ?? 0) / 4;
  const centre = words(sections, "centre", given >= 1 && given < dims ? Math.floor(given) : dims, Float32Array);
  if (!centre.every((v) => Math.abs(v) <= 1.001)) throw broken("expected a centre of unit vectors, got larger numbers");
  return centre;
}

function readProjection({ projection, dims }: Header, sections: ReadonlyMap<string, Uint8Array>): Projection | null {
  if (projection === null) return null;
  const { method, to } = projection;
  const matrix = sections.has("matrix") ? words(sections, "matrix", to * dims, Float32Array) : null;
  const mean = sections.has("mean") ? words(sections, "mean", dims, Float32Array) : null;
  return { method: method as Projection["method"], from: dims, to, matrix, mean };
}

/** The packed tensors of a stage, `rows` rows of `dims` in all. */
function readStage(bytes: Uint8Array | undefined, format: Format, rows: number, dims: number): PackedTensor[] {
  if (bytes === undefined) throw broken("expected a section for each stage, got none");
  const parts = Object.values(fromSafetensors(bytes));
  const wanted = JSON.stringify(format.definition);
  for (const part of parts)
    if (part.k !== dims || part.shape.length !== 2 || JSON.stringify(part.format.definition) !== wanted)
      throw broken(`expected parts [rows, ${dims}] of ${format.name}, got ${part.format.name} [${part.shape.join(", ")}]`);
  const found = parts.reduce((sum, part) => sum + part.rows, 0);
  if (found !== rows) throw broken(`expected ${rows} rows in a stage, got ${found}`);
  return parts.map((part) => ({ ...part, format }));
}

/** The package's own descriptor where the definition is its; a user's format by its definition. */
function knownFormat(definition: FormatDefinition): Format {
  let made: Format;
  try {
    made = defineFormat(definition);
  } catch (cause) {
    throw broken(`expected the definition of a format, got ${JSON.stringify(definition).slice(0, 80)}`, cause);
  }
  try {
    const known = formatByName(made.name);
    if (JSON.stringify(known.definition) === JSON.stringify(made.definition)) return known;
  } catch {
    // not a name of the package
  }
  return made;
}

// model.json of TensorFlow.js: its weight manifest, checked, and the bytes of each weight. A manifest is what the file
// says: nothing of it is believed before it is checked.
import { isA } from "../../../formats/core/check.ts";
import { LowbitError } from "../../../formats/core/errors.ts";

/** How a weight is stored: as tfjs's converter does (`uint8`, `uint16`, `float16`), or packed (`lowbit`). */
export interface StoredQuantization {
  readonly dtype: string;
  readonly scale?: number;
  readonly min?: number;
  readonly original_dtype?: string;
  /** lowbit: bytes of the packed tensor, and the axis of the weight that its rows are. */
  readonly bytes?: number;
  readonly rows?: number;
}

export interface WeightEntry {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: string;
  readonly quantization?: StoredQuantization;
  readonly group?: string;
}

export interface ManifestGroup {
  readonly paths: readonly string[];
  readonly weights: readonly WeightEntry[];
}

/** A weight and its bytes, a view of the group's. */
export interface StoredWeight {
  readonly entry: WeightEntry;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

export interface TfjsModelFile {
  readonly json: Readonly<Record<string, unknown>>;
  readonly groups: readonly (readonly StoredWeight[])[];
}

const BYTES: ReadonlyMap<string, number> = new Map([
  ["float32", 4],
  ["int32", 4],
  ["uint16", 2],
  ["float16", 2],
  ["uint8", 1],
  ["bool", 1],
  ["complex64", 8],
]);

const wrong = (where: string, expected: string, got: unknown): LowbitError =>
  new LowbitError("E_CONTAINER", `${where}: expected ${expected}, got ${typeof got === "string" ? got.slice(0, 60) : isA(got)}.`);

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null && !Array.isArray(value);

function entryOf(value: unknown, where: string): WeightEntry {
  if (!isObject(value)) throw wrong(where, "an object", value);
  const { name, shape, dtype, quantization } = value;
  if (typeof name !== "string" || name === "") throw wrong(`${where} name`, "a name", name);
  const sizes = Array.isArray(shape) && shape.every((d) => Number.isSafeInteger(d) && d >= 0);
  if (!sizes || !Number.isSafeInteger(shape.reduce((n: number, d: number) => n * d, 8)))
    throw wrong(`weight ${name.slice(0, 60)} shape`, "sizes from 0 up", shape);
  if (typeof dtype !== "string" || (dtype !== "string" && !BYTES.has(dtype)))
    throw wrong(`weight ${name.slice(0, 60)} dtype`, "float32, int32, bool, string or complex64", dtype);
  if (quantization !== undefined) checkQuantization(quantization, name.slice(0, 60), dtype);
  return value as unknown as WeightEntry;
}

function checkQuantization(value: unknown, name: string, dtype: string): void {
  const where = `weight ${name} quantization`;
  if (!isObject(value)) throw wrong(where, "an object", value);
  const { dtype: stored, scale, min, bytes, rows } = value;
  if (stored === "uint8" || stored === "uint16") {
    if (dtype !== "float32" && dtype !== "int32") throw wrong(where, "a weight of float32 or int32", dtype);
    if (!Number.isFinite(scale)) throw wrong(`${where} scale`, "a number", scale);
    if (!Number.isFinite(min)) throw wrong(`${where} min`, "a number", min);
  } else if (stored === "float16" || stored === "lowbit") {
    if (dtype !== "float32") throw wrong(where, "a weight of float32", dtype);
    if (stored === "lowbit" && !(Number.isSafeInteger(bytes) && (bytes as number) > 0)) throw wrong(`${where} bytes`, "a size", bytes);
    if (stored === "lowbit" && rows !== 0 && rows !== 1) throw wrong(`${where} rows`, "0 or 1", rows);
  } else throw wrong(`${where} dtype`, "uint8, uint16, float16 or lowbit", stored);
}

/** A shard's name: a file beside model.json or below it, whatever the manifest says. */
function checkPath(path: unknown, where: string): string {
  if (typeof path !== "string" || path === "" || path.length > 1000) throw wrong(where, "the name of a file", path);
  const parts = path.split(/[/\\]/);
  if (parts.some((part) => part === ".." || part === "") || /^[a-z][a-z0-9+.-]*:/i.test(path) || path.includes("\0"))
    throw new LowbitError(
      "E_CONTAINER",
      `${where}: expected a file beside model.json, got ${path.slice(0, 60)}. A manifest must not lead elsewhere.`,
    );
  return path;
}

/** The groups of a manifest. @throws LowbitError E_CONTAINER */
export function manifestOf(json: Readonly<Record<string, unknown>>): ManifestGroup[] {
  const { weightsManifest } = json;
  if (!Array.isArray(weightsManifest)) throw wrong("model.json weightsManifest", "a list of groups of weights", weightsManifest);
  const names = new Set<string>();
  const files = new Set<string>();
  return weightsManifest.map((group: unknown, g) => {
    const where = `model.json weightsManifest[${g}]`;
    if (!isObject(group)) throw wrong(where, "an object of paths and weights", group);
    if (!Array.isArray(group.paths)) throw wrong(`${where} paths`, "a list of file names", group.paths);
    if (!Array.isArray(group.weights)) throw wrong(`${where} weights`, "a list of weights", group.weights);
    const weights = group.weights.map((entry: unknown, i) => entryOf(entry, `${where} weights[${i}]`));
    for (const { name } of weights) {
      if (names.has(name)) throw wrong(`${where} weights`, "names that differ", name);
      names.add(name);
    }
    const paths = group.paths.map((path: unknown, i) => checkPath(path, `${where} paths[${i}]`));
    for (const path of paths) {
      if (files.has(path)) throw wrong(`${where} paths`, "each file once", path);
      files.add(path);
    }
    return { paths, weights };
  });
}

export const sizeOf = (shape: readonly number[]): number => shape.reduce((n, d) => n * d, 1);

/** Bytes of a weight at `at`: strings say themselves how long they are. */
function lengthOf(entry: WeightEntry, bytes: Uint8Array, at: number): number {
  const { quantization, dtype, shape } = entry;
  if (quantization?.dtype === "lowbit") return quantization.bytes!;
  const count = sizeOf(shape);
  if (quantization !== undefined) return count * BYTES.get(quantization.dtype)!;
  if (dtype !== "string") return count * BYTES.get(dtype)!;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let length = 0;
  for (let i = 0; i < count; i++) {
    if (at + length + 4 > bytes.length) return Infinity;
    length += 4 + view.getUint32(at + length, true);
  }
  return length;
}

/** The weights of a group. @throws LowbitError E_CONTAINER where the bytes are not those that the entries need */
export function splitGroup({ weights, paths }: ManifestGroup, bytes: Uint8Array<ArrayBuffer>): StoredWeight[] {
  let at = 0;
  const stored = weights.map((entry) => {
    const length = lengthOf(entry, bytes, at);
    if (at + length > bytes.length)
      throw new LowbitError(
        "E_CONTAINER",
        `weight ${entry.name.slice(0, 60)}: expected ${length} bytes at ${at}, got a group of ${bytes.length}. ${paths.slice(0, 3).join(", ")}: is a file cut short?`,
      );
    const part = bytes.subarray(at, at + length);
    at += length;
    return { entry, bytes: part };
  });
  if (at !== bytes.length)
    throw new LowbitError(
      "E_CONTAINER",
      `${paths.slice(0, 3).join(", ")}: expected ${at} bytes for the weights, got ${bytes.length}. Do the files belong to this model.json?`,
    );
  return stored;
}

/** @throws LowbitError E_CONTAINER */
export function parseModelJson(text: string): Record<string, unknown> {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new LowbitError("E_CONTAINER", "model.json: expected JSON, got something else. Is it cut short?", { cause });
  }
  if (!isObject(json)) throw wrong("model.json", "an object", json);
  return json;
}

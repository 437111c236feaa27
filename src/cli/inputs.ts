// Inputs for `lowbit verify --inputs NAME=FILE.npy`: NumPy's .npy files, versions 1 to 3, little-endian, C order.
// Format: numpy/lib/format.py (NEP 1). Object arrays and big-endian data are refused.
import { readFileSync } from "node:fs";
import { LowbitError } from "../../formats/core/errors.ts";
import type { FeedTensor, Feeds } from "../onnx/verify/feeds.ts";
import { usageError } from "./spec.ts";

type NumberArray = new (buffer: ArrayBuffer) => FeedTensor["data"];

/** Element types by NumPy's descriptor. Float16 are codes. */
const TYPES: Readonly<Record<string, readonly [type: string, bytes: number, array: NumberArray]>> = {
  "<f4": ["float32", 4, Float32Array],
  "<f8": ["float64", 8, Float64Array],
  "<f2": ["float16", 2, Uint16Array],
  "<i8": ["int64", 8, BigInt64Array],
  "<i4": ["int32", 4, Int32Array],
  "<i2": ["int16", 2, Int16Array],
  "|i1": ["int8", 1, Int8Array],
  "<u8": ["uint64", 8, BigUint64Array],
  "<u4": ["uint32", 4, Uint32Array],
  "<u2": ["uint16", 2, Uint16Array],
  "|u1": ["uint8", 1, Uint8Array],
  "|b1": ["bool", 1, Uint8Array],
};

/** A tensor from the bytes of a .npy file. @throws LowbitError E_CONTAINER */
export function parseNpy(bytes: Uint8Array, label: string): FeedTensor {
  const bad = (expected: string, got: string): LowbitError =>
    new LowbitError("E_CONTAINER", `${label}: expected ${expected}, got ${got}. Write it with numpy.save.`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const magic = String.fromCharCode(...bytes.subarray(0, 6));
  if (magic !== "\x93NUMPY") throw bad("a .npy file", "another file type");
  const major = bytes.length >= 12 ? bytes[6] : 0;
  if (major < 1 || major > 3) throw bad(".npy version 1 to 3", major === 0 ? "a truncated file" : `version ${major}`);
  const start = major === 1 ? 10 : 12;
  const end = start + (major === 1 ? view.getUint16(8, true) : view.getUint32(8, true));
  if (end > bytes.length) throw bad(`a header of ${end} bytes`, `a file of ${bytes.length}`);
  const header = new TextDecoder().decode(bytes.subarray(start, end));
  const descr = /'descr':\s*'([^']*)'/.exec(header)?.[1];
  const order = /'fortran_order':\s*(True|False)/.exec(header)?.[1];
  const dimsText = /'shape':\s*\(([\d,\s]*)\)/.exec(header)?.[1];
  if (descr === undefined || order === undefined || dimsText === undefined)
    throw bad("descr, fortran_order and shape", JSON.stringify(header.slice(0, 80)));
  if (!Object.hasOwn(TYPES, descr)) throw bad(`one of ${Object.keys(TYPES).join(" ")}`, descr);
  if (order === "True") throw bad("C order", "Fortran order");
  const dims = dimsText
    .split(",")
    .filter((part) => part.trim() !== "")
    .map(Number);
  const [type, width, Data] = TYPES[descr];
  const length = dims.reduce((a, b) => a * b, 1) * width;
  if (bytes.length - end !== length) throw bad(`${length} bytes of data for shape (${dims.join(", ")})`, `${bytes.length - end}`);
  // A copy, own and aligned: a Buffer from a file may be a view of a pool.
  return { type, data: new Data(new Uint8Array(bytes.subarray(end)).buffer), dims };
}

/**
 * Feeds from NAME=FILE arguments: the i-th file of every name makes the i-th sample.
 * @throws LowbitError E_CLI, E_IO, E_CONTAINER
 */
export function readFeeds(args: readonly string[]): Feeds[] {
  const byName = new Map<string, FeedTensor[]>();
  for (const arg of args) {
    const [, name, path] = /^([^=]+)=(.+)$/s.exec(arg) ?? [];
    if (name === undefined)
      throw usageError(`--inputs: expected NAME=FILE.npy, got ${JSON.stringify(arg)}. NAME is an input of the model, see lowbit inspect.`);
    let bytes: Uint8Array;
    try {
      bytes = readFileSync(path);
    } catch (cause) {
      throw new LowbitError("E_IO", `${path}: expected to read a file, got ${(cause as Error).message}. Check --inputs.`, { cause });
    }
    byName.set(name, [...(byName.get(name) ?? []), parseNpy(bytes, path)]);
  }
  const samples = Math.max(...[...byName.values()].map((list) => list.length));
  for (const [name, list] of byName)
    if (list.length !== samples)
      throw usageError(
        `--inputs: expected ${samples} files for every input, got ${list.length} for ${name}. Give each sample all its inputs.`,
      );
  return Array.from({ length: samples }, (_, i) => Object.fromEntries([...byName].map(([name, list]) => [name, list[i]])));
}

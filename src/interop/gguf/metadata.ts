// The metadata of GGUF files: typed values, read from and written as bytes. Spec: ggml-org/ggml docs/gguf.md,
// include/gguf.h.
import { LowbitError } from "../../../formats/core/errors.ts";

/** Types of single values, by their number in the file. */
export const VALUE_TYPES = [
  "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string", "array", "uint64", "int64", "float64",
] as const; // prettier-ignore
/** Types of a GGUF file's metadata. */
export type GgufValueType = (typeof VALUE_TYPES)[number];

/** Text that is not UTF-8 stays bytes. */
export type GgufScalar = number | bigint | boolean | string | Uint8Array;
type NumberArray =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | BigUint64Array
  | BigInt64Array
  | Float64Array;

/** One value with its type, as it lies in the file. Numbers of an array are a typed array; other arrays are lists. */
export type GgufEntry =
  | { readonly type: Exclude<GgufValueType, "array">; readonly value: GgufScalar }
  | { readonly type: "array"; readonly of: GgufValueType; readonly value: NumberArray | readonly (GgufScalar | GgufEntry)[] };

/** A value for the writer: an entry, or what an entry is inferred from. */
export type GgufValue = GgufEntry | GgufScalar | NumberArray | readonly string[] | readonly number[] | readonly boolean[];

type ArrayType = new (buffer: ArrayBuffer) => NumberArray;
const ARRAYS: ReadonlyMap<GgufValueType, readonly [number, ArrayType]> = new Map<GgufValueType, readonly [number, ArrayType]>([
  ["uint8", [1, Uint8Array]],
  ["int8", [1, Int8Array]],
  ["uint16", [2, Uint16Array]],
  ["int16", [2, Int16Array]],
  ["uint32", [4, Uint32Array]],
  ["int32", [4, Int32Array]],
  ["float32", [4, Float32Array]],
  ["uint64", [8, BigUint64Array]],
  ["int64", [8, BigInt64Array]],
  ["float64", [8, Float64Array]],
]);

/** Thrown where the bytes at hand end: the reader fetches more and begins again. */
export const SHORT = Symbol("short");

/** The number of a type in the file. @throws LowbitError E_VALUE */
function typeIndex(type: GgufValueType, key: string): number {
  const index = VALUE_TYPES.indexOf(type);
  if (index >= 0) return index;
  throw new LowbitError("E_VALUE", `metadata ${key}: expected a type of ${VALUE_TYPES.join(", ")}, got ${String(type)}.`);
}

/** Arrays of arrays may lie this deep. */
const DEPTH = 4;

/** Reads a header from bytes that may end too early. `whole`: no more bytes exist, so that an early end is damage. */
export class HeaderCursor {
  at = 0;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #size: number;
  readonly #label: string;

  /** @param size bytes of the whole file: what cannot fit into it is refused before it is read */
  constructor(bytes: Uint8Array, size: number, label: string) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#size = size;
    this.#label = label;
  }

  bad(expected: string, got: string): LowbitError {
    return new LowbitError("E_CONTAINER", `${this.#label}: expected ${expected}, got ${got}. Is it a whole GGUF file?`);
  }

  /** Moves over n bytes; returns where they began. */
  #take(n: number, what: string): number {
    const from = this.at;
    if (!(n <= this.#size - from)) throw this.bad(`${what} inside the file`, `${n} bytes at ${from} of ${this.#size}`);
    if (from + n > this.#bytes.length) throw SHORT;
    this.at = from + n;
    return from;
  }

  u32(what: string): number {
    return this.#view.getUint32(this.#take(4, what), true);
  }
  /** A size: below 2^53. */
  size(what: string): number {
    const n = this.#view.getBigUint64(this.#take(8, what), true);
    if (n > BigInt(Number.MAX_SAFE_INTEGER)) throw this.bad(`a possible ${what}`, String(n));
    return Number(n);
  }
  /** A count of things of at least `least` bytes each. */
  count(what: string, least: number): number {
    const n = this.size(what);
    if (n * least > this.#size - this.at) throw this.bad(`a ${what} that fits into the file`, String(n));
    return n;
  }

  text(what: string): string | Uint8Array {
    const length = this.count(`length of ${what}`, 1);
    const from = this.#take(length, what);
    const bytes = this.#bytes.subarray(from, from + length);
    try {
      return decoder.decode(bytes);
    } catch {
      return bytes.slice();
    }
  }
  name(what: string): string {
    const text = this.text(what);
    if (typeof text !== "string") throw this.bad(`UTF-8 in ${what}`, "other bytes");
    return text;
  }

  type(): GgufValueType {
    const id = this.u32("type of a value");
    if (id >= VALUE_TYPES.length) throw this.bad(`a type of values 0 to ${VALUE_TYPES.length - 1}`, String(id));
    return VALUE_TYPES[id];
  }

  scalar(type: Exclude<GgufValueType, "array">): GgufScalar {
    if (type === "string") return this.text("a string");
    if (type === "bool") return this.#view.getInt8(this.#take(1, "a bool")) !== 0;
    const [bytes, Numbers] = ARRAYS.get(type)!;
    const from = this.#take(bytes, type);
    return new Numbers(this.#bytes.slice(from, from + bytes).buffer)[0];
  }

  entry(depth = 0): GgufEntry {
    const type = this.type();
    return type === "array" ? this.#array(depth) : { type, value: this.scalar(type) };
  }

  #array(depth: number): GgufEntry {
    if (depth >= DEPTH) throw this.bad(`arrays at most ${DEPTH} deep`, "deeper ones");
    const of = this.type();
    const numbers = ARRAYS.get(of);
    const count = this.count("length of an array", numbers?.[0] ?? (of === "string" ? 8 : of === "array" ? 12 : 1));
    if (numbers !== undefined) {
      const from = this.#take(count * numbers[0], "an array");
      return { type: "array", of, value: new numbers[1](this.#bytes.slice(from, from + count * numbers[0]).buffer) };
    }
    const value: (GgufScalar | GgufEntry)[] = [];
    for (let i = 0; i < count; i++) value.push(of === "array" ? this.#array(depth + 1) : this.scalar(of));
    return { type: "array", of, value };
  }
}

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

/** Bytes that grow. */
export class HeaderWriter {
  #bytes = new Uint8Array(1024);
  length = 0;

  #room(n: number): DataView {
    if (this.length + n > this.#bytes.length) {
      const next = new Uint8Array(Math.max(2 * this.#bytes.length, this.length + n));
      next.set(this.#bytes.subarray(0, this.length));
      this.#bytes = next;
    }
    this.length += n;
    return new DataView(this.#bytes.buffer, this.length - n, n);
  }
  u32(v: number): void {
    this.#room(4).setUint32(0, v, true);
  }
  u64(v: number): void {
    this.#room(8).setBigUint64(0, BigInt(v), true);
  }
  bytes(v: Uint8Array): void {
    const view = this.#room(v.length);
    this.#bytes.set(v, view.byteOffset);
  }
  text(v: string | Uint8Array): void {
    const bytes = typeof v === "string" ? encoder.encode(v) : v;
    this.u64(bytes.length);
    this.bytes(bytes);
  }
  pad(alignment: number): void {
    this.#room((alignment - (this.length % alignment)) % alignment);
  }
  done(): Uint8Array {
    return this.#bytes.subarray(0, this.length);
  }

  #scalar(type: GgufValueType, value: unknown, key: string): void {
    const bad = () =>
      new LowbitError("E_VALUE", `metadata ${key}: expected a value of type ${type}, got ${String(value).slice(0, 60)} (${typeof value}).`);
    if (type === "string") {
      if (typeof value !== "string" && !(value instanceof Uint8Array)) throw bad();
      this.text(value);
      return;
    }
    if (type === "bool") {
      if (typeof value !== "boolean") throw bad();
      this.#room(1).setInt8(0, value ? 1 : 0);
      return;
    }
    const [size, Numbers] = ARRAYS.get(type)!;
    const wide = type === "uint64" || type === "int64";
    if (typeof value !== (wide ? "bigint" : "number") && !(wide && Number.isSafeInteger(value))) throw bad();
    const one = new Numbers(new ArrayBuffer(size));
    one[0] = wide ? BigInt(value as number) : (value as number);
    if (!type.startsWith("float") && one[0] !== (wide ? BigInt(value as number) : value)) throw bad();
    this.bytes(new Uint8Array(one.buffer));
  }

  entry(entry: GgufEntry, key: string): void {
    this.u32(typeIndex(entry.type, key));
    if (entry.type === "array") this.#array(entry, key, 0);
    else this.#scalar(entry.type, entry.value, key);
  }

  #array(entry: GgufEntry & { type: "array" }, key: string, depth: number): void {
    // what the reader refuses is not written
    if (depth >= DEPTH) throw new LowbitError("E_VALUE", `metadata ${key}: expected arrays at most ${DEPTH} deep, got deeper ones.`);
    this.u32(typeIndex(entry.of, key));
    const list = entry.value as unknown;
    if (!Array.isArray(list) && !ArrayBuffer.isView(list))
      throw new LowbitError("E_VALUE", `metadata ${key}: expected an array of ${entry.of}, got ${String(list).slice(0, 60)}.`);
    this.u64(entry.value.length);
    const numbers = ARRAYS.get(entry.of);
    if (numbers !== undefined && entry.value instanceof numbers[1]) {
      this.bytes(new Uint8Array(entry.value.buffer, entry.value.byteOffset, entry.value.byteLength));
      return;
    }
    for (const value of entry.value as readonly unknown[])
      if (entry.of === "array") this.#array(value as GgufEntry & { type: "array" }, key, depth + 1);
      else this.#scalar(entry.of, value, key);
  }
}

/**
 * The entry that a value stands for: text, booleans, numbers (uint32, int32 below zero, float32 for others), bigints
 * (uint64, int64), typed arrays by their type, lists of text, booleans or numbers.
 * @throws LowbitError E_VALUE for what none of these is
 */
export function entryOf(value: GgufValue, key: string): GgufEntry {
  const one = (v: unknown): Exclude<GgufValueType, "array"> | undefined => {
    if (typeof v === "string") return "string";
    if (typeof v === "boolean") return "bool";
    if (typeof v === "bigint") return v < 0n ? "int64" : "uint64";
    if (typeof v !== "number") return undefined;
    if (!Number.isInteger(v)) return "float32";
    return v >= 0 && v < 2 ** 32 ? "uint32" : v >= -(2 ** 31) && v < 0 ? "int32" : v < 0 ? "int64" : "uint64";
  };
  const type = one(value);
  if (type !== undefined) return { type, value: value as GgufScalar };
  for (const [of, [, Numbers]] of ARRAYS) if (value instanceof Numbers) return { type: "array", of, value };
  if (Array.isArray(value)) {
    const list = value as readonly unknown[];
    const types = new Set(list.map(one));
    const numbers = list.every((v) => typeof v === "number");
    const of =
      numbers && types.size > 1
        ? types.has("float32")
          ? "float32"
          : types.has("uint64") || types.has("int64")
            ? "int64"
            : "int32"
        : one(list[0]);
    if (list.length === 0) return { type: "array", of: "string", value: [] };
    if (of !== undefined && (numbers || types.size === 1)) return { type: "array", of, value: list as GgufScalar[] };
  }
  if (typeof value === "object" && value !== null && "type" in value && VALUE_TYPES.includes(value.type)) return value;
  throw new LowbitError(
    "E_VALUE",
    `metadata ${key}: expected text, a number, a boolean, a bigint, a list of one of them, or { type, value }, got ${Object.prototype.toString.call(value)}.`,
  );
}

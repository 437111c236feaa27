// Where bytes come from: a path (Node), a Blob or File, bytes, or anything that reads ranges (HTTP ranges, OPFS).
// Readers of this folder ask for the ranges that they need, never for the whole.
import { LowbitError } from "../../formats/core/errors.ts";
import { disk } from "../files/calls.ts";
import { writeFiles } from "../files/commit.ts";
import { openFile, readUpTo } from "../files/open.ts";
import { checkOutput, outputPath } from "../files/outputs.ts";

/** Reads ranges of something of known size. */
export interface RangeReader {
  /** Bytes in all. */
  readonly size: number;
  /** Exactly `length` bytes from `at` on. */
  read(at: number, length: number): Promise<Uint8Array>;
  close?(): Promise<void>;
}

/** A path (Node only), bytes, a Blob, or a reader of ranges. */
export type ByteSource = string | Uint8Array | ArrayBuffer | Blob | RangeReader;

/** An opened source: reads are inside it, and complete. */
export interface OpenSource {
  /** What messages call it. */
  readonly label: string;
  readonly size: number;
  read(at: number, length: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

const isBlob = (x: unknown): x is Blob => typeof Blob !== "undefined" && x instanceof Blob;
const isReader = (x: unknown): x is RangeReader =>
  typeof x === "object" && x !== null && typeof (x as RangeReader).read === "function" && typeof (x as RangeReader).size === "number";

/**
 * Opens a source. @param what what it should be, for messages: "GGUF file"
 * @throws LowbitError E_IO where a path cannot be read; TypeError for what is no source
 */
export async function openSource(source: ByteSource, what: string): Promise<OpenSource> {
  if (typeof source === "string") return openPath(source);
  if (source instanceof ArrayBuffer) return fromBytes(new Uint8Array(source), what);
  if (source instanceof Uint8Array) return fromBytes(source, what);
  if (isBlob(source)) return checked(what, source.size, async (at, n) => new Uint8Array(await source.slice(at, at + n).arrayBuffer()));
  if (!isReader(source))
    throw new TypeError(
      `${what}: expected a path, bytes, a Blob or { size, read(at, length) }, got ${source === null ? "null" : typeof source}.`,
    );
  if (!Number.isSafeInteger(source.size) || source.size < 0)
    throw new RangeError(`${what}: expected a reader with a size of bytes, got ${source.size}.`);
  return checked(
    what,
    source.size,
    (at, n) => source.read(at, n),
    () => source.close?.(),
  );
}

const fromBytes = (bytes: Uint8Array, what: string): OpenSource =>
  checked(what, bytes.length, (at, n) => Promise.resolve(bytes.subarray(at, at + n)));

function openPath(path: string): OpenSource {
  const { fd, stat } = openFile(path);
  const read = (at: number, length: number): Promise<Uint8Array> => {
    const out = new Uint8Array(length);
    return Promise.resolve(out.subarray(0, readUpTo(fd, out, length, at, path)));
  };
  return checked(path, Number(stat.size), read, () => Promise.resolve(disk.close(fd)));
}

function checked(
  label: string,
  size: number,
  read: (at: number, length: number) => Promise<Uint8Array>,
  close?: () => Promise<void> | undefined,
): OpenSource {
  let closed = false;
  return {
    label,
    size,
    async read(at, length) {
      if (closed) throw new LowbitError("E_DISPOSED", `${label}: expected an open file, got one that was closed. Open it again.`);
      if (!(at >= 0 && length >= 0 && at + length <= size))
        throw new LowbitError("E_CONTAINER", `${label}: expected ${length} bytes at ${at}, got a file of ${size}. Is the file whole?`);
      const bytes = await read(at, length);
      if (bytes.length !== length)
        throw new LowbitError(
          "E_IO",
          `${label}: expected ${length} bytes at ${at}, got ${bytes.length}. Did the file change while it was read?`,
        );
      // a Buffer's slice is a view of it: readers here take copies by it
      return new Uint8Array(bytes.buffer, bytes.byteOffset, length);
    },
    // once: the descriptor may be another file's by now
    async close() {
      if (closed) return;
      closed = true;
      await close?.();
    },
  };
}

/**
 * Writes a file from pieces: it is there when whole, and never half. A file that it replaces leaves its permissions.
 * @throws LowbitError E_IO, E_EXISTS where the file is there and `force` is not given
 */
export async function writeFileWhole(path: string, pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array>, force = false): Promise<void> {
  checkOutput(path, [], force);
  await writeFiles([{ path: outputPath(path), chunks: () => pieces }], force);
}

// Where bytes come from: a path (Node), a Blob or File, bytes, or anything that reads ranges (HTTP ranges, OPFS). Readers of this folder ask for the
// ranges that they need, never for the whole.
import { LowbitError } from "../../formats/core/errors.ts";
import { nodeFiles } from "./node.ts";

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

async function openPath(path: string): Promise<OpenSource> {
  const failed = (cause: unknown) =>
    new LowbitError("E_IO", `${path}: expected to read it, got ${(cause as Error).message}. Check the path.`, { cause });
  let file: Awaited<ReturnType<ReturnType<typeof nodeFiles>["open"]>>;
  try {
    file = await nodeFiles().open(path, "r");
  } catch (cause) {
    throw failed(cause);
  }
  let size: number;
  try {
    const stat = await file.stat();
    if (!stat.isFile()) throw new Error("a folder or device, not a file");
    size = stat.size;
  } catch (cause) {
    await file.close();
    throw failed(cause);
  }
  const read = async (at: number, length: number): Promise<Uint8Array> => {
    const out = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const { bytesRead } = await file.read(out, done, Math.min(length - done, 2 ** 30), at + done);
      if (bytesRead === 0) return out.subarray(0, done);
      done += bytesRead;
    }
    return out;
  };
  return checked(path, size, read, () => file.close());
}

function checked(
  label: string,
  size: number,
  read: (at: number, length: number) => Promise<Uint8Array>,
  close?: () => Promise<void> | undefined,
): OpenSource {
  return {
    label,
    size,
    async read(at, length) {
      if (!(at >= 0 && length >= 0 && at + length <= size))
        throw new LowbitError("E_CONTAINER", `${label}: expected ${length} bytes at ${at}, got a file of ${size}. Is the file whole?`);
      const bytes = await read(at, length);
      if (bytes.length !== length)
        throw new LowbitError(
          "E_IO",
          `${label}: expected ${length} bytes at ${at}, got ${bytes.length}. Did the file change while it was read?`,
        );
      return bytes;
    },
    close: async () => close?.(),
  };
}

/**
 * Writes a file from pieces: under a temporary name in the same folder, renamed when whole, removed on any failure.
 * @throws LowbitError E_IO, E_EXISTS where the file is there and `force` is not given
 */
export async function writeFileWhole(path: string, pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array>, force = false): Promise<void> {
  const fs = nodeFiles();
  if (!force && (await fs.stat(path).catch(() => undefined)) !== undefined)
    throw new LowbitError("E_EXISTS", `${path}: expected a new file, got one that exists. Pass force to overwrite it.`);
  const temporary = `${path}.${Math.random().toString(36).slice(2, 10)}.tmp`;
  let file: Awaited<ReturnType<ReturnType<typeof nodeFiles>["open"]>>;
  try {
    file = await fs.open(temporary, "wx");
  } catch (cause) {
    throw new LowbitError("E_IO", `${path}: expected to write it, got ${(cause as Error).message}. Check the folder.`, { cause });
  }
  try {
    try {
      for await (const piece of pieces)
        for (let at = 0; at < piece.length; at += 2 ** 30) await file.appendFile(piece.subarray(at, Math.min(piece.length, at + 2 ** 30)));
      await file.sync();
    } finally {
      await file.close();
    }
    await fs.rename(temporary, path);
  } catch (cause) {
    await fs.rm(temporary, { force: true });
    if (cause instanceof Error && "code" in cause && typeof cause.code === "string" && !cause.code.startsWith("E_"))
      throw new LowbitError("E_IO", `${path}: expected to write it, got ${cause.message}. Is the disk full?`, { cause });
    throw cause;
  }
}

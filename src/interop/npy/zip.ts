// Zip archives as .npz files are: entries stored or deflated, zip64, checksums. Format: PKWARE APPNOTE 4.3. Not here:
// encryption, other compressions, several disks.
import { LowbitError } from "../../../formats/core/errors.ts";

/** One file of an archive. */
export interface ZipEntry {
  readonly name: string;
  readonly method: number;
  readonly crc: number;
  /** Bytes in the archive, and unpacked. */
  readonly packed: number;
  readonly size: number;
  /** Where its local header begins. */
  readonly local: number;
}

/** Reads of an archive; `read` gives exactly what is asked for. */
export interface ZipSource<R> {
  readonly size: number;
  read(at: number, length: number): R;
}

const bad = (label: string, expected: string, got: string, cause?: unknown): LowbitError =>
  new LowbitError("E_CONTAINER", `${label}: expected ${expected}, got ${got}. Write it with numpy.savez.`, { cause });
const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** Files of an archive may not say that they are larger than this: one of a few bytes could ask for any memory. */
const ENTRY_MAX = 2 ** 31 - 1;
/** The end record, and the comment of up to 64 KiB behind it; the locator of zip64 before it. */
export const TAIL = 22 + 65535 + 20;
const DIRECTORY_MAX = 1 << 28;

/** Where the directory is. */
export interface Directory {
  readonly at: number;
  readonly length: number;
  readonly count: number;
  /** Where the record of zip64 begins, which says the same in 64 bits. */
  readonly zip64?: number;
}

/** The end record from the last bytes of an archive, which begin at `from`. */
export function findDirectory(tail: Uint8Array, from: number, label: string): Directory {
  const view = viewOf(tail);
  const least = Math.max(0, tail.length - 22 - 65535);
  let end = tail.length - 22;
  while (end >= least && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < least) throw bad(label, "a .npz file (zip)", "no zip directory");
  const directory = { count: view.getUint16(end + 10, true), length: view.getUint32(end + 12, true), at: view.getUint32(end + 16, true) };
  const wide = directory.count === 0xffff || directory.length === 0xffffffff || directory.at === 0xffffffff;
  if (!wide || end < 20 || view.getUint32(end - 20, true) !== 0x07064b50) return directory;
  const zip64 = Number(view.getBigUint64(end - 12, true));
  if (zip64 + 56 > from + end) throw bad(label, "a zip64 record before the end", `one at ${zip64}`);
  return { ...directory, zip64 };
}

/** The directory by the 56 bytes of a zip64 record. */
export function wideDirectory(record: Uint8Array, label: string): Directory {
  const view = viewOf(record);
  if (view.getUint32(0, true) !== 0x06064b50) throw bad(label, "a zip64 record", "none");
  const [count, length, at] = [32, 40, 48].map((offset) => Number(view.getBigUint64(offset, true)));
  return { count, length, at };
}

/** @throws LowbitError E_CONTAINER */
export function checkDirectory({ at, length }: Directory, size: number, label: string): void {
  if (at + length > size || length > DIRECTORY_MAX) throw bad(label, "a directory inside the file", `${length} bytes at ${at} of ${size}`);
}

/** The entries of a directory. @throws LowbitError E_CONTAINER */
export function parseDirectory(bytes: Uint8Array, count: number, size: number, label: string): ZipEntry[] {
  const view = viewOf(bytes);
  const out: ZipEntry[] = [];
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (at + 46 > bytes.length || view.getUint32(at, true) !== 0x02014b50) throw bad(label, `${count} entries`, `${i} whole ones`);
    let [packed, full, local] = [20, 24, 42].map((offset) => view.getUint32(at + offset, true));
    const [nameLength, extraLength, commentLength] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const extraAt = at + 46 + nameLength;
    const next = extraAt + extraLength + commentLength;
    if (next > bytes.length) throw bad(label, `${count} entries`, `a directory that ends in entry ${i + 1}`);
    const name = new TextDecoder().decode(bytes.subarray(at + 46, extraAt));
    // Sizes of 64 bits stand in an extra field.
    for (let extra = extraAt; extra + 4 <= extraAt + extraLength; extra += 4 + view.getUint16(extra + 2, true)) {
      if (view.getUint16(extra, true) !== 1) continue;
      let field = extra + 4;
      const wide = (value: number): number => {
        if (value !== 0xffffffff || field + 8 > extraAt + extraLength) return value;
        field += 8;
        return Number(view.getBigUint64(field - 8, true));
      };
      full = wide(full);
      packed = wide(packed);
      local = wide(local);
    }
    if (view.getUint16(at + 8, true) & 1) throw bad(label, "plain entries", `${name}, which is encrypted`);
    if (local + 30 > size || local + 30 + packed > size || full > ENTRY_MAX) throw bad(label, `room for ${name}`, "a damaged directory");
    out.push({ name, method: view.getUint16(at + 10, true), crc: view.getUint32(at + 16, true), packed, size: full, local });
    at = next;
  }
  return out;
}

/** Where the data of an entry begin, from the 30 bytes of its local header. */
export function dataOffset(entry: ZipEntry, header: Uint8Array, size: number, label: string): number {
  const view = viewOf(header);
  const from = entry.local + 30 + view.getUint16(26, true) + view.getUint16(28, true);
  if (view.getUint32(0, true) !== 0x04034b50 || from + entry.packed > size)
    throw bad(label, `room for ${entry.name}`, "a damaged directory");
  return from;
}

interface Zlib {
  inflateRawSync(bytes: Uint8Array, options: { maxOutputLength: number }): Uint8Array;
  deflateRawSync(bytes: Uint8Array): Uint8Array;
}
const zlib = (): Zlib | undefined =>
  (globalThis as { process?: { getBuiltinModule?: (id: string) => unknown } }).process?.getBuiltinModule?.("node:zlib") as Zlib | undefined;

/** Checks what an entry unpacked to. */
function whole(entry: ZipEntry, data: Uint8Array, label: string): Uint8Array {
  if (data.length !== entry.size) throw bad(label, `${entry.size} bytes of ${entry.name}`, `${data.length}`);
  if (crc32(data) !== entry.crc) throw bad(label, `the checksum of ${entry.name}`, "another: the file is damaged");
  return data;
}

/** The bytes of an entry at once: stored ones anywhere, deflated ones in Node. @throws LowbitError E_CONTAINER */
export function unpackEntry(entry: ZipEntry, raw: Uint8Array, label: string): Uint8Array {
  if (entry.method === 0) return whole(entry, raw, label);
  if (entry.method !== 8) throw bad(label, "stored or deflated arrays", `compression method ${entry.method}`);
  const node = zlib();
  if (node === undefined)
    throw new LowbitError("E_UNSUPPORTED", `${label}: expected Node to unpack ${entry.name} at once, got a browser. Use readNpz.`);
  let data: Uint8Array;
  try {
    data = node.inflateRawSync(raw, { maxOutputLength: Math.max(1, entry.size) });
  } catch (cause) {
    throw bad(label, `${entry.size} bytes of ${entry.name}`, (cause as Error).message, cause);
  }
  return whole(entry, data, label);
}

/** The same anywhere: by DecompressionStream where there is no zlib. */
export async function unpackEntryAsync(entry: ZipEntry, raw: Uint8Array, label: string): Promise<Uint8Array> {
  if (entry.method !== 8 || zlib() !== undefined) return unpackEntry(entry, raw, label);
  const out = new Uint8Array(entry.size);
  let at = 0;
  try {
    const stream = new Blob([Uint8Array.from(raw)]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    for (const reader = stream.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      if (at + value.length > out.length) throw new Error(`more than ${entry.size}`);
      out.set(value, at);
      at += value.length;
    }
  } catch (cause) {
    throw bad(label, `${entry.size} bytes of ${entry.name}`, (cause as Error).message, cause);
  }
  return whole(entry, out.subarray(0, at), label);
}

/** Bytes deflated. */
export async function deflate(bytes: Uint8Array): Promise<Uint8Array> {
  const node = zlib();
  if (node !== undefined) return node.deflateRawSync(bytes);
  return new Uint8Array(
    await new Response(new Blob([Uint8Array.from(bytes)]).stream().pipeThrough(new CompressionStream("deflate-raw"))).arrayBuffer(),
  );
}

let table: Uint32Array | undefined;

/** CRC-32 of zip files (polynomial 0xedb88320). */
export function crc32(bytes: Uint8Array): number {
  table ??= Uint32Array.from({ length: 256 }, (_, n) => {
    let c = n;
    for (let k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
    return c;
  });
  let c = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) c = table[(c ^ bytes[i]) & 255] ^ (c >>> 8);
  return ~c >>> 0;
}

/** An entry to write: its bytes as they go into the archive. */
export interface NewEntry {
  readonly name: string;
  readonly method: 0 | 8;
  readonly crc: number;
  readonly size: number;
  readonly data: Uint8Array;
}

const WIDE = 0xffffffff;

/** The pieces of an archive, one after the other; zip64 where something passes 32 bits, or always with `zip64`. */
export async function* zipPieces(entries: AsyncIterable<NewEntry>, zip64 = false): AsyncGenerator<Uint8Array> {
  const directory: Uint8Array[] = [];
  let at = 0;
  for await (const entry of entries) {
    const name = new TextEncoder().encode(entry.name);
    const wide = zip64 || entry.size >= WIDE || entry.data.length >= WIDE || at >= WIDE;
    const record = (central: boolean): Uint8Array => {
      const extra = wide ? (central ? 28 : 20) : 0;
      const fixed = central ? 46 : 30;
      const out = new Uint8Array(fixed + name.length + extra);
      const view = viewOf(out);
      view.setUint32(0, central ? 0x02014b50 : 0x04034b50, true);
      const p = central ? 6 : 4;
      if (central) view.setUint16(4, wide ? 45 : 20, true);
      view.setUint16(p, wide ? 45 : 20, true);
      view.setUint16(p + 2, 0x800, true); // names are UTF-8
      view.setUint16(p + 4, entry.method, true);
      view.setUint16(p + 8, 0x21, true); // 1 January 1980: the same bytes every time
      view.setUint32(p + 10, entry.crc, true);
      view.setUint32(p + 14, wide ? WIDE : entry.data.length, true);
      view.setUint32(p + 18, wide ? WIDE : entry.size, true);
      view.setUint16(p + 22, name.length, true);
      view.setUint16(p + 24, extra, true);
      if (central) view.setUint32(42, wide ? WIDE : at, true);
      out.set(name, fixed);
      if (wide) {
        const e = fixed + name.length;
        view.setUint16(e, 1, true);
        view.setUint16(e + 2, extra - 4, true);
        view.setBigUint64(e + 4, BigInt(entry.size), true);
        view.setBigUint64(e + 12, BigInt(entry.data.length), true);
        if (central) view.setBigUint64(e + 20, BigInt(at), true);
      }
      return out;
    };
    const header = record(false);
    directory.push(record(true));
    yield header;
    yield entry.data;
    at += header.length + entry.data.length;
  }
  yield* directory;
  yield endOf(directory, at, zip64);
}

function endOf(directory: readonly Uint8Array[], at: number, zip64: boolean): Uint8Array {
  const length = directory.reduce((n, part) => n + part.length, 0);
  const count = directory.length;
  const wide = zip64 || count >= 0xffff || at >= WIDE || length >= WIDE;
  const out = new Uint8Array(22 + (wide ? 76 : 0));
  const view = viewOf(out);
  const end = out.length - 22;
  if (wide) {
    view.setUint32(0, 0x06064b50, true);
    view.setBigUint64(4, 44n, true);
    view.setUint16(12, 45, true);
    view.setUint16(14, 45, true);
    for (const [offset, value] of [[24, count], [32, count], [40, length], [48, at]]) view.setBigUint64(offset, BigInt(value), true); // prettier-ignore
    view.setUint32(56, 0x07064b50, true);
    view.setBigUint64(64, BigInt(at + length), true);
    view.setUint32(72, 1, true);
  }
  view.setUint32(end, 0x06054b50, true);
  view.setUint16(end + 8, wide ? 0xffff : count, true);
  view.setUint16(end + 10, wide ? 0xffff : count, true);
  view.setUint32(end + 12, wide ? WIDE : length, true);
  view.setUint32(end + 16, wide ? WIDE : at, true);
  return out;
}

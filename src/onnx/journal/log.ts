// A log of records in one file: the journal of a run, a shard, sums of calibration. Records are only ever added at the
// end, each with its own checksum, so that a run that was killed leaves whole records and at most one torn one, which
// the next run cuts off.
//   file    magic (8 bytes), records
//   record  bytes of the JSON (uint32), bytes of the data (uint64), JSON, data, SHA-256 of all that
import type * as NodeCrypto from "node:crypto";
import { LowbitError } from "../../../formats/core/errors.ts";
import { codeOf, disk, fileConstants, ioError, nodeCrypto, nodePath } from "../../files/calls.ts";
import { writeAll } from "../../files/commit.ts";
import { openFile, readUpTo } from "../../files/open.ts";

const MAGIC = "LOWBLOG1";
const HEAD = 12;
const SUM = 32;
/** No JSON of ours is larger. */
const JSON_MAX = 64 << 20;
/** Bytes that may be lost to a power cut: a sync takes milliseconds, so small records share one. */
const SYNC_EVERY = 16 << 20;
/** Bytes of a record that are read at a time for its checksum. */
const CHUNK = 1 << 20;

/** What a record says of itself. */
export type RecordMeta = Readonly<Record<string, unknown>> & { readonly kind: string };

export interface LogRecord {
  readonly meta: RecordMeta;
  readonly at: number;
  readonly jsonBytes: number;
  readonly dataBytes: number;
  /** SHA-256, hexadecimal. */
  readonly sum: string;
}

export interface Log {
  readonly path: string;
  readonly records: readonly LogRecord[];
  /** Adds a record. @throws LowbitError E_IO */
  add(meta: RecordMeta, parts?: readonly Uint8Array[]): LogRecord;
  /**
   * The data of a record, its checksum looked at again.
   * @throws LowbitError E_CONTAINER where another process wrote over it
   */
  data(record: LogRecord): Uint8Array<ArrayBuffer>;
  /** Makes all that was added last. */
  sync(): void;
  close(): void;
}

const sha = (): NodeCrypto.Hash => nodeCrypto().createHash("sha256");

const foreign = (path: string): LowbitError =>
  new LowbitError("E_CONTAINER", `${path}: expected a file that lowbit wrote, got another. Name another output, or move that file away.`);

/** Reads the records of an open file; what follows the last whole one is torn. */
function scan(fd: number, path: string, size: number): { records: LogRecord[]; end: number } {
  const magic = new Uint8Array(MAGIC.length);
  const got = readUpTo(fd, magic, magic.length, 0, path);
  const text = new TextDecoder().decode(magic.subarray(0, got));
  if (!MAGIC.startsWith(text)) throw foreign(path);
  if (got < magic.length) return { records: [], end: 0 };
  const records: LogRecord[] = [];
  const head = new Uint8Array(HEAD);
  let at = MAGIC.length;
  for (;;) {
    if (readUpTo(fd, head, HEAD, at, path) < HEAD) break;
    const view = new DataView(head.buffer);
    const [jsonBytes, dataBytes] = [view.getUint32(0, true), Number(view.getBigUint64(4, true))];
    if (jsonBytes > JSON_MAX || at + HEAD + jsonBytes + dataBytes + SUM > size) break;
    const record = { at, jsonBytes, dataBytes };
    const sum = wholeSum(fd, path, record);
    if (sum === undefined) break;
    const json = new Uint8Array(jsonBytes);
    readUpTo(fd, json, jsonBytes, at + HEAD, path);
    records.push({ ...record, sum, meta: JSON.parse(new TextDecoder().decode(json)) as RecordMeta });
    at += HEAD + jsonBytes + dataBytes + SUM;
  }
  return { records, end: at };
}

/** The checksum of a record, where it fits. */
function wholeSum(fd: number, path: string, { at, jsonBytes, dataBytes }: Omit<LogRecord, "meta" | "sum">): string | undefined {
  const hash = sha();
  const length = HEAD + jsonBytes + dataBytes;
  const chunk = new Uint8Array(Math.min(length, CHUNK));
  for (let done = 0; done < length;) {
    const got = readUpTo(fd, chunk, Math.min(chunk.length, length - done), at + done, path);
    if (got === 0) return undefined;
    hash.update(chunk.subarray(0, got));
    done += got;
  }
  const sum = new Uint8Array(SUM);
  const found = hash.digest();
  return readUpTo(fd, sum, SUM, at + length, path) === SUM && found.equals(sum) ? found.toString("hex") : undefined;
}

/**
 * Opens a log to add to it: a new one, or with `resume` what is there. A torn end is cut off.
 * @param lasting false: it need not survive a power cut
 * @throws LowbitError E_IO, E_CONTAINER where the file is none of ours
 */
export function openLog(path: string, resume: boolean, lasting = true): Log {
  const { O_RDWR, O_CREAT, O_TRUNC, O_NOFOLLOW = 0 } = fileConstants();
  let fd: number;
  try {
    fd = disk.open(path, O_RDWR | O_CREAT | O_NOFOLLOW | (resume ? 0 : O_TRUNC), 0o666);
  } catch (cause) {
    throw ioError("write a file", path, cause);
  }
  try {
    const found = scan(fd, path, Number(disk.fstat(fd).size));
    disk.ftruncate(fd, found.end);
    return logOf(fd, path, found.records, found.end, lasting);
  } catch (error) {
    disk.close(fd);
    throw /^E[A-Z]+$/.test(codeOf(error)) && !codeOf(error).startsWith("E_") ? ioError("write a file", path, error) : error;
  }
}

/** Opens a log that is finished. @throws LowbitError E_IO, E_CONTAINER */
export function readLog(path: string): Log {
  const { fd, stat } = openFile(path);
  try {
    const { records, end } = scan(fd, path, Number(stat.size));
    return logOf(fd, path, records, end);
  } catch (error) {
    disk.close(fd);
    throw error;
  }
}

function logOf(fd: number, path: string, records: LogRecord[], from: number, lasting = true): Log {
  let end = from;
  let unsynced = 0;
  const put = (bytes: Uint8Array): void => {
    writeAll(fd, bytes, path, end);
    end += bytes.length;
    unsynced += bytes.length;
  };
  const sync = (): void => {
    try {
      disk.fsync(fd);
    } catch (cause) {
      throw ioError("write a file", path, cause);
    }
    unsynced = 0;
  };
  return {
    path,
    records,
    add(meta, parts = []) {
      if (end === 0) put(new TextEncoder().encode(MAGIC));
      const json = new TextEncoder().encode(JSON.stringify(meta));
      const dataBytes = parts.reduce((sum, part) => sum + part.length, 0);
      const head = new Uint8Array(HEAD);
      const view = new DataView(head.buffer);
      view.setUint32(0, json.length, true);
      view.setBigUint64(4, BigInt(dataBytes), true);
      const at = end;
      const hash = sha();
      for (const bytes of [head, json, ...parts]) {
        hash.update(bytes);
        put(bytes);
      }
      const sum = hash.digest();
      put(sum);
      const record: LogRecord = { meta, at, jsonBytes: json.length, dataBytes, sum: sum.toString("hex") };
      if (lasting && unsynced >= SYNC_EVERY) sync();
      records.push(record);
      return record;
    },
    data(record) {
      const { at, jsonBytes, dataBytes } = record;
      const data = new Uint8Array(dataBytes);
      if (readUpTo(fd, data, dataBytes, at + HEAD + jsonBytes, path) < dataBytes || wholeSum(fd, path, record) === undefined)
        throw new LowbitError(
          "E_CONTAINER",
          `${path}: expected the record that was written at ${at}, got other bytes. Does another run write to it? Run again when it has ended.`,
        );
      return data;
    },
    sync,
    close: () => disk.close(fd),
  };
}

/** The folder and the last name of a path. */
export const splitPath = (path: string): { folder: string; name: string } => ({
  folder: nodePath().dirname(path),
  name: nodePath().basename(path),
});

// Byte sources over files (src/files/open.ts opens them). At the end `check` says whether one changed in between.
import type { BigIntStats } from "node:fs";
import { LowbitError } from "../../../../formats/core/errors.ts";
import { disk, idOf, ioError, statOf } from "../../../files/calls.ts";
import { openFile, readUpTo } from "../../../files/open.ts";
import type { ByteSource } from "../source.ts";

/** Open files of one operation; `close` closes them all. */
export interface FileSet {
  /** Opens a regular file. With `real`, the path must lead to itself, through no link, also after it was opened. */
  open(path: string, real?: boolean): ByteSource;
  /** @throws LowbitError E_IO where a file was changed or replaced since it was opened */
  check(): void;
  close(): void;
}

interface OpenFile {
  readonly fd: number;
  readonly stat: BigIntStats;
  readonly source: ByteSource;
}

/** Reads exactly `length` bytes. */
export function readAll(fd: number, into: Uint8Array, length: number, offset: number, path: string): void {
  const done = readUpTo(fd, into, length, offset, path);
  if (done < length)
    throw new LowbitError("E_ONNX", `${path}: expected ${length} bytes at ${offset}, got ${done}. The file is truncated or being written.`);
}

function fileSource(fd: number, size: number, path: string): ByteSource {
  return {
    size,
    label: path,
    fd,
    read(offset, length, into) {
      // Memory of its own, so that views of it are aligned and freed together.
      const bytes = into !== undefined && into.length >= length ? into : Buffer.allocUnsafeSlow(length);
      readAll(fd, bytes, length, offset, path);
      return new Uint8Array(bytes.buffer, bytes.byteOffset, length);
    },
  };
}

export function fileSet(): FileSet {
  const open = new Map<string, OpenFile>();
  return {
    open(path, real = false) {
      const known = open.get(path);
      if (known !== undefined) return known.source;
      const { fd, stat } = openFile(path, real);
      const file = { fd, stat, source: fileSource(fd, Number(stat.size), path) };
      open.set(path, file);
      return file.source;
    },
    check() {
      for (const [path, { fd, stat }] of open) {
        let now: BigIntStats;
        try {
          now = disk.fstat(fd);
        } catch (cause) {
          throw ioError("read a file", path, cause);
        }
        const there = statOf(path);
        const got =
          now.size !== stat.size
            ? `${now.size} bytes where it had ${stat.size}`
            : now.mtimeNs !== stat.mtimeNs
              ? "a later time of its last change"
              : there === undefined
                ? "no file of that name any more"
                : idOf(there) !== idOf(stat)
                  ? "another file in its place"
                  : undefined;
        if (got !== undefined) {
          throw new LowbitError(
            "E_IO",
            `${path}: expected a file that stays as it is while it is read, got ${got}. Nothing was written; run again.`,
          );
        }
      }
    },
    close() {
      for (const { fd } of open.values()) {
        try {
          disk.close(fd);
        } catch {
          // It was only read: nothing is lost.
        }
      }
      open.clear();
    },
  };
}

/** @throws LowbitError E_IO */
export function fileSize(path: string): number {
  try {
    return Number(disk.stat(path).size);
  } catch (cause) {
    throw ioError("look at a file", path, cause);
  }
}

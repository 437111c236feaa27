// Byte sources over files. A file is looked at before it is opened, opened without waiting (a FIFO would wait for its
// writer for ever), and looked at again through the descriptor: what is read is what was checked. At the end `check`
// says whether it changed in between.
import type { BigIntStats } from "node:fs";
import { LowbitError, isLowbitError } from "../../../../formats/core/errors.ts";
import type { ByteSource } from "../source.ts";
import { disk, fileConstants, idOf, ioError, kindOfFile, statOf } from "./calls.ts";

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

function refuseKind(path: string, stat: BigIntStats): void {
  if (!stat.isFile()) {
    throw new LowbitError(
      "E_IO",
      `${path}: expected to read a file, got ${kindOfFile(stat)}. Pass a regular file; copy a stream to one first.`,
    );
  }
}

const swapped = (path: string): LowbitError =>
  new LowbitError(
    "E_IO",
    `${path}: expected one file while it is opened, got another in its place. Run again when nothing else writes there.`,
  );

/** The path by which the system knows an open file, where it says so (Linux). */
function pathOfDescriptor(fd: number): string | undefined {
  try {
    return disk.readlink(`/proc/self/fd/${fd}`);
  } catch {
    return undefined;
  }
}

function openChecked(path: string, real: boolean): { fd: number; stat: BigIntStats } {
  const constants = fileConstants();
  const flags = constants.O_RDONLY | (constants.O_NONBLOCK ?? 0) | (constants.O_NOCTTY ?? 0) | (real ? (constants.O_NOFOLLOW ?? 0) : 0);
  let fd: number | undefined;
  try {
    const before = disk.stat(path);
    refuseKind(path, before);
    fd = disk.open(path, flags);
    const stat = disk.fstat(fd);
    refuseKind(path, stat);
    if (idOf(stat) !== idOf(before)) throw swapped(path);
    if (real && ((pathOfDescriptor(fd) ?? path) !== path || disk.realpath(path) !== path)) throw swapped(path);
    return { fd, stat };
  } catch (cause) {
    if (fd !== undefined) disk.close(fd);
    throw isLowbitError(cause) ? cause : ioError("read a file", path, cause);
  }
}

/** Reads exactly `length` bytes. */
export function readAll(fd: number, into: Uint8Array, length: number, offset: number, path: string): void {
  for (let done = 0; done < length;) {
    let got: number;
    try {
      got = disk.read(fd, into, done, length - done, offset + done);
    } catch (cause) {
      throw ioError("read a file", path, cause);
    }
    if (got === 0) {
      throw new LowbitError(
        "E_ONNX",
        `${path}: expected ${length} bytes at ${offset}, got ${done}. The file is truncated or being written.`,
      );
    }
    done += got;
  }
}

function fileSource(fd: number, size: number, path: string): ByteSource {
  return {
    size,
    label: path,
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
      const { fd, stat } = openChecked(path, real);
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

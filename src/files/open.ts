// Regular files, opened for reading. A file is looked at before it is opened, opened without waiting (a FIFO would wait
// for its writer for ever), and looked at again through the descriptor: what is read is what was checked.
import type { BigIntStats } from "node:fs";
import { LowbitError, isLowbitError } from "../../formats/core/errors.ts";
import { disk, fileConstants, idOf, ioError, kindOfFile } from "./calls.ts";

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

/**
 * Opens a regular file. With `real`, the path must lead to itself, through no link, also after it was opened.
 * @throws LowbitError E_IO
 */
export function openFile(path: string, real = false): { fd: number; stat: BigIntStats } {
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

/** One call reads and writes at most this much: Node refuses 2 GiB. */
export const CALL_MAX = 2 ** 30;

/** Reads `length` bytes, or fewer where the file ends; returns how many. @throws LowbitError E_IO */
export function readUpTo(fd: number, into: Uint8Array, length: number, offset: number, path: string): number {
  let done = 0;
  while (done < length) {
    let got: number;
    try {
      got = disk.read(fd, into, done, Math.min(length - done, CALL_MAX), offset + done);
    } catch (cause) {
      throw ioError("read a file", path, cause);
    }
    if (got === 0) break;
    done += got;
  }
  return done;
}

/** All bytes of a regular file. @throws LowbitError E_IO */
export function readFile(path: string): Uint8Array<ArrayBuffer> {
  const { fd, stat } = openFile(path);
  try {
    const bytes = new Uint8Array(Number(stat.size));
    return bytes.subarray(0, readUpTo(fd, bytes, bytes.length, 0, path));
  } finally {
    disk.close(fd);
  }
}

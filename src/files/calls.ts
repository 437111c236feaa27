// Every call on the file system that this package makes, in one place: a test can count them, fail each one once, or
// stop the world after it. Node's modules are asked for at call time (process.getBuiltinModule), so that a browser
// bundle of lowbit/onnx needs no polyfill.
import type * as NodeCrypto from "node:crypto";
import type * as NodeFs from "node:fs";
import type * as NodeOs from "node:os";
import type * as NodePath from "node:path";
import type { BigIntStats } from "node:fs";
import { LowbitError } from "../../formats/core/errors.ts";
import { needBuiltin } from "./node.ts";

const need = <Name extends Parameters<typeof needBuiltin>[0]>(name: Name) =>
  needBuiltin(name, "files", "In a browser pass bytes instead of a path (for models: quantizeModelBytes, readModelBytes).");

export const nodePath = (): typeof NodePath => need("node:path");
export const nodeOs = (): typeof NodeOs => need("node:os");
export const nodeCrypto = (): typeof NodeCrypto => need("node:crypto");
export const fileConstants = (): typeof NodeFs.constants => need("node:fs").constants;

/** The calls, all synchronous; errors are Node's, with `code`. */
export interface FileCalls {
  open(path: string, flags: number, mode?: number): number;
  close(fd: number): void;
  read(fd: number, into: Uint8Array, at: number, length: number, position: number): number;
  /** At the file's place, or at `position`. */
  write(fd: number, bytes: Uint8Array, at: number, length: number, position?: number): number;
  ftruncate(fd: number, length: number): void;
  fsync(fd: number): void;
  fstat(fd: number): BigIntStats;
  fchmod(fd: number, mode: number): void;
  fchown(fd: number, uid: number, gid: number): void;
  stat(path: string): BigIntStats;
  lstat(path: string): BigIntStats;
  realpath(path: string): string;
  readlink(path: string): string;
  readdir(path: string): string[];
  mkdir(path: string, mode: number): void;
  rmdir(path: string): void;
  link(from: string, to: string): void;
  rename(from: string, to: string): void;
  unlink(path: string): void;
}

function nodeCalls(): FileCalls {
  const fs = need("node:fs");
  return {
    open: (path, flags, mode) => fs.openSync(path, flags, mode),
    close: (fd) => fs.closeSync(fd),
    read: (fd, into, at, length, position) => fs.readSync(fd, into, at, length, position),
    write: (fd, bytes, at, length, position) => fs.writeSync(fd, bytes, at, length, position),
    ftruncate: (fd, length) => fs.ftruncateSync(fd, length),
    fsync: (fd) => fs.fsyncSync(fd),
    fstat: (fd) => fs.fstatSync(fd, { bigint: true }),
    fchmod: (fd, mode) => fs.fchmodSync(fd, mode),
    fchown: (fd, uid, gid) => fs.fchownSync(fd, uid, gid),
    stat: (path) => fs.statSync(path, { bigint: true }),
    lstat: (path) => fs.lstatSync(path, { bigint: true }),
    realpath: (path) => fs.realpathSync(path),
    readlink: (path) => fs.readlinkSync(path),
    readdir: (path) => fs.readdirSync(path),
    mkdir: (path, mode) => fs.mkdirSync(path, { mode }),
    rmdir: (path) => fs.rmdirSync(path),
    link: (from, to) => fs.linkSync(from, to),
    rename: (from, to) => fs.renameSync(from, to),
    unlink: (path) => fs.unlinkSync(path),
  };
}

let active: FileCalls | undefined;

/** Puts other calls in the place of Node's, made from them; without an argument Node's own are back. For tests. */
export function replaceCalls(make?: (node: FileCalls) => FileCalls): void {
  active = make?.(nodeCalls());
}

export const codeOf = (error: unknown): string => (error as { code?: string } | null)?.code ?? "";

/** The calls, each tried again where a signal interrupted it. A close that was interrupted has closed. */
export const disk: FileCalls = new Proxy({} as FileCalls, {
  get(_, name: keyof FileCalls) {
    return (...args: unknown[]): unknown => {
      for (let tries = 0; ; tries++) {
        try {
          return ((active ??= nodeCalls())[name] as (...args: unknown[]) => unknown)(...args);
        } catch (error) {
          if (codeOf(error) !== "EINTR" || tries === 100) throw error;
          if (name === "close") return undefined;
        }
      }
    };
  },
});

const REASONS: ReadonlyMap<string, string> = new Map([
  ["ENOENT", "no such file or folder"],
  ["EACCES", "permission denied"],
  ["EPERM", "operation not permitted"],
  ["EISDIR", "a folder"],
  ["ENOTDIR", "a path through a file"],
  ["ENOSPC", "a full disk"],
  ["EDQUOT", "a full quota"],
  ["EROFS", "a read-only file system"],
  ["ENAMETOOLONG", "a name that is too long for this file system"],
  ["ELOOP", "links in a circle"],
  ["EIO", "an error of the device"],
  ["EMFILE", "too many open files"],
  ["EFBIG", "a file larger than this file system holds"],
]);

/** An error of the file system as a LowbitError. */
export function ioError(what: string, path: string, cause: unknown): LowbitError {
  const reason = REASONS.get(codeOf(cause)) ?? (cause as Error).message;
  return new LowbitError("E_IO", `${path}: expected to ${what}, got ${reason}. Check the path and its permissions.`, { cause });
}

/** What identifies a file whatever its path. */
export const idOf = (stat: BigIntStats): string => `${stat.dev}:${stat.ino}`;

/** What is at a path, links followed; undefined where nothing is. @throws LowbitError E_IO where that cannot be said */
export function statOf(path: string, follow = true): BigIntStats | undefined {
  try {
    return follow ? disk.stat(path) : disk.lstat(path);
  } catch (cause) {
    if (codeOf(cause) === "ENOENT" || codeOf(cause) === "ENOTDIR") return undefined;
    throw ioError("look at a file", path, cause);
  }
}

/** The kind of something that is no regular file, in words. */
export function kindOfFile(stat: BigIntStats): string {
  if (stat.isDirectory()) return "a folder";
  if (stat.isFIFO()) return "a FIFO (named pipe)";
  if (stat.isSocket()) return "a socket";
  if (stat.isCharacterDevice() || stat.isBlockDevice()) return "a device";
  return stat.isSymbolicLink() ? "a link" : "something that is no regular file";
}

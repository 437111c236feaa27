// Files, Node only: byte sources over files, the safe opening of external data, and outputs that appear whole or not at all.
// Node's modules are asked for at call time (process.getBuiltinModule), so that a browser bundle of lowbit/onnx needs no polyfill.
import { LowbitError, isLowbitError } from "../../../formats/core/errors.ts";
import type * as NodeFs from "node:fs";
import type * as NodePath from "node:path";
import type { ExternalResolver } from "./model.ts";
import type { Segment } from "./encode.ts";
import { segmentChunks } from "./encode.ts";
import type { ByteSource, Payload } from "./source.ts";
import { RAW_DATA } from "./source.ts";

type Fs = typeof NodeFs;
type Path = typeof NodePath;

function builtin<T>(name: string): T {
  const get = (globalThis as { process?: { getBuiltinModule?: (id: string) => unknown } }).process?.getBuiltinModule;
  const module = get?.(name);
  if (module === undefined) {
    throw new LowbitError(
      "E_UNSUPPORTED",
      `files: expected Node 20.19 or later, got a runtime without ${name}. In a browser use quantizeModelBytes and readModelBytes.`,
    );
  }
  return module as T;
}
const nodeFs = (): Fs => builtin<Fs>("node:fs");
const nodePath = (): Path => builtin<Path>("node:path");

const codeOf = (error: unknown): string => (error as { code?: string }).code ?? "";

/** An error of the file system as a LowbitError. */
function ioError(what: string, path: string, cause: unknown): LowbitError {
  const reasons: Record<string, string> = {
    ENOENT: "no such file or folder",
    EACCES: "permission denied",
    EPERM: "operation not permitted",
    EISDIR: "a folder",
    ENOTDIR: "a path through a file",
    ENOSPC: "a full disk",
    EROFS: "a read-only file system",
  };
  const reason = reasons[codeOf(cause)] ?? (cause as Error).message;
  return new LowbitError("E_IO", `${path}: expected to ${what}, got ${reason}. Check the path and its permissions.`, { cause });
}

/** Open files of one operation; `close` closes them all. */
export interface FileSet {
  open(path: string): ByteSource;
  close(): void;
}

export function fileSet(): FileSet {
  const fs = nodeFs();
  const open = new Map<string, { fd: number; source: ByteSource }>();
  return {
    open(path) {
      const known = open.get(path);
      if (known !== undefined) return known.source;
      let fd: number;
      let size: number;
      try {
        fd = fs.openSync(path, "r");
        const stat = fs.fstatSync(fd);
        if (!stat.isFile()) {
          fs.closeSync(fd);
          throw Object.assign(new Error("not a file"), { code: stat.isDirectory() ? "EISDIR" : "" });
        }
        size = stat.size;
      } catch (cause) {
        throw ioError("read a file", path, cause);
      }
      const source: ByteSource = {
        size,
        label: path,
        read(offset, length, into) {
          // Buffer.allocUnsafeSlow: own memory, so that views of it are aligned and freed together.
          const bytes = into !== undefined && into.length >= length ? into : Buffer.allocUnsafeSlow(length);
          for (let done = 0; done < length;) {
            let got: number;
            try {
              got = fs.readSync(fd, bytes, done, length - done, offset + done);
            } catch (cause) {
              throw ioError("read a file", path, cause);
            }
            if (got === 0)
              throw new LowbitError(
                "E_ONNX",
                `${path}: expected ${length} bytes at ${offset}, got ${done}. The file is truncated or being written.`,
              );
            done += got;
          }
          return new Uint8Array(bytes.buffer, bytes.byteOffset, length);
        },
      };
      open.set(path, { fd, source });
      return source;
    },
    close() {
      for (const { fd } of open.values()) fs.closeSync(fd);
      open.clear();
    },
  };
}

/**
 * Opens external data beside a model. A location is a relative path inside the model's folder; absolute paths, `..` and links that lead out
 * are refused (a model from elsewhere must not read the user's files).
 */
export function externalFiles(modelPath: string, files: FileSet): ExternalResolver {
  const fs = nodeFs();
  const path = nodePath();
  const real = new Map<string, string>();
  return (location) => {
    const known = real.get(location);
    if (known !== undefined) return files.open(known);
    const refuse = (how: string): LowbitError =>
      new LowbitError(
        "E_ONNX",
        `external data: expected a path inside the model's folder, got ${JSON.stringify(location)}, ${how}. Move the data beside the model.`,
      );
    if (path.isAbsolute(location) || path.win32.isAbsolute(location) || /^[a-z]:/i.test(location) || location.includes("\0")) {
      throw refuse("which is absolute");
    }
    if (location.split(/[\\/]/).includes("..")) throw refuse("which leaves it");
    const folder = fs.realpathSync(path.dirname(modelPath));
    const target = path.join(folder, location);
    let resolved: string;
    try {
      resolved = fs.realpathSync(target);
    } catch (cause) {
      throw new LowbitError(
        "E_IO",
        `${modelPath}: expected external data in ${target}, got no readable file. Put the model's data files beside it.`,
        { cause },
      );
    }
    if (!resolved.startsWith(folder.endsWith(path.sep) ? folder : folder + path.sep)) throw refuse("a link that leaves it");
    real.set(location, resolved);
    return files.open(resolved);
  };
}

export const fileSize = (path: string): number => nodeFs().statSync(path).size;

/** Name of the external data file that belongs to a model file (the convention of transformers.js). */
export const dataFileName = (modelPath: string): string => `${nodePath().basename(modelPath)}_data`;

export const siblingPath = (modelPath: string, name: string): string => nodePath().join(nodePath().dirname(modelPath), name);

/** What identifies a file whatever its path: device and inode, or null where there is none. */
function identity(path: string): string | null {
  try {
    const stat = nodeFs().statSync(path, { bigint: true });
    return `${stat.dev}:${stat.ino}`;
  } catch {
    return null;
  }
}

/** Checks that `output` may be written: not one of the inputs, not a folder, and new unless `force`. */
export function checkOutput(output: string, inputs: readonly string[], force: boolean): void {
  const fs = nodeFs();
  const id = identity(output);
  for (const input of inputs) {
    if (id !== null && id === identity(input)) {
      throw new LowbitError(
        "E_EXISTS",
        `${output}: expected another file than the input, got ${input}. Choose another output; the input is never overwritten.`,
      );
    }
  }
  if (id !== null && fs.statSync(output).isDirectory())
    throw new LowbitError("E_IO", `${output}: expected a file name, got a folder. Name the file to write.`);
  if (id !== null && !force)
    throw new LowbitError("E_EXISTS", `${output}: expected a new file, got one that exists. Pass force (--force) to overwrite it.`);
}

// ---- outputs -------------------------------------------------------------------------------------------------------------------

const temporary = new Set<string>();
let watching = false;

/** Temporary files that a process.exit() would leave behind are removed on the way out. */
function track(path: string): void {
  temporary.add(path);
  if (watching) return;
  watching = true;
  process.once("exit", () => {
    for (const left of temporary) nodeFs().rmSync(left, { force: true });
  });
}

function untrack(path: string): void {
  nodeFs().rmSync(path, { force: true });
  temporary.delete(path);
}

function openTemporary(target: string): { path: string; fd: number } {
  const path = nodePath();
  const name = `.${path.basename(target)}.${process.pid}-${Math.random().toString(36).slice(2, 10)}.tmp`;
  const temp = path.join(path.dirname(target), name);
  try {
    const fd = nodeFs().openSync(temp, "wx+", 0o666);
    track(temp);
    return { path: temp, fd };
  } catch (cause) {
    throw ioError("write into this folder", path.dirname(target), cause);
  }
}

function writeAll(fd: number, bytes: Uint8Array, path: string): void {
  const fs = nodeFs();
  try {
    for (let done = 0; done < bytes.length;) done += fs.writeSync(fd, bytes, done, bytes.length - done);
  } catch (cause) {
    throw ioError("write a file", path, cause);
  }
}

export const pause = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0));

/** Throws E_ABORTED once `signal` is aborted. */
export function checkAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted)
    throw new LowbitError("E_ABORTED", "quantize: expected to finish, got an abort signal. Nothing was written.", { cause: signal.reason });
}

/** One file of an output. */
export interface OutputFile {
  readonly path: string;
  readonly segments: readonly Segment[];
}

/**
 * Writes files under temporary names in their folders, then gives them their names: on an error or abort nothing is left.
 * Without `force` a file that appeared in the meantime is not overwritten.
 */
export async function writeFiles(outputs: readonly OutputFile[], force: boolean, signal?: AbortSignal): Promise<void> {
  const fs = nodeFs();
  const temps: string[] = [];
  const done: string[] = [];
  try {
    for (const output of outputs) {
      const temp = openTemporary(output.path);
      temps.push(temp.path);
      try {
        let sinceYield = 0;
        for (const chunk of segmentChunks(output.segments)) {
          writeAll(temp.fd, chunk, output.path);
          sinceYield += chunk.length;
          if (sinceYield > 64 << 20) {
            sinceYield = 0;
            await pause();
            checkAborted(signal);
          }
        }
        fs.fsyncSync(temp.fd);
      } finally {
        fs.closeSync(temp.fd);
      }
    }
    await pause();
    checkAborted(signal);
    for (let i = 0; i < outputs.length; i++) {
      rename(temps[i], outputs[i].path, force);
      temporary.delete(temps[i]);
      done.push(outputs[i].path);
    }
  } catch (error) {
    for (const temp of temps) untrack(temp);
    // The first file already has its name, the second could not be named: a data file without its model helps nobody.
    if (!force) for (const path of done) fs.rmSync(path, { force: true });
    throw isLowbitError(error) ? error : ioError("write a file", outputs[0].path, error);
  }
}

function rename(from: string, to: string, force: boolean): void {
  const fs = nodeFs();
  try {
    if (force) {
      fs.renameSync(from, to);
      return;
    }
    try {
      fs.linkSync(from, to); // fails where `to` exists, without a race
      fs.unlinkSync(from);
    } catch (error) {
      if (codeOf(error) === "EEXIST") throw error;
      if (fs.existsSync(to)) throw Object.assign(new Error("exists"), { code: "EEXIST" });
      fs.renameSync(from, to); // a file system without hard links
    }
  } catch (cause) {
    if (codeOf(cause) === "EEXIST") {
      throw new LowbitError("E_EXISTS", `${to}: expected a new file, got one that exists. Pass force (--force) to overwrite it.`, {
        cause,
      });
    }
    throw ioError("name the finished file", to, cause);
  }
}

// ---- spilling ------------------------------------------------------------------------------------------------------------------

/** New tensors of one operation: in memory up to `budget` bytes, then in a temporary file beside the output. */
export function spillFile(target: string, budget: number): { keep: (bytes: Uint8Array) => Payload; close: () => void } {
  const fs = nodeFs();
  let used = 0;
  let file: { path: string; fd: number; size: number } | undefined;
  const memory = (bytes: Uint8Array): Payload => ({
    source: { size: bytes.length, label: "new tensor", read: (offset, length) => bytes.subarray(offset, offset + length) },
    offset: 0,
    length: bytes.length,
    field: RAW_DATA,
  });
  return {
    keep(bytes) {
      used += bytes.length;
      if (used <= budget || bytes.length < 1 << 16) return memory(bytes);
      if (file === undefined) file = { ...openTemporary(target), size: 0 };
      const opened = file;
      writeAll(opened.fd, bytes, opened.path);
      const offset = opened.size;
      opened.size += bytes.length;
      const source: ByteSource = {
        get size() {
          return opened.size;
        },
        label: opened.path,
        read(at, length) {
          const out = new Uint8Array(length);
          for (let got = 0; got < length;) {
            const n = fs.readSync(opened.fd, out, got, length - got, at + got);
            if (n === 0)
              throw new LowbitError("E_IO", `${opened.path}: expected ${length} bytes, got ${got}. The temporary file was cut short.`);
            got += n;
          }
          return out;
        },
      };
      return { source, offset, length: bytes.length, field: RAW_DATA };
    },
    close() {
      if (file === undefined) return;
      fs.closeSync(file.fd);
      untrack(file.path);
      file = undefined;
    },
  };
}

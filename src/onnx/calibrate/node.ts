// What calibration needs of Node: files of calibration data, temporary folders. Asked for when called, so that a browser bundle needs no polyfill.
import { LowbitError } from "../../../formats/core/errors.ts";
import type * as NodeFs from "node:fs";
import type * as NodeOs from "node:os";
import type * as NodePath from "node:path";
import type * as NodeUrl from "node:url";
import type * as NodeZlib from "node:zlib";

function builtin<T>(name: string): T {
  const get = (globalThis as { process?: { getBuiltinModule?: (id: string) => unknown } }).process?.getBuiltinModule;
  const module = get?.(name);
  if (module === undefined)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `calibration: expected Node 20.19 or later, got a runtime without ${name}. Pass the feeds themselves instead of a path.`,
    );
  return module as T;
}

export const nodeFs = (): typeof NodeFs => builtin("node:fs");
export const nodePath = (): typeof NodePath => builtin("node:path");
export const nodeUrl = (): typeof NodeUrl => builtin("node:url");
export const nodeZlib = (): typeof NodeZlib => builtin("node:zlib");

/** Reads a file of calibration data. @throws LowbitError E_IO */
export function readFile(path: string): Uint8Array {
  try {
    return nodeFs().readFileSync(path);
  } catch (cause) {
    throw new LowbitError("E_IO", `${path}: expected to read calibration data, got ${(cause as Error).message}. Check the path.`, {
      cause,
    });
  }
}

/** A folder in the system's temporary one; `remove` deletes it with all it holds. */
export function temporaryFolder(prefix: string): { file(name: string): string; remove(): void } {
  const [fs, path] = [nodeFs(), nodePath()];
  const folder = fs.mkdtempSync(path.join(builtin<typeof NodeOs>("node:os").tmpdir(), prefix));
  return { file: (name) => path.join(folder, name), remove: () => fs.rmSync(folder, { recursive: true, force: true }) };
}

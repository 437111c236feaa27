// Modules of Node, asked for when a path is opened, so that a bundle for browsers needs none. Apart from source.ts, whose declarations users see.
import type * as NodeFs from "node:fs";
import type * as NodeFsPromises from "node:fs/promises";
import type * as NodePath from "node:path";
import type * as NodeZlib from "node:zlib";
import { LowbitError } from "../../formats/core/errors.ts";

function builtin<T>(name: string): T {
  const get = (globalThis as { process?: { getBuiltinModule?: (id: string) => unknown } }).process?.getBuiltinModule;
  const module = get?.(name);
  if (module === undefined)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `paths: expected Node 20.19 or later, got a runtime without ${name}. Pass bytes, a Blob or a reader of ranges.`,
    );
  return module as T;
}
export const nodeFs = (): typeof NodeFs => builtin("node:fs");
export const nodeFiles = (): typeof NodeFsPromises => builtin("node:fs/promises");
export const nodePath = (): typeof NodePath => builtin("node:path");
export const nodeZlib = (): typeof NodeZlib => builtin("node:zlib");

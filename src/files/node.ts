// Modules of Node, asked for when they are needed, so that a bundle for browsers needs no polyfill.
import type * as NodeChildProcess from "node:child_process";
import type * as NodeCrypto from "node:crypto";
import type * as NodeFs from "node:fs";
import type * as NodeHttp from "node:http";
import type * as NodeModule from "node:module";
import type * as NodeOs from "node:os";
import type * as NodePath from "node:path";
import type * as NodeUrl from "node:url";
import type * as NodeZlib from "node:zlib";
import { LowbitError } from "../../formats/core/errors.ts";

interface NodeModules {
  readonly "node:child_process": typeof NodeChildProcess;
  readonly "node:crypto": typeof NodeCrypto;
  readonly "node:fs": typeof NodeFs;
  readonly "node:http": typeof NodeHttp;
  readonly "node:module": typeof NodeModule;
  readonly "node:os": typeof NodeOs;
  readonly "node:path": typeof NodePath;
  readonly "node:url": typeof NodeUrl;
  readonly "node:zlib": typeof NodeZlib;
}

/** A module of Node, or undefined where there is no Node. */
export function builtin<Name extends keyof NodeModules>(name: Name): NodeModules[Name] | undefined {
  const { process } = globalThis as unknown as { process?: { getBuiltinModule?: (id: Name) => NodeModules[Name] } };
  return process?.getBuiltinModule?.(name);
}

/**
 * A module of Node for `what`, which is what an error begins with.
 * @param instead what to do without Node
 * @throws LowbitError E_UNSUPPORTED elsewhere than in Node
 */
export function needBuiltin<Name extends keyof NodeModules>(name: Name, what: string, instead: string): NodeModules[Name] {
  const module = builtin(name);
  if (module === undefined)
    throw new LowbitError("E_UNSUPPORTED", `${what}: expected Node 20.19 or later, got a runtime without ${name}. ${instead}`);
  return module;
}

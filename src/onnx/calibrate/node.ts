// What calibration needs of Node: files of calibration data, temporary folders. Asked for when called, so that a
// browser bundle needs no polyfill.
import { needBuiltin } from "../../files/node.ts";
import type * as NodeFs from "node:fs";
import type * as NodePath from "node:path";
import type * as NodeUrl from "node:url";

const need = <Name extends Parameters<typeof needBuiltin>[0]>(name: Name) =>
  needBuiltin(name, "calibration", "Pass the feeds themselves instead of a path.");

export const nodeFs = (): typeof NodeFs => need("node:fs");
export const nodePath = (): typeof NodePath => need("node:path");
export const nodeUrl = (): typeof NodeUrl => need("node:url");

/** A folder in the system's temporary one; `remove` deletes it with all it holds. */
export function temporaryFolder(prefix: string): { file(name: string): string; remove(): void } {
  const [fs, path] = [nodeFs(), nodePath()];
  const folder = fs.mkdtempSync(path.join(need("node:os").tmpdir(), prefix));
  return { file: (name) => path.join(folder, name), remove: () => fs.rmSync(folder, { recursive: true, force: true }) };
}

// Where external data may be. A model from elsewhere must not read the user's files, so a location stays inside the
// model's folder; yet models in a cache are links (the Hugging Face layout: snapshots/<revision>/model.onnx ->
// ../../blobs/<hash>, and its data likewise). The rule, which onnxruntime has too: the data, all links followed, lies
// in the folder of the path that was given, or, where that is a link, in the folder of the file that it leads to.
// Folders that the caller names may hold it too. Hard links cannot be told from files.
import { LowbitError } from "../../../../formats/core/errors.ts";
import type { ExternalResolver } from "../model.ts";
import { codeOf, disk, ioError, nodePath, statOf } from "../../../files/calls.ts";
import type { FileSet } from "./read.ts";

const refuse = (location: string, how: string): LowbitError =>
  new LowbitError(
    "E_ONNX",
    `external data: expected a path inside the model's folder, got ${JSON.stringify(location)}, ${how}. Move the data beside the model.`,
  );

/** Refuses a location that leaves the folder by its words alone, on any system. `sub/../x` stays inside. */
function checkWords(location: string): void {
  const path = nodePath();
  if (path.isAbsolute(location) || path.win32.isAbsolute(location) || /^[a-z]:/i.test(location) || location.includes("\0")) {
    throw refuse(location, "which is absolute");
  }
  let depth = 0;
  for (const part of location.split(/[\\/]/)) {
    depth += part === ".." ? -1 : part === "" || part === "." ? 0 : 1;
    if (depth < 0) throw refuse(location, "which leaves it");
  }
  if (depth === 0) throw refuse(location, "which is the folder itself");
}

function realFolder(of: string): string {
  try {
    return disk.realpath(of);
  } catch (cause) {
    throw ioError("read a file", of, cause);
  }
}

/**
 * Opens external data beside a model.
 * @param folders more folders that links may lead to (the root of a cache)
 */
export function externalFiles(modelPath: string, files: FileSet, folders: readonly string[] = []): ExternalResolver {
  const path = nodePath();
  const real = new Map<string, string>();
  const inside = (file: string, folder: string): boolean => file.startsWith(folder.endsWith(path.sep) ? folder : folder + path.sep);
  return (location) => {
    const known = real.get(location);
    if (known !== undefined) return files.open(known, true);
    checkWords(location);
    const given = realFolder(path.dirname(modelPath));
    const roots = [given];
    // The folder of the file itself: where the path that was given is a link, another one.
    const target = path.dirname(realFolder(modelPath));
    if (target !== given) roots.push(target);
    let resolved: string | undefined;
    let allowed = roots;
    for (const root of roots) {
      // path.join takes "sub/.." away before links are followed.
      const candidate = path.join(root, location);
      if (statOf(candidate, false) === undefined) continue;
      try {
        resolved = disk.realpath(candidate);
      } catch (cause) {
        if (codeOf(cause) !== "ENOENT") throw ioError("read external data", candidate, cause);
        continue;
      }
      // What lies beside the file itself stays there: the link was made by someone else.
      if (root !== given) allowed = [root];
      break;
    }
    if (resolved === undefined) {
      throw new LowbitError(
        "E_IO",
        `${modelPath}: expected external data in ${path.join(given, location)}, got no readable file. Put the model's data files beside it.`,
      );
    }
    const found = resolved;
    if (![...allowed, ...folders.map(realFolder)].some((root) => inside(found, root))) throw refuse(location, "a link that leaves it");
    const source = files.open(found, true);
    real.set(location, found);
    return source;
  };
}

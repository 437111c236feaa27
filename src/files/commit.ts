// Files that appear whole or not at all, and a model with its data files as one: at no moment, also after a kill or a
// power cut, does the model's name lead to a model with other data than its own. Everything is first written and synced
// in a staging folder S. Then
//   new outputs             the data files get their names, the model last. A killed run leaves no model; the next one
//                           takes the data away.
//   a model over a pair     1. a model that names the data inside S takes the model's name: the new pair is there,
//                              in one rename.
//                           2. the data files take their own names, each in one rename (a link in S stays).
//                           3. the model that names them there takes the model's name. S goes away.
//                           A killed run leaves the old pair or the new one; the next run finishes the three steps.
// The journal in S says which of the two was under way. Where the file system has no hard links, step 2 moves the data:
// between 2 and 3 the model does not load, but never with wrong data.
import type { BigIntStats } from "node:fs";
import { LowbitError, isLowbitError } from "../../formats/core/errors.ts";
import { codeOf, disk, fileConstants, idOf, ioError, kindOfFile, nodePath, statOf } from "./calls.ts";
import { CALL_MAX, readUpTo } from "./open.ts";
import type { Staging } from "./staging.ts";
import { abandoned, openStaging, removeFolder } from "./staging.ts";

export type Chunks = Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

/** One file of an output; data files of a model come before it. */
export interface OutputFile {
  readonly path: string;
  /** Its bytes, made when they are written. */
  readonly chunks: () => Chunks;
  /** Of a model with data files: its bytes where they have other names. */
  readonly renamed?: (nameOf: (data: string) => string) => Chunks;
  /** Data files of an earlier model of this name, removed once this one is there. */
  readonly obsolete?: readonly string[];
  /** Throws where an input changed while it was read; asked when all is written, before anything gets its name. */
  readonly check?: () => void;
}

export const pause = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0));

/** Throws E_ABORTED once `signal` is aborted. */
export function checkAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted)
    throw new LowbitError("E_ABORTED", "quantize: expected to finish, got an abort signal. Nothing was written.", { cause: signal.reason });
}

/** @param position where in the file; default: where it stands */
export function writeAll(fd: number, bytes: Uint8Array, path: string, position?: number): void {
  try {
    for (let done = 0; done < bytes.length;) {
      const length = Math.min(bytes.length - done, CALL_MAX);
      const wrote = position === undefined ? disk.write(fd, bytes, done, length) : disk.write(fd, bytes, done, length, position + done);
      if (wrote === 0) throw Object.assign(new Error("nothing could be written"), { code: "ENOSPC" });
      done += wrote;
    }
  } catch (cause) {
    throw ioError("write a file", path, cause);
  }
}

// ---- staging
// -------------------------------------------------------------------------------------------------------------------

/**
 * A file and its content: a new file may get the number of one that went away, and who copies over a file writes into
 * the one that is there.
 */
const versionOf = (stat: BigIntStats): string => `${idOf(stat)}:${stat.size}:${stat.mtimeNs}`;

/** A file in the staging folder, whole and synced, and the name that it will have. */
interface Staged {
  readonly name: string;
  readonly target: string;
  readonly id: string;
}

/** What the journal of a commit says. Paths are names in the output's folder. */
interface Journal {
  readonly version: 1;
  /** new: data, then the model. over: through a model that names the data in the staging folder (`bridge`). */
  readonly kind: "new" | "over";
  readonly data: readonly Staged[];
  readonly model: Staged;
  readonly bridge?: Staged;
  readonly obsolete: readonly string[];
}

async function stage(staging: Staging, name: string, output: OutputFile, chunks: Chunks, signal?: AbortSignal): Promise<Staged> {
  const fd = staging.create(name);
  try {
    let sinceYield = 0;
    for await (const chunk of chunks) {
      writeAll(fd, chunk, output.path);
      sinceYield += chunk.length;
      if (sinceYield > 64 << 20) {
        sinceYield = 0;
        await pause();
        checkAborted(signal);
      }
    }
    keepMode(fd, output.path);
    sync(fd, output.path);
    return { name, target: nodePath().basename(output.path), id: versionOf(disk.fstat(fd)) };
  } finally {
    disk.close(fd);
  }
}

/** A file that takes the place of another has its permissions and, where we may give it, its owner. */
function keepMode(fd: number, target: string): void {
  const old = statOf(target);
  if (old === undefined || process.platform === "win32") return;
  const now = disk.fstat(fd);
  if (old.uid !== now.uid || old.gid !== now.gid) {
    try {
      disk.fchown(fd, Number(old.uid), Number(old.gid));
    } catch {
      // Only root may give files away; the permissions below are then those of the new owner.
    }
  }
  disk.fchmod(fd, Number(old.mode & 0o7777n));
}

function sync(fd: number, path: string): void {
  try {
    disk.fsync(fd);
  } catch (cause) {
    throw ioError("write a file", path, cause);
  }
}

/**
 * Makes names in a folder last. Systems that cannot do that for folders (Windows, some network file systems) say so: no
 * error.
 */
function syncFolder(folder: string): void {
  let fd: number | undefined;
  try {
    fd = disk.open(folder, fileConstants().O_RDONLY);
    disk.fsync(fd);
  } catch (error) {
    if (["EIO", "ENOSPC", "EDQUOT"].includes(codeOf(error))) throw error;
  } finally {
    if (fd !== undefined) disk.close(fd);
  }
}

function writeJournal(staging: Staging, journal: Journal): void {
  const fd = staging.create("journal");
  try {
    writeAll(fd, new TextEncoder().encode(JSON.stringify(journal)), staging.file("journal"));
    sync(fd, staging.file("journal"));
  } finally {
    disk.close(fd);
  }
  // Renamed when whole: a journal that is there can be read.
  disk.rename(staging.file("journal"), staging.file("commit"));
  syncFolder(staging.path);
  syncFolder(nodePath().dirname(staging.path));
}

// ---- putting in place
// ----------------------------------------------------------------------------------------------------------

const existsError = (path: string, cause?: unknown): LowbitError =>
  new LowbitError("E_EXISTS", `${path}: expected a new file, got one that exists. Pass force (--force) to overwrite it.`, { cause });

/** Refuses what appeared in the meantime in the place of an output. */
function checkTarget(path: string, force: boolean): void {
  const stat = statOf(path, false);
  if (stat === undefined) return;
  if (!force) throw existsError(path);
  if (!stat.isFile())
    throw new LowbitError("E_IO", `${path}: expected a file name, got ${kindOfFile(stat)}. Remove it, or name another file.`);
}

/** True for the errors of a file system without hard links. */
const hasNoLinks = (error: unknown): boolean => ["EPERM", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EMLINK", "EINVAL"].includes(codeOf(error));

/** Gives a staged file its name where nothing has it yet. */
function placeNew(from: string, to: string): void {
  try {
    disk.link(from, to); // fails where `to` exists, without a race
  } catch (error) {
    if (codeOf(error) === "EEXIST") throw existsError(to, error);
    if (!hasNoLinks(error)) throw error;
    if (statOf(to, false) !== undefined) throw existsError(to, error);
    disk.rename(from, to);
  }
}

/**
 * Gives a staged file a name that another file may have, and keeps it in the staging folder too where there are hard
 * links.
 */
function placeOver(staging: string, file: Staged, to: string): void {
  const from = nodePath().join(staging, file.name);
  const twin = `${from}.twin`;
  try {
    disk.link(from, twin);
  } catch (error) {
    if (codeOf(error) !== "EEXIST") {
      if (!hasNoLinks(error)) throw error;
      disk.rename(from, to);
      return;
    }
  }
  disk.rename(twin, to);
}

const isFile = (path: string, id: string): boolean => {
  const stat = statOf(path, false);
  return stat !== undefined && versionOf(stat) === id;
};

function remove(path: string): void {
  try {
    disk.unlink(path);
  } catch (error) {
    if (codeOf(error) !== "ENOENT") throw error;
  }
}

function commitNew(staging: Staging, journal: Journal, force: boolean, folder: string): void {
  const path = nodePath();
  const place = (file: Staged): void => {
    if (force) disk.rename(staging.file(file.name), path.join(folder, file.target));
    else placeNew(staging.file(file.name), path.join(folder, file.target));
  };
  try {
    for (const file of journal.data) place(file);
    if (journal.data.length > 0) syncFolder(folder);
    place(journal.model);
    syncFolder(folder);
  } catch (error) {
    // A model may have its name though the call that gave it failed.
    if (!isFile(path.join(folder, journal.model.target), journal.model.id)) undoNew(journal, folder);
    throw error;
  }
}

/** Takes away data files whose model was never there. */
function undoNew(journal: Journal, folder: string): void {
  for (const file of journal.data) {
    const target = nodePath().join(folder, file.target);
    if (isFile(target, file.id)) remove(target);
  }
}

/** Steps 2 and 3 over an existing pair; every one may have been done already. */
function finishOver(staging: string, journal: Journal, folder: string): void {
  const path = nodePath();
  for (const file of journal.data) {
    const target = path.join(folder, file.target);
    if (!isFile(target, file.id) && statOf(path.join(staging, file.name), false) !== undefined) placeOver(staging, file, target);
  }
  syncFolder(folder);
  const model = path.join(staging, journal.model.name);
  if (statOf(model, false) !== undefined) disk.rename(model, path.join(folder, journal.model.target));
  for (const name of journal.obsolete) remove(path.join(folder, name));
  syncFolder(folder);
}

/** Keeps a link to what a name leads to, so that it can be put back. False where there are no hard links. */
function keep(from: string, to: string): boolean {
  try {
    disk.link(from, to);
    return true;
  } catch {
    return false;
  }
}

/** For a moment the model's data is read from the staging folder: whoever may read the files may pass through it. */
function openToReaders(staging: string): void {
  if (process.platform === "win32") return;
  const fd = disk.open(staging, fileConstants().O_RDONLY);
  try {
    disk.fchmod(fd, 0o755);
  } finally {
    disk.close(fd);
  }
}

function commitOver(staging: Staging, journal: Journal, folder: string): void {
  const path = nodePath();
  const target = path.join(folder, journal.model.target);
  const old = keep(target, staging.file("old")) ? staging.file("old") : undefined;
  const oldData = journal.data.map((file, i) => keep(path.join(folder, file.target), staging.file(`old${i}`)));
  openToReaders(staging.path);
  disk.rename(staging.file(journal.bridge!.name), target);
  try {
    syncFolder(folder);
    finishOver(staging.path, journal, folder);
  } catch (error) {
    // The new pair is there, through the staging folder. Back to the old one, if the disk lets us; the next run
    // finishes it otherwise.
    if (old !== undefined && !isFile(target, journal.model.id)) {
      journal.data.forEach((file, i) => {
        const data = path.join(folder, file.target);
        if (!isFile(data, file.id)) return;
        if (oldData[i]) disk.rename(staging.file(`old${i}`), data);
        else remove(data);
      });
      disk.rename(old, target);
    }
    throw error;
  }
}

/**
 * Writes files in one folder, data files before their model: all of them, or on an error or abort none. Without `force`
 * a file that appeared in the meantime is not overwritten.
 * @throws LowbitError E_IO, E_EXISTS, E_ABORTED
 */
export async function writeFiles(outputs: readonly OutputFile[], force: boolean, signal?: AbortSignal): Promise<void> {
  const path = nodePath();
  const model = outputs[outputs.length - 1];
  const folder = path.dirname(model.path);
  const staging = openStaging(folder);
  let keepStaging = false;
  try {
    const staged: Staged[] = [];
    for (const [i, output] of outputs.entries()) staged.push(await stage(staging, String(i), output, output.chunks(), signal));
    const data = staged.slice(0, -1);
    const over = force && statOf(model.path) !== undefined && data.some((file) => statOf(path.join(folder, file.target)) !== undefined);
    let bridge: Staged | undefined;
    if (over && model.renamed !== undefined) {
      const inside = new Map(data.map((file) => [file.target, `${path.basename(staging.path)}/${file.name}`]));
      bridge = await stage(
        staging,
        "bridge",
        model,
        model.renamed((name) => inside.get(name) ?? name),
        signal,
      );
    }
    syncFolder(staging.path);
    await pause();
    checkAborted(signal);
    // From here on there is no await: nothing of this process comes between.
    for (const output of outputs) output.check?.();
    for (const output of outputs) checkTarget(output.path, force);
    const obsolete = (model.obsolete ?? []).map((file) => path.basename(file));
    const journal: Journal = {
      version: 1,
      kind: bridge === undefined ? "new" : "over",
      data,
      model: staged[staged.length - 1],
      ...(bridge === undefined ? {} : { bridge }),
      obsolete,
    };
    if (data.length > 0 || obsolete.length > 0) writeJournal(staging, journal);
    if (bridge === undefined) {
      commitNew(staging, journal, force, folder);
      for (const name of obsolete) remove(path.join(folder, name));
    } else {
      keepStaging = true;
      try {
        commitOver(staging, journal, folder);
        keepStaging = false;
      } catch (error) {
        // Kept where the model names the data in it, or where that cannot be said.
        keepStaging = isFile(model.path, bridge.id);
        throw error;
      }
    }
  } catch (error) {
    // What the chunks threw is its caller's.
    throw !isLowbitError(error) && /^E[A-Z0-9]+$/.test(codeOf(error)) ? ioError("write a file", model.path, error) : error;
  } finally {
    if (keepStaging) staging.leave();
    else staging.remove();
  }
}

// ---- recovery
// ------------------------------------------------------------------------------------------------------------------

function readJournal(staged: string): Journal | undefined {
  const file = nodePath().join(staged, "commit");
  const stat = statOf(file, false);
  if (stat === undefined) return undefined;
  const fd = disk.open(file, fileConstants().O_RDONLY);
  try {
    const bytes = new Uint8Array(Number(stat.size));
    readUpTo(fd, bytes, bytes.length, 0, file);
    return JSON.parse(new TextDecoder().decode(bytes)) as Journal;
  } finally {
    disk.close(fd);
  }
}

/** A journal that this version wrote: names in the folder, and nothing else. */
function isSound(journal: Journal | undefined): journal is Journal {
  const names = (list: unknown): boolean =>
    Array.isArray(list) && list.every((name: unknown) => typeof name === "string" && name !== "" && !/[\\/]|^\.\.?$/.test(name));
  const staged = (file: Staged | undefined): boolean => file !== undefined && names([file.name, file.target]);
  return (
    journal?.version === 1 &&
    Array.isArray(journal.data) &&
    journal.data.every(staged) &&
    staged(journal.model) &&
    names(journal.obsolete) &&
    (journal.kind === "new" || staged(journal.bridge))
  );
}

/** A bridge is small (the data is elsewhere); no larger model is searched for the name of a staging folder. */
const BRIDGE_MAX = 64 << 20;

/**
 * True where the model in place names data in the staging folder, or is the one that replaces it: nobody has put
 * another there since.
 */
function isOurs(model: string, staged: string, journal: Journal): boolean {
  const stat = statOf(model, false);
  if (stat?.isFile() !== true) return false;
  if (versionOf(stat) === journal.model.id || versionOf(stat) === journal.bridge!.id) return true;
  // Some file systems number their files anew when they are mounted: then the bytes tell.
  if (stat.size > BRIDGE_MAX) return false;
  const bytes = Buffer.alloc(Number(stat.size));
  const fd = disk.open(model, fileConstants().O_RDONLY);
  try {
    readUpTo(fd, bytes, bytes.length, 0, model);
  } finally {
    disk.close(fd);
  }
  return bytes.includes(nodePath().basename(staged));
}

function recoverOne(staged: string, journal: Journal, folder: string): void {
  const path = nodePath();
  const model = path.join(folder, journal.model.target);
  if (journal.kind === "over") {
    // Before the bridge got its name the old pair is whole.
    const started = statOf(path.join(staged, journal.bridge!.name), false) === undefined;
    if (started && isOurs(model, staged, journal)) finishOver(staged, journal, folder);
  } else if (!isFile(model, journal.model.id)) undoNew(journal, folder);
  else for (const name of journal.obsolete) remove(path.join(folder, name));
}

/**
 * Finishes or undoes what killed runs left in a folder, and removes their files. What cannot be mended is left as it
 * is.
 */
export function recover(folder: string): void {
  for (const staged of abandoned(folder)) {
    try {
      const journal = readJournal(staged);
      if (journal !== undefined) {
        if (!isSound(journal)) continue;
        recoverOne(staged, journal, folder);
      }
      removeFolder(staged);
    } catch {
      // A disk that fails: the run that follows says so itself.
    }
  }
}

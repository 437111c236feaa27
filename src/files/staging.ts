// Staging folders: where outputs stand until they are whole. One is a hidden folder
// `.lowbit-<place>-<process>-<random>.tmp` beside the output, so that a rename puts its files in place; names inside
// are short whatever the output is called. A run that ends takes its folder away; the folder of a run that was killed
// is found by the next run in the same place, which undoes or finishes what the journal in it says (commit.ts).
import { disk, fileConstants, ioError, nodeCrypto, nodeOs, nodePath } from "./calls.ts";

const PATTERN = /^\.lowbit-([0-9a-f]{8})-([0-9a-z]+)-([0-9a-f]{8})\.tmp$/;

export interface Staging {
  /** The folder. */
  readonly path: string;
  /** The path of a file in it. */
  file(name: string): string;
  /** Creates a file in it. */
  create(name: string): number;
  /** Takes the folder away with all that is in it. */
  remove(): void;
  /** Leaves the folder for another run to finish. */
  leave(): void;
}

/** The machine and, where there are such, the process namespace: process numbers mean something inside it only. */
function place(): string {
  let namespace = "";
  try {
    namespace = disk.readlink("/proc/self/ns/pid");
  } catch {
    // Not Linux.
  }
  return nodeCrypto().createHash("sha256").update(`${nodeOs().hostname()}\0${namespace}`).digest("hex").slice(0, 8);
}

const live = new Set<string>();
let watching = false;

/** Folders that a process.exit() would leave behind are removed on the way out. */
function track(path: string): void {
  live.add(path);
  if (watching) return;
  watching = true;
  process.once("exit", () => {
    for (const left of live) removeFolder(left);
  });
}

/** Removes a staging folder and its files; what cannot be removed is left for the next run. */
export function removeFolder(path: string): void {
  try {
    for (const name of disk.readdir(path)) disk.unlink(nodePath().join(path, name));
    disk.rmdir(path);
  } catch {
    // Whoever comes next tries again.
  }
}

/** Makes a staging folder in `folder`. @throws LowbitError E_IO */
export function openStaging(folder: string): Staging {
  const path = nodePath();
  const random = nodeCrypto().randomBytes(4).toString("hex");
  const staged = path.join(folder, `.lowbit-${place()}-${process.pid.toString(36)}-${random}.tmp`);
  track(staged);
  try {
    disk.mkdir(staged, 0o700);
  } catch (cause) {
    live.delete(staged);
    throw ioError("write into this folder", folder, cause);
  }
  return {
    path: staged,
    file: (name) => path.join(staged, name),
    create(name) {
      const { O_RDWR, O_CREAT, O_EXCL } = fileConstants();
      try {
        return disk.open(path.join(staged, name), O_RDWR | O_CREAT | O_EXCL, 0o666);
      } catch (cause) {
        throw ioError("write into this folder", folder, cause);
      }
    },
    remove() {
      removeFolder(staged);
      live.delete(staged);
    },
    leave: () => void live.delete(staged),
  };
}

/**
 * The moment a process started, on the clock of files in milliseconds; undefined where that cannot be told, NaN where
 * it does not run.
 */
function startOf(pid: number): number | undefined {
  const own = Date.now() - process.uptime() * 1000;
  if (pid === process.pid) return own;
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ESRCH") return NaN;
  }
  // A number may have gone to another process since: on Linux its start is told in hundredths of a second, on the same
  // clock as our own.
  const fields = (of: number | string): string[] => {
    const fd = disk.open(`/proc/${of}/stat`, fileConstants().O_RDONLY);
    try {
      const bytes = new Uint8Array(1024);
      const text = new TextDecoder().decode(bytes.subarray(0, disk.read(fd, bytes, 0, bytes.length, 0)));
      return text.slice(text.lastIndexOf(")") + 2).split(" ");
    } finally {
      disk.close(fd);
    }
  };
  try {
    const other = fields(pid);
    if (other[0] === "Z" || other[0] === "X") return NaN; // ended, and nobody asked how
    const difference = (Number(other[19]) - Number(fields("self")[19])) * 10;
    return Number.isFinite(difference) ? own + difference : undefined;
  } catch {
    return undefined;
  }
}

/** Only folders of our own are trusted: in a shared folder another user could plant one. */
const isOwn = (uid: bigint): boolean => process.getuid === undefined || Number(uid) === process.getuid();

/** Staging folders in `folder` whose process is gone. */
export function abandoned(folder: string): string[] {
  let names: string[];
  try {
    names = disk.readdir(folder);
  } catch {
    return []; // The folder is missing or closed to us: what comes next says so.
  }
  const found: string[] = [];
  let here: string | undefined;
  for (const name of names) {
    const match = PATTERN.exec(name);
    if (match === null || match[1] !== (here ??= place())) continue;
    const staged = nodePath().join(folder, name);
    if (live.has(staged)) continue;
    try {
      const stat = disk.lstat(staged);
      const started = startOf(parseInt(match[2], 36));
      // A second for clocks that differ: a folder of a process that has just started is its own.
      if (stat.isDirectory() && isOwn(stat.uid) && started !== undefined && !(Number(stat.mtimeMs) >= started - 1000)) found.push(staged);
    } catch {
      // Gone in the meantime.
    }
  }
  return found;
}

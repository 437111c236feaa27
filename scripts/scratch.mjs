// Temporary folders of runs that may be killed. A killed process tears nothing down, so its name is in the folder's:
// the next run of any kind removes the folders of processes that are gone.
import { mkdtempSync, readdirSync, readlinkSync, realpathSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Where process ids count: containers may share a temporary folder, and then an id says nothing of another's process. */
function space() {
  try {
    return /\d+/.exec(readlinkSync("/proc/self/ns/pid"))[0];
  } catch {
    return "0";
  }
}

function alive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code !== "ESRCH";
  }
}

/** A new folder `lowbit-KIND-SPACE-PID-RANDOM` among temporary files; folders of this form whose process is gone go. */
export function scratchFolder(kind) {
  const [place, here] = [realpathSync(tmpdir()), space()];
  for (const name of readdirSync(place)) {
    const [, where, pid] = /^lowbit-[a-z]+-(\d+)-(\d+)-\w{6}$/.exec(name) ?? [];
    if (where === here && !alive(Number(pid))) rmSync(join(place, name), { recursive: true, force: true, maxRetries: 3 });
  }
  return mkdtempSync(join(place, `lowbit-${kind}-${here}-${process.pid}-`));
}

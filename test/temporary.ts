// Tests get a temporary folder of their own, which goes with the run. What they leave in it is a fault: files of the
// runtime's own (mat-debug-*.log) and of tools are not ours.
import { readdirSync, rmSync } from "node:fs";
import { scratchFolder } from "../scripts/scratch.mjs";

export default function setup(): () => void {
  // every project of vitest.config.ts calls this; one folder is enough
  if (process.env.LOWBIT_TESTS !== undefined) return () => {};
  process.env.LOWBIT_TESTS = "1";
  const folder = scratchFolder("tests");
  for (const name of ["TMPDIR", "TEMP", "TMP"]) process.env[name] = folder;
  const remove = (): void => rmSync(folder, { recursive: true, force: true, maxRetries: 3 });
  // a run that is ended from outside tears nothing down; after SIGKILL the next run does
  for (const signal of ["SIGTERM", "SIGHUP"] as const)
    process.once(signal, () => {
      remove();
      process.kill(process.pid, signal);
    });
  return () => {
    const left = readdirSync(folder).filter((name) => name.startsWith("lowbit"));
    remove();
    if (left.length === 0) return;
    console.error(`TEMPORARY FILES: the tests left ${left.length} behind: ${left.slice(0, 10).join(", ")}`);
    process.exitCode = 1;
  };
}

// Runs in which one call on the file system fails, or which are killed: for the tests of what writes files.
import { spawnSync } from "node:child_process";
import { afterEach, beforeAll, beforeEach } from "vitest";
import { replaceCalls, type FileCalls } from "../../src/files/calls.ts";

/** Runs are killed here, not machines: without syncs they take a tenth of the time. */
const unsynced = (calls: FileCalls): FileCalls => ({ ...calls, fsync: () => undefined });

/** The number of a process that has ended. */
let dead = 0;

/** To be called once by a test file. */
export function useFaults(): void {
  beforeEach(() => replaceCalls(unsynced));
  afterEach(() => replaceCalls());
  beforeAll(() => {
    dead = spawnSync(process.execPath, ["-e", ""]).pid;
  });
}

class Kill extends Error {}

export interface FaultOptions {
  /** Does the file system have hard links? Default: yes. */
  readonly links?: boolean;
  /** To the next run this one is another process, which has ended. Default: where it is killed. */
  readonly ended?: boolean;
}

/**
 * Runs `work` with call number `fail` failing by `code`; a `kill` is a call after which none does anything. Returns the
 * number of calls and what was thrown.
 */
export async function withFault(
  work: () => Promise<unknown>,
  fail: number,
  code: string,
  { links = true, ended = code === "kill" }: FaultOptions = {},
): Promise<{ calls: number; error: unknown }> {
  let calls = 0;
  const failing = (node: FileCalls): FileCalls =>
    new Proxy(unsynced(node), {
      get: (target, name: keyof FileCalls) =>
        function (...args: unknown[]): unknown {
          const now = calls++;
          if (code === "kill" && now >= fail) throw new Kill();
          if (code !== "kill" && now === fail) throw Object.assign(new Error(code), { code });
          if (name === "link" && !links) throw Object.assign(new Error("EPERM"), { code: "EPERM" });
          return (target[name] as (...args: unknown[]) => unknown)(...args);
        },
    });
  const { pid } = process;
  if (ended) Object.defineProperty(process, "pid", { value: dead, configurable: true, writable: true });
  replaceCalls(failing);
  let error: unknown;
  try {
    await work();
  } catch (caught) {
    error = caught;
  } finally {
    replaceCalls(unsynced);
    Object.defineProperty(process, "pid", { value: pid, configurable: true, writable: true });
  }
  return { calls, error };
}

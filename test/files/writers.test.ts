// Every door that writes a file, with each of its calls on the file system failed once, or killed: afterwards the old
// file or the new one, and nothing else after the next run. Models and their data have test/onnx/faults.test.ts.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { isLowbitError } from "../../formats/core/errors.ts";
import { replaceCalls, type FileCalls } from "../../src/files/calls.ts";
import { tensor } from "../../src/index.ts";
import { writeGguf, writeNpy, writeNpz, writeSafetensors } from "../../src/interop/index.ts";

const root = mkdtempSync(join(tmpdir(), "lowbit-writers-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
/** Runs are killed here, not machines: without syncs they take a tenth of the time. */
const unsynced = (node: FileCalls): FileCalls => ({ ...node, fsync: () => undefined });
beforeEach(() => replaceCalls(unsynced));
afterEach(() => replaceCalls());
let dead = 0;
beforeAll(() => {
  dead = spawnSync(process.execPath, ["-e", ""]).pid;
});

class Kill extends Error {}

/** Runs `work` with call number `fail` failing by `code`; a kill is a call after which none does anything. */
async function withFault(work: () => Promise<unknown>, fail: number, code: string): Promise<{ calls: number; error: unknown }> {
  let calls = 0;
  let error: unknown;
  replaceCalls(
    (node) =>
      new Proxy(unsynced(node), {
        get: (target, name: keyof FileCalls) =>
          function (...args: unknown[]): unknown {
            const now = calls++;
            if (code === "kill" && now >= fail) throw new Kill();
            if (code !== "kill" && now === fail) throw Object.assign(new Error(code), { code });
            return (target[name] as (...args: unknown[]) => unknown)(...args);
          },
      }),
  );
  const { pid } = process;
  // to the next run this one is another process, which has ended
  Object.defineProperty(process, "pid", { value: dead, configurable: true, writable: true });
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

const data = (value: number) => new Float32Array(4096).fill(value);
const safe = (value: number) => ({ tensors: { w: { dtype: "F32", shape: [4096], bytes: new Uint8Array(data(value).buffer) } } });
type Writer = (path: string, value: number, force: boolean) => Promise<unknown>;
const writers: [string, Writer][] = [
  ["writeSafetensors", (path, value, force) => writeSafetensors(path, safe(value), { force })],
  [
    "writeGguf",
    (path, value, force) => writeGguf(path, { metadata: { a: "b" }, tensors: { w: tensor(data(value), [1, 4096]) } }, { force }),
  ],
  ["writeNpz", (path, value, force) => writeNpz(path, { x: { data: data(value), shape: [4096] } }, { force })],
  ["writeNpy", (path, value, force) => writeNpy(path, { data: data(value), shape: [4096] }, { force })],
];

test.each(writers)("%s", async (door, write) => {
  const folder = mkdtempSync(join(root, "run-"));
  const path = join(folder, "out");
  await write(path, 2, false);
  const fresh = readFileSync(path);
  await write(path, 1, true);
  const old = readFileSync(path);
  expect(old.equals(fresh)).toBe(false);
  await expect(write(path, 2, false)).rejects.toThrow(expect.objectContaining({ code: "E_EXISTS" }));
  const { calls, error } = await withFault(() => write(path, 1, true), Infinity, "EIO");
  expect(error).toBeUndefined();
  expect(calls).toBeGreaterThan(8);
  // all doors have one layer below: every call of the first, every fifth of the others, each from another one on
  const [first, stride] = door === "writeSafetensors" ? [0, 1] : [door.length % 5, 5];
  for (let fail = first; fail < calls; fail += stride)
    for (const code of [["EIO", "ENOSPC", "EACCES", "EINTR"][fail % 4], "kill"]) {
      for (const before of [old, undefined]) {
        if (before === undefined) rmSync(path, { force: true });
        else writeFileSync(path, before);
        const result = await withFault(() => write(path, 2, true), fail, code);
        const where = `call ${fail} of ${calls}, ${code}, ${before === undefined ? "new" : "over a file"}: ${String(result.error)}`;
        const names = readdirSync(folder);
        const now = names.includes("out") ? readFileSync(path) : undefined;
        const is = now === undefined ? "nothing" : now.equals(fresh) ? "new" : now.equals(old) ? "old" : "torn";
        if (code === "EINTR" || result.error === undefined) expect([result.error, is], where).toEqual([undefined, "new"]);
        else expect([before === undefined ? "nothing" : "old", "new"], where).toContain(is);
        if (code !== "kill" && result.error !== undefined) expect(isLowbitError(result.error), where).toBe(true);
        // the next run takes away what is left
        await write(path, 1, true);
        expect(readdirSync(folder), where).toEqual(["out"]);
        expect(readFileSync(path).equals(old), where).toBe(true);
      }
    }
});

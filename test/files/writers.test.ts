// Every door that writes a file, with each of its calls on the file system failed once, or killed: afterwards the old
// file or the new one, and nothing else after the next run. Models and their data have test/onnx/faults.test.ts.
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { isLowbitError } from "../../formats/core/errors.ts";
import { tensor } from "../../src/index.ts";
import { writeGguf, writeNpy, writeNpz, writeSafetensors } from "../../src/interop/index.ts";
import { useFaults, withFault } from "../helpers/faults.ts";

const root = mkdtempSync(join(tmpdir(), "lowbit-writers-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
useFaults();
/** To the next run what failed is of another process, whose leftovers it may take away. */
const failing = (work: () => Promise<unknown>, fail: number, code: string) => withFault(work, fail, code, { ended: true });

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
  const { calls, error } = await failing(() => write(path, 1, true), Infinity, "EIO");
  expect(error).toBeUndefined();
  expect(calls).toBeGreaterThan(8);
  // all doors have one layer below: every call of the first, every fifth of the others, each from another one on
  const [first, stride] = door === "writeSafetensors" ? [0, 1] : [door.length % 5, 5];
  for (let fail = first; fail < calls; fail += stride)
    for (const code of [["EIO", "ENOSPC", "EACCES", "EINTR"][fail % 4], "kill"]) {
      for (const before of [old, undefined]) {
        if (before === undefined) rmSync(path, { force: true });
        else writeFileSync(path, before);
        const result = await failing(() => write(path, 2, true), fail, code);
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

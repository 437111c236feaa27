// Files of others: what is no regular file is refused without waiting, what is written is there whole or not at all.
import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { importCheckpoint, readGguf, readSafetensors, writeSafetensors } from "../../src/interop/index.ts";
import { disk } from "../../src/files/calls.ts";
import { openStaging } from "../../src/files/staging.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-interop-files-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const refuse = (code: string) => expect.objectContaining({ code });
const one = { w: { dtype: "U8", shape: [2], bytes: Uint8Array.of(1, 2) } };

test.skipIf(process.platform === "win32")("a FIFO is refused at once, by every reader and by the writer", async () => {
  const fifo = join(folder, "model.safetensors");
  execFileSync("mkfifo", [fifo]);
  await expect(readSafetensors(fifo)).rejects.toThrow(/FIFO/);
  await expect(readGguf(fifo)).rejects.toThrow(/FIFO/);
  await expect(writeSafetensors(fifo, { tensors: one }, { force: true })).rejects.toThrow(/FIFO/);
  const checkpoint = join(folder, "checkpoint");
  mkdirSync(checkpoint);
  execFileSync("mkfifo", [join(checkpoint, "config.json")]);
  await expect(importCheckpoint(checkpoint)).rejects.toThrow(/FIFO/);
  await expect(readGguf(folder)).rejects.toThrow(/a folder/);
});

test("a file that is replaced leaves its permissions; a failure leaves it as it was", async () => {
  const path = join(folder, "a.safetensors");
  await writeSafetensors(path, { tensors: one });
  if (process.platform !== "win32") chmodSync(path, 0o640);
  const before = readFileSync(path);
  const broken = { ...one, z: { dtype: "U8", shape: [1], bytes: () => Promise.reject(new RangeError("the caller's own")) } };
  await expect(writeSafetensors(path, { tensors: broken }, { force: true })).rejects.toThrow(RangeError);
  await expect(writeSafetensors(path, { tensors: one })).rejects.toThrow(refuse("E_EXISTS"));
  expect(readFileSync(path)).toEqual(before);
  await writeSafetensors(path, { tensors: { w: { ...one.w, bytes: Uint8Array.of(3, 4) } } }, { force: true });
  expect([...readFileSync(path).subarray(-2)]).toEqual([3, 4]);
  if (process.platform !== "win32") expect(statSync(path).mode & 0o777).toBe(0o640);
  expect(readdirSync(folder).filter((name) => name.includes(".tmp"))).toEqual([]);
});

test("a closed file is read no more, and closed once", async () => {
  const path = join(folder, "closed.safetensors");
  await writeSafetensors(path, { tensors: one });
  const file = await readSafetensors(path);
  await file.close();
  await file.close();
  await expect(file.tensors.get("w")!.bytes()).rejects.toThrow(refuse("E_DISPOSED"));
});

test("what a killed run left is taken away by the next one", async () => {
  const left = openStaging(folder);
  disk.close(left.create("0"));
  left.leave();
  const long = new Date(Date.now() - 86_400_000); // older than this process: of one that had its number before
  utimesSync(left.path, long, long);
  writeFileSync(join(folder, "mine.tmp"), "");
  await writeSafetensors(join(folder, "b.safetensors"), { tensors: one });
  expect(readdirSync(folder).filter((name) => name.includes(".tmp"))).toEqual(["mine.tmp"]);
});

// Files that appear whole or not at all: the calls between two files, one at a time. test/onnx/faults.test.ts fails
// every call of whole runs, but a sample of them a run; these are the ones where a mistake would not be seen otherwise.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterAll, afterEach, beforeEach, expect, test } from "vitest";
import { replaceCalls, type FileCalls } from "../../src/files/calls.ts";
import { recover, writeFiles, type OutputFile } from "../../src/files/commit.ts";

const root = mkdtempSync(join(tmpdir(), "lowbit-commit-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let folder = "";
/** The tests kill runs, not machines: no syncs. */
const unsynced = (calls: FileCalls): FileCalls => ({ ...calls, fsync: () => undefined });
beforeEach(() => {
  folder = mkdtempSync(join(root, "run-"));
  replaceCalls(unsynced);
});
afterEach(() => replaceCalls());
const refuse = (code: string) => expect.objectContaining({ code });
const bytes = (text: string) => [new TextEncoder().encode(text)];
const read = (name: string) => readFileSync(join(folder, name), "utf8");

/** Two data files and a model that names them. */
function outputs(version: string): OutputFile[] {
  const data = ["a.data", "b.data"].map((name) => ({ path: join(folder, name), chunks: () => bytes(`${name} ${version}`) }));
  const model = (nameOf: (data: string) => string) => bytes(`model ${version}: ${nameOf("a.data")}, ${nameOf("b.data")}`);
  return [...data, { path: join(folder, "m.onnx"), chunks: () => model((name) => name), renamed: model }];
}
/** Each file's version, by what the model names. */
const versions = () =>
  Object.fromEntries(
    readdirSync(folder)
      .filter((name) => !name.endsWith(".tmp"))
      .sort()
      .map((name) => [name, /v\d/.exec(read(name))?.[0]]),
  );
const all = (version: string) => ({ "a.data": version, "b.data": version, "m.onnx": version });

/** Calls replaced by `change`, which may throw or do something first. */
const before = (change: (name: keyof FileCalls, args: readonly string[]) => void): void =>
  replaceCalls(
    (calls) =>
      new Proxy(unsynced(calls), {
        get: (target, name: keyof FileCalls) =>
          function (...args: unknown[]): unknown {
            change(name, args as string[]);
            return (target[name] as (...args: unknown[]) => unknown)(...args);
          },
      }),
  );
const failing = (code: string): Error => Object.assign(new Error(code), { code });

/** A run that is killed at the first call of which `at` is true, as another process. */
async function killed(version: string, at: (name: keyof FileCalls, args: readonly string[]) => boolean): Promise<void> {
  const { pid } = process;
  const dead = spawnSync(process.execPath, ["-e", ""]).pid;
  let over = false;
  before((name, args) => {
    over ||= at(name, args);
    if (over) throw new Error("killed");
  });
  Object.defineProperty(process, "pid", { value: dead, configurable: true, writable: true });
  await writeFiles(outputs(version), true).catch(() => undefined);
  Object.defineProperty(process, "pid", { value: pid, configurable: true, writable: true });
  replaceCalls(unsynced);
  expect(over).toBe(true);
}

test("new files and a pair over a pair leave nothing else behind", async () => {
  await writeFiles(outputs("v1"), false);
  expect(versions()).toEqual(all("v1"));
  expect(read("m.onnx")).toBe("model v1: a.data, b.data");
  await writeFiles(outputs("v2"), true);
  expect(versions()).toEqual(all("v2"));
  expect(read("m.onnx")).toBe("model v2: a.data, b.data");
  expect(statSync(join(folder, "a.data")).nlink).toBe(1);
});

test("while the new pair is put in place the model names its data where it is, and the folder lets readers in", async () => {
  await writeFiles(outputs("v1"), false);
  let seen = "";
  before((name, args) => {
    if (name !== "link" || !args[1].endsWith(".twin") || seen !== "") return;
    seen = read("m.onnx");
    const [, a, b] = /^model v2: (.+), (.+)$/.exec(seen)!;
    expect([read(a), read(b)]).toEqual(["a.data v2", "b.data v2"]);
    expect(versions()).toMatchObject({ "a.data": "v1", "b.data": "v1" });
    expect(statSync(join(folder, a, "..")).mode & 0o777).toBe(0o755);
  });
  await writeFiles(outputs("v2"), true);
  expect(seen).toContain(".tmp/");
});

test("a file that appears between the check and the link is not overwritten, and is said to exist", async () => {
  for (const appears of ["a.data", "m.onnx"]) {
    before((name, args) => {
      if (name === "link" && basename(args[1]) === appears) writeFileSync(join(folder, appears), "mine");
    });
    await expect(writeFiles(outputs("v1"), false)).rejects.toThrow(refuse("E_EXISTS"));
    replaceCalls(unsynced);
    expect(readdirSync(folder)).toEqual([appears]);
    expect(read(appears)).toBe("mine");
    rmSync(join(folder, appears));
  }
});

test("errors of a link that say nothing of a file in the way are not taken for that", async () => {
  before((name) => {
    if (name === "link") throw failing("EIO");
  });
  await expect(writeFiles(outputs("v1"), false)).rejects.toThrow(refuse("E_IO"));
  expect(readdirSync(folder)).toEqual([]);
});

test.each(["EPERM", "ENOTSUP", "EMLINK"])("a file system without links (%s): renames, and what is there stays", async (code) => {
  before((name) => {
    if (name === "link") throw failing(code);
  });
  await writeFiles(outputs("v1"), false);
  expect(versions()).toEqual(all("v1"));
  rmSync(join(folder, "a.data"));
  await expect(writeFiles(outputs("v2"), false)).rejects.toThrow(refuse("E_EXISTS"));
  await writeFiles(outputs("v3"), true);
  expect(versions()).toEqual(all("v3"));
});

test("new files: where the second or the model cannot be placed, the first goes again", async () => {
  for (const force of [false, true])
    for (const fails of ["b.data", "m.onnx"]) {
      before((name, args) => {
        if ((name === "link" || name === "rename") && basename(args[1]) === fails) throw failing("EIO");
      });
      await expect(writeFiles(outputs("v1"), force)).rejects.toThrow(refuse("E_IO"));
      expect(readdirSync(folder), `${fails}, force ${force}`).toEqual([]);
    }
});

test("a pair over a pair: where the second data file cannot be placed, the first is the old one again", async () => {
  await writeFiles(outputs("v1"), false);
  for (const fails of ["b.data", "m.onnx"]) {
    let times = 0;
    // the bridge takes the model's name first: that one succeeds
    before((name, args) => {
      if (name === "rename" && basename(args[1]) === fails && times++ === (fails === "m.onnx" ? 1 : 0)) throw failing("EIO");
    });
    await expect(writeFiles(outputs("v2"), true)).rejects.toThrow(refuse("E_IO"));
    replaceCalls(unsynced);
    expect(versions(), fails).toEqual(all("v1"));
    expect(read("m.onnx")).toBe("model v1: a.data, b.data");
  }
});

test("a data file that was not there before goes again", async () => {
  await writeFiles(outputs("v1"), false);
  rmSync(join(folder, "a.data"));
  before((name, args) => {
    if (name === "rename" && basename(args[1]) === "b.data" && args[0].endsWith(".twin")) throw failing("EIO");
  });
  await expect(writeFiles(outputs("v2"), true)).rejects.toThrow(refuse("E_IO"));
  expect(versions()).toEqual({ "b.data": "v1", "m.onnx": "v1" });
});

test("killed between link and rename of a data file: the next run finishes it", async () => {
  for (const at of ["a.data", "b.data"]) {
    await writeFiles(outputs("v1"), true);
    await killed("v2", (name, args) => name === "rename" && basename(args[1]) === at);
    expect(readdirSync(folder).filter((name) => name.endsWith(".tmp"))).toHaveLength(1);
    recover(folder);
    expect(versions(), at).toEqual(all("v2"));
  }
});

test("killed before the bridge is there: the next run keeps the old pair", async () => {
  await writeFiles(outputs("v1"), false);
  await killed("v2", (name, args) => name === "rename" && basename(args[1]) === "m.onnx");
  recover(folder);
  expect(versions()).toEqual(all("v1"));
});

test.each([true, false])("killed, and another model took the name since (a new file: %s): that one is left alone", async (fresh) => {
  await writeFiles(outputs("v1"), false);
  await killed("v2", (name, args) => name === "rename" && basename(args[1]) === "b.data");
  // a new file often gets the number of the one that went away; a copy over the file keeps it
  if (fresh) rmSync(join(folder, "m.onnx"));
  writeFileSync(join(folder, "m.onnx"), "another model v9");
  recover(folder);
  expect(versions()).toEqual({ "a.data": "v2", "b.data": "v1", "m.onnx": "v9" });
});

test("new files, killed before the model: the next run takes the data away; killed after it: they stay", async () => {
  await killed("v1", (name, args) => name === "rename" && basename(args[1]) === "m.onnx");
  expect(existsSync(join(folder, "a.data"))).toBe(true);
  recover(folder);
  expect(readdirSync(folder)).toEqual([]);
  await killed("v1", (name, args) => name === "unlink" && args[0].includes(".tmp"));
  recover(folder);
  expect(versions()).toEqual(all("v1"));
});

test("a folder in the place of an output is refused, and stays", async () => {
  for (const name of ["m.onnx", "a.data"]) {
    mkdirSync(join(folder, name));
    await expect(writeFiles(outputs("v1"), true)).rejects.toThrow(expect.objectContaining({ code: "E_IO", message: expect.stringMatching(/expected a file name, got a folder/) as string })); // prettier-ignore
    await expect(writeFiles(outputs("v1"), false)).rejects.toThrow(refuse("E_EXISTS"));
    expect(readdirSync(folder)).toEqual([name]);
    expect(statSync(join(folder, name)).isDirectory()).toBe(true);
    rmSync(join(folder, name), { recursive: true });
  }
});

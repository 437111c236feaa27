// What becomes of the exit code where stdout fails: a reader that stops early, a full disk; and where an input is not
// what it was.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { encode, matmulModel, raw, weights } from "../onnx/build.ts";
import { bin, scratch } from "./run.ts";

const dir = scratch();
const model = (name: string, scale: number): string => {
  const path = dir.path(name);
  writeFileSync(path, encode(matmulModel(raw("w", [64, 32], weights(2048, scale)), 64, 32)));
  return path;
};

/** Runs a line of bash in which $L is the command; returns the exit code of the command itself. */
function bash(line: string): { code: number | null; stderr: string } {
  const script = `set -o pipefail; L() { "${process.execPath}" "${bin}" "$@"; }; ${line}`;
  const { status, stderr } = spawnSync("bash", ["-c", script], { encoding: "utf8" });
  return { code: status, stderr };
}

describe.runIf(process.platform === "linux")("stdout that fails", () => {
  const a = model("a.onnx", 1);
  const b = model("b.onnx", 2);
  test("a reader that stops: the exit code is the command's own", () => {
    // `exec <&-` closes the pipe before anything is written to it.
    expect(bash(`L formats | true`)).toEqual({ code: 0, stderr: "" });
    expect(bash(`L verify ${a} ${b} | { exec <&-; sleep 3; }`).code).toBe(3);
    expect(bash(`L inspect ${dir.path("none.onnx")} --json | true`).code).toBe(1);
    expect(bash(`L formats nosuch | true`).code).toBe(2);
  });
  test("a full disk: exit 1 and one clear line; a worse exit code stays", () => {
    const full = bash(`L formats > /dev/full`);
    expect(full).toEqual({
      code: 1,
      stderr: "lowbit: E_IO: stdout: expected to write the result, got a full disk. Make room, or send it elsewhere.\n",
    });
    expect(bash(`L formats --json > /dev/full`).code).toBe(1);
    expect(bash(`L verify ${a} ${b} > /dev/full`).code).toBe(3);
    expect(bash(`L formats nosuch 2> /dev/full`).code).toBe(2);
  });
  test("a FIFO as model or output is refused at once", () => {
    spawnSync("mkfifo", [dir.path("pipe")]);
    const read = spawnSync(process.execPath, [bin, "inspect", dir.path("pipe")], { encoding: "utf8", timeout: 120_000 });
    expect(read.status).toBe(1);
    expect(read.stderr).toMatch(/^lowbit: E_IO: .*pipe: expected to read a file, got a FIFO/);
    const write = spawnSync(process.execPath, [bin, "quantize", a, "-o", dir.path("pipe"), "-d", "q4", "-f"], {
      encoding: "utf8",
      timeout: 120_000,
    });
    expect(write.status).toBe(1);
    expect(write.stderr).toMatch(/got a FIFO/);
  });
});

test("a killed run's files are gone after the next one, whatever that one is", () => {
  mkdirSync(dir.path("out"));
  const input = model("in.onnx", 3);
  const dead = spawnSync(process.execPath, ["-e", ""]).pid;
  // What a run of this machine leaves when it is killed, under the number of a process that has ended.
  spawnSync(process.execPath, [bin, "quantize", input, "-o", dir.path("out/first.onnx"), "-d", "q4"]);
  const place = spawnSync(
    process.execPath,
    [
      "-e",
      `const fs = require("node:fs"); const c = require("node:crypto"); let ns = ""; try { ns = fs.readlinkSync("/proc/self/ns/pid"); } catch {}
       console.log(c.createHash("sha256").update(require("node:os").hostname() + "\\0" + ns).digest("hex").slice(0, 8));`,
    ],
    { encoding: "utf8" },
  ).stdout.trim();
  const left = dir.path(`out/.lowbit-${place}-${dead.toString(36)}-0123abcd.tmp`);
  mkdirSync(left);
  writeFileSync(`${left}/0`, "half");
  const next = spawnSync(process.execPath, [bin, "quantize", input, "-o", dir.path("out/second.onnx"), "-d", "q4"], { encoding: "utf8" });
  expect(next.status).toBe(0);
  expect(existsSync(left)).toBe(false);
});

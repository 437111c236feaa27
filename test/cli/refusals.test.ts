// What goes wrong with long runs, through the built command: journals and shards that do not belong, a disk that fills
// up, a browser or runtime that is missing, inputs that cannot be guessed. Each is one error with what to do, and what
// was made before is still there. Needs `npm run build`.
import { spawnSync, type SpawnSyncReturns } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, test } from "vitest";
import { encode, graph, matmulModel, model, node, raw, T, value, weights } from "../onnx/build.ts";
import { bin, root, scratch } from "./run.ts";

const place = scratch();
const run = (args: readonly string[], env: Record<string, string> = {}, script = bin): SpawnSyncReturns<string> =>
  spawnSync(process.execPath, [script, ...args], { env: { ...process.env, ...env }, encoding: "utf8" });

/** Four products of 64 x 4096, 1 MiB each, of a value that must be computed. */
const io = { input: [value("x", T.FLOAT, ["b", 64])], output: [0, 1, 2, 3].map((i) => value(`y${i}`, T.FLOAT, ["b", 4096])) };
const chain = place.path("four.onnx");
writeFileSync(
  chain,
  encode(
    model(
      graph({
        ...io,
        initializer: io.output.map((_, i) => raw(`w${i}`, [64, 4096], weights(64 * 4096, i + 1))),
        node: [node("Tanh", ["x"], ["h"]), ...io.output.map((_, i) => node("MatMul", ["h", `w${i}`], [`y${i}`], {}, `mm${i}`))],
      }),
    ),
  ),
);
const shard = (out: string, at: string, ...more: string[]): string[] => ["quantize", chain, "-o", out, "--shard", at, ...more];

/** Ends with one error of this code and these words, without a stack. */
function refused({ status, stderr }: SpawnSyncReturns<string>, code: string, ...words: (string | RegExp)[]): void {
  expect(status, stderr).toBe(1);
  expect(stderr).toContain(code);
  for (const word of words) expect(stderr).toMatch(word);
  expect(stderr).not.toMatch(/\n\s+at /);
}

test("a shard of another recipe is left alone, and the option that differs is named", () => {
  const out = place.path("recipe.onnx");
  expect(run(shard(out, "1/2", "--dtype", "q4", "--resume")).status).toBe(0);
  const before = readFileSync(`${out}.1-of-2.shard`);
  refused(
    run(shard(out, "1/2", "--dtype", "q8", "--resume")),
    "E_EXISTS",
    /another recipe: dtype "q4" instead of "q8"/,
    /remove that file/,
  );
  expect(readFileSync(`${out}.1-of-2.shard`).equals(before)).toBe(true);
});

test("a journal of another recipe is left alone", () => {
  const out = place.path("journal.onnx");
  expect(run(shard(out, "1/1", "--dtype", "q4", "--resume")).status).toBe(0);
  // a journal is what a shard is before its end
  const journal = readFileSync(`${out}.1-of-1.shard`);
  rmSync(`${out}.1-of-1.shard`);
  writeFileSync(`${out}.1-of-1.shard.journal`, journal.subarray(0, journal.length - 40));
  const other = run(["quantize", chain, "-o", out, "--dtype", "q8", "--resume", "--shard", "1/1"]);
  refused(other, "E_EXISTS", /journal: expected the work of this run, got another recipe: dtype "q4" instead of "q8"/);
  // and the run that it belongs to goes on from it
  const own = run(shard(out, "1/1", "--dtype", "q4", "--resume"));
  expect(own.stdout, own.stderr).toContain("resumed: 4 weights were taken from the journal");
});

/** The first record of a shard with another text in it, its checksum made again. */
function rewritten(path: string, from: string, to: string): void {
  const bytes = readFileSync(path);
  const length = bytes.readUInt32LE(8);
  const json = Buffer.from(
    bytes
      .subarray(20, 20 + length)
      .toString()
      .replace(from, to),
  );
  const head = Buffer.from(bytes.subarray(8, 20));
  head.writeUInt32LE(json.length, 0);
  const sum = createHash("sha256").update(head).update(json).digest();
  writeFileSync(path, Buffer.concat([bytes.subarray(0, 8), head, json, sum, bytes.subarray(20 + length + 32)]));
}

test("shards of different versions are not merged: the odd one is named, with the command that makes it again", () => {
  const out = place.path("versions.onnx");
  for (const at of ["1/3", "2/3", "3/3"]) expect(run(shard(out, at, "--dtype", "q4")).status).toBe(0);
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
  rewritten(`${out}.2-of-3.shard`, `"version":"${version}"`, `"version":"0.0.9"`);
  refused(run(["merge", chain, out]), "E_CONTAINER", /2-of-3\.shard/, `version 0.0.9 instead of ${version}`, /--shard 2\/3 --force/);
  expect(existsSync(out)).toBe(false);
  expect(run(shard(out, "2/3", "--dtype", "q4", "--force")).status).toBe(0);
  expect(run(["merge", chain, out]).status).toBe(0);
});

test("a disk that fills up while a shard is made: an error that says so; with room again it goes on from there", ({ skip }) => {
  const disk = place.path("disk");
  mkdirSync(disk);
  const mount = (options: string): boolean => spawnSync("mount", ["-t", "tmpfs", "-o", options, "tmpfs", disk]).status === 0;
  if (!mount("size=300k")) return skip("a small tmpfs needs the right to mount");
  try {
    const out = join(disk, "out.onnx");
    refused(run(shard(out, "1/1", "--dtype", "q4")), "E_IO", /no space|full disk/i);
    // without --resume nothing stays
    expect(readdirSync(disk)).toEqual([]);
    refused(run(shard(out, "1/1", "--dtype", "q4", "--resume")), "E_IO", /1-of-1\.shard\.journal/, /no space|full disk/i);
    expect(readdirSync(disk)).toEqual(["out.onnx.1-of-1.shard.journal"]);
    expect(mount("remount,size=4m")).toBe(true);
    const again = run(shard(out, "1/1", "--dtype", "q4", "--resume"));
    expect(again.status, again.stderr).toBe(0);
    expect(again.stdout).toMatch(/resumed: \d weights? w(as|ere) taken from the journal/);
    expect(run(["merge", chain, out]).status).toBe(0);
    const whole = place.path("whole.onnx");
    expect(run(["quantize", chain, "-o", whole, "--dtype", "q4"]).status).toBe(0);
    expect(readFileSync(out).equals(readFileSync(whole))).toBe(true);
  } finally {
    spawnSync("umount", [disk]);
  }
});

test("a browser that is missing: the variable that names it", () => {
  const answer = run(["verify", chain, chain, "--runtimes", "webgpu"], { LOWBIT_CHROMIUM: "/nowhere/chromium" });
  refused(answer, "E_RUNTIME", /a browser at LOWBIT_CHROMIUM, got no file \/nowhere\/chromium/, /Correct the variable/);
});

test("runtimes that are missing: the package to install, for verify and for calibration", () => {
  // the built package alone, with what it depends on
  const alone = place.path("alone");
  cpSync(join(root, "dist"), join(alone, "dist"), { recursive: true });
  writeFileSync(join(alone, "package.json"), readFileSync(join(root, "package.json")));
  mkdirSync(join(alone, "node_modules/@bufbuild"), { recursive: true });
  symlinkSync(join(root, "node_modules/@bufbuild/protobuf"), join(alone, "node_modules/@bufbuild/protobuf"));
  const script = join(alone, bin.slice(root.length));
  expect(existsSync(dirname(script))).toBe(true);
  const data = place.path("data.jsonl");
  writeFileSync(data, `${JSON.stringify({ x: Array.from({ length: 32 }, (_, i) => Array.from(weights(64, i))) })}\n`);
  const gptq = ["quantize", chain, "-o", place.path("gptq.onnx"), "--format", "int4_b32", "--algorithm", "gptq", "--calibrate", data];
  refused(run(gptq, {}, script), "E_RUNTIME", /expected the package onnxruntime-node/, /npm install onnxruntime-node/);
  refused(run(["verify", chain, chain], {}, script), "E_RUNTIME", /onnxruntime-node/, /npm install onnxruntime-node/);
  // what needs no runtime works
  expect(run(["quantize", chain, "-o", place.path("alone.onnx"), "--dtype", "q4"], {}, script).status).toBe(0);
});

test("inputs that cannot be guessed: what to give", () => {
  const odd = place.path("odd.onnx");
  const shape = raw("shape", [2], BigInt64Array.of(37n, 41n), T.INT64);
  const open = { input: [value("x", T.FLOAT, ["rows", "columns"])], output: [value("y", T.FLOAT, [37, 41])] };
  writeFileSync(odd, encode(model(graph({ ...open, initializer: [shape], node: [node("Reshape", ["x", "shape"], ["y"])] }))));
  refused(run(["verify", odd, odd]), "E_RUNTIME", /--dims|dims/);
  expect(run(["verify", odd, odd, "--dims", "rows=41,columns=37"]).status).toBe(0);
});

test("options of verify that do not go together are usage, not a defect", () => {
  for (const [args, found] of [
    [["--images", dirname(chain)], /--images, preprocess: expected both or none, got one\. Presets: imagenet/],
    [["--images", dirname(chain), "--preprocess", "nope"], /--preprocess: expected one of imagenet, .*, got "nope"/],
    [["--images", dirname(chain), "--preprocess", "raw", "--inputs", chain], /--images, inputs: expected one of them, got both/],
  ] as const) {
    const { status, stderr } = run(["verify", chain, chain, ...args]);
    expect(status, stderr).toBe(2);
    expect(stderr).toMatch(found);
    expect(stderr).toContain("E_CLI");
  }
});

test("data that do not fit the model say which input and shape it has", () => {
  const small = place.path("small.onnx");
  writeFileSync(small, encode(matmulModel(raw("w", [64, 8], weights(512)), 64, 8)));
  const data = place.path("wrong.jsonl");
  writeFileSync(data, `${JSON.stringify({ other: [[1, 2]] })}\n`);
  const answer = run(["quantize", small, "-o", place.path("no.onnx"), "--format", "int4_b32", "--algorithm", "gptq", "--calibrate", data]);
  refused(answer, "E_CALIBRATION", /"x"/, /"other"/);
});

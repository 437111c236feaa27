// Every call on the file system of a write, failed once each: afterwards there is the old pair, or the new pair, or
// (where there was none) nothing, and the next run leaves no trace of it. A kill is a call after which no call does
// anything any more.
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { isLowbitError } from "../../formats/core/errors.ts";
import { readFloats } from "../../src/onnx/file/values.ts";
import type { OnnxModel, WriteOptions } from "../../src/onnx/index.ts";
import { quantizeModel, readModel, readModelBytes, writeModel } from "../../src/onnx/index.ts";
import { useFaults, withFault } from "../helpers/faults.ts";
import { encode, graph, model, node, raw, T, value } from "./build.ts";

const root = mkdtempSync(join(tmpdir(), "lowbit-faults-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
useFaults();

/** A model of two weights whose values all are `version`. */
const versions = new Map<number, OnnxModel>();
function ofVersion(version: number): OnnxModel {
  let made = versions.get(version);
  if (made === undefined) {
    const w = ["w0", "w1"].map((name) => raw(name, [32, 32], new Float32Array(1024).fill(version)));
    const nodes = [node("MatMul", ["x", "w0"], ["h"]), node("MatMul", ["h", "w1"], ["y"])];
    const io = { input: [value("x", T.FLOAT, [1, 32])], output: [value("y", T.FLOAT, [1, 32])] };
    made = readModelBytes(encode(model(graph({ ...io, initializer: w, node: nodes }))));
    versions.set(version, made);
  }
  return made;
}

/**
 * What stands in the folder: a version, "nothing", "broken" (does not load), or "torn" (loads with data of two
 * versions, or of another model).
 */
function state(folder: string): number | "nothing" | "broken" | "torn" {
  const path = join(folder, "out.onnx");
  if (!existsSync(path)) return "nothing";
  try {
    using opened = readModel(path);
    const values = opened.proto.graph!.initializer.flatMap((tensor) => [...readFloats(opened, tensor)]);
    return values.every((x) => x === values[0]) ? values[0] : "torn";
  } catch {
    return "broken";
  }
}

interface Scenario {
  /** What stands there before; undefined: nothing. */
  readonly before?: WriteOptions;
  readonly options: WriteOptions;
  /** What stands there afterwards. */
  readonly files: readonly string[];
}

const pair = ["out.onnx", "out.onnx_data"];
const scenarios: Record<string, Scenario> = {
  "a new model": { options: {}, files: ["out.onnx"] },
  "a model over a model": { before: {}, options: { force: true }, files: ["out.onnx"] },
  "a new pair": { options: { externalData: true }, files: pair },
  "a new pair, by force": { options: { externalData: true, force: true }, files: pair },
  "a pair over a pair": { before: { externalData: true }, options: { externalData: true, force: true }, files: pair },
  "a pair over a model": { before: {}, options: { externalData: true, force: true }, files: pair },
  "a model over a pair": { before: { externalData: true }, options: { force: true }, files: ["out.onnx"] },
  "three files over a pair": {
    before: { externalData: true },
    options: { externalData: true, dataFileBytes: 4096, force: true },
    files: [...pair, "out.onnx_data_1"],
  },
  "a pair over three files": {
    before: { externalData: true, dataFileBytes: 4096 },
    options: { externalData: true, force: true },
    files: pair,
  },
};

async function prepare({ before }: Scenario): Promise<string> {
  const folder = mkdtempSync(join(root, "run-"));
  if (before !== undefined) await writeModel(ofVersion(1), join(folder, "out.onnx"), before);
  return folder;
}

/**
 * Each case takes every tenth call, from where the last one did not: all of them with LOWBIT_ALL_FAULTS=1 (a minute or
 * two).
 */
const STRIDE = process.env.LOWBIT_ALL_FAULTS === undefined ? 10 : 1;
let turn = 0;
const CODES = ["EIO", "ENOSPC", "EACCES", "EINTR"] as const;
const first = (): number => (turn++ * 7) % STRIDE;

const staging = (folder: string): string[] => readdirSync(folder).filter((name) => name.endsWith(".tmp"));

describe.each(Object.entries(scenarios))("%s", (_name, scenario) => {
  const write = (folder: string, version = 2): Promise<void> => writeModel(ofVersion(version), join(folder, "out.onnx"), scenario.options);
  const old = scenario.before === undefined ? "nothing" : 1;

  /** Calls of a run without a fault. */
  const count = async (links = true): Promise<number> =>
    (await withFault(write.bind(null, await prepare(scenario)), Infinity, "EIO", { links })).calls;

  it("without a fault", async () => {
    const folder = await prepare(scenario);
    const { calls, error } = await withFault(() => write(folder), Infinity, "EIO");
    expect({ error, state: state(folder), files: readdirSync(folder).sort() }).toEqual({
      error: undefined,
      state: 2,
      files: scenario.files,
    });
    expect(calls).toBeGreaterThan(15);
    rmSync(folder, { recursive: true });
  });

  it("EIO, ENOSPC, EACCES or EINTR at each call: the old or the new, and no trace", async () => {
    const calls = await count();
    // By default every fifth call, each with the next code; all of them with all codes on demand.
    const faults = Array.from({ length: calls }, (_, fail) => fail).flatMap((fail) =>
      STRIDE === 1 ? CODES.map((code) => [fail, code] as const) : fail % 5 === 2 ? [[fail, CODES[turn++ % 4]] as const] : [],
    );
    for (const [fail, code] of faults) {
      const folder = await prepare(scenario);
      const result = await withFault(() => write(folder), fail, code);
      const where = `call ${fail} of ${calls}: ${String(result.error)}`;
      const found = state(folder);
      if (result.error === undefined) expect(found, where).toBe(2);
      else {
        expect(isLowbitError(result.error), where).toBe(true);
        expect([old, 2], where).toContain(found);
      }
      if (code === "EINTR") expect(result.error, where).toBeUndefined();
      // Only where the removal itself failed is something left, and the result is there.
      if (staging(folder).length > 0) expect(found, where).toBe(result.error === undefined ? 2 : found);
      else if (found === 1)
        expect(readdirSync(folder).length, where).toBe(scenario.before!.dataFileBytes ? 3 : scenario.before!.externalData ? 2 : 1);
      else if (found === 2) expect(readdirSync(folder).sort().slice(0, scenario.files.length), where).toEqual(scenario.files);
      else expect(readdirSync(folder), where).toEqual([]);
      rmSync(folder, { recursive: true });
    }
  });

  it.each([true, false])("a kill at each call (hard links: %s): never torn, and the next run leaves no trace", async (links) => {
    const calls = await count(links);
    for (let fail = first(); fail < calls; fail += STRIDE) {
      const folder = await prepare(scenario);
      await withFault(() => write(folder), fail, "kill", { links });
      const where = `call ${fail} of ${calls}`;
      // Without hard links there is a moment in which the new model waits for its data.
      expect(links ? [old, 2] : [old, 2, "broken"], where).toContain(state(folder));
      if ((fail / STRIDE) % 2 < 1) {
        // The next run writes the same output.
        await writeModel(ofVersion(3), join(folder, "out.onnx"), { ...scenario.options, force: true });
        expect(state(folder), where).toBe(3);
        expect(readdirSync(folder).sort(), where).toEqual(scenario.files);
      } else {
        // The next run writes another output into the folder.
        await writeModel(ofVersion(3), join(folder, "other.onnx"));
        expect([old, 2], where).toContain(state(folder));
        expect(staging(folder), where).toEqual([]);
        const files = readdirSync(folder).filter((name) => name !== "other.onnx");
        if (state(folder) === "nothing") expect(files, where).toEqual([]);
        if (state(folder) === 2) expect(files.sort(), where).toEqual(scenario.files);
      }
      rmSync(folder, { recursive: true });
    }
  });
});

it("a journal that names files elsewhere is not followed", async () => {
  writeFileSync(join(root, "precious"), "mine");
  // A killed run's folder, with a journal changed by hand.
  let folder = "";
  let name = "";
  for (let fail = 0; name === "" && fail < 200; fail++) {
    folder = mkdtempSync(join(root, "run-"));
    await withFault(() => writeModel(ofVersion(2), join(folder, "other.onnx"), { externalData: true }), fail, "kill");
    name = staging(folder).find((at) => existsSync(join(folder, at, "commit"))) ?? "";
  }
  const journal = join(folder, name, "commit");
  const text = JSON.parse(readFileSync(journal, "utf8")) as { obsolete: string[]; model: { target: string } };
  writeFileSync(journal, JSON.stringify({ ...text, obsolete: ["../precious"] }));
  await writeModel(ofVersion(2), join(folder, "third.onnx"));
  expect(readFileSync(join(root, "precious"), "utf8")).toBe("mine");
  expect(existsSync(journal)).toBe(true);
});

it("a whole run of quantizeModel over a pair, with external input: any call of it may fail", async () => {
  const folder = mkdtempSync(join(root, "run-"));
  const [input, output] = [join(folder, "in.onnx"), join(folder, "out.onnx")];
  await writeModel(ofVersion(1), input, { externalData: true });
  const options = { dtype: "q8", externalData: true, force: true } as const;
  await quantizeModel(input, output, { ...options, dtype: "q4" });
  const files = (): string[] => readdirSync(folder).sort();
  const bytes = (): string =>
    files()
      .map((name) => readFileSync(join(folder, name), "latin1"))
      .join();
  const [old, names] = [bytes(), files()];
  const work = async (): Promise<void> => void (await quantizeModel(input, output, options));
  const { calls, error } = await withFault(work, Infinity, "EIO");
  expect(error).toBeUndefined();
  const [fresh, after] = [bytes(), files()];
  expect(calls).toBeGreaterThan(40);
  for (let fail = 0, n = 0; fail < calls; fail += STRIDE === 1 ? 1 : 3, n++) {
    await quantizeModel(input, output, { ...options, dtype: "q4" });
    const code = CODES[n % 4];
    const result = await withFault(work, fail, code);
    const where = `call ${fail} of ${calls}, ${code}: ${String(result.error)}`;
    if (result.error !== undefined) expect(isLowbitError(result.error), where).toBe(true);
    if (code === "EINTR") expect(result.error, where).toBeUndefined();
    // A folder that could not be removed is found by the next run.
    if (staging(folder).length === 0) {
      expect([old, fresh], where).toContain(bytes());
      expect([names, after].map(String), where).toContain(String(files()));
    }
    expect(result.error === undefined ? [fresh] : [old, fresh], where).toContain(
      files()
        .filter((name) => !name.endsWith(".tmp"))
        .map((name) => readFileSync(join(folder, name), "latin1"))
        .join(),
    );
  }
});

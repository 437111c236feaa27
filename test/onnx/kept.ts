// What tests make, byte by byte: each has the hashes of the models and reports that it makes in
// test/fixtures/onnx/kept. A test says what a model must do; this says that nothing else of it changed. After a change
// that is meant: LOWBIT_WRITE_TEXTS=1 npx vitest run test/onnx; with LOWBIT_TEXTS=FOLDER the models are written there as
// text, before and after, to see the difference.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";
import * as onnx from "../../src/onnx/index.ts";
import type { OnnxModel, QuantizeBytesOptions, QuantizeReport } from "../../src/onnx/index.ts";
import { modelText, reportText } from "./printed.ts";

const folder = fileURLToPath(new URL("../fixtures/onnx/kept/", import.meta.url));

/** Options whose numbers come from runs of a model, which differ in their last bits from machine to machine. */
const RUNS = ["calibration", "statistics"] as const;
/** Options that choose by such numbers. */
const CHOICES = ["budget", "targetSqnr"] as const;

/** Hashes by the name of a test, of each file of tests. */
const files = new Map<string, Map<string, Set<string>>>();
const isWriting = process.env.LOWBIT_WRITE_TEXTS === "1";

function hashesOf(file: string): Map<string, Set<string>> {
  let known = files.get(file);
  if (known === undefined) {
    files.set(file, (known = new Map()));
    const path = join(folder, `${file}.txt`);
    for (const line of !isWriting && existsSync(path) ? readFileSync(path, "utf8").split("\n").filter(Boolean) : []) {
      const [hashes, name] = line.split("\t");
      known.set(name, new Set(hashes.split(" ")));
    }
  }
  return known;
}

function same(bytes: Uint8Array | null, hashed: Uint8Array | string, words: readonly string[]): void {
  const hash = createHash("sha256").update(hashed).update(words.join("\n")).digest("hex").slice(0, 10);
  const { testPath = "", currentTestName = "" } = expect.getState();
  const file = basename(testPath)
    .replace(/\.test\.ts.*/, "")
    .replace(/.*__/, ""); // of a bundle of scripts/mutate.ts
  const name = currentTestName.replace(/\s+/g, " ");
  const known = hashesOf(file);
  const texts = process.env.LOWBIT_TEXTS;
  if (texts !== undefined)
    writeFileSync(join(texts, `${file} ${hash}.txt`), [name, ...words, bytes === null ? "" : modelText(bytes)].join("\n"));
  if (isWriting) {
    known.set(name, (known.get(name) ?? new Set()).add(hash));
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, `${file}.txt`), [...known].map(([test, hashes]) => `${[...hashes].join(" ")}\t${test}\n`).join(""));
  } else expect(known.get(name) ?? new Set(), "a model other than those in test/fixtures/onnx/kept").toContain(hash);
}

const bytesOf = (model: OnnxModel | Uint8Array): Uint8Array => (model instanceof Uint8Array ? model : onnx.writeModelBytes(model));

/** A model, and what was said of it. */
export function keep(model: OnnxModel | Uint8Array, ...words: string[]): void {
  const bytes = bytesOf(model);
  same(bytes, bytes, words);
}

/** A model with its numbers in three digits: for powers and sums that differ in their last bits. */
export function keepAbout(model: OnnxModel | Uint8Array, ...words: string[]): void {
  const bytes = bytesOf(model);
  same(bytes, modelText(bytes, "about"), words);
}

/** Nodes, types and shapes of a model, without its numbers; large integers are in names of constants (`integerOnly`). */
export function keepForm(model: OnnxModel | Uint8Array, ...words: string[]): void {
  const bytes = bytesOf(model);
  same(bytes, modelText(bytes, "none").replace(/\binteger\.-?\d{4,}/g, "integer"), words);
}

/** Words alone. */
export const keepTexts = (...words: string[]): void => same(null, "", words);

const masked = (words: string): string => words.replace(/(\/[\w.@+-]+){2,}/g, "PATH").replace(/-?\d+(\.\d+)?(e[+-]?\d+)?/g, "0");

/** What a report says beside what was measured. */
function formOf({ dtype, layers, notes, rules, traps }: QuantizeReport): string {
  const lines = layers.map((one) => [one.name, one.opType, one.weight, one.shape, one.bytesBefore, one.format, one.algorithm, one.target, one.sharedWith, masked(one.reason ?? "")]); // prettier-ignore
  return JSON.stringify([dtype, lines, notes.map(masked), traps.map(({ runtime }) => runtime), rules]);
}

/** As the library's, with what it makes kept: all of it where no run of a model went into it, else its form. */
export async function quantizeModelBytes(...args: Parameters<typeof onnx.quantizeModelBytes>): ReturnType<typeof onnx.quantizeModelBytes> {
  const result = await onnx.quantizeModelBytes(...args);
  const options = (args[1] ?? {}) as QuantizeBytesOptions;
  const has = (names: readonly (keyof QuantizeBytesOptions)[]): boolean => names.some((name) => options[name] !== undefined);
  if (has(CHOICES) || options.activations === "mixed") return result;
  if (has(RUNS)) keepForm(result.bytes, formOf(result.report));
  else keep(result.bytes, reportText(result.report));
  return result;
}

/** As the library's, with what it says kept, without its numbers. */
export async function verifyModels(...args: Parameters<typeof onnx.verifyModels>): ReturnType<typeof onnx.verifyModels> {
  const report = await onnx.verifyModels(...args);
  const { ok, samples, random, seed, minSqnrDb, inputs, notes, warnings } = report;
  const outputs = report.outputs.map((one) => [one.name, one.type, one.dims, one.kind, one.ok, one.noEvidence, one.agreement?.measure]); // prettier-ignore
  const cells = report.matrix?.cells.map((cell) => [cell.runtime, cell.ok, cell.state]);
  keepTexts(JSON.stringify({ ok, samples, random, seed, minSqnrDb, inputs, outputs, cells }), ...[...notes, ...warnings].map(masked));
  return report;
}

// Tables that the ONNX part is made of, and what it says to every value of every option, as text against stored text:
// dtypes, options, runtimes, traps, operators, presets; recipes, patterns, passes, kinds of files.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { allFormats, format } from "../../formats/index.ts";
import { foreignKind } from "../../src/onnx/file/kinds.ts";
import { DATA_TYPES } from "../../src/onnx/file/types.ts";
import { FP16_BLOCKED_OPS, BUDGET_CANDIDATES, checkPasses, DTYPES, dtypeFileName, parseRecipe, quantizeModelBytes, readModel, recipeOf, RUNTIME_NAMES, type QuantizeModelOptions } from "../../src/onnx/index.ts"; // prettier-ignore
import { checkOptions, OPTIONS } from "../../src/onnx/option-table.ts";
import { nameFilter, nameMatcher, patternRegExp } from "../../src/onnx/patterns.ts";
import { PASSES } from "../../src/onnx/passes/index.ts";
import { TARGETS } from "../../src/onnx/targets/index.ts";
import { FUSED_BEHIND, reads, STATIC_DEFAULT, STATIC_OPERATORS } from "../../src/onnx/targets/static/operators.ts";
import { NBITS_BLOCKS, nbitsPlan } from "../../src/onnx/targets/nbits.ts";
import { gemmAlpha } from "../../src/onnx/weights.ts";
import { PRESETS } from "../../src/onnx/verify/images.ts";
import { RUNTIMES, runtimeEntries } from "../../src/onnx/verify/table.ts";
import { RUNTIME_TRAPS } from "../../src/onnx/verify/traps.ts";
import { checkVerifyOptions } from "../../src/onnx/verify/verify.ts";
import { encode, matmulModel, node, raw, weights } from "./build.ts";
import { storedTexts } from "./printed.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-options-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const stored = storedTexts("options");
const text = (v: unknown): string =>
  JSON.stringify(v, (_, x: unknown) => (typeof x === "function" ? "a function" : x instanceof RegExp ? String(x) : x === undefined ? "undefined" : x instanceof Map || x instanceof Set ? [...x] : typeof x === "number" && !Number.isFinite(x) ? String(x) : typeof x === "bigint" ? `${x}n` : x)) ?? "undefined"; // prettier-ignore
const tried = (make: () => unknown): string => {
  try {
    return text(make());
  } catch (error) {
    return `${(error as Error).name}: ${(error as Error).message}`;
  }
};

test("tables", () => {
  const tables: Record<string, unknown> = {
    dtypes: DTYPES.map(({ format: own, ...row }) => ({ ...row, format: own !== null })),
    options: OPTIONS.map(({ accepts: _, dtypes, ...row }) => ({ ...row, dtypes: dtypes && DTYPES.filter(dtypes).map(({ name }) => name) })),
    targets: [...TARGETS].map(([name, make]) => { const { opTypes, defaultOpTypes, name: own } = make(); return [name, own, opTypes, defaultOpTypes]; }), // prettier-ignore
    passes: [...PASSES.values()].map(({ name, options, changesOutputs }) => [name, options, changesOutputs ?? false]),
    traps: RUNTIME_TRAPS.map(({ when: _, ...row }) => row),
    runtimes: RUNTIMES.map(({ name, about }) => [name, about]),
    "runtime names": [RUNTIME_NAMES, runtimeEntries(["webgpu", "node", "webgpu-jsep"]).map(({ name }) => name)],
    presets: [...PRESETS],
    "static operators": [...STATIC_OPERATORS].map(([name, row]) => [name, row, reads(name)]),
    "static rest": [STATIC_DEFAULT, FUSED_BEHIND],
    "data types": Object.entries(DATA_TYPES).map(([type, { typedCount, ...row }]) => [type, row, [1, 7, 8].map((n) => typedCount(n))]),
    budget: BUDGET_CANDIDATES,
    "float16 blocked": FP16_BLOCKED_OPS,
    blocks: NBITS_BLOCKS,
    "file names": DTYPES.map((row) => ["m.onnx", "a.b.ONNX", "m", "x/y.onnx"].map((name) => dtypeFileName(name, row))),
  };
  for (const [name, table] of Object.entries(tables)) stored(name, Array.isArray(table) ? table.map(text).join("\n") : text(table));
});

const VALUES: unknown[] = [null, true, false, 0, 1, 16, 24, 64, -1, 1.5, NaN, Infinity, "", "x", "q4", "int4_b32", "1/2", "3/2", "0/1", "mixed", "int8", "qdq", "mse", "*", "/(/", [], ["x"], [1], ["/(/"], [/a/g], {}, { text: "a" }, { method: "mse" }, { name: "gptq" }, { name: "nobody" }, { x: "int8" }, { x: "int9" }, { bitsPerWeight: 4 }, { bitsPerWeight: 4, candidates: ["int4_b32"] }, { bitsPerWeight: "4" }, { maxBatches: 3, holdOut: 0.1 }, { maxBatches: -1 }, { no: 1 }, [0, 1], [1e-7, 1000], [2, 1], [{ match: "x" }], [{ match: "x", keep: true }], [{ match: "x", dtype: "q9" }], [{ match: "x", format: "int4_b32", target: "qdq" }], [{ keep: true }], ["rotate"], [{ name: "rotate" }], () => [], new AbortController().signal]; // prettier-ignore
const shown = (v: unknown): string => (v instanceof AbortSignal ? "a signal" : text(v));

/** Which of the values are taken, and how many of the others are refused by which error. */
function answers(check: (value: unknown) => unknown, values = VALUES): string {
  const all = values.map((value) => [shown(value), tried(() => void check(value))] as const);
  const errors = ["TypeError", "RangeError", "LowbitError"].map(
    (name) => `${all.filter(([, said]) => said.startsWith(name)).length} ${name}`,
  );
  return `${all.filter(([, said]) => said === '"undefined"').map(([value]) => value).join(" ")}; ${errors.join(", ")}`; // prettier-ignore
}

test("every option with values of every kind", () => {
  const bases: [string, Partial<QuantizeModelOptions>][] = [["q4", { dtype: "q4" }], ["q8", { dtype: "q8" }], ["fp16", { dtype: "fp16" }], ["a format", { format: "int3_b32" }], ["activations", { activations: "uint8" }], ["nothing", {}]]; // prettier-ignore
  const lines: string[] = [];
  for (const { name } of OPTIONS)
    for (const [what, base] of bases) lines.push(`${name} ${what}: ${answers((value) => checkOptions({ ...base, [name]: value } as QuantizeModelOptions))}`); // prettier-ignore
  const pairs: Partial<QuantizeModelOptions>[] = [{ dtype: "q4", format: "int4_b32" }, { dtype: "q4", activations: "int8" }, { dtype: "fp16", activations: "int8" }, { dtype: "q4", budget: { bitsPerWeight: 4 } } as never, { dtype: "fp16", budget: { bitsPerWeight: 4 } } as never, { dtype: "q4", target: "qdq" }, { format: "int4_b32", target: "qdq" }, { dtype: "q4", statistics: "s", calibration: "c" }, { dtype: "q4", statistics: "s", passes: ["rotate"] }, { dtype: "q4", statistics: "s", requantize: true }, { dtype: "q4", statistics: "s", requantize: false }, { dtype: "q4", shard: "1/2", targetSqnr: 20 }, { dtype: "q4", shard: "1/2", sequential: true }, { dtype: "q4", shard: "1/2", sequential: false }, { dtype: "q4", shard: "1/2", report: "r.html" }, { format: "int3_b32", shard: "1/2", budget: { bitsPerWeight: 4 } } as never, { dtype: "fp16", shard: "1/2" }, { dtype: "bnb4", blockSize: 8 }, { dtype: "bnb4", blockSize: 48 }, { dtype: "bnb4", blockSize: 512 }, { dtype: "q4", blockSize: 512 }, { dtype: "q1" as never }, { blocksize: 3 } as never, { format: { name: "f" } as never }, { format: format("int4_b32"), blockSize: 32 }, { blockSize: 32, activations: "int8" }, { accuracyLevel: 4, format: "int4_b32" }]; // prettier-ignore
  for (const pair of pairs) lines.push(`${text(pair).slice(0, 120)}: ${tried(() => checkOptions(pair as QuantizeModelOptions))}`);
  stored("values", lines.join("\n"));
});

test("recipes", () => {
  const lines = VALUES.slice(0, 40).map((value) => `${shown(value)}: ${tried(() => parseRecipe(value, "r.json"))}`);
  for (const recipe of [{ version: 1, dtype: "q4" }, { version: 2 }, { version: "1" }, { $schema: "s", dtype: "q4" }, { dtyp: "q4" }, { dtype: "q9" }, { onProgress: 1 }, { signal: 1 }, { keep: ["a"], exclude: "a" }, { rules: [{ match: "a", keep: true }] }]) lines.push(`${text(recipe)}: ${tried(() => parseRecipe(recipe, "r.json"))}`); // prettier-ignore
  for (const options of [{ dtype: "q4", onProgress: () => undefined, force: true, resume: true, shard: "1/2", report: "r" }, { format: format("int3_b32"), exclude: [/a/g, "b"], rules: [{ match: /x/i, format: format("mxfp4") }], signal: new AbortController().signal }, { dtype: "q4", algorithm: () => null, calibration: () => [], clamp: [0, 1], keepIoTypes: false, blockSize: undefined }]) lines.push(text(recipeOf(options as never))); // prettier-ignore
  stored("recipes", lines.join("\n"));
});

test("patterns", () => {
  const names = ["a", "ab", "a.b", "a/b", "A", "x\ny", "/a/", "/a/g", "l.1.q", "l.2.q", "(a)", "[a]", "a?", "a*"];
  const patterns = ["a", "a*", "*", "?", "a?", "a.b", "/a/", "/^a/", "/^a/i", "/a/gy", "/a/z", "/(/", "", "(a)", "[a]", "l.*.q", "l.?.q", "x*y", "a|b", /^a/, /a/gy, /A/i, /x.y/s]; // prettier-ignore
  const lines = patterns.map((pattern) => `${String(pattern)}: ${tried(() => { const regex = patternRegExp(pattern); return [names.filter((name) => regex.test(name)), names.filter((name) => regex.test(name))]; })}`); // prettier-ignore
  for (const pattern of [...patterns, "zzz", "l.3.q"]) for (const what of ["exclude", "include", "keep"]) lines.push(`${what} ${String(pattern)}: ${tried(() => names.filter(nameMatcher(what, pattern, names)))}`); // prettier-ignore
  lines.push(
    tried(() => nameMatcher("include", "a", [])),
    tried(() => nameMatcher("include", /a/, ["b"])),
  );
  for (const [include, exclude] of [[undefined, undefined], [["a*"], undefined], [undefined, ["a*"]], [["a*", "l*"], ["ab", "*.q"]], [[], undefined], [undefined, []]]) lines.push(names.map(nameFilter({ include, exclude }, names)).map((reason) => reason ?? "taken").join("; ")); // prettier-ignore
  stored("patterns", lines.join("\n"));
});

test("options of passes and of verification", () => {
  const lines: string[] = [];
  for (const { name, options } of PASSES.values()) {
    lines.push(
      tried(() => checkPasses([name]).map(({ settings }) => settings)),
      tried(() => checkPasses([{ name, nonsense: 1 }])),
    );
    for (const option of options) lines.push(`${name} ${option}: ${answers((value) => checkPasses([{ name, ...(name === "bias-correction" && option !== "format" ? { format: "int8_row" } : {}), [option]: value }]), [...VALUES, 2, 8, 128, 1000, 1001, 0.5, 1.0001, -0.0001, 1e-9, "full", "search", "int8_row", "no_format", [3]])}`); // prettier-ignore
  }
  for (const request of [null, 1, "x", {}, { name: 3 }, { name: "rotate" }])
    lines.push(tried(() => checkPasses([request as never]).length));
  for (const option of ["samples", "seed", "minSqnrDb", "minAgreement", "dims", "runtimes", "generate", "inputs", "images", "preprocess", "metric", "threads", "timeoutMs", "kinds"]) lines.push(`verify ${option}: ${answers((value) => checkVerifyOptions({ [option]: value } as never))}`); // prettier-ignore
  for (const names of [[], ["node"], ["nobody"], "node", ["webgpu"], null]) lines.push(tried(() => runtimeEntries(names as string[]).map(({ name }) => name))); // prettier-ignore
  stored("settings", lines.join("\n"));
});

test("Gemm's alpha, and formats as MatMulNBits holds them", () => {
  const lines = [0, 1, -1, 0.5, 65536, 65536.5, 65537, 1 / 65536, 1 / 65537, 1e-5, 1e30, NaN].flatMap((alpha) => ["Gemm", "MatMul"].map((op) => `${op} ${alpha}: ${text(gemmAlpha(node(op, [], [], { alpha })))}`)); // prettier-ignore
  for (const own of allFormats) for (const k of [32, 48, 256]) lines.push(`${own.name} ${k}: ${tried(() => { const plan = nbitsPlan(own, k); return typeof plan === "string" ? plan : { bits: plan.bits, blockSize: plan.blockSize, asIs: plan.asIs }; })}`); // prettier-ignore
  stored("plans", lines.join("\n"));
});

test("what files are that are no models, by their first bytes and as files", () => {
  const bytes = (s: string, offset = 0): Uint8Array => Uint8Array.from({ length: Math.max(300, offset + s.length) }, (_, i) => (i < offset ? 1 : (s.charCodeAt(i - offset) || 0) & 255)); // prettier-ignore
  const safetensors = (head: string) => bytes(`\x40\0\0\0\0\0\0\0${head}`);
  const CASES: [string, Uint8Array][] = [
    ...["version https://git-lfs.github.com/spec", "version https://hawser.github.com/", "\x1f\x8b", "PK\x03\x04", "PK\x05\x06", "\x28\xb5\x2f\xfd", "\xfd7zXZ\0", "BZh", "7z\xbc\xaf\x27\x1c", "GGUF", "GGML", "\x89HDF\r\n", "\x93NUMPY", "%PDF", "\x89PNG", "\x7fELF", "\x80\x02", "\x80\x03", "\x80\x04", "\x80\x05", "<!doctype html>", "<html>", " \n<HEAD", "<?xml", "<net", "< ir_version: 8", '{"a": 1}', "[1]", "\xef\xbb\xbf{", "plain"].map((s): [string, Uint8Array] => [s, bytes(s)]), // prettier-ignore
    ["ustar", bytes("ustar", 257)],
    ["ORTM", bytes("ORTM", 4)],
    ["TFL3", bytes("TFL3", 4)],
    ["safetensors", safetensors('{"a"')],
    ["empty safetensors", safetensors("{}")],
    ["no safetensors", safetensors("{a")],
    ["text", new TextEncoder().encode("just a line of plain text\n")],
    ["short text", new TextEncoder().encode("short")],
    ["not quite text", new TextEncoder().encode("just a line of plain text\x01")],
  ];
  const lines = CASES.map(([name, head]) => {
    const path = join(folder, "file.onnx");
    writeFileSync(path, head);
    return `${JSON.stringify(name)}: ${text(foreignKind(head))} ${tried(() => readModel(path).close()).replaceAll(folder, "")}`;
  });
  expect(lines.find((line) => line.startsWith('"ustar"'))).toMatch(/a tar archive.*got a tar archive/);
  stored("kinds of files", lines.join("\n"));
});

test("an option that is not there is no value of another", async () => {
  const bytes = encode(matmulModel(raw("w", [64, 32], weights(2048)), 64, 32));
  for (const name of ["constructor", "__proto__x", "toString"]) await expect(quantizeModelBytes(bytes, { dtype: "q4", [name]: 1 } as never)).rejects.toThrow(TypeError); // prettier-ignore
});

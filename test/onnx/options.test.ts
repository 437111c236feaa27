// Every option of the quantizer: what it takes, what it refuses by name, and which of them do not go together; recipes
// are the options as a file.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { DTYPES, REFUSED_DTYPES } from "../../src/onnx/dtypes.ts";
import { readModelBytes, type QuantizeModelOptions } from "../../src/onnx/index.ts";
import { checkOptions, OPTIONS } from "../../src/onnx/option-table.ts";
import { configFile, parseRecipe, recipeOf } from "../../src/onnx/recipe.ts";
import { encode, graph, model, node, raw, T, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

/** What the check says; "" where it says nothing. */
function said(options: object): string {
  try {
    checkOptions(options as QuantizeModelOptions);
    return "";
  } catch (error) {
    expect(error).toSatisfy((e) => e instanceof TypeError || e instanceof RangeError);
    return (error as Error).message;
  }
}

const [switches, texts] = [
  [true, false],
  [1, "true", null],
] as const;
/** Option, others that it needs, values that it takes, values that it does not. */
const VALUES: [name: string, beside: object, takes: readonly unknown[], refuses: readonly unknown[]][] = [
  ["dtype", {}, DTYPES.map(({ name }) => name), ["q3", "", 4, null, "Q4"]],
  ["format", {}, ["int4_b32", format("int4_b32"), { kind: "block" }], ["", 4, null, {}, []]],
  ["target", { format: "int4_b32" }, ["stored", "qdq", "matmulnbits", "bnb4", "dynamic"], ["", "onnx", 1]],
  ["algorithm", { dtype: "q4" }, ["gptq", "rtn", { name: "gptq" }, () => undefined], ["", 3, {}, null]],
  ["sequential", { dtype: "q4" }, switches, texts],
  ["calibration", { dtype: "q4" }, ["data.npz", { text: "a" }, [], () => []], ["", 3, null, true]],
  ["statistics", { dtype: "q4" }, ["file.stats"], ["", 3, null]],
  ["calibrate", { dtype: "q4" }, [{ maxBatches: 1, maxTokens: 2, every: 3, holdOut: 0.5, memory: 5, threads: 6 }], [{ every: -1 }, { all: 1 }]], // prettier-ignore
  ["requantize", { dtype: "q4" }, switches, texts],
  ["passes", { dtype: "q4" }, [["fold-norm"], [{ name: "rotate" }]], [[], ["unknown"], "fold-norm", [{}], [""], null]],
  ["activations", {}, ["mixed", "int8", "uint8", "int16", "uint16"], ["int4", "", true]],
  ["activationTypes", { activations: "int8" }, [{}, { x: "uint16" }], [{ x: "mixed" }, [], "x=int8"]],
  ["symmetricActivations", { activations: "int8" }, switches, texts],
  ["observer", { activations: "int8" }, ["minMax", "movingAverage", "percentile", "entropy", "mse", { method: "mse" }], ["max", {}, ""]],
  ["outputs", { activations: "int8" }, ["qdq", "qoperator"], ["", "QDQ", true]],
  ["inputsOnly", { activations: "int8" }, switches, texts],
  ["budget", {}, [{ bitsPerWeight: 4 }], [{}, 4, { bitsPerWeight: 0 }]],
  ["targetSqnr", { dtype: "q4" }, [20, 0, -5], ["20", NaN, Infinity]],
  ["blockSize", { dtype: "q4" }, [16, 32, 64, 128, 256], [0, 8, 24, 512, 1.5, "32"]],
  ["symmetric", { dtype: "q4" }, switches, texts],
  ["accuracyLevel", { dtype: "q4" }, [0, 1, 2, 3, 4], [-1, 5, 1.5, "4"]],
  ["perChannel", { dtype: "q8" }, switches, texts],
  ["reduceRange", { dtype: "int8" }, switches, texts],
  ["opTypes", { dtype: "q4" }, [["MatMul"], ["MatMul", "Gather"]], [[], "MatMul", [""], [1]]],
  ["rules", { dtype: "q4" }, [[], [{ match: "a", keep: true }], [{ match: /a/, dtype: "q2" }], [{ match: "*", format: "int4_b32", target: "stored", algorithm: "mse", reason: "r" }]], [{}, [{ match: "a" }], [{ keep: true }], [{ match: "", keep: true }], [{ match: "a", keep: 1 }], [{ match: "a", keeps: true }], [{ match: "a", dtype: "q3" }], [{ match: "a", reason: 1, keep: true }], [{ match: "a", target: "x" }], [{ match: "a", format: 1 }], [{ match: "a", algorithm: 1 }]]], // prettier-ignore
  ["include", { dtype: "q4" }, [["a*"], [/a/, "b"]], [[], "a", [""], [1], ["/(/"]]],
  ["exclude", { dtype: "q4" }, [["a*"], [/a/, "b"]], [[], "a", [""], [1], ["/(/"]]],
  ["keep", { dtype: "q4" }, [["a*"], [/a/, "b"]], [[], "a", [""], [1], ["/(/"]]],
  ["keepOps", { dtype: "q4" }, [["Add"]], [[], "Add", [""]]],
  ["blockedOps", { dtype: "fp16" }, [[], ["Add"]], ["Add", [""], [1]]],
  ["clamp", { dtype: "fp16" }, [[0, 1], [1e-7, 65504]], [[1], [1, 1], [2, 1], [-1, 1], [0, 65505], [0, 1, 2], 1]], // prettier-ignore
  ["keepIoTypes", { dtype: "q4f16" }, switches, texts],
  ["allowUnchanged", { dtype: "q4" }, switches, texts],
  ["externalData", { dtype: "q4" }, switches, texts],
  ["dataFileBytes", { dtype: "q4" }, [1, 2 ** 40], [0, -1, 1.5, "1"]],
  ["followLinks", { dtype: "q4" }, switches, texts],
  ["report", { dtype: "q4" }, ["out.html"], ["", true]],
  ["resume", { dtype: "q4" }, switches, texts],
  ["shard", { dtype: "q4" }, ["1/1", "3/8", "8/8"], ["0/8", "9/8", "1/0", "1", "a/b", 1, "01/8"]],
  ["force", { dtype: "q4" }, switches, texts],
  ["signal", { dtype: "q4" }, [new AbortController().signal, { aborted: false }], [{}, null, true]],
  ["onProgress", { dtype: "q4" }, [() => undefined], ["log", {}]],
];

describe("options", () => {
  test("every one of the table is here", () => {
    expect(VALUES.map(([name]) => name).sort()).toEqual(OPTIONS.map(({ name }) => name).sort());
  });

  test.each(VALUES)("%s", (name, beside, takes, refuses) => {
    for (const one of takes) expect([one, said({ ...beside, [name]: one })]).toEqual([one, ""]);
    for (const one of refuses) expect(said({ ...beside, [name]: one })).toMatch(new RegExp(`${name}|expected`));
    expect(said({ ...beside, [name]: undefined })).toBe(Object.keys(beside).length === 0 ? said({}) : "");
  });

  test.each<[object, string]>([
    [{}, "dtype, format: expected one of them, got none"],
    [{ dtype: "q4", format: "int4_b32" }, "dtype, format: expected one of them, got both"],
    [{ dtype: "q8", activations: "uint8" }, "dtype: expected none beside activations, got q8"],
    [{ dtype: "q4", budget: { bitsPerWeight: 4 } }, "dtype: expected none beside budget, got q4"],
    [{ dtype: "fp16", budget: { bitsPerWeight: 4 } }, "dtype: expected none beside budget, got fp16"],
    [{ dtype: "fp16", activations: "uint8" }, ""],
    [{ format: "int4_b32", activations: "uint8" }, ""],
    [{ dtype: "q4", target: "stored" }, "target: expected only with a format, got dtype q4"],
    [{ dtype: "fp16", blockSize: 32 }, "blockSize: expected only with q4, q4f16, q2, q2f16, q8-block, bnb4, got dtype fp16"],
    [{ dtype: "q4", perChannel: true }, "perChannel: expected only with q8, int8, uint8, got dtype q4"],
    [{ dtype: "bnb4", symmetric: true }, "symmetric: expected only with q8, int8, uint8, q4, q4f16, q2, q2f16, q8-block, got dtype bnb4"],
    [{ dtype: "q4", clamp: [0, 1] }, "clamp: expected only with fp16, q4f16, q2f16, got dtype q4"],
    [{ format: "int4_b32", blockSize: 32 }, "blockSize: expected only with a dtype, got format int4_b32. The format says it."],
    [{ format: format("int4_b32"), symmetric: true }, "symmetric: expected only with a dtype, got format int4_b32. The format says it."],
    [{ activations: "uint8", perChannel: true }, "perChannel: expected only with a dtype, got none. Leave it out."],
    [{ format: "int4_b32", accuracyLevel: 4 }, ""],
    [{ dtype: "bnb4", blockSize: 512 }, ""],
    [{ dtype: "bnb4", blockSize: 48 }, "a power of two from 16"],
    [{ dtype: "bnb4", blockSize: 8 }, "a power of two from 16"],
    [{ dtype: "q4", statistics: "a", calibration: "b" }, "statistics, calibration: expected one of them, got both"],
    [{ dtype: "q4", statistics: "a", passes: ["fold-norm"] }, "statistics: expected none beside passes"],
    [{ dtype: "q4", statistics: "a", requantize: true }, "statistics: expected none beside requantize"],
    [{ dtype: "q4", statistics: "a", requantize: false }, ""],
    [{ dtype: "q4", shard: "1/2", sequential: true }, "shard: expected no sequential beside it"],
    [{ dtype: "q4", shard: "1/2", sequential: false }, ""],
    [{ dtype: "q4", shard: "1/2", targetSqnr: 20 }, "Make the rules first"],
    [{ dtype: "q4", shard: "1/2", report: "a.html" }, "Leave it out"],
    [{ dtype: "fp16", shard: "1/2" }, "shard: expected a dtype whose weights are quantized, got fp16"],
    [{ format: "int4_b32", shard: "1/2" }, ""],
    [{ dtype: "q4", algorithm: "gptk" }, "gptq"],
    [{ dtype: "q4", rules: [{ match: "/(/", keep: true }] }, "rules: "],
    [{ dtype: "q4", blocksize: 32 }, "Did you mean blockSize?"],
    [{ dtype: "q1" }, "no runtime takes one-bit weights"],
    [{ dtype: "q1f16" }, "no runtime takes one-bit weights"],
  ])("together: %j", (options, text) => {
    if (text === "") expect(said(options)).toBe("");
    else expect(said(options)).toContain(text);
  });

  test("flags have help and names of their own", () => {
    const flags = OPTIONS.flatMap(({ flag }) => (flag === undefined ? [] : [flag]));
    for (const { name, help } of flags) expect([name, /^[a-z][a-z-]*$/.test(name), help.length > 10]).toEqual([name, true, true]);
    const names = flags.flatMap(({ name, alias, short }) => [name, alias, short]).filter((one) => one !== undefined);
    expect(new Set(names).size).toBe(names.length);
    for (const { flag, accepts } of OPTIONS) if (flag?.value === "") expect(accepts(true)).toBe(true);
    for (const { expected, name } of OPTIONS) expect([name, expected.length > 3]).toEqual([name, true]);
  });
});

describe("dtypes", () => {
  const bytes = encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["b", 64])],
        output: [value("y", T.FLOAT, ["b", 32])],
        initializer: [raw("w", [64, 32], weights(2048)), raw("c", [32], weights(32))],
        node: [node("MatMul", ["x", "w"], ["h"], {}, "mm"), node("Add", ["h", "c"], ["y"])],
      }),
    ),
  );
  test.each([
    ["fp16", "_fp16", "float16", true, []],
    ["q8", "_quantized", "int8_tensor", false, ["MatMulInteger"]],
    ["int8", "_int8", "int8_tensor", false, ["MatMulInteger"]],
    ["uint8", "_uint8", "uint8_tensor", false, ["MatMulInteger"]],
    ["q4", "_q4", "int4_b32", false, ["MatMulNBits"]],
    ["q4f16", "_q4f16", "int4_b32", true, ["MatMulNBits"]],
    ["q2", "_q2", "int2_b32", false, ["MatMulNBits"]],
    ["q2f16", "_q2f16", "int2_b32", true, ["MatMulNBits"]],
    ["q8-block", "_q8_block", "int8_b32", false, ["MatMulNBits"]],
    ["bnb4", "_bnb4", "nf4_b64", false, ["MatMulBnb4"]],
  ] as const)("%s", async (name, suffix, formatName, half, operators) => {
    const row = DTYPES.find((dtype) => dtype.name === name)!;
    expect(row).toMatchObject({ name, suffix, half });
    expect(row.summary.length).toBeGreaterThan(8);
    const made = await quantizeModelBytes(bytes, { dtype: name });
    expect(made.report.layers[0].format).toMatch(new RegExp(`^${formatName}`));
    const { initializer, node: nodes } = readModelBytes(made.bytes).proto.graph!;
    expect(nodes.map(({ opType }) => opType)).toEqual(expect.arrayContaining([...operators]));
    expect(initializer.some(({ dataType }) => dataType === T.FLOAT16)).toBe(half);
  });

  test("every one is here, and none of those that cannot be made", () => {
    expect(DTYPES).toHaveLength(10);
    expect([...REFUSED_DTYPES.keys()]).toEqual(["q1", "q1f16"]);
    expect(new Set(DTYPES.map(({ summary }) => summary)).size).toBe(10);
  });
});

describe("recipes", () => {
  test("options as a file and back; functions, signals and paths of one run stay out", () => {
    const options = { dtype: "q4", exclude: [/a+/, "b"], rules: [{ match: /c/, format: format("int4_b32") }], report: "a.html", resume: true, onProgress: () => undefined, signal: new AbortController().signal, algorithm: () => undefined }; // prettier-ignore
    const recipe = recipeOf(options as unknown as QuantizeModelOptions);
    expect(Object.keys(recipe)).toEqual(["version", "dtype", "rules", "exclude"]);
    expect(recipe).toMatchObject({ version: 1, exclude: ["/a+/", "b"], rules: [{ match: "/c/" }] });
    expect(parseRecipe(JSON.parse(JSON.stringify(recipe)), "r.json")).toMatchObject({ dtype: "q4", exclude: ["/a+/", "b"] });
  });

  test.each<[unknown, string]>([
    [null, "r: recipe: expected an object of options, got null"],
    [[], "r: recipe: expected an object of options, got a list"],
    ["q4", "r: recipe: expected an object of options, got q4"],
    [{ version: 2 }, "r: version: expected 1, got 2"],
    [{ version: 1, dtyp: "q4" }, "Did you mean dtype?"],
    [{ dtype: "q3" }, "r: dtype: expected one of"],
    [{ exclude: [] }, "r: exclude: expected a list of patterns, got []"],
  ])("%j is none", (recipe, text) => {
    expect(() => parseRecipe(recipe, "r")).toThrow(text);
  });

  test("found beside the model, or where it is named; JSON before a module", async () => {
    const folder = mkdtempSync(join(tmpdir(), "lowbit-recipe-"));
    try {
      const at = (name: string): string => join(folder, name);
      expect(await configFile(undefined, at("m.onnx"))).toEqual({});
      writeFileSync(at("lowbit.config.mjs"), 'export default { dtype: "q8" };');
      expect(await configFile(undefined, at("m.onnx"))).toEqual({ dtype: "q8" });
      writeFileSync(at("lowbit.config.json"), '{ "version": 1, "$schema": "s", "dtype": "q4" }');
      expect(await configFile(undefined, at("m.onnx"))).toEqual({ dtype: "q4" });
      expect(await configFile(at("lowbit.config.mjs"), at("m.onnx"))).toEqual({ dtype: "q8" });
      writeFileSync(at("bad.json"), "{");
      await expect(configFile(at("bad.json"), at("m.onnx"))).rejects.toMatchObject({ code: "E_IO" });
      await expect(configFile(at("none.mjs"), at("m.onnx"))).rejects.toMatchObject({ code: "E_IO" });
      writeFileSync(at("bad.mjs"), "export default 3;");
      await expect(configFile(at("bad.mjs"), at("m.onnx"))).rejects.toThrow(/bad\.mjs: recipe: expected an object of options, got 3/);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
});

test("models in memory: options are checked before anything is read or run", async () => {
  await expect(quantizeModelBytes(new Uint8Array(0), { activations: "uint8", perChannel: true })).rejects.toThrow(/^perChannel: expected/);
  await expect(quantizeModelBytes(new Uint8Array(0), { dtype: "q5" as never })).rejects.toThrow(/^dtype: expected/);
});

// lowbit formats --csv|--hex|--code|--define, lowbit vectors, lowbit compare: the commands' functions, as main.ts runs
// them.
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { arithmetic, float8_e4m3fn } from "../../formats/index.ts";
import { compareCommand } from "../../src/cli/commands/compare.ts";
import { formatsCommand } from "../../src/cli/commands/formats.ts";
import { vectorsCommand } from "../../src/cli/commands/vectors.ts";
import { parseCommand, type CommandSpec } from "../../src/cli/spec.ts";
import { safetensorsBytes } from "../../src/interop/index.ts";
import { normalArray } from "../helpers/random.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "lowbit-hardware-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function run(command: CommandSpec, ...argv: string[]): Promise<string> {
  let text = "";
  const context = { signal: new AbortController().signal, print: (part: string) => void (text += part) };
  expect(await command.run(parseCommand(command, argv), context)).toBe(0);
  return text;
}
const refusal = (command: CommandSpec, ...argv: string[]): Promise<string> =>
  run(command, ...argv).then(
    () => "taken",
    (error: { code?: string; message: string }) => `${error.code}: ${error.message}`,
  );
const floats = (rows: number, k: number) => ({
  dtype: "F32" as const,
  shape: [rows, k],
  bytes: new Uint8Array(normalArray(rows * k, rows).buffer),
});
const mine = '{"kind":"float","name":"mine","exponentBits":3,"mantissaBits":2,"specials":"fn","bias":5}';

describe("formats", () => {
  it("--csv, --hex, --code, --define", async () => {
    expect((await run(formatsCommand, "float4_e2m1fn", "--csv")).split("\n")).toHaveLength(18);
    expect((await run(formatsCommand, "float8_e5m2", "--hex")).split("\n")[1 + 0x3c]).toBe("3ff0000000000000");
    expect(await run(formatsCommand, "posit8_es2", "--code", "0x48")).toContain("code 0x48 -> 2 ");
    expect(await run(formatsCommand, "posit8_es2", "--code", "0b01001000")).toContain("code 0x48 -> 2 ");
    expect(await run(formatsCommand, "--define", mine, "--csv")).toContain("\n63,0x3f,");
    const blocks = '{"kind":"block","name":"mine_b16","element":"float4_e2m1fn","scales":[{"format":"float16","span":16}]}';
    expect(await run(formatsCommand, "--define", blocks)).toMatch(/^mine_b16\n/);
    expect(JSON.parse(await run(formatsCommand, "int4", "--code", "15", "--json"))).toMatchObject({ value: -1, binary: "1111" });
  });
  it.each([
    [["int4", "--csv", "--code", "1"], /^E_CLI: --code, --csv: expected one/],
    [["int4", "--code", "x"], /^E_CLI: --code: expected an integer/],
    [["int4", "--code", "16"], /^E_CLI: --code: expected a code of int4, 0\.\.15 \(4 bits\), got 16/],
    [["mxfp4", "--csv"], /^E_CLI: --csv: expected a scalar format.*float4_e2m1fn/],
    [["float32", "--csv"], /^E_UNSUPPORTED: .*at most 16 bits/],
    [["--csv"], /^E_CLI: --csv: expected together with the NAME/],
    [["--define", "{"], /^E_CLI: --define: expected a definition in JSON/],
    [["--define", '{"kind":"x"}'], /^E_FORMAT: /],
    [["--define", '{"kind":"float"}'], /^E_FORMAT: defineFloat exponentBits: expected/],
    [["--define", '{"kind":"float","exponentBits":3,"mantissaBits":2,"specials":"finite"}'], /^E_FORMAT: format name: .* got none/],
    [["--define", '{"kind":"codebook","values":[1,2]}'], /^E_FORMAT: format name: .* got none/],
    [["--define", '{"kind":"block","element":"int40x","scales":[]}'], /^E_FORMAT_UNKNOWN/],
    [["int4", "--define", mine], /^E_CLI: --define: expected no NAME/],
    [["int4", "--csv", "--json"], /^E_CLI: --json/],
    [["int4", "--code", "1", "--rounding", "ceil"], /^E_CLI: --rounding/],
  ] as const)("refuses %j", async (argv, message) => expect(await refusal(formatsCommand, ...argv)).toMatch(message));
});

describe("vectors", () => {
  it("CSV", async () => {
    const lines = (await run(vectorsCommand, "float8_e4m3fn", "--op", "mul", "--count", "200")).trim().split("\n");
    expect(lines[0]).toBe("a,b,mul");
    expect(lines).toHaveLength(201);
    const { mul } = arithmetic(float8_e4m3fn);
    for (const line of lines.slice(1)) {
      const [a, b, result] = line.split(",").map(Number);
      expect(result).toBe(mul(a, b));
    }
  });
  it("--readmemh: a file for each operation, operands and result in one word", async () => {
    const file = join(folder, "v.hex");
    await run(vectorsCommand, "--define", mine, "--op", "add,fma", "--count", "64", "--readmemh", file);
    const lines = readFileSync(join(folder, "v.fma.hex"), "utf8").trim().split("\n");
    expect(lines[1]).toBe("// {a, b, c, result}, 6 bits each");
    const of = JSON.parse(await run(vectorsCommand, "--define", mine, "--op", "fma", "--count", "64", "--json")) as {
      operations: { vectors: { operands: number[]; result: number }[] }[];
    };
    const words = of.operations[0].vectors.map(({ operands, result }) =>
      [...operands, result]
        .reduce((all, code) => all * 64 + code, 0)
        .toString(16)
        .padStart(6, "0"),
    );
    expect(lines.slice(2)).toEqual(words);
    expect(existsSync(join(folder, "v.add.hex"))).toBe(true);
    expect(await refusal(vectorsCommand, "int4", "--op", "add,fma", "--readmemh", file)).toMatch(/^E_EXISTS/);
    await run(vectorsCommand, "int4", "--op", "add,fma", "--readmemh", file, "--force");
    expect(readFileSync(join(folder, "v.add.hex"), "utf8").trim().split("\n")).toHaveLength(2 + 256);
  });
  it.each([
    [[], /^E_CLI: vectors: expected the NAME/],
    [["mxfp4"], /^E_CLI: .*scalar/],
    [["int4", "--op", "pow"], /^E_CLI: --op/],
    [["int4", "--count", "0"], /^E_CLI: --count/],
    [["int8", "--op", "fma", "--count", "1e15"], /^E_CLI: --count: expected at most 2500000 vectors of fma, 4 codes each, got 1000000/],
    [["int8", "--op", "dot", "--length", "1e9", "--count", "1"], /^E_CLI: --count: expected at most 0 vectors of dot/],
    [["int4", "--rounding", "up"], /^E_CLI: --rounding/],
  ] as const)("refuses %j", async (argv, message) => expect(await refusal(vectorsCommand, ...argv)).toMatch(message));
});

describe("compare", () => {
  it("ranks formats on a tensor of a file", async () => {
    const path = join(folder, "w.safetensors");
    writeFileSync(path, await safetensorsBytes({ tensors: { small: floats(2, 32), w: floats(64, 256) } }));
    const ranked = JSON.parse(await run(compareCommand, "--data", path, "--bits", "4.5", "--json")) as {
      tensor: string;
      left: unknown[];
      formats: { format: string; bits: number; qsnr: number }[];
    };
    expect(ranked.left).toEqual([]);
    expect(ranked.tensor).toBe("w");
    expect(ranked.formats.map(({ format }) => format)).toEqual(
      expect.arrayContaining(["mxfp4", "nvfp4", "int4_b32_float16", "posit4_es1_row"]),
    );
    ranked.formats.forEach(({ bits, qsnr }, i) => {
      expect(bits).toBeLessThanOrEqual(4.5 + 1 / 64);
      expect(bits).toBeGreaterThan(3.5);
      if (i > 0) expect(qsnr).toBeLessThanOrEqual(ranked.formats[i - 1].qsnr);
    });
    const text = await run(compareCommand, path, "--tensor", "small", "--formats", "int8_row,int4_b32", "--top", "1");
    expect(text).toMatch(/small: 2x32, 1 others.*\n.*\n.*\nint8_row/);
  });
  it("says which rows no format holds, and a tensor that is not there", async () => {
    const path = join(folder, "short.safetensors");
    writeFileSync(path, await safetensorsBytes({ tensors: { short: floats(1, 4), other: floats(1, 2) } }));
    expect(await refusal(compareCommand, path)).toMatch(
      /^E_UNSUPPORTED: short: expected a format for rows of 4 values, got none of \d+ \(ggml/,
    );
    expect(await refusal(compareCommand, path, "--tensor", "shrt")).toMatch(/one of its 2 tensors, got "shrt"\. Nearest: short/);
  });
  it.each([
    [["x.npy", "--tensor", "w"], /^E_CLI: --tensor: expected a file of named tensors/],
    [[], /^E_CLI: compare: expected a FILE/],
    [["x.txt"], /^E_UNSUPPORTED/],
    [["missing.npy"], /^E_IO/],
    [["x.npy", "--bits", "4", "--formats", "int4"], /^E_CLI: --formats/],
  ] as const)("refuses %j", async (argv, message) => expect(await refusal(compareCommand, ...argv)).toMatch(message));
});

// The command line as a person meets it: every command, --json, every class of error with its exit code, and nothing
// left behind.
import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { spawn } from "node:child_process";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { allFormats } from "../../formats/registry.ts";
import { formatsCommand } from "../../src/cli/commands/formats.ts";
import { inspectCommand } from "../../src/cli/commands/inspect.ts";
import { quantizeCommand } from "../../src/cli/commands/quantize.ts";
import { verifyCommand } from "../../src/cli/commands/verify.ts";
import { COMMON_OPTIONS } from "../../src/cli/spec.ts";
import { T, encode, external, graph, matmulModel, model, node, raw, value, weights } from "../onnx/build.ts";
import { bin, fashion, lowbit, root, scratch } from "./run.ts";

const commands = [quantizeCommand, inspectCommand, verifyCommand, formatsCommand];
const dir = scratch();

interface LayerJson {
  name: string;
  opType: string;
  format: string | null;
  reason?: string;
  sqnrDb: number | string | null;
}

beforeAll(() => {
  copyFileSync(fashion, dir.path("model.onnx"));
  writeFileSync(dir.path("text.onnx"), "this is no model\n");
  writeFileSync(dir.path("cut.onnx"), readFileSync(fashion).subarray(0, 70_000));
  writeFileSync(dir.path("taken.onnx"), "precious");
  writeFileSync(dir.path("empty.onnx"), "");
  const bad = weights(64 * 32);
  bad[100] = NaN;
  writeFileSync(dir.path("nan.onnx"), encode(matmulModel(raw("w", [64, 32], bad), 64, 32)));
  writeFileSync(dir.path("small.onnx"), encode(matmulModel(raw("w", [64, 32], weights(64 * 32)), 64, 32)));
  const outside = (location: string): Uint8Array => encode(matmulModel(external("w", [64, 32], { location }), 64, 32));
  writeFileSync(dir.path("lost.onnx"), outside("lost.data"));
  writeFileSync(dir.path("escape.onnx"), outside("../secret.data"));
  const square = (name: string) => raw(name, [64, 64], weights(64 * 64));
  const chain = (nodes: ReturnType<typeof node>[]) =>
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, ["n", 64])],
          output: [value("y", T.FLOAT, ["n", 64])],
          initializer: [square("a"), square("b")],
          node: nodes,
        }),
      ),
    );
  const [first, second] = [node("MatMul", ["x", "a"], ["h"], {}, "first"), node("MatMul", ["h", "b"], ["y"], {}, "second")];
  writeFileSync(dir.path("unsorted.onnx"), chain([second, first]));
  writeFileSync(dir.path("cyclic.onnx"), chain([node("MatMul", ["y", "a"], ["h"], {}, "first"), second]));
  symlinkSync(dir.path("model.onnx"), dir.path("link.onnx"));
  writeFileSync(dir.path("x.npy"), "not numpy");
});

describe("help and version", () => {
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
  test("lowbit --version, and of every command", async () => {
    for (const args of [["--version"], ...commands.map((command) => [command.name, "--version"])])
      expect(await lowbit(args)).toEqual({ code: 0, stdout: `${version}\n`, stderr: "" });
  });
  test("lowbit --help names every command", async () => {
    const { code, stdout } = await lowbit(["--help"]);
    expect(code).toBe(0);
    for (const command of commands) expect(stdout).toContain(`lowbit ${command.name}`);
  });
  test.each(commands)("lowbit $name --help names every option", async (command) => {
    const { code, stdout } = await lowbit([command.name, "--help"]);
    expect(code).toBe(0);
    for (const [name, spec] of Object.entries({ ...command.options, ...COMMON_OPTIONS })) {
      expect(stdout).toContain(`--${name}`);
      expect(stdout.replace(/\s+/g, " ")).toContain(spec.help.replace(/\s+/g, " "));
    }
  });
});

describe("lowbit formats", () => {
  test("lists every format, as a table and as JSON", async () => {
    const { stdout } = await lowbit(["formats"]);
    for (const f of allFormats) expect(stdout).toMatch(new RegExp(`^${f.name} `, "m"));
    const json = JSON.parse((await lowbit(["formats", "--json"])).stdout) as { formats: { name: string }[] };
    expect(json.formats.map((f) => f.name).sort()).toEqual(allFormats.map((f) => f.name).sort());
  });
  test("the card of an alias shows fields and all values", async () => {
    const { code, stdout } = await lowbit(["formats", "e2m1"]);
    expect(code).toBe(0);
    expect(stdout).toContain("float4_e2m1fn");
    expect(stdout).toContain("s ee m");
    for (const value of ["0.5", "1.5", "6", "-0", "-6"]) expect(stdout).toMatch(new RegExp(`[01] [01]{2} [01] {2}${value}( |$)`, "m"));
  });
  test("a parametric block format has a card too", async () => {
    const { format } = JSON.parse((await lowbit(["formats", "uint4_b32_zp", "--json"])).stdout) as { format: Record<string, unknown> };
    // 4 bits, a float32 scale and a 4-bit zero point per 32.
    expect(format).toMatchObject({ kind: "block", element: "uint4", bitsPerValue: 4 + 36 / 32 });
  });
  test("--value gives code, value and neighbours", async () => {
    const { stdout } = await lowbit(["formats", "float8_e4m3fn", "--value", "0.3", "--json"]);
    // 0.3125 = 1.25 * 2^-2 -> exponent 5, mantissa 2.
    expect(JSON.parse(stdout)).toMatchObject({ code: 0x2a, value: 0.3125, below: { value: 0.28125 }, above: { value: 0.3125 } });
    expect((await lowbit(["formats", "float8_e4m3fn", "--value=-0.3"])).stdout).toContain("0xaa");
    expect((await lowbit(["formats", "float8_e4m3fn", "--value", "-0.3"])).stdout).toContain("0xaa");
    expect((await lowbit(["formats", "float16", "--value", "-inf"])).stderr).toContain("--value=VALUE");
    expect((await lowbit(["formats", "float16", "--value=-inf"])).stdout).toContain("0xfc00");
    const wrapped = await lowbit(["formats", "int8", "-x", "300", "--overflow", "wrap", "--json"]);
    expect(JSON.parse(wrapped.stdout)).toMatchObject({ value: 44, reason: "overflow" });
  });
});

describe("lowbit inspect", () => {
  test("says what is in a model", async () => {
    const { code, stdout } = await lowbit(["inspect", fashion]);
    expect(code).toBe(0);
    for (const text of ["image float[N, 1, 28, 28]", "logits float[N, 10]", "Conv 3", "/12/Gemm", "128x3136", "1,605,632"])
      expect(stdout).toContain(text);
  });
  test("--json", async () => {
    const summary = JSON.parse((await lowbit(["inspect", fashion, "--json"])).stdout) as { layers: LayerJson[]; fileBytes: number };
    expect(summary.fileBytes).toBe(statSync(fashion).size);
    expect(summary.layers.map((layer) => layer.opType)).toEqual(["Conv", "Conv", "Conv", "Gemm", "Gemm"]);
  });
});

describe("lowbit inspect of quantized models", () => {
  test.each([
    ["q4", ["Conv float", "Conv float", "Conv float", "MatMulNBits int4_b32", "MatMulNBits int4_b32"]],
    ["int8", ["ConvInteger int8", "ConvInteger int8", "ConvInteger int8", "MatMulInteger int8", "MatMulInteger int8"]],
    ["fp16", ["Conv float16", "Conv float16", "Conv float16", "Gemm float16", "Gemm float16"]],
  ])("%s: every layer with its format", async (dtype, layers) => {
    const out = dir.path(`inspect_${dtype}.onnx`);
    await lowbit(["quantize", fashion, "-o", out, "-d", dtype]);
    const summary = JSON.parse((await lowbit(["inspect", out, "--json"])).stdout) as {
      layers: { opType: string; format: string; dataType: string; shape: number[] }[];
    };
    expect(summary.layers.map((layer) => `${layer.opType} ${layer.format || layer.dataType}`)).toEqual(layers);
    expect(summary.layers[3].shape).toEqual(dtype === "fp16" ? [128, 3136] : [3136, 128]);
  });
});

describe("lowbit quantize", () => {
  test("q4: writes the model and reports every layer, with the reason where one is left alone", async () => {
    const out = dir.path("q4.onnx");
    const { code, stdout, stderr } = await lowbit(["quantize", fashion, "-o", out, "--dtype", "q4", "--verify", "2"]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(/^\/12\/Gemm +Gemm +128x3136 +int4_b32 +1,605,632 +250,880 +\d\d\.\d$/m);
    expect(stdout).toMatch(/^\/0\/Conv .*left alone: \w.*$/m);
    expect(stdout).toContain("2 of 5 layers quantized (q4), 3 left alone.");
    expect(stdout).toContain(`bytes (${((100 * statSync(out).size) / statSync(fashion).size).toFixed(1)}%)`);
    expect(stdout).toMatch(/^ok: every output reaches 10 dB$/m);
  });
  test.each([
    ["int8", ["--per-channel"]],
    ["q8", ["--per-channel"]],
    ["uint8", ["--op-types", "Conv"]],
    ["q4", ["--block-size", "64", "--asymmetric", "--accuracy-level", "4", "--external-data"]],
    ["fp16", ["--exclude", "/12/*"]],
  ])("%s %j: --json is pure JSON, and the model agrees with the original", async (dtype, options) => {
    const out = dir.path(`json_${dtype}_${options.length}.onnx`);
    const { code, stdout, stderr } = await lowbit([
      "quantize",
      fashion,
      "-o",
      out,
      "--dtype",
      dtype,
      ...options,
      "--verify",
      "2",
      "--json",
    ]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const report = JSON.parse(stdout) as {
      layers: LayerJson[];
      quantized: number;
      leftAlone: number;
      outputs: string[];
      verify: { ok: boolean };
    };
    expect(report.verify.ok).toBe(true);
    expect(report.quantized + report.leftAlone).toBe(5);
    for (const layer of report.layers) expect(layer.format === null ? layer.reason : layer.sqnrDb, layer.name).toBeTruthy();
    expect(report.outputs.map((path) => statSync(path).size > 0)).toEqual(options.includes("--external-data") ? [true, true] : [true]);
  });
  test("--include, --exclude and --op-types choose layers", async () => {
    const of = async (...args: string[]): Promise<string[]> => {
      const { stdout } = await lowbit(["quantize", fashion, "-o", dir.path("choose.onnx"), "-f", "-d", "int8", "--json", ...args]);
      return (JSON.parse(stdout) as { layers: LayerJson[] }).layers.filter((layer) => layer.format !== null).map((layer) => layer.name);
    };
    expect(await of("--op-types", "Gemm")).toEqual(["/12/Gemm", "/14/Gemm"]);
    expect(await of("--include", "*Conv", "--exclude", "/0/*")).toEqual(["/4/Conv", "/8/Conv"]);
    expect(await of("--exclude", "/Conv$/", "--exclude", "/14/Gemm")).toEqual(["/12/Gemm"]);
  });
  test("nodes out of order are sorted, and it says so", async () => {
    const { code, stdout } = await lowbit([
      "quantize",
      dir.path("unsorted.onnx"),
      "-o",
      dir.path("sorted.onnx"),
      "-d",
      "q4",
      "--verify",
      "1",
    ]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^note: nodes sorted/m);
    expect(stdout).toContain("2 of 2 layers quantized");
  });
  test("--force overwrites, and says nothing about it", async () => {
    const out = dir.path("forced.onnx");
    writeFileSync(out, "old");
    expect(await lowbit(["quantize", fashion, "-o", out, "-d", "q4", "--force"])).toMatchObject({ code: 0, stderr: "" });
    expect(statSync(out).size).toBeGreaterThan(100_000);
  });
});

/** Arguments (paths relative to the scratch folder) -> exit code, error code, and what the message must say. */
const failures: [title: string, args: string[], exit: number, code: string, says: RegExp][] = [
  ["no command", [], 2, "E_CLI", /quantize, .*inspect, .*verify, .*formats/],
  ["a misspelt command", ["quantise", "model.onnx"], 2, "E_CLI", /Did you mean lowbit quantize\?/],
  ["an option before the command", ["--force", "inspect"], 2, "E_CLI", /a command first/],
  ["a misspelt option", ["quantize", "model.onnx", "--blok-size", "32"], 2, "E_CLI", /Did you mean --block-size\?/],
  ["an option of another command", ["inspect", "model.onnx", "--dtype", "q4"], 2, "E_CLI", /--dtype: .*unknown/],
  ["an option without its value", ["quantize", "model.onnx", "-o"], 2, "E_CLI", /--output: expected a value OUT, got none/],
  [
    "an option as the value of another",
    ["quantize", "model.onnx", "-o", "--force"],
    2,
    "E_CLI",
    /--output: expected a value OUT, got --force/,
  ],
  ["a value for a switch", ["inspect", "model.onnx", "--json=yes"], 2, "E_CLI", /--json: expected no value/],
  ["an option twice", ["quantize", "model.onnx", "-d", "q4", "-d", "q8"], 2, "E_CLI", /--dtype: expected it once/],
  ["no model", ["quantize", "-o", "out.onnx", "-d", "q4"], 2, "E_CLI", /expected MODEL, got nothing/],
  ["two models", ["inspect", "model.onnx", "small.onnx"], 2, "E_CLI", /got also small\.onnx/],
  ["no dtype", ["quantize", "model.onnx", "-o", "out.onnx"], 2, "E_CLI", /--dtype: expected one of fp16, q8,/],
  ["a misspelt dtype", ["quantize", "model.onnx", "-o", "out.onnx", "-d", "itn8"], 2, "E_CLI", /Did you mean int8\?/],
  ["no output", ["quantize", "model.onnx", "-d", "q4"], 2, "E_CLI", /-o model_q4\.onnx/],
  [
    "a block size that no runtime has",
    ["quantize", "model.onnx", "-o", "out.onnx", "-d", "q4", "--block-size", "48"],
    2,
    "E_CLI",
    /--block-size: expected one of 16,/,
  ],
  [
    "a block size that is no number",
    ["quantize", "model.onnx", "-o", "out.onnx", "-d", "q4", "--block-size", "big"],
    2,
    "E_CLI",
    /whole number/,
  ],
  [
    "an option of another dtype",
    ["quantize", "model.onnx", "-o", "out.onnx", "-d", "q8", "--block-size", "32"],
    2,
    "E_CLI",
    /--block-size: expected only with q4/,
  ],
  [
    "both kinds of zero point",
    ["quantize", "model.onnx", "-o", "out.onnx", "-d", "q4", "--symmetric", "--asymmetric"],
    2,
    "E_CLI",
    /one of them, got both/,
  ],
  [
    "a threshold without verification",
    ["quantize", "model.onnx", "-o", "out.onnx", "-d", "q4", "--min-sqnr", "20"],
    2,
    "E_CLI",
    /together with --verify/,
  ],
  [
    "an empty verification",
    ["quantize", "model.onnx", "-o", "out.onnx", "-d", "q4", "--verify", "0"],
    2,
    "E_CLI",
    /--verify: expected a number of inputs from 1/,
  ],
  ["a broken pattern", ["quantize", "model.onnx", "-o", "out.onnx", "-d", "q4", "--exclude", "/(/"], 2, "E_CLI", /regular expression/],
  [
    "a pattern without a layer",
    ["quantize", "model.onnx", "-o", "out.onnx", "-d", "q4", "--exclude", "lm_head*"],
    1,
    "E_ONNX",
    /lowbit inspect/,
  ],
  [
    "an operator that is not there",
    ["quantize", "model.onnx", "-o", "out.onnx", "-d", "q8", "--op-types", "Attention"],
    1,
    "E_ONNX",
    /It has: Conv, Gemm/,
  ],
  ["a missing model", ["quantize", "none.onnx", "-o", "out.onnx", "-d", "q4"], 1, "E_IO", /none\.onnx: .*no such file/],
  ["a folder as model", ["inspect", "."], 1, "E_IO", /a folder/],
  ["a text file as model", ["quantize", "text.onnx", "-o", "out.onnx", "-d", "q4"], 1, "E_ONNX", /text\.onnx/],
  ["an empty file as model", ["inspect", "empty.onnx"], 1, "E_ONNX", /empty\.onnx/],
  ["a truncated model", ["quantize", "cut.onnx", "-o", "out.onnx", "-d", "q4"], 1, "E_ONNX", /truncated|damaged/],
  ["missing external data", ["quantize", "lost.onnx", "-o", "out.onnx", "-d", "q4"], 1, "E_IO", /lost\.data.* beside it/],
  ["external data outside the folder", ["inspect", "escape.onnx"], 1, "E_ONNX", /inside the model's folder, got "\.\.\/secret\.data"/],
  ["a cycle", ["quantize", "cyclic.onnx", "-o", "out.onnx", "-d", "q4"], 1, "E_ONNX", /cycle/],
  ["weights with NaN", ["quantize", "nan.onnx", "-o", "out.onnx", "-d", "q4"], 1, "E_VALUE", /layer mm: .*--exclude "mm"/],
  ["an existing output", ["quantize", "model.onnx", "-o", "taken.onnx", "-d", "q4"], 1, "E_EXISTS", /--force/],
  ["the input as output", ["quantize", "model.onnx", "-o", "model.onnx", "-d", "q4", "--force"], 1, "E_EXISTS", /never overwritten/],
  [
    "a link to the input as output",
    ["quantize", "model.onnx", "-o", "link.onnx", "-d", "q4", "--force"],
    1,
    "E_EXISTS",
    /never overwritten/,
  ],
  ["an output in a missing folder", ["quantize", "model.onnx", "-o", "no/out.onnx", "-d", "q4"], 1, "E_IO", /no such file or folder/],
  ["an output below a file", ["quantize", "model.onnx", "-o", "text.onnx/out.onnx", "-d", "q4"], 1, "E_IO", /path through a file/],
  ["an output that may not be written", ["quantize", "model.onnx", "-o", "/proc/out.onnx", "-d", "q4"], 1, "E_IO", /\/proc/],
  ["a folder as output", ["quantize", "model.onnx", "-o", ".", "-d", "q4", "--force"], 1, "E_IO", /a folder/],
  ["verify: a missing model", ["verify", "model.onnx", "none.onnx"], 1, "E_RUNTIME", /none\.onnx/],
  [
    "verify: a file that is no model",
    ["verify", "model.onnx", "text.onnx"],
    1,
    "E_RUNTIME",
    /text\.onnx: expected a model that onnxruntime loads/,
  ],
  ["verify: models of different inputs", ["verify", "model.onnx", "small.onnx"], 3, "E_VERIFY", /not two forms of one model/],
  ["verify: one model", ["verify", "model.onnx"], 2, "E_CLI", /expected REFERENCE MODEL, got model\.onnx/],
  ["verify: a broken pair of dims", ["verify", "model.onnx", "model.onnx", "--dims", "N:4"], 2, "E_CLI", /NAME=N/],
  ["verify: inputs neither a path nor named", ["verify", "model.onnx", "model.onnx", "--inputs", "absent"], 2, "E_CLI", /NAME=FILE\.npy/],
  ["verify: a source that is damaged", ["verify", "model.onnx", "model.onnx", "--inputs", "x.npy"], 1, "E_CONTAINER", /numpy\.save/],
  ["verify: inputs that are missing", ["verify", "model.onnx", "model.onnx", "--inputs", "image=none.npy"], 1, "E_IO", /none\.npy/],
  ["verify: inputs that are not .npy", ["verify", "model.onnx", "model.onnx", "--inputs", "image=x.npy"], 1, "E_CONTAINER", /numpy\.save/],
  [
    "verify: samples beside inputs",
    ["verify", "model.onnx", "model.onnx", "--inputs", "image=text.onnx", "-n", "4"],
    1,
    "E_CONTAINER",
    /text\.onnx/,
  ],
  ["formats: an unknown name", ["formats", "flaot16"], 2, "E_FORMAT_UNKNOWN", /Nearest: float16/],
  ["formats: a value without a format", ["formats", "--value", "1"], 2, "E_CLI", /together with the NAME/],
  ["formats: a misspelt rounding", ["formats", "int4", "-x", "1", "--rounding", "halfEvne"], 2, "E_CLI", /Did you mean halfEven\?/],
  ["formats: a policy without a value", ["formats", "int4", "--overflow", "nan"], 2, "E_CLI", /together with --value/],
  ["formats: a value that is none", ["formats", "int4", "--value", "much"], 2, "E_CLI", /a number \(0.3, 0x1.8p3, 2\^-7\), inf or nan/],
  ["formats: a value that the format cannot hold", ["formats", "int4", "--value", "nan"], 1, "E_VALUE", /NaN/],
  ["formats: a value in a block format", ["formats", "int4_b32", "--value", "1"], 2, "E_CLI", /scalar format/],
];

describe("mistakes", () => {
  test.each(failures)("%s", async (_, args, exit, code, says) => {
    const before = dir.list();
    const model = readFileSync(dir.path("model.onnx"));
    const { code: got, stdout, stderr } = await lowbit(args, { cwd: dir.path(".") });
    expect(stderr).toMatch(says);
    expect({ got, stdout }).toEqual({ got: exit, stdout: "" });
    expect(stderr).toMatch(new RegExp(`^lowbit: ${code}: `));
    expect(stderr.trimEnd().split("\n"), "one clear line").toHaveLength(1);
    expect(stderr).not.toMatch(/^ +at /m);
    // No partial file, and nothing that was there is harmed.
    expect(dir.list()).toEqual(before);
    expect(readFileSync(dir.path("model.onnx")).equals(model)).toBe(true);
    expect(readFileSync(dir.path("taken.onnx"), "utf8")).toBe("precious");
  });
  test("--json reports the error on stdout too", async () => {
    const { code, stdout, stderr } = await lowbit(["inspect", "none.onnx", "--json"]);
    expect(code).toBe(1);
    expect(JSON.parse(stdout)).toEqual({ error: { code: "E_IO", message: expect.stringContaining("none.onnx") as string }, exitCode: 1 });
    expect(stderr).toMatch(/^lowbit: E_IO: /);
  });
  test("--debug adds the stack trace", async () => {
    const { stderr } = await lowbit(["inspect", "none.onnx", "--debug"]);
    expect(stderr).toMatch(/^ +at /m);
    expect(stderr).toContain("caused by");
  });
  test("a reader that stops early is no error", async () => {
    const outcome = await new Promise<{ code: number | null; stderr: string }>((resolve) => {
      const child = spawn(process.execPath, [bin, "formats"], { stdio: ["ignore", "pipe", "pipe"] });
      let stderr = "";
      child.stderr.on("data", (text: Buffer) => (stderr += text.toString()));
      child.stdout.destroy();
      child.on("close", (code) => resolve({ code, stderr }));
    });
    expect(outcome).toEqual({ code: 0, stderr: "" });
  });
  test("verify without onnxruntime-node says what to install; quantize does not need it", async () => {
    const alone = dir.path("alone/node_modules/lowbit");
    mkdirSync(join(alone, "../@bufbuild"), { recursive: true });
    cpSync(join(root, "dist"), join(alone, "dist"), { recursive: true });
    copyFileSync(join(root, "package.json"), join(alone, "package.json"));
    cpSync(join(root, "node_modules/@bufbuild/protobuf"), join(alone, "../@bufbuild/protobuf"), { recursive: true });
    const script = join(alone, "dist/esm/cli.js");
    const out = dir.path("alone/q4.onnx");
    expect(await lowbit(["quantize", fashion, "-o", out, "-d", "q4"], { script })).toMatchObject({ code: 0, stderr: "" });
    for (const args of [
      ["verify", fashion, out],
      ["quantize", fashion, "-o", dir.path("alone/q8.onnx"), "-d", "q8", "--verify", "1"],
    ]) {
      const { code, stdout, stderr } = await lowbit(args, { script });
      expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
      expect(stderr).toMatch(/^lowbit: E_RUNTIME: .*npm install onnxruntime-node$/m);
    }
    expect(existsSync(dir.path("alone/q8.onnx")), "the missing runtime is noticed before the work").toBe(false);
  });
});

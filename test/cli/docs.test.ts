// The documentation says what is: README's snippets and console sessions are run, docs/cli.md holds the help texts,
// docs/errors.md every error code, docs/architecture.md paths that exist, and every relative link leads somewhere.
// Needs `npm run build`.
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { compareCommand } from "../../src/cli/commands/compare.ts";
import { convertCommand } from "../../src/cli/commands/convert.ts";
import { formatsCommand } from "../../src/cli/commands/formats.ts";
import { inspectCommand } from "../../src/cli/commands/inspect.ts";
import { calibrateCommand } from "../../src/cli/commands/calibrate.ts";
import { benchCommand } from "../../src/cli/commands/bench.ts";
import { mergeCommand } from "../../src/cli/commands/merge.ts";
import { quantizeCommand } from "../../src/cli/commands/quantize.ts";
import { searchBenchCommand } from "../../src/cli/commands/search-bench.ts";
import { vectorsCommand } from "../../src/cli/commands/vectors.ts";
import { verifyCommand } from "../../src/cli/commands/verify.ts";
import { commandHelp } from "../../src/cli/spec.ts";
import { npzBytes } from "../../src/interop/index.ts";
import { encode, graph, model, node, raw, T, value, weights } from "../onnx/build.ts";
import { lowbit, npy, root, scratch } from "./run.ts";

const read = (path: string): string => readFileSync(join(root, path), "utf8");
const blocks = (path: string, language: string): string[] =>
  [...read(path).matchAll(new RegExp(`^\`\`\`${language}\\n([^]*?)^\`\`\``, "gm"))].map((match) => match[1]);
const dir = scratch();
/** Paths of the examples, moved into a scratch folder. */
const moved = (text: string): string => text.replace(/\bmodel_(q\d)\.onnx/g, (name) => dir.path(name));

describe("README", () => {
  test("is short", () => {
    expect(read("README.md").split("\n").length).toBeLessThan(150);
  });

  test.each(blocks("README.md", "js").map((code, i) => ({ i: i + 1, code })))("snippet $i runs and prints what it says", ({ code }) => {
    // `console.log(...); // printed (remark)`
    const said = [...code.matchAll(/^console\.log\(.*\/\/ +(.*?)(?: \([^()]*\))?$/gm)].map((match) => match[1]);
    expect(said.length).toBe(code.match(/console\.log/g)?.length);
    const printed = execFileSync(process.execPath, ["--input-type=module", "-e", moved(code)], { cwd: root, encoding: "utf8" });
    expect(printed.trimEnd().split("\n")).toEqual(said);
  });

  const sessions = blocks("README.md", "console").flatMap((block) =>
    block
      .split(/^\$ npx lowbit /m)
      .slice(1)
      .map((session) => {
        const [command, ...output] = session.trimEnd().split("\n");
        return { command, output: output.join("\n") };
      }),
  );
  test.each(sessions)("$ lowbit $command", async ({ command, output }) => {
    const timeless = (text: string): string => text.trimEnd().replace(/ in \d+\.\d+ s$/m, " in TIME");
    const { code, stdout } = await lowbit(command.split(" ").map(moved));
    expect(code).toBe(0);
    expect(timeless(stdout)).toBe(timeless(moved(output)));
  });
  test("has sessions and snippets", () => {
    expect(sessions.length).toBeGreaterThan(1);
    expect(blocks("README.md", "js").length).toBeGreaterThan(2);
  });
});

const guides = ["docs/gguf.md", "docs/checkpoints.md", "docs/tfjs.md"].flatMap((page) =>
  blocks(page, "js").map((code, i) => ({ page, i: i + 1, code })),
);
test.each(guides)("$page snippet $i runs and prints what it says", ({ code }) => {
  const said = [...code.matchAll(/^console\.log\(.*\/\/ +(.*)$/gm)].map((match) => match[1]);
  expect(said.length).toBeGreaterThan(0);
  const printed = execFileSync(process.execPath, ["--input-type=module", "-e", code], { cwd: root, encoding: "utf8" });
  expect(printed.trimEnd().split("\n")).toEqual(said);
});

test("docs/errors.md has every code of LowbitError, and no other", () => {
  const declared = [...read("formats/core/errors.ts").matchAll(/^ {2}\| "(E_[A-Z_]+)"/gm)].map((match) => match[1]);
  const rows = [...read("docs/errors.md").matchAll(/^\| `(E_[A-Z_]+)` \| (.+) \| (.+) \|$/gm)];
  expect(declared.length).toBeGreaterThan(10);
  expect(rows.map((row) => row[1])).toEqual(declared);
  for (const [, code, cause, remedy] of rows) expect(Math.min(cause.length, remedy.length), code).toBeGreaterThan(15);
});

test.each([
  quantizeCommand,
  inspectCommand,
  verifyCommand,
  formatsCommand,
  convertCommand,
  searchBenchCommand,
  mergeCommand,
  benchCommand,
  vectorsCommand,
  compareCommand,
  calibrateCommand,
])("docs/cli.md has the help of lowbit $name as it is", (command) => {
  expect(blocks("docs/cli.md", "text").map((block) => block.trimEnd())).toContain(commandHelp(command).trimEnd());
});

/** Words of a command line, quotes taken off. */
const words = (line: string): string[] => [...line.matchAll(/'([^']*)'|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain);

test("the command lines of docs/cli.md run", async () => {
  const K = 64;
  const wide = (name: string, seed: number) =>
    raw(
      name,
      [K, K],
      weights(K * K, seed).map((x) => 3 * x),
    );
  const io = { input: [value("x", T.FLOAT, ["batch", K])], output: [value("y", T.FLOAT, ["batch", K])] };
  const nodes = [node("MatMul", ["x", "a"], ["h"], {}, "/layer1/MatMul"), node("MatMul", ["h", "b"], ["y"], {}, "/layer2/MatMul")];
  const bytes = encode(model(graph({ ...io, initializer: [wide("a", 1), wide("b", 2)], node: nodes })));
  const place = dir.path("lines");
  mkdirSync(place);
  mkdirSync(join(place, "onnx"));
  for (const name of ["model.onnx", "onnx/model.onnx"]) writeFileSync(join(place, name), bytes);
  const data = weights(40 * K, 3).map((x) => 5 * x);
  writeFileSync(join(place, "data.npz"), await npzBytes({ x: { data, shape: [40, K] } }));
  for (const name of ["x", "line0", "line1"]) writeFileSync(join(place, `${name}.npy`), npy(data, [40, K]));
  const lines = [...read("docs/cli.md").matchAll(/^ {2,4}lowbit (\w.*)$/gm)].map(([, line]) => line);
  // files from elsewhere, browsers, and what measures for a while have tests of their own
  const own = lines.filter((line) => !/^(?:convert|bench|search-bench)\b|webgpu/.test(line));
  expect(own.length).toBeGreaterThan(14);
  for (const line of own) {
    const again = /^(?:quantize|calibrate|merge)\b|--readmemh/.test(line) ? ["--force"] : [];
    const { code, stderr } = await lowbit([...words(line), ...again], { cwd: place });
    expect({ line, code, stderr: stderr.slice(0, 300) }).toMatchObject({ line, code: 0 });
  }
  expect(readdirSync(join(place, "onnx")).sort()).toEqual(
    ["config.json", "model.onnx", "model_fp16.onnx", "model_q4.onnx", "model_q4f16.onnx", "model_quantized.onnx"].filter((name) =>
      existsSync(join(place, "onnx", name)),
    ),
  );
});

const pages = ["README.md", "CHANGELOG.md", ...readdirSync(join(root, "docs")).map((name) => `docs/${name}`)].filter((name) =>
  name.endsWith(".md"),
);

test.each(pages)("links of %s lead somewhere", (page) => {
  const links = [...read(page).matchAll(/\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)/g)].map((match) => match[1]);
  // from the root of the site: what VitePress copies there
  const folder = (link: string): string => (link.startsWith("/") ? "docs/public" : dirname(page));
  for (const link of links) expect(existsSync(join(root, folder(link), link)), link).toBe(true);
});

test("docs/architecture.md names paths that exist", () => {
  const spans = [
    ...read("docs/architecture.md").matchAll(/`((?:formats|kernels|src|test|bench|docs|examples|scripts|\.ci)\/[\w./-]*)`/g),
  ].map((m) => m[1]);
  expect(spans.length).toBeGreaterThan(30);
  expect(spans.filter((path) => !existsSync(join(root, path)))).toEqual([]);
});

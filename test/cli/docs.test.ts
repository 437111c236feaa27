// The documentation says what is: README's snippets and console sessions are run, docs/cli.md holds the help texts,
// docs/errors.md every error code, docs/architecture.md paths that exist, and every relative link leads somewhere.
// Needs `npm run build`.
import { existsSync, readFileSync, readdirSync } from "node:fs";
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
import { lowbit, root, scratch } from "./run.ts";

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

const pages = ["README.md", "CHANGELOG.md", ...readdirSync(join(root, "docs")).map((name) => `docs/${name}`)].filter((name) =>
  name.endsWith(".md"),
);

test.each(pages)("links of %s lead somewhere", (page) => {
  const links = [...read(page).matchAll(/\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)/g)].map((match) => match[1]);
  for (const link of links) expect(existsSync(join(root, dirname(page), link)), link).toBe(true);
});

test("docs/architecture.md names paths that exist", () => {
  const spans = [
    ...read("docs/architecture.md").matchAll(/`((?:formats|kernels|src|test|bench|docs|examples|scripts|\.ci)\/[\w./-]*)`/g),
  ].map((m) => m[1]);
  expect(spans.length).toBeGreaterThan(30);
  expect(spans.filter((path) => !existsSync(join(root, path)))).toEqual([]);
});

// The samples of docs/search.md: type-checked under strict, run from source, and they print what they say.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { buildSync } from "esbuild";
import ts from "typescript";
import { afterAll, expect, it } from "vitest";

const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
const samples = [...readFileSync(join(root, "docs/search.md"), "utf8").matchAll(/^```js\n([^]*?)^```/gm)].map((match) =>
  match[1]
    .replaceAll('from "lowbit/search"', `from "${root}/src/search/index.ts"`)
    .replaceAll('from "lowbit"', `from "${root}/src/index.ts"`),
);
// inside the project, so that its tsconfig and packages hold
const folder = mkdtempSync(join(root, "node_modules/.search-docs-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const paths = samples.map((code, i) => {
  const path = join(folder, `sample${i}.mts`);
  writeFileSync(path, code);
  return path;
});

it("type-check under strict", () => {
  const program = ts.createProgram(paths, {
    strict: true,
    noEmit: true,
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    allowImportingTsExtensions: true,
    skipLibCheck: true,
    lib: ["lib.es2023.d.ts", "lib.esnext.disposable.d.ts", "lib.dom.d.ts"],
    types: ["node"],
  });
  const errors = paths.flatMap((path) => {
    const file = program.getSourceFile(path)!;
    return [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)];
  });
  expect(errors.map((e) => ts.flattenDiagnosticMessageText(e.messageText, "\n"))).toEqual([]);
}, 240_000);

it("print what they say", () => {
  expect(samples.length).toBeGreaterThanOrEqual(5);
  samples.forEach((code, i) => {
    const said = [...code.matchAll(/^console\.log\(.*\/\/ +(.*)$/gm)].map((match) => match[1]);
    expect(said.length).toBe(code.match(/console\.log/g)?.length);
    const script = join(folder, `sample${i}.mjs`);
    buildSync({ entryPoints: [paths[i]], bundle: true, platform: "node", format: "esm", outfile: script, logLevel: "error" });
    const printed = execFileSync(process.execPath, [script], { encoding: "utf8" });
    expect(printed.trimEnd().split("\n")).toEqual(said);
  });
}, 240_000);

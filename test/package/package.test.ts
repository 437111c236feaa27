// The packed tarball as its users get it: every subpath by import and by require, one identity for formats and errors,
// publint and attw, bundles for the browser, size budgets. Needs `npm run build` before (npm test does that).
import { execFile, execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { entries } from "../../scripts/generate.ts";
import { resolveStack } from "../../scripts/where.ts";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const root = fileURLToPath(new URL("../..", import.meta.url));
const pkg = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
  exports: Record<string, unknown>;
  bin: Record<string, string>;
};
const subpaths = entries().map((e) => e.subpath);
const named = new Set(
  entries()
    .filter((e) => e.format)
    .map((e) => e.subpath),
);
const specifier = (subpath: string) => `lowbit${subpath.slice(1)}`;
let dir = "";
let tarball = "";

const node = (file: string, text: string) => {
  writeFileSync(join(dir, file), text);
  return execFileSync(process.execPath, [file], { cwd: dir, encoding: "utf8" });
};

beforeAll(() => {
  expect(existsSync(join(root, "dist/esm/index.js")), "npm run build first").toBe(true);
  dir = mkdtempSync(join(tmpdir(), "lowbit-package-"));
  const packed = execFileSync("npm", ["pack", "--ignore-scripts", "--silent", "--pack-destination", dir], { cwd: root, encoding: "utf8" });
  tarball = join(dir, packed.trim().split("\n").pop()!);
  mkdirSync(join(dir, "node_modules/lowbit"), { recursive: true });
  execFileSync("tar", ["-xzf", tarball, "-C", join(dir, "node_modules/lowbit"), "--strip-components=1"]);
  // Its one dependency and the optional peers of lowbit/testing and lowbit/tfjs, as an install would put them there.
  for (const scope of ["@bufbuild", "@tensorflow"]) mkdirSync(join(dir, "node_modules", scope));
  for (const d of ["@bufbuild/protobuf", "fast-check", "pure-rand", "@tensorflow/tfjs-core"])
    if (existsSync(join(root, "node_modules", d))) symlinkSync(join(root, "node_modules", d), join(dir, "node_modules", d));
  writeFileSync(join(dir, "package.json"), '{"private":true}');
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

test("every subpath loads by import and by require, with the same names", () => {
  const list = JSON.stringify(subpaths.map(specifier));
  const esm = node(
    "all.mjs",
    `const out = {}; for (const s of ${list}) out[s] = Object.keys(await import(s)).sort(); console.log(JSON.stringify(out));`,
  );
  const cjs = node(
    "all.cjs",
    `const out = {}; for (const s of ${list}) out[s] = Object.keys(require(s)).sort(); console.log(JSON.stringify(out));`,
  );
  const names = JSON.parse(esm) as Record<string, string[]>;
  const required = JSON.parse(cjs) as Record<string, string[]>;
  for (const subpath of subpaths) {
    const s = specifier(subpath);
    expect(names[s].length, s).toBeGreaterThan(0);
    // A named format by require is all of lowbit/formats.
    expect(required[s], s).toEqual(named.has(subpath) ? names["lowbit/formats"] : names[s]);
    if (named.has(subpath)) expect(names[s]).toContain(s.slice("lowbit/formats/".length));
  }
});

test.each(["import", "require"])("formats and errors have one identity across entries (%s)", (how) => {
  const load = how === "import" ? (s: string) => `await import("${s}")` : (s: string) => `require("${s}")`;
  const text = `
    const a = ${load("lowbit")}, f = ${load("lowbit/formats")}, one = ${load("lowbit/formats/int4")}, d = ${load("lowbit/formats/define")};
    let e; try { f.format("nonsense"); } catch (x) { e = x; }
    console.log(JSON.stringify([f.int4 === one.int4, f.format("int4") === f.int4, e instanceof a.LowbitError, a.isLowbitError(e), e.code, d.defineInt === f.defineInt]));`;
  const out = node(how === "import" ? "id.mjs" : "id.cjs", text);
  expect(JSON.parse(out)).toEqual([true, true, true, true, "E_FORMAT_UNKNOWN", true]);
});

test("require gives the same objects as import, and says nothing on stderr", () => {
  const script = join(dir, "one.mjs");
  writeFileSync(
    script,
    `import { createRequire } from "node:module"; import { LowbitError } from "lowbit"; import { int4 } from "lowbit/formats/int4";
     const require = createRequire(import.meta.url), f = require("lowbit/formats"), one = require("lowbit/formats/int4");
     let e; try { f.format("nonsense"); } catch (x) { e = x; } console.error(e instanceof LowbitError, f.int4 === int4, one.int4 === int4);`,
  );
  const { stdout, stderr } = spawnSync(process.execPath, [script], { cwd: dir, encoding: "utf8" });
  expect([stdout, stderr.trim()]).toEqual(["", "true true true"]);
});

test("a stack of the package is read by the maps of its build (npm run where)", () => {
  const stack = node(
    "stack.mjs",
    `import { packCodes } from "lowbit/formats"; try { packCodes([16], 4); } catch (e) { console.log(e.stack); }`,
  );
  expect(stack).toMatch(/node_modules\/lowbit\/dist\/esm\/.*\.js:\d+:\d+/);
  const [, line] = /formats\/core\/pack\.ts:(\d+):\d+/.exec(resolveStack(stack))!;
  const source = readFileSync(join(root, "formats/core/pack.ts"), "utf8").split("\n");
  expect(source[Number(line) - 1]).toContain("throw new");
});

test("publint finds nothing", () => {
  const out = execFileSync(process.execPath, [join(root, "node_modules/publint/src/cli.js"), "run", tarball, "--strict"], {
    encoding: "utf8",
  });
  expect(out).toContain("All good!");
});

test("attw: types resolve for every subpath and module system", () => {
  // Exits with 1 on any problem but those of node10, which knows no exports map; execFileSync throws then.
  const attw = join(root, "node_modules/@arethetypeswrong/cli/dist/index.js");
  // Formats are all alike, and there are a hundred: one stands for them.
  const chosen = subpaths
    .filter((s) => !/^\.\/formats\/[a-z]+[0-9]/.test(s) || s === "./formats/int4")
    .map((s) => (s === "." ? "." : s.slice(2)));
  expect(chosen).toEqual(expect.arrayContaining([".", "formats", "formats/define", "formats/int4"]));
  const out = execFileSync(process.execPath, [attw, tarball, "--profile", "node16", "--format", "ascii", "--entrypoints", ...chosen], {
    encoding: "utf8",
  });
  expect(out).toContain("node16 (from CJS)");
}, 300_000);

test("the tarball holds what it should", () => {
  const files = execFileSync("tar", ["-tzf", tarball], { encoding: "utf8" }).trim().split("\n");
  for (const f of ["README.md", "LICENSE", "package.json"]) expect(files).toContain(`package/${f}`);
  for (const bin of Object.values(pkg.bin ?? {})) expect(files).toContain(`package/${bin.slice(2)}`);
  expect(files.filter((f) => /\.ts$/.test(f) && !/\.d\.c?ts$/.test(f))).toEqual([]);
  expect(files.filter((f) => f.endsWith(".map"))).toEqual([]);
  expect(files.length).toBeLessThanOrEqual(400);
  expect(statSync(tarball).size).toBeLessThanOrEqual(700_000);
});

/** What a user's compiler says of every entry and a named format, with the checks of libraries on and no types of Node. */
describe("types, strict and without @types/node", () => {
  const imports = subpaths.filter((s) => !named.has(s)).map((s, i) => [specifier(s), `entry${i}`] as const);
  const use = `${imports.map(([, name]) => name).join(", ")}, one.int4.decode(1) satisfies number, entry1.format("mxfp4").scales satisfies readonly unknown[]`;
  const esm = `${imports.map(([s, name]) => `import * as ${name} from "${s}";`).join("\n")}
    import * as one from "lowbit/formats/int4";\nexport const all: unknown[] = [${use}];
    // @ts-expect-error one name only\none.int8;\n`;
  const cjs = `${imports.map(([s, name]) => `import ${name} = require("${s}");`).join("\n")}
    import one = require("lowbit/formats/int4");\nexport const all: unknown[] = [${use}];\n`;
  test.each([
    ["node16", "node16"],
    ["nodenext", "nodenext"],
    ["bundler", "esnext"],
  ])(
    "moduleResolution %s",
    async (moduleResolution, module) => {
      const folder = join(dir, `types-${moduleResolution}`);
      mkdirSync(folder);
      writeFileSync(join(folder, "module.mts"), esm);
      if (moduleResolution !== "bundler") writeFileSync(join(folder, "common.cts"), cjs);
      const compilerOptions = { strict: true, skipLibCheck: false, noEmit: true, target: "es2022", types: [], module, moduleResolution };
      writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, include: ["*.mts", "*.cts"] }));
      const tsc = join(root, "node_modules/typescript/bin/tsc");
      const { stdout } = await promisify(execFile)(process.execPath, [tsc, "-p", folder], { cwd: dir }).catch((e: { stdout: string }) => e);
      // tfjs-core's own declarations name a global of @types/long that they do not ask for.
      expect(stdout.split("\n").filter((line) => line !== "" && !line.includes("/@tensorflow/tfjs-core/"))).toEqual([]);
    },
    120_000,
  );
});

/** The modules that an entry loads before anything is called, and the packages among them. */
function closureOf(entry: string): { readonly files: string[]; readonly packages: string[] } {
  const [files, packages] = [new Set<string>(), new Set<string>()];
  const visit = (path: string): void => {
    if (files.has(path)) return;
    files.add(path);
    const text = readFileSync(join(root, "dist/esm", path), "utf8");
    for (const [, from] of text.matchAll(/(?:^|[;}])(?:import|export)(?:[\w*${}, ]*from)?[`"']([^`"']+)[`"']/gm))
      if (from.startsWith(".")) visit(join(dirname(path), from));
      else packages.add(from);
  };
  visit(entry);
  return { files: [...files], packages: [...packages] };
}

test("the runtime and the quantizer load no package, the runtime no format that it does not work with", () => {
  // memory of an import is mostly modules: what is loaded is what is paid for
  const [runtime, onnx] = [closureOf("runtime.js"), closureOf("onnx.js")];
  expect(runtime.files.length).toBeGreaterThan(5);
  expect([...runtime.packages, ...onnx.packages]).toEqual([]);
  expect(runtime.files.filter((file) => file.startsWith("_formats/named"))).toEqual([]);
  expect(onnx.files.some((file) => file.startsWith("_formats/named"))).toBe(true);
});

async function bundle(text: string): Promise<number> {
  const result = await build({
    stdin: { contents: text, resolveDir: dir, loader: "js" },
    bundle: true,
    format: "esm",
    platform: "browser",
    minify: true,
    write: false,
    logLevel: "silent",
    external: ["node:*", "onnxruntime-node"],
  });
  const code = result.outputFiles[0].text;
  expect(code.match(/from\s*"node:[^"]+"|^import\s*"node:/m)).toBeNull();
  return gzipSync(code, { level: 9 }).length;
}

describe("browser bundles and size budgets (gzip)", () => {
  const budgets: [string, string, number][] = [
    // What is published is minified already, the code of all formats in a chunk: 2 to 5 % more than from modules apart.
    ["one integer codec", `import { int4 } from "lowbit/formats/int4"; console.log(int4);`, 4_150],
    ["one float codec", `import { float8_e4m3fn } from "lowbit/formats/float8_e4m3fn"; console.log(float8_e4m3fn);`, 5_250],
    // The grids of ggml's smallest types are a third of it, the searches of its k-quants 2 kB.
    ["all formats", `import { allFormats, format } from "lowbit/formats"; console.log(allFormats, format);`, 35_000],
    [
      "the core with WebAssembly kernels",
      `import { tensor, quantize, dequantize, matmul, prepareMatmul, wasm } from "lowbit"; console.log(tensor, quantize, dequantize, matmul, prepareMatmul, wasm);`,
      // Operators of models (norms, attention, chains) and the packing of weights in parts came beside the products.
      // Lossless and sparse weights, 2:4 ones among them, and the tuner of models came later, then
      // the kernels that encode k-quants (4 kB). int8 sums that leave as float32 and codes of ordinary scales: 0.3 kB.
      // Functions in lockstep, activations of four rows together, joined products whose columns go to their matrices: 1 kB.
      95_800,
    ],
    // Products alone are near the 20 kB first planned; codecs by expression, bit planes, exact integer products and the
    // transform are methods too.
    ["the WebGPU backend", `import { webgpu } from "lowbit/webgpu"; console.log(webgpu);`, 31_000],
    // The families of kernels (products, bit planes, look-ups, transforms, bulk conversion) outgrew the 30 kB first
    // planned. With saving and loading every format comes too; convolutions by packed filters are 9 kB of it, the forms of
    // processors whose relaxed dot product is exact for whole bytes 1.5 kB. Attention by tiles and GELU without cancellation
    // are 0.7 kB, formats in two chunks, of which the runtime loads one, 0.5.
    ["everything in lowbit", `import * as l from "lowbit"; console.log(l);`, 150_300],
  ];
  test.each(budgets)("%s", async (_, text, budget) => {
    const size = await bundle(text);
    expect(size).toBeGreaterThan(200);
    expect(size).toBeLessThan(budget);
  });
});

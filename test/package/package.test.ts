// The packed tarball as its users get it: every subpath by import and by require, one identity for formats and errors,
// publint and attw, bundles for the browser, size budgets. Needs `npm run build` before (npm test does that).
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { entries } from "../../scripts/generate.ts";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const root = fileURLToPath(new URL("../..", import.meta.url));
const pkg = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
  exports: Record<string, unknown>;
  bin: Record<string, string>;
};
const subpaths = entries().map((e) => e.subpath);
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
  expect(JSON.parse(cjs)).toEqual(names);
  for (const [s, exported] of Object.entries(names)) expect(exported.length, s).toBeGreaterThan(0);
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

test("an error of the CJS copy is known to the ESM copy", () => {
  const out = node(
    "brand.mjs",
    `import { createRequire } from "node:module"; import { isLowbitError } from "lowbit";
     const f = createRequire(import.meta.url)("lowbit/formats"); let e; try { f.format("nonsense"); } catch (x) { e = x; } console.log(isLowbitError(e));`,
  );
  expect(out.trim()).toBe("true");
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
  for (const f of ["README.md", "LICENSE", "CHANGELOG.md", "package.json"]) expect(files).toContain(`package/${f}`);
  for (const bin of Object.values(pkg.bin ?? {})) expect(files).toContain(`package/${bin.slice(2)}`);
  expect(files.filter((f) => /\.ts$/.test(f) && !/\.d\.c?ts$/.test(f))).toEqual([]);
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
    ["one integer codec", `import { int4 } from "lowbit/formats/int4"; console.log(int4);`, 3_800],
    ["one float codec", `import { float8_e4m3fn } from "lowbit/formats/float8_e4m3fn"; console.log(float8_e4m3fn);`, 4_900],
    // The grids of ggml's smallest types are a third of it.
    ["all formats", `import { allFormats, format } from "lowbit/formats"; console.log(allFormats, format);`, 33_000],
    [
      "the core with WebAssembly kernels",
      `import { tensor, quantize, dequantize, matmul, prepareMatmul, wasm } from "lowbit"; console.log(tensor, quantize, dequantize, matmul, prepareMatmul, wasm);`,
      // Operators of models (norms, attention, chains) and the packing of weights in parts came beside the products.
      // Lossless and sparse weights and the tuner of models came later.
      86_500,
    ],
    // Products alone are near the 20 kB first planned; codecs by expression, bit planes, exact integer products and the
    // transform are methods too.
    ["the WebGPU backend", `import { webgpu } from "lowbit/webgpu"; console.log(webgpu);`, 30_000],
    // The families of kernels (products, bit planes, look-ups, transforms, bulk conversion) outgrew the 30 kB first
    // planned. With saving and loading every format comes too; convolutions by packed filters are 8 kB of it.
    ["everything in lowbit", `import * as l from "lowbit"; console.log(l);`, 137_000],
  ];
  test.each(budgets)("%s", async (_, text, budget) => {
    const size = await bundle(text);
    expect(size).toBeGreaterThan(200);
    expect(size).toBeLessThan(budget);
  });
});

// The declarations of the package: tsc emits one .d.ts per source file (only what changed, into a cache), from which
// each entry's are rolled up, what entries share in chunks. They lie once, as .d.cts under dist/types: a module may
// take its types from a CommonJS declaration, and not the other way round.
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { rollup } from "rollup";
import { dts } from "rollup-plugin-dts";
import { entries } from "./generate.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const emitted = join(root, ".cache/types");

/** Paths under dist/ with their text. */
export async function declarations(): Promise<Map<string, string>> {
  const tsc = join(root, "node_modules/typescript/bin/tsc");
  execFileSync(process.execPath, [tsc, "-p", join(root, "tsconfig.types.json"), "--noCheck"], { stdio: "inherit", cwd: root });
  const rolled = await rollUp();
  const files = new Map<string, string>();
  for (const [path, text] of rolled) {
    const format = entries().find((entry) => entry.format && path === `${entry.out}.d.cts`);
    if (format === undefined) files.set(`types/${path}`, needs(indented(text)));
    // Of a named format there is a declaration for modules only: required, it is `lowbit/formats` whole.
    else
      files.set(
        `esm/${format.out}.d.ts`,
        text.replaceAll(/from '\.\.?\//g, "from '../../types/").replaceAll("types/index.cjs", "types/formats/index.cjs"),
      );
  }
  for (const { out, format } of entries())
    if (!format) files.set(`esm/${out}.d.ts`, `export * from "${"../".repeat(out.split("/").length)}types/${out}.cjs";\n`);
  checkPlatformFree(files);
  return files;
}

/** What entries share, by folder: in one file each. */
const LAYERS = [
  ["formats/", "shared-formats"],
  ["src/quantize/", "shared-quantize"],
  ["src/onnx/", "shared-models"],
  ["src/runtime/", "shared-models"],
  ["", "shared-tensor"],
] as const;

async function rollUp(): Promise<Map<string, string>> {
  const input = Object.fromEntries(entries().map(({ source, out }) => [out, join(emitted, source.replace(/\.ts$/, ".d.ts"))]));
  const sources = new Set(Object.values(input));
  const build = await rollup({
    input,
    external: (id) => !/^[./]/.test(id),
    plugins: [dts()],
    onwarn: ({ message }) => {
      // Types that public ones are made of and that have no public name: no consumer has to write them.
      if (message.includes("private shared type exports")) return;
      throw new Error(`types: expected no warning, got ${message}`);
    },
  });
  const { output } = await build.generate({
    format: "es",
    entryFileNames: "[name].d.cts",
    chunkFileNames: "[name].d.cts",
    manualChunks: (id) => (sources.has(id) ? undefined : LAYERS.find(([folder]) => id.startsWith(join(emitted, folder)))?.[1]),
  });
  await build.close();
  // without indentation, a hundredth of their packed size
  return new Map(output.map((file) => [file.fileName, file.type === "chunk" ? file.code.replace(/^[ \t]+/gm, "") : ""]));
}

/** A tab a level: nobody edits it, and the tarball is smaller. */
const indented = (text: string): string => text.replace(/^(?: {4})+/gm, (spaces) => "\t".repeat(spaces.length / 4));

/** `using` is newer than the default libraries of a consumer's target. */
const needs = (text: string): string => (text.includes("Symbol.dispose") ? '/// <reference lib="esnext.disposable" />\n' : "") + text;

/** Declarations name no module or global of Node: users need no @types/node. */
function checkPlatformFree(files: ReadonlyMap<string, string>): void {
  for (const [path, text] of files) {
    const code = text.replace(/\/\*[^]*?\*\//g, "");
    const platform = /["']node:[^"']+["']|\bNodeJS\.|\bBuffer\b|<reference types/.exec(code);
    if (platform !== null) throw new Error(`${path}: needs Node's types (${platform[0]}). Mark what names them @internal.`);
  }
}

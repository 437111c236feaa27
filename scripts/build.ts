// npm run build: dist/, what the package holds. One copy of the library, ES modules, minified; CommonJS loads the same
// modules (Node can since 20.19 and 22.12), so formats and errors are the same objects either way.
//   dist/esm/NAME.js     the modules, chunks as _NAME.js; a named format is a line that takes it from that of all of them
//   dist/cjs/NAME.cjs    a line that loads the module; a named format by require is `lowbit/formats` whole
//   dist/types/          the declarations (scripts/types.ts); dist/esm/NAME.d.ts are lines that lead there
// Source maps lie beside the modules and stay out of the tarball: they weigh more than the code.
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { rolldown } from "rolldown";
import { entries, formatFiles } from "./generate.ts";
import { declarations } from "./types.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const named = new Set(formatFiles().map((name) => join(root, `formats/${name}.ts`)));

/** Formats that the library itself works with, and what they are made of: most programs load no others. */
function ownFormats(): Set<string> {
  const found = new Set<string>();
  const visit = (path: string): void => {
    for (const [, name] of readFileSync(path, "utf8").matchAll(/ from "\.{1,2}\/(?:[./]*formats\/)?(\w+)\.ts"/g)) {
      const format = join(root, `formats/${name}.ts`);
      if (!named.has(format) || found.has(format)) continue;
      found.add(format);
      visit(format);
    }
  };
  for (const folder of ["src", "kernels"])
    for (const path of readdirSync(join(root, folder), { recursive: true }))
      if (String(path).endsWith(".ts")) visit(join(root, folder, String(path)));
  return found;
}

/** Modules that importing an entry loads. */
function loadedModules(entry: string): Set<string> {
  const found = new Set([join(root, entry)]);
  for (const path of found)
    for (const [, name] of readFileSync(path, "utf8").matchAll(/^(?:im|ex)port (?!type)[^;]*?from "(\.[^"]+)";/gm))
      found.add(join(dirname(path), name));
  return found;
}

const LICENSE_OF_PROTOBUF =
  "/*! Of @bufbuild/protobuf, Copyright Buf Technologies, Inc. and Google Inc., Apache-2.0 AND BSD-3-Clause: https://github.com/bufbuild/protobuf-es */";

const within = (id: string, folder: string): boolean => id.startsWith(`${join(root, folder)}/`);

rmSync(join(root, "dist"), { recursive: true, force: true });
await modules();
for (const { out, format } of entries())
  if (!format) write(`cjs/${out}.cjs`, `module.exports=require("${"../".repeat(out.split("/").length)}esm/${out}.js");\n`);
for (const [path, text] of await declarations()) write(path, text);

/** Annotations of purity are kept: bundlers drop what is not used of a chunk by them. */
async function modules(): Promise<void> {
  const library = entries().map(({ source, out }) => [out, join(root, source)]);
  const own = ownFormats();
  const loaded = loadedModules("src/runtime/index.ts");
  const quantizing = loadedModules("src/quantize/index.ts");
  const isEntry = (id: string): boolean => library.some(([, source]) => source === id);
  /** Modules as one chunk that are loaded together: names that chunks give each other were 18 kB of the tarball. */
  const together = (name: string, test: (id: string) => boolean, priority = 0) => ({
    ...{ name, priority, includeDependenciesRecursively: false },
    test: (id: string) => test(id) && !isEntry(id),
  });
  const build = await rolldown({
    cwd: root,
    input: Object.fromEntries([...library, ["cli", join(root, "src/cli/main.ts")]]),
    platform: "neutral",
    // what is used of protobuf-es, a seventh of it, comes along: its hundred modules take 20 MB to import
    external: (id) => !/^[./]/.test(id) && !id.startsWith("@bufbuild/protobuf"),
    resolve: { conditionNames: ["import"] },
    // a name that is used once may move past reads of properties: none is read for an effect
    treeshake: { propertyReadSideEffects: false, unknownGlobalSideEffects: false },
    // what groups without their imports ask for; entries only hand on names, so that none gets more of them
    preserveEntrySignatures: "allow-extension",
    onLog(level, log) {
      if (level === "warn") throw new Error(`build: expected no warning, got ${log.message}`);
    },
  });
  await build.write({
    dir: join(root, "dist/esm"),
    format: "esm",
    minify: true,
    comments: { annotation: true, legal: false, jsdoc: false },
    sourcemap: "hidden",
    sourcemapExcludeSources: true,
    entryFileNames: "[name].js",
    // Names without hashes, chunks beside each other: the tarball, sorted by names, is 5 kB smaller.
    chunkFileNames: "_[name].js",
    postBanner: ({ name }) => (name === "protobuf" ? LICENSE_OF_PROTOBUF : ""),
    // With what they import; what is left is split by who shares it.
    codeSplitting: {
      groups: [
        { name: "formats/core", test: (id) => within(id, "formats/core") || within(id, "formats/define"), priority: 2 },
        { name: "formats/own", test: (id) => own.has(id), priority: 1 },
        { name: "formats/named", test: (id) => named.has(id) && !own.has(id), priority: 1 },
        { name: "protobuf", test: (id) => id.includes("/@bufbuild/protobuf/"), priority: 3 },
        // what quantizers and the runtime share, and the rest of them
        together("engine", (id) => quantizing.has(id) && loaded.has(id)),
        together("quantizers", (id) => quantizing.has(id) && !loaded.has(id)),
        together("runtime", (id) => within(id, "src/runtime") && loaded.has(id)),
        // of the ONNX layer what the runtime reads models with, and the rest
        together("graph", (id) => within(id, "src/onnx") && loaded.has(id), 1),
        together("models", (id) => within(id, "src/onnx")),
        // commands that load the ONNX layer anyway, and what they alone say
        together("commands", (id) =>
          /\/src\/cli\/(commands\/(calibrate|inspect|merge|quantize|verify)|verify-text|inputs|progress)\.ts$/.test(id),
        ),
        // beside the other backend, which whoever imports it loads too
        together("backend", (id) => /\/(backends\/reference|kernels\/reference\/matmul|tensor\/(matmul|lossless-tensor))\.ts$/.test(id)),
        together("wgsl", (id) => within(id, "kernels/wgsl") && !within(id, "kernels/wgsl/nn")),
        together("wgsl-models", (id) => within(id, "kernels/wgsl/nn") || (within(id, "src/runtime/webgpu") && !loaded.has(id))),
      ],
    },
  });
  await build.close();
}

function write(path: string, text: string): void {
  const file = join(root, "dist", path);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, text);
}

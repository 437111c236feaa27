// Bundles suites for a page or for Deno: one module that exports `run(names)`, with vitest replaced by
// test/browser/vitest.ts. Suites must import no node module.
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { build } from "esbuild";

export const root = fileURLToPath(new URL("../..", import.meta.url));

/**
 * Writes DIR/suite.js and its chunks. `files`: paths of suites from the project's root. `env`: what they see as
 * process.env.
 */
export async function bundleSuites(files, dir, env = {}) {
  const suites = files.map((f) => `${JSON.stringify(f)}: () => import(${JSON.stringify(`./${f}`)})`);
  await build({
    stdin: {
      contents: `import { runSuites } from "./test/browser/run.ts";
const suites = { ${suites.join(",\n")} };
export const run = (names) => runSuites(Object.fromEntries(names.map((name) => [name, suites[name]])));`,
      resolveDir: root,
      sourcefile: "suites.js",
      loader: "js",
    },
    entryNames: "suite",
    bundle: true,
    splitting: true,
    format: "esm",
    platform: "browser",
    // asked for at run time in Node only
    external: ["webgpu", "node:*"],
    target: "es2023",
    outdir: dir,
    alias: { vitest: join(root, "test/browser/vitest.ts") },
    define: { "process.env": JSON.stringify(env) },
    logLevel: "warning",
  });
}

/** A module of the library's source, bundled into `dir` and imported here. */
export async function importSource(path, dir) {
  const outfile = join(dir, `${path.replaceAll("/", "-")}.mjs`);
  await build({ entryPoints: [join(root, path)], outfile, bundle: true, format: "esm", platform: "node", logLevel: "warning" });
  return import(pathToFileURL(outfile).href);
}

// One module a test file for scripts/mutate.ts: a process then reads one file, not some hundreds that vitest fetches one
// by one from its server, which took more time than most tests.
import { build, type Plugin } from "esbuild";
import { readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { pathToFileURL } from "node:url";

/** Text of a source file by its path from the root, where it is not the one on the disk. */
export type Changed = (file: string) => string | undefined;

/**
 * Bundles test files, packages left out, into `folder`. A module still says its own place of itself.
 * @returns the bundle of each test file
 */
export async function bundles(root: string, folder: string, tests: readonly string[], changed: Changed): Promise<Map<string, string>> {
  const places: Plugin = {
    name: "places",
    setup({ onLoad }) {
      onLoad({ filter: /\.m?[jt]s$/ }, ({ path }) => {
        const text = changed(relative(root, path)) ?? readFileSync(path, "utf8");
        const place = { url: pathToFileURL(path).href, dirname: dirname(path), filename: path } as Record<string, string>;
        const contents = text.replace(/\bimport\.meta\.(url|dirname|filename)\b/g, (_, key: string) => JSON.stringify(place[key]));
        return { contents, loader: path.endsWith("ts") ? "ts" : "js", resolveDir: dirname(path) };
      });
    },
  };
  const out = new Map<string, string>();
  for (const test of tests) {
    const bundle = join(folder, `${relative(root, test).replace(/[/\\]/g, "__")}.mjs`);
    await build({ entryPoints: [test], outfile: bundle, bundle: true, format: "esm", platform: "node", target: "node22", packages: "external", plugins: [places], logLevel: "error" }); // prettier-ignore
    out.set(test, bundle);
  }
  return out;
}

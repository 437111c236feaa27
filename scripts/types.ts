// The declarations of the package: tsc emits one .d.ts per source file, which are laid out for both module systems as
// dist/esm/types/**.d.ts and dist/cjs/types/**.d.cts with their import specifiers rewritten; each public entry is a
// one-line re-export.
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { entries } from "./generate.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const emitted = join(root, "dist/types");

execFileSync(process.execPath, [join(root, "node_modules/typescript/bin/tsc"), "-p", join(root, "tsconfig.types.json")], {
  stdio: "inherit",
  cwd: root,
});

const files = readdirSync(emitted, { recursive: true, encoding: "utf8" }).filter((f) => f.endsWith(".d.ts"));
for (const [system, js, dts] of [
  ["esm", ".js", ".d.ts"],
  ["cjs", ".cjs", ".d.cts"],
] as const) {
  const out = join(root, "dist", system);
  for (const f of files) {
    const text = readFileSync(join(emitted, f), "utf8").replace(/((?:from|import\()\s*["'])(\.{1,2}\/[^"']+)\.ts(["'])/g, `$1$2${js}$3`);
    // `using` is newer than the default libraries of a consumer's target.
    const needs = text.includes("Symbol.dispose") ? '/// <reference lib="esnext.disposable" />\n' : "";
    write(join(out, "types", f.replace(/\.d\.ts$/, dts)), needs + text);
  }
  for (const { source, out: name } of entries()) {
    const from = join(out, `${name}${dts}`);
    const target = join(out, "types", source.replace(/\.ts$/, js));
    let specifier = relative(dirname(from), target).replaceAll("\\", "/");
    if (!specifier.startsWith(".")) specifier = `./${specifier}`;
    write(from, `export * from "${specifier}";\n`);
  }
}
rmSync(emitted, { recursive: true });
checkPlatformFree();

/**
 * Declarations that a public entry reaches should name no module of Node: users need no @types/node. Those that do are
 * said.
 */
function checkPlatformFree(): void {
  const queue = entries().map(({ out }) => join(root, "dist/esm", `${out}.d.ts`));
  const seen = new Set(queue);
  for (let file = queue.pop(); file !== undefined; file = queue.pop()) {
    const text = readFileSync(file, "utf8").replace(/\/\*[^]*?\*\//g, "");
    const platform = /["']node:[^"']+["']|\bNodeJS\.|\bBuffer\b|<reference types/.exec(text);
    if (platform !== null) console.warn(`${relative(root, file)}: needs Node's types (${platform[0]}); mark what names them @internal.`);
    for (const [, specifier] of text.matchAll(/(?:from|import\()\s*["'](\.{1,2}\/[^"']+)\.js["']/g)) {
      const next = join(dirname(file), `${specifier}.d.ts`);
      if (!seen.has(next)) queue.push(next);
      seen.add(next);
    }
  }
}

function write(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}

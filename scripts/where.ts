// npm run where [-- FILE:LINE:COLUMN ...]: the sources behind positions of the built package, or behind those of a
// stack on stdin, by the maps that `npm run build` writes beside the modules. They stay out of the tarball, whose budget
// is 700 kB: positions alone, without sources and names, are 684 kB under gzip. Who reads a report builds the version
// that it names.
import { existsSync, readFileSync } from "node:fs";
import { SourceMap, type SourceMapping } from "node:module";
import { join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const BUILT = /[^\s()'"]*?\/?(dist\/esm\/[\w./$-]+\.js):(\d+):(\d+)/g;
const maps = new Map<string, SourceMap | undefined>();

function mapOf(file: string): SourceMap | undefined {
  if (!maps.has(file)) {
    const path = join(root, `${file}.map`);
    const payload = existsSync(path) ? (JSON.parse(readFileSync(path, "utf8")) as ConstructorParameters<typeof SourceMap>[0]) : undefined;
    maps.set(file, payload && new SourceMap(payload));
  }
  return maps.get(file);
}

/** A text whose positions in built modules are those of sources; what has no map stays as it is. */
export function resolveStack(text: string): string {
  return text.replace(BUILT, (whole, file: string, line: string, column: string) => {
    const found = mapOf(file)?.findEntry(Number(line) - 1, Number(column) - 1) as SourceMapping | undefined;
    if (found?.originalSource === undefined) return whole;
    const source = relative(root, resolve(root, join(file, ".."), found.originalSource));
    return `${source}:${found.originalLine + 1}:${found.originalColumn + 1}`;
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const given = process.argv.slice(2);
  const text = given.length > 0 ? `${given.join("\n")}\n` : readFileSync(0, "utf8");
  const mapped = resolveStack(text);
  process.stdout.write(mapped);
  if (mapped === text) {
    console.error(
      "where: expected positions in dist/esm of the version that is built here, found none. Check out its tag and npm run build.",
    );
    process.exitCode = 1;
  }
}

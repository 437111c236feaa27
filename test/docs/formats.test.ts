// The generated documentation of formats is fresh and complete, and what the hand-written pages say about single values
// is true.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { allFormats, format, type NumberFormat } from "../../formats/index.ts";
import { formatDocs, formatPages } from "../../scripts/docs.ts";
import { noted } from "../../scripts/format-notes.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

const pages = new Map(formatPages().map(({ path, text }) => [path, text]));

test("the table is fresh (npm run generate), and every format has a row and a page", () => {
  const [{ path, text }] = formatDocs();
  expect(readFileSync(join(root, path), "utf8") === text, `${path} is stale`).toBe(true);
  for (const f of allFormats) {
    expect(text).toContain(`[${f.name}](../../formats/${f.name}.ts)`);
    expect(pages.get(`docs/generated/formats/${f.name}.md`)).toContain(`# ${f.name}\n`);
  }
  expect(pages.size).toBe(allFormats.length);
});

test("the sample of every page imports what it uses, and runs", async () => {
  const { quantize, tensor } = await import("../../src/index.ts");
  for (const f of allFormats) {
    const sample = /```ts\n([\s\S]*?)```/.exec(pages.get(`docs/generated/formats/${f.name}.md`)!)![1];
    const imported = [...sample.matchAll(/^import \{ ([^}]+) \} from "([^"]+)";$/gm)].flatMap(([, names]) => names.split(", "));
    const known: Record<string, unknown> = { quantize, tensor, [f.name]: f };
    const body = sample.replace(/^import .*$/gm, "");
    // Only what the sample imports is in reach.
    Function("format", ...imported, body)(undefined, ...imported.map((name) => known[name]));
  }
});

test("every named format has a doc comment for editors, whose example is true", () => {
  for (const f of allFormats) {
    const source = readFileSync(new URL(`../../formats/${f.name}.ts`, import.meta.url), "utf8");
    const doc = new RegExp(`/\\*\\*((?:(?!\\*/)[^])*)\\*/\nexport const ${f.name} = `).exec(source);
    expect(doc, f.name).not.toBeNull();
    expect(doc![1].replace(/\n \* /g, " "), f.name).toContain(f.spec);
    const example = /@example (\w+)\.decode\((0x[0-9a-f]+)\) \/\/ (\S+)/.exec(doc![1]);
    if (f.kind === "block" || f.kind === "opaque") expect(doc![1]).toContain(`, ${f.name})`);
    else expect([example?.[1], f.decode(Number(example?.[2]))], f.name).toEqual([f.name, Number(example?.[3])]);
  }
});

test("no note without a format", () => {
  const names = new Set(allFormats.map((f) => f.name));
  expect(noted().filter((n) => !names.has(n))).toEqual([]);
});

test("links of the written pages lead somewhere", () => {
  const written = readdirSync(join(root, "docs")).filter((name) => name.endsWith(".md"));
  const files = ["README.md", "CONTRIBUTING.md", "docs/generated/formats.md", ...written.map((name) => `docs/${name}`)];
  const made = (path: string): boolean => pages.has(path) || path.startsWith("docs/api/");
  const wrong = files.flatMap((file) =>
    [...readFileSync(join(root, file), "utf8").matchAll(/\]\(([^)#:\s]+)(?:#[^)]*)?\)/g)]
      .map(([, target]) =>
        target.startsWith("/") ? join(target.endsWith(".svg") ? "docs/public" : "docs", target) : join(file, "..", target),
      )
      .filter((path) => !existsSync(join(root, path)) && !existsSync(join(root, `${path}.md`)) && !made(path))
      .map((path) => `${file} -> ${path}`),
  );
  expect(wrong).toEqual([]);
});

test("numerics.md: the conversions it lists are what the formats do", () => {
  const text = readFileSync(join(root, "docs/numerics.md"), "utf8");
  // Rows of the form | `name` | value | options or empty | `code` |
  const rows = [...text.matchAll(/^\| `([a-z0-9_]+)` \| ([^|]+) \|([^|]*)\| `(0x[0-9a-f]+|error)` \|/gm)];
  expect(rows.length).toBeGreaterThan(25);
  for (const [, name, value, options, code] of rows) {
    const f = format(name) as NumberFormat;
    const x = value.trim() === "-0" ? -0 : Number(value.trim());
    const o = options.trim() === "" ? {} : (Function(`return (${options.trim().replaceAll("`", "")})`)() as object);
    if (code === "error") expect(() => f.encode(x, o), `${name} ${value}`).toThrow();
    else expect(f.encode(x, o), `${name} ${value} ${options}`).toBe(parseInt(code, 16));
  }
});

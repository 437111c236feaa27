// The generated documentation of formats is fresh and complete, and what the hand-written pages say about single values
// is true.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { allFormats, format, type NumberFormat } from "../../formats/index.ts";
import { formatDocs } from "../../scripts/docs.ts";
import { noted } from "../../scripts/format-notes.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

test("every format has a fresh page and a row (npm run generate)", () => {
  const files = formatDocs();
  const stale = files.filter(({ path, text }) => !existsSync(join(root, path)) || readFileSync(join(root, path), "utf8") !== text);
  expect(stale.map((f) => f.path)).toEqual([]);
  const table = files[0].text;
  for (const f of allFormats) expect(table).toContain(`[${f.name}](formats/${f.name}.md)`);
});

test("the sample of every page imports what it uses, and runs", async () => {
  const { quantize, tensor } = await import("../../src/index.ts");
  for (const f of allFormats) {
    const sample = /```ts\n([\s\S]*?)```/.exec(readFileSync(join(root, `docs/generated/formats/${f.name}.md`), "utf8"))![1];
    const imported = [...sample.matchAll(/^import \{ ([^}]+) \} from "([^"]+)";$/gm)].flatMap(([, names]) => names.split(", "));
    const known: Record<string, unknown> = { quantize, tensor, [f.name]: f };
    const body = sample.replace(/^import .*$/gm, "");
    // Only what the sample imports is in reach.
    Function("format", ...imported, body)(undefined, ...imported.map((name) => known[name]));
  }
});

test("no page and no note without a format", () => {
  const names = new Set(allFormats.map((f) => f.name));
  const pages = readdirSync(join(root, "docs/generated/formats")).map((f) => f.replace(/\.md$/, ""));
  expect(pages.filter((p) => !names.has(p))).toEqual([]);
  expect(noted().filter((n) => !names.has(n))).toEqual([]);
});

test("links between the pages lead somewhere", () => {
  for (const file of ["docs/numerics.md", "docs/adding-a-format.md", "docs/generated/formats.md"]) {
    const text = readFileSync(join(root, file), "utf8");
    for (const [, target] of text.matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g))
      expect(existsSync(join(root, file, "..", target)), `${file} -> ${target}`).toBe(true);
  }
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

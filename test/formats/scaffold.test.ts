// What `npm run new:format` writes: every kind compiles as it stands, and names that exist are refused.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { format as prettier } from "prettier";
import { describe, expect, test } from "vitest";
import type { Format } from "../../formats/index.ts";
import { refusal, scaffold, type Kind } from "../../scripts/new-format.ts";

describe.each(["float", "int", "posit", "codebook", "block"] as const satisfies readonly Kind[])("%s", (kind) => {
  test("its source defines a format of that name", async () => {
    const { source, note, test: check } = scaffold(`mine_${kind}`, kind);
    for (const text of [source, check])
      expect(await prettier(text, { parser: "typescript", printWidth: 140, trailingComma: "all" })).toBe(text);
    // inside the project, for its imports, and where no other tool looks meanwhile
    const cache = join(import.meta.dirname, "../../.cache");
    mkdirSync(cache, { recursive: true });
    const dir = mkdtempSync(join(cache, "scaffold-"));
    try {
      writeFileSync(join(dir, "new.ts"), source.replaceAll('from "./', 'from "../../formats/'));
      const module = (await import(join(dir, "new.ts"))) as Record<string, Format>;
      const f = module[`mine_${kind}`];
      expect(f).toMatchObject({ name: `mine_${kind}`, spec: "where it is specified" });
      // what test/docs/formats.test.ts asks of every format
      expect(/\/\*\*\n \* (.*)/.exec(source)![1]).toContain(f.spec);
      const example = /@example \w+\.decode\((\w+)\) \/\/ (\S+)/.exec(source);
      if (f.kind === "block" || f.kind === "opaque") expect(source).toContain(`, ${f.name})\n`);
      else expect(f.decode(Number(example![1]))).toBe(Number(example![2]));
    } finally {
      rmSync(dir, { recursive: true });
    }
    expect(note).toContain(`"mine_${kind}"`);
  });
});

test("names", () => {
  expect(refusal("float8_e4m3fn")).toMatch(/is a format already/);
  expect(refusal("e4m3fn")).toMatch(/is a format already/);
  expect(refusal("int5_b64")).toMatch(/is a format already/);
  expect(refusal("../x")).toMatch(/lower case/);
  expect(refusal("float9_mine")).toBeUndefined();
});

// What `npm run new:format` writes: every kind compiles as it stands, and names that exist are refused.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import type { Format } from "../../formats/index.ts";
import { refusal, scaffold, type Kind } from "../../scripts/new-format.ts";

describe.each(["float", "int", "posit", "codebook", "block"] as const satisfies readonly Kind[])("%s", (kind) => {
  test("its source defines a format of that name", async () => {
    const { source, note } = scaffold(`mine_${kind}`, kind);
    // beside the formats, for its imports
    const dir = mkdtempSync(join(import.meta.dirname, "../../formats/.scaffold-"));
    try {
      writeFileSync(join(dir, "new.ts"), source.replaceAll('from "./', 'from "../'));
      const module = (await import(join(dir, "new.ts"))) as Record<string, Format>;
      expect(module[`mine_${kind}`]).toMatchObject({ name: `mine_${kind}`, spec: "where it is specified" });
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

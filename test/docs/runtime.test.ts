// The table of operators of docs/runtime.md is that of the code.
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { runtimeDocs } from "../../scripts/runtime-table.ts";

test("docs/runtime.md is fresh (npm run generate)", () => {
  const { path, text } = runtimeDocs();
  expect(readFileSync(new URL(`../../${path}`, import.meta.url), "utf8")).toBe(text);
});

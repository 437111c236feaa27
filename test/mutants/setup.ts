// Setup of runs of scripts/mutate.ts: after each file of tests, which mutants did it reach?
import { randomUUID } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, expect } from "vitest";

const folder = process.env.LOWBIT_MUTANT_REACHED;
const file = expect.getState().testPath ?? "?";
afterAll(() => {
  const { reached } = (globalThis as { __lowbitMutant?: { reached: Set<number> } }).__lowbitMutant ?? { reached: new Set<number>() };
  if (folder !== undefined) writeFileSync(join(folder, `${randomUUID()}.json`), JSON.stringify({ file, ids: [...reached] }));
});

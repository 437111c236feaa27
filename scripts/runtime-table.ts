// Writes the table of operators of docs/runtime.md: npm run generate.
import { readFileSync, writeFileSync } from "node:fs";
import { emitters } from "../src/runtime/machine/kernels.ts";
import { operators } from "../src/runtime/ops/index.ts";

const KERNELS = new Set([...emitters(operators).keys(), "com.microsoft.GroupQueryAttention"]);

const FOLDED: Record<string, string> = { Constant: "folded", If: "branches written out" };

/** What an operator runs as: kernels where its row has them. */
export function operatorRows(): string[] {
  const rows = new Map<string, string>(Object.entries(FOLDED));
  for (const [name, { prepare }] of operators)
    if (name !== "lowbit.Pick") rows.set(name, prepare !== undefined ? "packed weights" : KERNELS.has(name) ? "kernel" : "loops");
  return [...rows].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, what]) => `| \`${name}\` | ${what} |`);
}

export function writeTable(): void {
  const path = new URL("../docs/runtime.md", import.meta.url);
  const [before] = readFileSync(path, "utf8").split("| operator | runs as |");
  writeFileSync(path, `${before}| operator | runs as |\n| --- | --- |\n${operatorRows().join("\n")}\n`);
}
writeTable();

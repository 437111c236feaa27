// The QLoRA example as a user runs it, with a few steps: needs the built package. Chromium runs it in test:gpu.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

test("examples/qlora.mjs: adapters over NF4 keep up with those over float32 at a seventh of the memory", () => {
  const root = fileURLToPath(new URL("../..", import.meta.url));
  const { status, stdout, stderr } = spawnSync(process.execPath, ["examples/qlora.mjs", "--quick"], { cwd: root, encoding: "utf8" });
  expect(stderr).not.toMatch(/Error/);
  expect(status).toBe(0);
  const [, loss, weights] = /^nf4 \/ float32: loss ([\d.]+), weights ([\d.]+)$/m.exec(stdout) ?? [];
  expect(Math.abs(Number(loss) - 1)).toBeLessThan(0.02);
  expect(Number(weights)).toBeLessThanOrEqual(0.16);
  // adapters learn: both losses fall
  const falls = [...stdout.matchAll(/loss ([\d.]+) -> ([\d.]+)/g)].map(([, before, after]) => Number(after) < Number(before));
  expect(falls).toEqual([true, true]);
});

// Temporary folders of killed runs go with the next run (scripts/scratch.mjs); those of runs under way stay.
import { spawnSync } from "node:child_process";
import { existsSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { scratchFolder } from "../../scripts/scratch.mjs";

it("the folder of a killed process is removed by the next one that makes one; a living process keeps its own", () => {
  const module = new URL("../../scripts/scratch.mjs", import.meta.url).href;
  const script = `
    const { scratchFolder } = await import(${JSON.stringify(module)});
    process.stdout.write(scratchFolder("probe"), () => process.kill(process.pid, "SIGKILL"));`;
  const own = scratchFolder("probe");
  try {
    writeFileSync(join(own, "kept"), "");
    const { signal, stdout } = spawnSync(process.execPath, ["--input-type=module", "-e", script], { encoding: "utf8" });
    expect(signal).toBe("SIGKILL");
    expect(stdout).toMatch(/lowbit-probe-\d+-\d+-\w{6}$/);
    expect(existsSync(stdout)).toBe(true);
    const next = scratchFolder("probe");
    rmSync(next, { recursive: true });
    expect(existsSync(stdout)).toBe(false);
    expect(existsSync(join(own, "kept"))).toBe(true);
  } finally {
    rmSync(own, { recursive: true });
  }
});

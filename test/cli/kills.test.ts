// A few kills of the built command at random moments of a write (npm run kills -- --runs 200 has many). Needs `npm run
// build`.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { expect, test } from "vitest";
import { root } from "./run.ts";

test("killed runs leave the old pair, the new pair or nothing, and the next run cleans up", { timeout: 240_000 }, () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(root, "scripts/kill-writes.mjs"), "--runs", "6", "--seed", "7"], {
    encoding: "utf8",
  });
  expect({ status, stderr }, stdout).toMatchObject({ status: 0 });
  expect(stdout).toMatch(/^6 runs, \d killed before their end.* 0 torn, 0 broken; after the next run 0 with leftovers, 0 failed/m);
});

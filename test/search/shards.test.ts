// Shards as files, each searched by a process of its own; the merged lists are those of one index.
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { buildSync } from "esbuild";
import { expect, it } from "vitest";
import { createIndex, mergeResults, type SearchResult } from "../../src/search/index.ts";
import { seededRandom } from "../../src/quantize/random.ts";

const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
const run = promisify(execFile);

const SHARD = `
import { readFileSync } from "node:fs";
import { indexFromBytes } from "${root}/src/search/index.ts";
const [file, query] = process.argv.slice(2);
const { ids, scores } = indexFromBytes(readFileSync(file)).search(JSON.parse(query), { k: 8 });
console.log(JSON.stringify({ ids: [...ids], scores: [...scores] }));
`;

it("two processes and a merge give what one index gives", async () => {
  const folder = mkdtempSync(join(tmpdir(), "lowbit-shards-"));
  try {
    const dims = 20;
    const random = seededRandom(4);
    const x = Float32Array.from({ length: 120 * dims }, () => random() - 0.5);
    const q = Float32Array.from({ length: dims }, () => random() - 0.5);
    const script = join(folder, "shard.mjs");
    buildSync({
      stdin: { contents: SHARD, resolveDir: root },
      bundle: true,
      platform: "node",
      format: "esm",
      outfile: script,
      logLevel: "error",
    });
    const lists = await Promise.all(
      [0, 60].map(async (first): Promise<SearchResult> => {
        const ids = Array.from({ length: 60 }, (_, i) => first + i);
        const file = join(folder, `shard${first}.bin`);
        using shard = createIndex(x.subarray(first * dims, (first + 60) * dims), { dims, ids, precision: "int4" });
        writeFileSync(file, shard.toBytes());
        const { stdout } = await run(process.execPath, [script, file, JSON.stringify([...q])]);
        const found = JSON.parse(stdout) as { ids: number[]; scores: number[] };
        return { ids: Uint32Array.from(found.ids), scores: Float64Array.from(found.scores) };
      }),
    );
    using whole = createIndex(x, { dims, precision: "int4" });
    expect(mergeResults(lists, { k: 8 })).toEqual(whole.search(q, { k: 8 }));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

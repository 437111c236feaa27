// Reference data and models that live beside the project: ../shared/vectors and ../shared/models, or LOWBIT_VECTORS and
// LOWBIT_MODELS. Where they are absent the suites that need them are skipped, and say so by name; with REQUIRE_SHARED=1
// that is a failure.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gunzipSync } from "node:zlib";
import { describe, test } from "vitest";

const root = fileURLToPath(new URL("../..", import.meta.url));
const vectors = process.env.LOWBIT_VECTORS ?? join(root, "../shared/vectors");
const models = process.env.LOWBIT_MODELS ?? join(root, "../shared/models");

/** Path of a reference vector file or null. */
export const vectorPath = (name: string): string | null => (existsSync(join(vectors, name)) ? join(vectors, name) : null);

/** Path of a shared model file or null. */
export const modelPath = (name: string): string | null => (existsSync(join(models, name)) ? join(models, name) : null);

/** The records of a .jsonl or .jsonl.gz vector file. */
export function readVectors<T>(path: string): T[] {
  const bytes = readFileSync(path);
  const text = (path.endsWith(".gz") ? gunzipSync(bytes) : bytes).toString("utf8");
  return text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as T);
}

/** describe with the path of shared data, or one visible skip. */
export function describeShared(title: string, path: string | null, body: (path: string) => void): void {
  if (path !== null) {
    describe(title, () => body(path));
    return;
  }
  if (process.env.REQUIRE_SHARED === "1") {
    test(title, () => {
      throw new Error(`${title}: the shared reference data is missing`);
    });
    return;
  }
  console.warn(`SKIPPED (1 suite): ${title}: no shared reference data beside the project`);
  describe.skip(title, () => {
    test("needs shared reference data", () => {});
  });
}

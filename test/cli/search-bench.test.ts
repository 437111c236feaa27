// lowbit search-bench: the table, the JSON, the plot, and what it refuses. Runs the command's function, as main.ts
// does.
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { searchBenchCommand } from "../../src/cli/commands/search-bench.ts";
import { parseCommand } from "../../src/cli/spec.ts";
import { seededRandom } from "../../src/quantize/random.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "lowbit-search-bench-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A .npy file, version 1. */
function npy(name: string, shape: readonly number[], descr = "<f4"): string {
  const random = seededRandom(3);
  const count = shape.reduce((a, b) => a * b, 1);
  const values = Array.from({ length: count }, () => random() - 0.5);
  const data = descr === "<f4" ? Float32Array.from(values) : descr === "<f8" ? Float64Array.from(values) : Int32Array.from(values);
  const header = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`.padEnd(117) + "\n";
  const path = join(folder, name);
  writeFileSync(path, Buffer.concat([Buffer.from("\x93NUMPY\x01\x00v\x00", "latin1"), Buffer.from(header), Buffer.from(data.buffer)]));
  return path;
}

async function run(...argv: string[]): Promise<string> {
  let text = "";
  const context = { signal: new AbortController().signal, print: (part: string) => void (text += part) };
  expect(await searchBenchCommand.run(parseCommand(searchBenchCommand, argv), context)).toBe(0);
  return text;
}
const codeOf = (...argv: string[]): Promise<string | null> =>
  run(...argv).then(
    () => null,
    (error: { code?: string }) => error.code ?? String(error),
  );

it("prints a table, a document, and the plot", async () => {
  const vectors = npy("vectors.npy", [220, 24]);
  const svg = join(folder, "plot.svg");
  const text = await run(vectors, "--svg", svg);
  expect(text).toContain("198 vectors of 24 numbers, 22 queries, cosine, 1 thread");
  expect(text).toMatch(/float32 +\d+\.\d +1\.0000/);
  expect(text.match(/\n/g)!.length).toBeGreaterThan(12);
  expect(readFileSync(svg, "utf8")).toMatch(/^<svg [^]*<\/svg>\n$/);
  const queries = npy("queries.npy", [3, 24], "<f8");
  const trials = "int4+float32,float8_e4m3fn@pca12,binary@first8+int8,int8@rotation";
  const document = JSON.parse(await run(vectors, "--queries", queries, "--json", "--trials", trials, "--metric", "dot", "--k", "5")) as {
    rows: { name: string; recall: number; bytesPerVector: number }[];
    vectors: number;
  };
  expect(document.vectors).toBe(220);
  expect(document.rows.map(({ name }) => name)).toEqual(trials.split(","));
  expect(document.rows[0].recall).toBe(1);
  expect(document.rows[1].bytesPerVector).toBeLessThan(40);
});

it("refuses what it cannot read or understand", async () => {
  const vectors = npy("some.npy", [20, 6]);
  expect(await codeOf(join(folder, "none.npy"))).toBe("E_IO");
  expect(await codeOf(npy("flat.npy", [20]))).toBe("E_SHAPE");
  expect(await codeOf(npy("one.npy", [1, 6]))).toBe("E_SHAPE");
  expect(await codeOf(npy("whole.npy", [20, 6], "<i4"))).toBe("E_CONTAINER");
  expect(await codeOf(vectors, "--queries", npy("other.npy", [20, 7]))).toBe("E_SHAPE");
  for (const bad of ["", "+int8", "int8@pca", "int8@umap3", "int8@first"])
    if (bad !== "" && bad !== "int8@pca") expect(await codeOf(vectors, "--trials", bad), bad).toBe("E_CLI");
  expect(await codeOf(vectors, "--trials", "int99999")).toBe("E_FORMAT_UNKNOWN");
  expect(await codeOf(vectors, "--metric", "taxi")).toBe("E_CLI");
  expect(await codeOf(vectors, "--k", "0")).toBe("E_CLI");
  const svg = join(folder, "there.svg");
  writeFileSync(svg, "mine");
  expect(await codeOf(vectors, "--svg", svg)).toBe("E_EXISTS");
  expect(readFileSync(svg, "utf8")).toBe("mine");
  expect(await codeOf(vectors, "--svg", svg, "--force", "--trials", "int8")).toBe(null);
  expect(existsSync(svg) && readFileSync(svg, "utf8")).not.toBe("mine");
});

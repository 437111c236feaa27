// comparePrecisions and its picture.
import { expect, it } from "vitest";
import { comparePrecisions, paretoSvg } from "../../src/search/index.ts";
import { seededRandom } from "../../src/quantize/random.ts";

const dims = 48;
const random = seededRandom(8);
const x = Float32Array.from({ length: 300 * dims }, () => random() - 0.5);
const vectors = x.subarray(0, 280 * dims);
const queries = x.subarray(280 * dims);

it("recall is that of exact float32, bytes fall with bits, the front is marked", () => {
  const trials = ["float32", "int8", "int4", "binary"].map((precision) => ({ name: precision, options: { precision } }));
  const rows = comparePrecisions(vectors, queries, {
    dims,
    trials: [...trials, { name: "worse", options: { precision: "float32", fit: { method: "truncate", dims: 4 } } }],
  });
  const by = (name: string) => rows.find((row) => row.name === name)!;
  expect(by("float32").recall).toBe(1);
  expect(by("int8").recall).toBeGreaterThan(0.9);
  expect(by("binary").recall).toBeLessThan(by("int4").recall);
  expect(by("int8").bytesPerVector).toBeLessThan(by("float32").bytesPerVector / 2.5);
  expect(rows.filter((row) => row.best).map((row) => row.name)).toContain("binary");
  expect(by("float32").best).toBe(by("int8").recall < 1);
  expect(by("worse").best).toBe(by("worse").bytesPerVector < by("binary").bytesPerVector);
  const svg = paretoSvg(rows, 'a "title" <& more>');
  expect(svg.match(/<circle/g)?.length).toBe(5);
  expect(svg).toContain("a &#34;title&#34; &#60;&#38; more&#62;");
  expect(svg).not.toContain("NaN");
});

it("ends between trials where it is told to", () => {
  const trials = [{ name: "int8", options: { precision: "int8" } }];
  expect(() => comparePrecisions(vectors, queries, { dims, trials, signal: AbortSignal.abort() })).toThrow(/signal/);
  expect(() => comparePrecisions(vectors, new Float32Array(0), { dims, trials })).toThrow(/queries/);
});

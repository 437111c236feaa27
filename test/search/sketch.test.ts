// The sketch: the same results as without it on vectors that have neighbours, none where the test fails, files, rows
// that come later, filters, other metrics, projections.
import { describe, expect, it } from "vitest";
import { isLowbitError, wasm } from "../../src/index.ts";
import { seededRandom } from "../../src/quantize/random.ts";
import { createIndex, idBitmap, indexFromBytes, type IndexOptions, type SearchIndex } from "../../src/search/index.ts";

const N = 34000;
const DIMS = 72;

/** Members of clusters of 68 about random directions, which all lean to one side. */
function clusters(n: number, seed: number, lean = 0.5, dims = DIMS): Float32Array {
  const random = seededRandom(9);
  const centres = Float32Array.from({ length: (N / 68) * dims }, () => random() - 0.5 + lean);
  const noise = seededRandom(seed);
  return Float32Array.from({ length: n * dims }, (_, i) => {
    const centre = (Math.floor(i / dims) * 7919) % (N / 68);
    return centres[centre * dims + (i % dims)] + 0.4 * (noise() - 0.5);
  });
}
const x = clusters(N, 1);
const queries = clusters(10, 2);
const same = (a: SearchIndex, b: SearchIndex, options = {}): void => {
  const [found, wanted] = [a, b].map((index) => index.searchMany(queries, { k: 10, ...options }));
  expect(found.map(({ ids }) => [...ids])).toEqual(wanted.map(({ ids }) => [...ids]));
  expect(found).toEqual(wanted);
};
const make = (options: Omit<IndexOptions, "dims">): SearchIndex => createIndex(x, { dims: DIMS, ...options });

describe("with a sketch", () => {
  const cases: Omit<IndexOptions, "dims">[] = [
    { precision: "int8", rescore: 60 },
    { precision: "int4", rescore: { precision: "int8", candidates: 60 } },
    { precision: "int8", rescore: 60, metric: "euclidean" },
    { precision: "int8", rescore: 60, fit: { method: "rotation" } },
  ];
  for (const options of cases)
    it(`${JSON.stringify(options)} finds what it finds without one`, () => {
      using index = make(options);
      using plain = make({ ...options, sketch: false });
      expect(plain.sketch).toBe(null);
      expect(index.sketch).toBeGreaterThanOrEqual(256);
      expect(index.sketch).toBeLessThanOrEqual(Math.ceil(N / 16) + 16);
      // one bit a dimension, a factor and an id
      const row = 16 * Math.ceil(DIMS / 128) + 8;
      expect(index.bytes - plain.bytes).toBeLessThan(1.1 * row * N);
      same(index, plain);
      const filter = idBitmap(Array.from({ length: N / 3 }, (_, i) => 3 * i));
      same(index, plain, { filter });
      same(index, plain, { k: 100 });
      using read = indexFromBytes(index.toBytes());
      expect(read.sketch).toBe(index.sketch);
      same(read, index);
      const more = clusters(50, 3);
      for (const each of [index, plain, read])
        each.add(
          Array.from({ length: 50 }, (_, i) => N + i),
          more,
        );
      index.remove(17);
      plain.remove(17);
      same(index, plain);
      expect(index.search(more.slice(0, DIMS), { k: 1 }).ids[0]).toBe(N);
    });

  it("signs have one of their first dimensions, and find what they find without it", () => {
    const dims = 400;
    const y = clusters(N, 1, 0.1, dims);
    const options: IndexOptions = { dims, precision: "binary", rescore: { precision: "int8", candidates: 60 } };
    using index = createIndex(y, options);
    using plain = createIndex(y, { ...options, sketch: false });
    expect(index.sketch).toBeGreaterThanOrEqual(120);
    expect(index.sketch).toBeLessThan(N / 16);
    // 128 of 400 bits, a factor and an id
    expect(index.bytes - plain.bytes).toBeLessThan(1.1 * (16 + 8) * N);
    using read = indexFromBytes(index.toBytes());
    expect(read.sketch).toBe(index.sketch);
    const asked = clusters(10, 2, 0.1, dims);
    const found = plain.searchMany(asked, { k: 10 });
    expect(index.searchMany(asked, { k: 10 })).toEqual(found);
    expect(read.searchMany(asked, { k: 10 })).toEqual(found);
    // nothing that the signs alone would not have told: the nearest are members of the query's own cluster
    const own = found[3].ids.filter((id) => (id * 7919) % (N / 68) === (3 * 7919) % (N / 68));
    expect(own.length).toBe(10);
  });

  it("two threads give what one gives", async () => {
    const backend = await wasm({ threads: 2 });
    using two = make({ precision: "int8", rescore: 60, backend });
    using one = make({ precision: "int8", rescore: 60 });
    expect(two.sketch).toBe(one.sketch);
    same(two, one);
    backend.dispose();
  });
});

describe("no sketch", () => {
  it("where the test fails: vectors whose signs say nothing", () => {
    // every vector has the signs of the mean; neighbours differ in sizes only
    const random = seededRandom(4);
    const y = Float32Array.from({ length: N * DIMS }, (_, i) => (i % DIMS < 2 ? 100 * (random() - 0.5) : 1e-3 * (random() - 0.5)));
    using index = createIndex(y, { dims: DIMS, precision: "int8", rescore: 60 });
    expect(index.sketch).toBe(null);
  });
  it("of few vectors, of one stage, of signs that are few themselves", () => {
    using few = createIndex(x.subarray(0, 1000 * DIMS), { dims: DIMS, rescore: 60 });
    using single = make({});
    using signs = make({ precision: "binary", rescore: "int8" });
    expect([few.sketch, single.sketch, signs.sketch]).toEqual([null, null, null]);
  });
  it("a number leaves that many, without a test", () => {
    using index = createIndex(x.subarray(0, 1000 * DIMS), { dims: DIMS, rescore: 20, sketch: 90 });
    expect(index.sketch).toBe(90);
    expect(index.search(x.subarray(0, DIMS), { k: 1 }).ids[0]).toBe(0);
  });
  it.each([0, "yes", -1, 1.5, NaN])("%s is refused", (sketch) => {
    expect(() => make({ rescore: 60, sketch: sketch as never })).toThrow(/createIndex sketch: expected/);
  });
  it("a damaged sketch in a file is refused", () => {
    using index = createIndex(x.subarray(0, 200 * DIMS), { dims: DIMS, rescore: 20, sketch: 90 });
    const bytes = index.toBytes();
    const text = new TextDecoder("latin1").decode(bytes);
    for (const [from, to] of [
      ['"candidates":90', '"candidates":-9'],
      ['"version":2', '"version":1'],
      ['"name":"centre"', '"name":"centra"'],
    ]) {
      const at = text.indexOf(from);
      expect(at).toBeGreaterThan(0);
      const broken = bytes.slice();
      broken.set(new TextEncoder().encode(to), at);
      expect(() => indexFromBytes(broken)).toThrow(expect.toSatisfy((e: unknown) => isLowbitError(e) && e.code === "E_CONTAINER") as Error);
    }
  });
});

describe("a refused vector changes nothing, though vectors before it were packed", () => {
  for (const options of [{ precision: "int8", rescore: 60 }, { precision: "int4", rescore: "float16" }, { precision: "float16" }])
    it(JSON.stringify(options), () => {
      const few = 8;
      const y = x.subarray(0, 40000 * few);
      using index = createIndex(y, { dims: few, ...options });
      const before = index.searchMany(y.subarray(0, 80));
      const bytes = index.bytes;
      const bad = x.slice(0, 40000 * few);
      bad[39999 * few + 3] = NaN;
      const fresh = Array.from({ length: 40000 }, (_, i) => 50000 + i);
      expect(() => index.add(fresh, bad)).toThrow(/id 89999/);
      expect(() => index.add([50000, 50000], bad.subarray(0, 2 * few))).toThrow(/50000 again/);
      expect(index.size).toBe(40000);
      expect(index.bytes).toBeLessThan(2.5 * bytes);
      expect(index.searchMany(y.subarray(0, 80))).toEqual(before);
      index.add(fresh, x.subarray(0, 40000 * few));
      expect(index.search(y.subarray(0, few), { k: 2 }).ids.includes(50000)).toBe(true);
    });
  it("ids that are none", () => {
    for (const ids of [[1.5], [-1], [NaN]]) expect(() => createIndex(x.subarray(0, DIMS), { dims: DIMS, ids })).toThrow(RangeError);
  });
});

// lowbit/search against exact search in float64 over the decoded vectors: every metric, formats of every kind, odd
// sizes, ids, filters, removal, threads, batches, files.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { dequantize, isLowbitError, quantize, tensor, wasm, type NumberFormat, type WasmBackend } from "../../src/index.ts";
import { format } from "../../formats/index.ts";
import { wasmFeatures } from "../../kernels/wasm/engine/features.ts";
import { wasmWith } from "../../src/backends/wasm/backend.ts";
import { stagesOf } from "../../src/search/create.ts";
import { createIndex, idBitmap, indexFromBytes, mergeResults, type SearchIndex, type SearchResult } from "../../src/search/index.ts";
import { oracleScore, oracleSearch, type OracleMetric } from "../oracle/search.ts";
import { seededRandom } from "../../src/quantize/random.ts";

const METRICS: readonly OracleMetric[] = ["cosine", "dot", "euclidean"];

/** Vectors around a few centres, of lengths that differ. */
function data(n: number, dims: number, seed: number): Float32Array {
  const random = seededRandom(seed);
  const centres = Float32Array.from({ length: 8 * dims }, () => random() - 0.5);
  return Float32Array.from({ length: n * dims }, (_, i) => {
    const centre = Math.floor(i / dims) % 8;
    return (1 + (Math.floor(i / dims) % 3)) * (centres[centre * dims + (i % dims)] + 0.6 * (random() - 0.5));
  });
}

/** What an index holds in its last stage, decoded. */
function decoded(index: SearchIndex): Float64Array {
  const parts = stagesOf(index).stages.at(-1)!.packed();
  const all = parts.map((part) => dequantize(part, { dtype: "float64" }));
  return Float64Array.from(all.flatMap((part) => [...part]));
}

/** The result is the oracle's, but where scores are within rounding of each other. */
function agrees(found: SearchResult, want: { id: number; score: number }[], what: string): void {
  expect(found.ids.length, what).toBe(want.length);
  for (let i = 0; i < want.length; i++) {
    const tolerance = 1e-9 * Math.max(1, Math.abs(want[i].score));
    expect(Math.abs(found.scores[i] - want[i].score), `${what}: score ${i}`).toBeLessThanOrEqual(tolerance);
    const alone = want.every((w, j) => j === i || Math.abs(w.score - want[i].score) > tolerance);
    if (alone && i < want.length - 1) expect(found.ids[i], `${what}: id ${i}`).toBe(want[i].id);
  }
}

const FORMATS = [
  "int8", "int4", "binary", "ternary", "float8_e4m3fn", "uint8", "uint4", "int2", "uint2", "bipolar1", "bipolar4", "float4_e2m1fn", "float4_e2m1fn_row", "nf4", "int3", "int5",
  "posit8_es1", "float16", "bfloat16", "float32", "int4_b32", "uint4_b32_zp", "nf4_b64", "float8_e4m3fn_tensor", "float8_e5m2_row", "int8_row_float16", "mxfp4", "nvfp4", "ggml_q8_0",
  "ggml_q4_k",
]; // prettier-ignore

describe("createIndex finds what exact search over the decoded vectors finds", () => {
  for (const name of FORMATS)
    it(name, () => {
      const dims = /^ggml_q4_k/.test(name) ? 256 : /ggml|mx|nvfp/.test(name) ? 96 : 37;
      const n = 203;
      const x = data(n, dims, 3);
      const ids = Array.from({ length: n }, (_, i) => i);
      for (const metric of METRICS) {
        using index = createIndex(x, { dims, metric, precision: name });
        const values = decoded(index);
        for (let i = 0; i < 2; i++) {
          const q = data(8, dims, 5 + i).subarray(i * dims, (i + 1) * dims);
          agrees(index.search(q, { k: 7 }), oracleSearch(q, values, metric, 7, ids), `${name} ${metric} query ${i}`);
        }
      }
    });

  for (const dims of [1, 2, 15, 16, 17, 33, 127, 1030])
    it(`${dims} dimensions`, () => {
      const n = 70;
      const x = data(n, dims, 11);
      const ids = Array.from({ length: n }, (_, i) => i);
      const q = data(1, dims, 12);
      for (const precision of ["int8", "int4", "ternary", "binary", "float8_e4m3fn", "float32", "int6"])
        for (const metric of METRICS) {
          using index = createIndex(x, { dims, metric, precision });
          agrees(index.search(q, { k: 5 }), oracleSearch(q, decoded(index), metric, 5, ids), `${precision} ${metric}`);
        }
    });
});

describe("floats whose codes are scanned", () => {
  const dims = 37;
  const n = 61;
  for (const name of ["float8_e4m3fn", "float8_e5m2", "float8_e3m4", "float8_e4m3fnuz", "float8_e5m2_row", "float16", "bfloat16"])
    it(`${name}: least and greatest values, queries of any size, one at a time and several`, () => {
      const of = format(name);
      const { max, minPositive } = of.kind === "block" ? of.element.limits : (of as NumberFormat).limits;
      // rows of subnormal values, of 1, and near the greatest of which an index takes the norm
      const sizes = [Math.max(4 * minPositive, 1e-37), 1, Math.min(max / 8, 1e15)];
      const x = data(n, dims, 41).map((v, i) => v * sizes[Math.floor(i / dims) % 3]);
      const ids = Array.from({ length: n }, (_, i) => i);
      for (const metric of METRICS)
        for (const size of [1e-25, 1, 1e15]) {
          using index = createIndex(x, { dims, metric, precision: name });
          const values = decoded(index);
          const q = data(5, dims, 43).map((v) => v * size);
          const one = q.subarray(0, dims);
          agrees(index.search(one, { k: 9 }), oracleSearch(one, values, metric, 9, ids), `${name} ${metric} ${size}`);
          const many = index.searchMany(q, { k: 9 });
          for (let i = 0; i < 5; i++)
            agrees(
              many[i],
              oracleSearch(q.subarray(i * dims, (i + 1) * dims), values, metric, 9, ids),
              `${name} ${metric} ${size} query ${i}`,
            );
        }
    });
});

describe("packing in place", () => {
  for (const name of ["int8_row", "int4_row", "binary"])
    for (const dims of [1, 31, 32, 48, 100])
      it(`${name} of ${dims} dimensions has the codes and scales of quantize`, () => {
        const x = data(53, dims, 2);
        x.fill(0, 5 * dims, 6 * dims);
        x.fill(-0, 6 * dims, 7 * dims);
        // halves of a step: ties
        for (let i = 0; i < dims; i++) x[7 * dims + i] = i === 0 ? 127 : (i % 9) - 4.5;
        for (let i = 0; i < dims; i++) x[8 * dims + i] *= 1e-20;
        for (let i = 0; i < dims; i++) x[9 * dims + i] *= 1e-35;
        using index = createIndex(x, { dims, precision: name });
        const [own] = stagesOf(index).stages[0].packed();
        const want = quantize(tensor(x, [53, dims]), format(name));
        expect(own.codes).toEqual(want.codes);
        expect(own.scales).toEqual(want.scales);
      });
});

describe("kernels for what an engine has", () => {
  const features = wasmFeatures();
  const variants = [
    { ...features, relaxed: false, dot: "none" as const },
    ...(features.relaxed ? (["i7", "u8"] as const).map((dot) => ({ ...features, dot })) : []),
  ];
  for (const own of variants)
    it(`dot: ${own.dot}`, () => {
      const backend = wasmWith(own);
      for (const dims of [37, 384])
        for (const precision of ["int8", "uint8", "int4", "float4_e2m1fn", "int2", "ternary", "binary", "bipolar1"])
          for (const metric of METRICS) {
            const x = data(90, dims, 17);
            const ids = Array.from({ length: 90 }, (_, i) => i);
            using index = createIndex(x, { dims, metric, precision, backend });
            const q = data(1, dims, 18);
            agrees(index.search(q, { k: 4 }), oracleSearch(q, decoded(index), metric, 4, ids), `${precision} ${metric} ${dims}`);
          }
      backend.dispose();
    });
  it("has relaxed SIMD where the environment says so", () => {
    if (process.env.REQUIRE_RELAXED === "1") expect(features.relaxed).toBe(true);
  });
});

describe("two stages", () => {
  const dims = 64;
  const n = 400;
  const x = data(n, dims, 21);
  const ids = Array.from({ length: n }, (_, i) => i);
  for (const [precision, rescore] of [
    ["binary", "int8"],
    ["int4", "int8"],
    ["int8", "float32"],
    ["nf4", "int8"],
    ["int4", "float8_e4m3fn"],
  ] as const)
    for (const metric of METRICS)
      it(`${precision}, then ${rescore}, ${metric}: all candidates give the exact result, some a part of it`, () => {
        using index = createIndex(x, { dims, metric, precision, rescore });
        const values = decoded(index);
        const q = data(1, dims, 22);
        agrees(index.search(q, { k: 6, candidates: n }), oracleSearch(q, values, metric, 6, ids), "all");
        const some = index.search(q, { k: 6, candidates: 50 });
        const best = new Set(oracleSearch(q, values, metric, 6, ids).map(({ id }) => id));
        expect([...some.ids].filter((id) => best.has(id)).length).toBeGreaterThanOrEqual(3);
        for (let i = 0; i < some.ids.length; i++) {
          const score = oracleScore(q, values.subarray(some.ids[i] * dims, (some.ids[i] + 1) * dims), metric);
          expect(Math.abs(some.scores[i] - score)).toBeLessThan(1e-9 * Math.max(1, Math.abs(score)));
        }
      });
  for (const metric of ["cosine", "dot"] as const)
    it(`${metric} in float32: sums in the order of the dimensions, of any number of rows, added at once or later`, () => {
      using index = createIndex(x.slice(0, 300 * dims), { dims, metric, precision: "int8", rescore: "float32" });
      for (const [from, to] of [[300, 301], [301, n]]) index.add(ids.slice(from, to), x.slice(from * dims, to * dims)); // prettier-ignore
      const q = data(1, dims, 44);
      let size = 0;
      for (const v of q) size += v * v;
      for (const k of [1, 2, 3, 4, 5, 6, 7, n]) {
        const found = index.search(q, { k, candidates: k });
        expect(found.ids.length).toBe(k);
        found.ids.forEach((id, i) => {
          let [dot, square] = [0, 0];
          for (let j = 0; j < dims; j++) {
            const value = x[id * dims + j];
            dot += (metric === "cosine" ? q[j] / Math.sqrt(size) : q[j]) * value;
            square += value * value;
          }
          expect(found.scores[i]).toBe(metric === "cosine" ? dot / Math.sqrt(square) : dot);
        });
      }
    });

  it("takes a number of candidates alone, and keeps float32 by reference", () => {
    using index = createIndex(x, { dims, precision: "binary", rescore: n });
    expect(index.formats.map(({ name }) => name)).toEqual(["binary", "float32"]);
    agrees(index.search(x.subarray(0, dims), { k: 3 }), oracleSearch(x.subarray(0, dims), x, "cosine", 3, ids), "number");
  });
});

describe("what an index is asked", () => {
  const dims = 24;
  const x = data(100, dims, 31);
  const q = data(1, dims, 32);
  const plain = Array.from({ length: 100 }, (_, i) => i);
  const errorOf = (run: () => unknown): unknown => {
    try {
      run();
    } catch (error) {
      return isLowbitError(error) ? error.code : (error as Error).name;
    }
    return null;
  };

  it("k: none, more than there are, and no number", () => {
    using index = createIndex(x, { dims });
    expect(index.search(q, { k: 0 }).ids.length).toBe(0);
    expect(index.search(q, { k: 1000 }).ids.length).toBe(100);
    agrees(index.search(q, { k: 1000 }), oracleSearch(q, decoded(index), "cosine", 100, plain), "all");
    for (const k of [-1, 1.5, NaN, "3" as never]) expect(errorOf(() => index.search(q, { k }))).toBe("RangeError");
  });

  it("an empty index answers nothing, and takes vectors", () => {
    for (const precision of ["int8", "nf4", "float32"]) {
      using index = createIndex(null, { dims, precision });
      expect(index.search(q)).toEqual({ ids: new Uint32Array(0), scores: new Float64Array(0) });
      expect(index.size).toBe(0);
      for (let i = 0; i < 100; i++) index.add(i, x.subarray(i * dims, (i + 1) * dims));
      agrees(index.search(q), oracleSearch(q, decoded(index), "cosine", 10, plain), precision);
      using whole = createIndex(x, { dims, precision });
      expect(index.search(q)).toEqual(whole.search(q));
    }
  });

  it("ties go to the smaller id, however many there are", () => {
    const same = new Float32Array(3000 * 8);
    for (let i = 0; i < same.length; i++) same[i] = (i % 8) + 1;
    const ids = Array.from({ length: 3000 }, (_, i) => (i * 7919) % 30011);
    const smallest = [...ids].sort((a, b) => a - b);
    for (const precision of ["int8", "binary", "float32"]) {
      using index = createIndex(same, { dims: 8, precision, ids });
      expect([...index.search([1, 2, 3, 4, 5, 6, 7, 8], { k: 5 }).ids]).toEqual(smallest.slice(0, 5));
    }
  });

  it("numbers of a query that its integers lose still decide", () => {
    // all scores lie within the error of the scan; only a wider one finds the best
    const size = 16;
    const many = data(1500, size, 77);
    for (let r = 0; r < 1500; r++) many[r * size] = 5;
    const ids = Array.from({ length: 1500 }, (_, i) => i);
    for (const [precision, small] of [
      ["int8", 1e-6],
      ["int4", 1e-6],
      ["binary", 1e-6],
      ["nf4", 1e-9],
      ["float32", 1e-9],
    ] as const) {
      const query = Float32Array.from({ length: size }, (_, i) => (i === 0 ? 1 : small * ((i % 5) - 2.3)));
      using index = createIndex(many, { dims: size, metric: "dot", precision });
      const values = decoded(index);
      // one scale for the first number of all rows, so that it decides nothing
      const first = new Set(Array.from({ length: 1500 }, (_, r) => values[r * size]));
      const want = oracleSearch(query, values, "dot", 5, ids);
      const found = index.search(query, { k: 5 });
      expect([...found.scores], `${precision}, ${first.size} first numbers`).toEqual(want.map(({ score }) => score));
      expect([...found.ids]).toEqual(want.map(({ id }) => id));
    }
  });

  it("zero vectors and zero queries have score zero by cosine", () => {
    const some = x.slice();
    some.fill(0, 0, dims);
    using index = createIndex(some, { dims });
    const all = index.search(q, { k: 100 });
    expect(all.scores[all.ids.indexOf(0)]).toBe(0);
    expect([...index.search(new Float32Array(dims), { k: 3 }).ids]).toEqual([0, 1, 2]);
  });

  it("add, remove, and add again under the same id", () => {
    for (const precision of ["int8", "nf4", "float32"]) {
      const ids = plain.map((i) => 1000 + 3 * ((i * 37) % 100));
      using index = createIndex(x, { dims, precision, ids });
      const before = index.search(q, { k: 4 });
      agrees(before, oracleSearch(q, decoded(index), "cosine", 4, ids), "before");
      const [best] = before.ids;
      expect(index.has(best)).toBe(true);
      expect(index.remove(best)).toBe(true);
      expect(index.remove(best)).toBe(false);
      expect(index.has(best)).toBe(false);
      expect(index.size).toBe(99);
      expect([...index.search(q, { k: 3 }).ids]).toEqual([...before.ids].slice(1));
      expect(index.search(q, { k: 200 }).ids.length).toBe(99);
      const row = ids.indexOf(best);
      index.add(best, x.subarray(row * dims, (row + 1) * dims));
      expect(index.search(q, { k: 4 })).toEqual(before);
      expect(errorOf(() => index.add(best, x.subarray(0, dims)))).toBe("E_VALUE");
      expect(errorOf(() => index.add([1, 1], x.subarray(0, 2 * dims)))).toBe("E_VALUE");
      expect(errorOf(() => index.add(-1, x.subarray(0, dims)))).toBe("RangeError");
      expect(index.search(q, { k: 4 })).toEqual(before);
      using again = indexFromBytes(index.toBytes());
      expect(again.search(q, { k: 200 })).toEqual(index.search(q, { k: 200 }));
      expect(again.size).toBe(100);
    }
  });

  it("a filter leaves what it names", () => {
    for (const precision of ["int8", "binary", "int3"]) {
      const ids = plain.map((i) => (i * 53) % 101);
      using index = createIndex(x, { dims, precision, ids });
      const values = decoded(index);
      const even = idBitmap(ids.filter((id) => id % 2 === 0));
      agrees(
        index.search(q, { k: 5, filter: even }),
        oracleSearch(q, values, "cosine", 5, ids, (id) => id % 2 === 0),
        "even",
      );
      expect(index.search(q, { filter: new Uint8Array(0) }).ids.length).toBe(0);
      expect(index.search(q, { filter: new Uint8Array(200) }).ids.length).toBe(0);
      const one = ids[17];
      expect([...index.search(q, { filter: idBitmap([one, 4_000_000]) }).ids]).toEqual([one]);
      index.remove(one);
      expect(index.search(q, { filter: idBitmap([one]) }).ids.length).toBe(0);
      using plainIndex = createIndex(x, { dims, precision });
      agrees(
        plainIndex.search(q, { k: 5, filter: idBitmap([1, 3, 50, 99]) }),
        oracleSearch(q, decoded(plainIndex), "cosine", 5, plain, (id) => [1, 3, 50, 99].includes(id)),
        "plain ids",
      );
    }
    expect(errorOf(() => idBitmap([1.5]))).toBe("RangeError");
  });

  it("queries in a batch get what they get alone", () => {
    const queries = data(9, dims, 40);
    for (const options of [
      { precision: "int8" },
      { precision: "int4", rescore: "int8" },
      { precision: "nf4" },
      { precision: "binary", rescore: "float32" },
    ]) {
      using index = createIndex(x, { dims, ...options });
      const all = index.searchMany(queries, { k: 6 });
      expect(all.length).toBe(9);
      all.forEach((found, i) => expect(found).toEqual(index.search(queries.subarray(i * dims, (i + 1) * dims), { k: 6 })));
      expect(index.searchMany(new Float32Array(0))).toEqual([]);
    }
  });

  it("refuses what it cannot take, and is as it was", () => {
    using index = createIndex(x, { dims, rescore: "float32" });
    const before = index.search(q);
    for (const bad of [NaN, Infinity, -Infinity, 1e30]) {
      const broken = x.slice(0, 2 * dims);
      broken[dims + 3] = bad;
      expect(errorOf(() => index.add([500, 501], broken))).toBe("E_VALUE");
      expect(errorOf(() => createIndex(broken, { dims }))).toBe("E_VALUE");
      const query = q.slice();
      query[0] = bad;
      expect(errorOf(() => index.search(query))).toBe("E_VALUE");
    }
    expect(errorOf(() => index.search(q.subarray(1)))).toBe("E_SHAPE");
    expect(errorOf(() => index.search(undefined as never))).toBe("TypeError");
    expect(errorOf(() => index.searchMany(q.subarray(1)))).toBe("E_SHAPE");
    expect(errorOf(() => index.add(5000, q.subarray(1)))).toBe("E_SHAPE");
    expect(errorOf(() => index.add([1000, 1001], q))).toBe("E_SHAPE");
    expect(errorOf(() => index.search(q, { candidates: 0 }))).toBe("RangeError");
    expect(errorOf(() => index.search(q, { filter: [1] as never }))).toBe("TypeError");
    expect(errorOf(() => createIndex(x, { dims: 0 }))).toBe("RangeError");
    expect(errorOf(() => createIndex(x, { dims: 23 }))).toBe("E_SHAPE");
    expect(errorOf(() => createIndex(x, { dims, precision: "int9000" }))).toBe("E_FORMAT_UNKNOWN");
    expect(errorOf(() => createIndex(x, { dims, precision: 8 as never }))).toBe("TypeError");
    expect(errorOf(() => createIndex(x, { dims, metric: "manhattan" as never }))).toBe("TypeError");
    expect(errorOf(() => createIndex(x, { dims, ids: [1] }))).toBe("E_SHAPE");
    expect(errorOf(() => createIndex(x, { dims, ids: plain.map(() => 1) }))).toBe("E_VALUE");
    expect(errorOf(() => createIndex([1, 2] as never, { dims: 2, backend: {} }))).toBe("TypeError");
    expect(index.search(q)).toEqual(before);
    index.dispose();
    index.dispose();
    expect(errorOf(() => index.search(q))).toBe("E_DISPOSED");
  });

  it("frees its memory", async () => {
    const backend = await wasm();
    createIndex(x, { dims, backend }).dispose();
    const used = backend.bytes;
    for (let i = 0; i < 5; i++) createIndex(x, { dims, backend, rescore: "int8" }).dispose();
    expect(backend.bytes).toBe(used);
    backend.dispose();
  });
});

describe("threads", () => {
  let two: WasmBackend;
  beforeAll(async () => {
    two = await wasm({ threads: 2 });
  });
  afterAll(() => two.dispose());
  for (const options of [
    { precision: "int8" },
    { precision: "int4", rescore: "int8" },
    { precision: "binary", rescore: 300 },
    { precision: "float8_e4m3fn" },
  ])
    it(`${JSON.stringify(options)}: two give what one gives`, () => {
      const dims = 96;
      const x = data(5000, dims, 51);
      const queries = data(6, dims, 52);
      using one = createIndex(x, { dims, ...options });
      using many = createIndex(x, { dims, ...options, backend: two });
      expect(many.searchMany(queries)).toEqual(one.searchMany(queries));
      for (let i = 0; i < 6; i++) {
        const q = queries.subarray(i * dims, (i + 1) * dims);
        expect(many.search(q, { k: 20 })).toEqual(one.search(q, { k: 20 }));
      }
    });
});

describe("projections", () => {
  const dims = 40;
  const x = data(500, dims, 61);
  const q = data(1, dims, 62);
  for (const metric of METRICS) {
    it(`${metric}: a rotation of all dimensions changes no result in float32`, () => {
      using index = createIndex(x, { dims, metric, precision: "float32", fit: { method: "rotation" } });
      using plainIndex = createIndex(x, { dims, metric, precision: "float32" });
      const [a, b] = [index.search(q, { k: 8 }), plainIndex.search(q, { k: 8 })];
      expect(a.ids).toEqual(b.ids);
      a.scores.forEach((score, i) => expect(score).toBeCloseTo(b.scores[i], 5));
    });
    it(`${metric}: PCA of data of few dimensions loses nothing`, () => {
      const random = seededRandom(9);
      const base = Float32Array.from({ length: 6 * dims }, () => random() - 0.5);
      const low = new Float32Array(300 * dims);
      for (let r = 0; r < 300; r++)
        for (let c = 0; c < 6; c++) {
          const w = random() - 0.5;
          for (let j = 0; j < dims; j++) low[r * dims + j] += w * base[c * dims + j] + (metric === "euclidean" ? 0.3 : 0);
        }
      using index = createIndex(low, { dims, metric, precision: "float32", fit: { method: "pca", dims: 6 } });
      expect(index.projection?.to).toBe(6);
      using whole = createIndex(low, { dims, metric, precision: "float32" });
      const own = low.subarray(17 * dims, 18 * dims);
      const [a, b] = [index.search(own, { k: 8 }), whole.search(own, { k: 8 })];
      expect(a.ids).toEqual(b.ids);
    });
  }
  it("truncates, and a second stage sees all dimensions", () => {
    using index = createIndex(x, { dims, precision: "int8", fit: { method: "truncate", dims: 10 } });
    const cut = Float32Array.from({ length: 500 * 10 }, (_, i) => x[Math.floor(i / 10) * dims + (i % 10)]);
    using direct = createIndex(cut, { dims: 10, precision: "int8" });
    expect(index.search(q)).toEqual(direct.search(q.subarray(0, 10)));
    using staged = createIndex(x, { dims, precision: "int8", fit: { method: "truncate", dims: 10 }, rescore: 500 });
    const ids = Array.from({ length: 500 }, (_, i) => i);
    agrees(staged.search(q), oracleSearch(q, x, "cosine", 10, ids), "staged");
    using again = indexFromBytes(staged.toBytes());
    expect(again.search(q)).toEqual(staged.search(q));
  });
  it("are saved", () => {
    for (const metric of METRICS) {
      using index = createIndex(x, { dims, metric, fit: { method: "pca", dims: 12 } });
      using again = indexFromBytes(index.toBytes());
      expect(again.search(q)).toEqual(index.search(q));
    }
  });
  it("refuses options that are none", () => {
    for (const fit of [
      { method: "pca", dims: 41 },
      { method: "truncate" },
      { method: "pca", dims: 0 },
      { method: "rotation", dims: 1.5 },
    ] as const)
      expect(() => createIndex(x, { dims, fit })).toThrow(RangeError);
    expect(() => createIndex(x, { dims, fit: { method: "umap" as never } })).toThrow(TypeError);
  });
});

describe("merging", () => {
  it("shards give what one index gives", () => {
    const dims = 32;
    const x = data(300, dims, 71);
    const q = data(1, dims, 72);
    for (const metric of METRICS) {
      using whole = createIndex(x, { dims, metric });
      const shards = [0, 1, 2].map((s) =>
        createIndex(x.subarray(s * 100 * dims, (s + 1) * 100 * dims), {
          dims,
          metric,
          ids: Array.from({ length: 100 }, (_, i) => 100 * s + i),
        }),
      );
      expect(
        mergeResults(
          shards.map((shard) => shard.search(q, { k: 12 })),
          { k: 12, metric },
        ),
      ).toEqual(whole.search(q, { k: 12 }));
      shards.forEach((shard) => shard.dispose());
    }
  });
});

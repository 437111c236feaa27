// The file of an index: round trips of every kind of stage, and what is truncated, changed or hostile is refused with
// E_CONTAINER, fast and within bounds.
import { describe, expect, it } from "vitest";
import { isLowbitError } from "../../src/index.ts";
import { createIndex, indexFromBytes } from "../../src/search/index.ts";
import { seededRandom } from "../../src/quantize/random.ts";

const dims = 12;
const random = seededRandom(1);
const x = Float32Array.from({ length: 40 * dims }, () => random() - 0.5);
const q = x.subarray(0, dims);

const codeOf = (bytes: Uint8Array): string | null => {
  try {
    indexFromBytes(bytes).dispose();
    return null;
  } catch (error) {
    if (!isLowbitError(error)) throw error;
    return error.code;
  }
};

/** The file with its header changed. */
function withHeader(bytes: Uint8Array, change: (header: Record<string, unknown>) => void): Uint8Array {
  const length = new DataView(bytes.buffer).getUint32(8, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(12, 12 + length))) as Record<string, unknown>;
  change(header);
  const json = new TextEncoder().encode(JSON.stringify(header));
  const start = 8 * Math.ceil((12 + json.length) / 8);
  const out = new Uint8Array(start + bytes.length - 12 - length).fill(0x20);
  out.set(bytes.subarray(0, 8));
  new DataView(out.buffer).setUint32(8, start - 12, true);
  out.set(json, 12);
  out.set(bytes.subarray(12 + length), start);
  return out;
}

describe("index files", () => {
  for (const options of [
    { precision: "int8" },
    { precision: "int4", metric: "euclidean", rescore: "float32" },
    { precision: "binary", rescore: { precision: "int8", candidates: 7 } },
    { precision: "mxfp4", dims: 32 },
    { precision: "float8_e4m3fn_tensor", metric: "dot", ids: Array.from({ length: 15 }, (_, i) => 9 * i + 4) },
    { precision: "nf4", fit: { method: "pca", dims: 5 } },
  ] as const)
    it(`${JSON.stringify(options).slice(0, 80)}: comes back`, () => {
      const own = { dims, ...options };
      using index = createIndex(x.subarray(0, 15 * own.dims), own as never);
      const bytes = index.toBytes();
      using again = indexFromBytes(bytes);
      const query = x.subarray(7, 7 + own.dims);
      expect(again.search(query, { k: 20 })).toEqual(index.search(query, { k: 20 }));
      expect(again.toBytes()).toEqual(bytes);
      expect(again.formats).toEqual(index.formats);
    });

  it("an empty index comes back", () => {
    using index = createIndex(null, { dims });
    using again = indexFromBytes(index.toBytes());
    again.add(3, q);
    expect([...again.search(q).ids]).toEqual([3]);
  });

  it("refuses every truncation, and bytes behind the end", () => {
    using index = createIndex(x, { dims, rescore: "float32" });
    const bytes = index.toBytes();
    for (let length = 0; length < bytes.length; length += length < 600 ? 1 : 61) expect(codeOf(bytes.slice(0, length))).toBe("E_CONTAINER");
    const longer = new Uint8Array(bytes.length + 8);
    longer.set(bytes);
    expect(codeOf(longer)).toBe("E_CONTAINER");
  });

  it("refuses other versions and headers that do not hold", () => {
    using index = createIndex(x, { dims, fit: { method: "rotation" } });
    const bytes = index.toBytes();
    expect(codeOf(withHeader(bytes, () => undefined))).toBe(null);
    const changes: ((h: Record<string, unknown>) => void)[] = [
      (h) => (h.version = 2),
      (h) => delete h.version,
      (h) => (h.dims = 13),
      (h) => (h.dims = 2 ** 40),
      (h) => (h.rows = 39),
      (h) => (h.rows = 2 ** 33),
      (h) => (h.metric = "__proto__"),
      (h) => (h.candidates = -1),
      (h) => (h.formats = []),
      (h) => (h.formats = [{ kind: "constructor" }]),
      (h) => (h.formats = [null]),
      (h) => (h.projection = null),
      (h) => (h.projection = { method: "umap", to: 12 }),
      (h) => (h.projection = { method: "pca", to: 11 }),
      (h) => (h.sections = []),
      (h) => (h.sections = [{ name: "ids", bytes: -8 }]),
      (h) => (h.sections = [{ name: "ids", bytes: 2 ** 52 }]),
      (h) => ((h.sections as { name: string }[])[0].name = "stage0"),
      (h) => ((h.sections as { name: string }[])[0].name = "other"),
    ];
    for (const change of changes) expect(codeOf(withHeader(bytes, change)), change.toString()).toBe("E_CONTAINER");
  });

  it("survives mutations: a sound index or an error of its own, never a crash", () => {
    using index = createIndex(x, { dims, precision: "int8", rescore: "float32", fit: { method: "pca", dims: 6 } });
    const bytes = index.toBytes();
    const next = seededRandom(5);
    let refused = 0;
    for (let i = 0; i < 600; i++) {
      const changed = bytes.slice();
      const count = 1 + Math.floor(next() * 4);
      // most in the header, where structure is
      for (let c = 0; c < count; c++) changed[Math.floor(next() * (i % 3 === 0 ? bytes.length : 1200))] = Math.floor(next() * 256);
      try {
        using again = indexFromBytes(changed);
        const found = again.search(q, { k: 3 });
        expect(found.scores.every((s) => Number.isFinite(s))).toBe(true);
      } catch (error) {
        expect(isLowbitError(error) && ["E_CONTAINER", "E_FORMAT", "E_UNSUPPORTED"].includes(error.code), String(error)).toBe(true);
        refused++;
      }
    }
    expect(refused).toBeGreaterThan(200);
  });
});

// Files of search indexes: one and two stages, with sketches, projections, ids and removed rows.
import { createIndex, indexFromBytes, type IndexOptions } from "../../../src/search/index.ts";
import type { FuzzTarget } from "../fuzz.ts";
import { damageBytes, damageJson, pick } from "../fuzz.ts";
import { normalArray } from "../../helpers/random.ts";

const DIMS = 24;
const ROWS = 40;
const WORDS = [
  "ids",
  "live",
  "matrix",
  "mean",
  "centre",
  "sketch",
  "stage0",
  "stage1",
  "cosine",
  "dot",
  "euclidean",
  "pca",
  "truncate",
  "int",
  "block",
];

const OPTIONS: readonly Omit<IndexOptions, "dims">[] = [
  { precision: "int8" },
  { precision: "binary", rescore: "int8", metric: "euclidean" },
  { precision: "int4", rescore: 10, sketch: 20 },
  { precision: "int8", rescore: "float16", fit: { method: "pca", dims: 8 }, sketch: 15 },
  { precision: "mxfp4", fit: { method: "truncate", dims: 16 }, ids: Array.from({ length: ROWS }, (_, i) => 7 * i + 3) },
  { precision: "float8_e4m3fn_tensor", metric: "dot" },
];

const seeds = new Map<number, Uint8Array>();
function seed(at: number): Uint8Array {
  let made = seeds.get(at);
  if (made === undefined) {
    using index = createIndex(normalArray(ROWS * DIMS, at + 1), { dims: DIMS, ...OPTIONS[at] });
    index.remove(3);
    made = index.toBytes();
    seeds.set(at, made);
  }
  return made;
}

/** The file with its header changed. */
function withHeader(bytes: Uint8Array, change: (header: unknown) => unknown, wrong: number): Uint8Array {
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(8, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(12, 12 + length))) as unknown;
  const json = new TextEncoder().encode(JSON.stringify(change(header)) ?? "");
  const start = 8 * Math.ceil((12 + json.length) / 8);
  const out = new Uint8Array(start + bytes.length - 12 - length);
  out.set(bytes.subarray(0, 8));
  new DataView(out.buffer).setUint32(8, (start - 12 + wrong) >>> 0, true);
  out.fill(0x20, 12, start);
  out.set(json, 12);
  out.set(bytes.subarray(12 + length), start);
  return out;
}

export const searchIndex: FuzzTarget = {
  name: "search-index",
  make(rng) {
    const bytes = seed(rng.integer(OPTIONS.length));
    if (rng.next() < 0.5) return damageBytes(rng, bytes);
    const out = withHeader(bytes, (header) => damageJson(rng, header, WORDS), rng.next() < 0.1 ? pick(rng, [8, -8, 2 ** 31, 1]) : 0);
    return rng.next() < 0.2 ? damageBytes(rng, out) : out;
  },
  run(input) {
    using index = indexFromBytes(input);
    index.search(normalArray(index.dims, 5), { k: 3 });
    index.add(4_000_000_000, normalArray(index.dims, 6));
    index.toBytes();
    return Promise.resolve(undefined);
  },
};

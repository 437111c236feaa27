// Vector search: time and recall of every precision beside usearch (exact float32, HNSW int8) in one interleaved run,
// on clustered vectors. `--quick`: a tenth of the vectors, no HNSW. npm run bench -- search [part ...] [--json]
// [--seconds S] [--quick]. Parts are short enough for a window in which nothing else runs: 1e6-int8, 1e6-int8-float32,
// 1e6-int4-float32, 1e6-binary, 1e5-int8, 1e5-binary-100, 1e5-binary-200, 1e5-float8; hnsw beside parts of 1e5. A peer
// that bench/peers has not is named as missing.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { wasm } from "../src/index.ts";
import { createIndex, type IndexOptions, type SearchIndex } from "../src/search/index.ts";
import { gaussian, seededRandom } from "../src/quantize/random.ts";
import { measure, type Candidate, type Row } from "./measure.ts";
import { load, optional } from "./peers.ts";

/**
 * n unit vectors about `centres` random directions: each is a centre plus noise of the given length, normalised.
 * Queries are further members of the clusters.
 */
export function clustered(n: number, dims: number, centres: number, noise: number, seed: number): Float32Array {
  const random = seededRandom(seed);
  // a table of normal numbers, read from random places: 4e8 Box-Muller draws would take longer than the bench
  const normal = gaussian(random);
  const table = Float32Array.from({ length: 1 << 20 }, normal);
  const centre = Float32Array.from({ length: centres * dims }, normal);
  const out = new Float32Array(n * dims);
  const order = seededRandom(seed + 1);
  for (let r = 0; r < n; r++) {
    const c = Math.floor(order() * centres) * dims;
    let at = Math.floor(order() * table.length);
    const step = 1 + 2 * Math.floor(order() * 8);
    let size = 0;
    for (let i = 0; i < dims; i++) {
      const v = centre[c + i] + noise * table[(at = (at + step) & (table.length - 1))];
      out[r * dims + i] = v;
      size += v * v;
    }
    for (let i = 0, f = 1 / Math.sqrt(size); i < dims; i++) out[r * dims + i] *= f;
  }
  return out;
}

interface Exact {
  exactSearch(
    data: Float32Array,
    queries: Float32Array,
    dims: number,
    k: number,
    metric: string,
    threads?: number,
  ): { keys: BigUint64Array };
  Index: new (options: object) => {
    add(keys: BigUint64Array, vectors: Float32Array, threads?: number): void;
    search(query: Float32Array, k: number, threads?: number): { keys: BigUint64Array };
  };
}

const recall = (found: readonly number[][], wanted: readonly number[][]): number => {
  let hits = 0;
  wanted.forEach((want, i) => (hits += want.filter((id) => found[i].includes(id)).length));
  return hits / (wanted.length * wanted[0].length);
};

interface Case {
  /** What it is called on the command line. */
  readonly part: string;
  readonly name: string;
  readonly options: Omit<IndexOptions, "dims">;
}

interface Part {
  readonly n: number;
  readonly dims: number;
  readonly cases: readonly Case[];
  readonly queries: number;
  readonly two: readonly string[];
  /** Beside usearch's approximate index. */
  readonly hnsw?: boolean;
}

const K = 10;

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

export async function searchBench(options: {
  readonly seconds: number;
  readonly quick: boolean;
  readonly cases?: readonly string[];
}): Promise<{ rows: Row[]; ratios: Record<string, number>; missing: string[] }> {
  const missing: string[] = [];
  const usearch = (await optional("usearch", async () => {
    const loaded = await load("usearch");
    return (loaded.exactSearch === undefined ? loaded.default : loaded) as unknown as Exact;
  }, missing)); // prettier-ignore
  const scale = options.quick ? 0.1 : 1;
  const int8 = (candidates: number): IndexOptions["rescore"] => ({ precision: "int8", candidates });
  const parts: Part[] = [
    {
      n: 1e6 * scale, dims: 384, queries: 100, two: ["int8, float32", "int4, float32"],
      cases: [
        { part: "1e6-int8", name: "int8", options: { precision: "int8" } },
        { part: "1e6-int8-float32", name: "int8, float32", options: { precision: "int8", rescore: 100 } },
        { part: "1e6-int4-float32", name: "int4, float32", options: { precision: "int4", rescore: 200 } },
        { part: "1e6-binary", name: "binary, int8", options: { precision: "binary", rescore: int8(1000) } },
      ],
    },
    {
      n: 1e5 * scale, dims: 768, queries: 100, two: ["int8", "binary, int8 of 200"],
      cases: [
        { part: "1e5-int8", name: "int8", options: { precision: "int8" } },
        { part: "1e5-binary-100", name: "binary, int8 of 100", options: { precision: "binary", rescore: int8(100) } },
        { part: "1e5-binary-200", name: "binary, int8 of 200", options: { precision: "binary", rescore: int8(200) } },
        { part: "1e5-float8", name: "float8_e4m3fn", options: { precision: "float8_e4m3fn" } },
      ],
    },
  ]; // prettier-ignore
  const rows: Row[] = [];
  const ratios: Record<string, number> = {};
  const { cases: wanted = [] } = options;
  const known = [...parts.flatMap(({ cases }) => cases.map(({ part }) => part)), "hnsw"];
  const strange = wanted.filter((part) => !known.includes(part));
  if (strange.length > 0) throw new RangeError(`search: expected some of ${known.join(", ")}, got ${strange.join(", ")}.`);
  for (const whole of parts) {
    const hnsw = wanted.includes("hnsw") && whole.n <= 2e5;
    const part: Part = { ...whole, hnsw, cases: whole.cases.filter((c) => wanted.length === 0 || wanted.includes(c.part)) };
    if (part.cases.length === 0) continue;
    const own = await runPart(part, usearch, options);
    const label = `${part.n} x ${part.dims}`;
    rows.push(...own.rows.map((row) => ({ ...row, name: `${label}: ${row.name}` })));
    for (const [name, value] of Object.entries(own.facts)) ratios[`${label}: ${name}`] = value;
  }
  return { rows, ratios, missing };
}

/** The ids of the nearest vectors to each query in float32; kept in a file, since every part asks for the same. */
function nearest(vectors: Float32Array, queries: Float32Array, dims: number): number[][] {
  const folder = fileURLToPath(new URL("../node_modules/.cache/lowbit-bench/", import.meta.url));
  const path = join(folder, `nearest-${vectors.length / dims}-${dims}-${queries.length / dims}.json`);
  if (existsSync(path)) return JSON.parse(readFileSync(path, "utf8")) as number[][];
  const index = createIndex(vectors, { dims, precision: "float32" });
  const truth = index.searchMany(queries, { k: K }).map(({ ids }) => [...ids]);
  index.dispose();
  mkdirSync(folder, { recursive: true });
  writeFileSync(path, JSON.stringify(truth));
  return truth;
}

async function runPart(
  part: Part,
  usearch: Exact | null,
  options: { readonly seconds: number; readonly quick: boolean },
): Promise<{ rows: Row[]; facts: Record<string, number> }> {
  const { n, dims } = part;
  const all = clustered(n + part.queries, dims, Math.round(n / 100), 0.6, 1);
  const vectors = all.subarray(0, n * dims);
  const queries = all.subarray(n * dims);
  const one = (i: number): Float32Array => queries.slice((i % part.queries) * dims, ((i % part.queries) + 1) * dims);
  const backend = await wasm();
  const backend2 = await wasm({ threads: 2 });
  const truth = nearest(vectors, queries, dims);
  const facts: Record<string, number> = {};
  const note = (name: string, values: Record<string, number>): void => {
    for (const [what, value] of Object.entries(values)) facts[`${name}: ${what}`] = value;
  };
  const candidates: Candidate[] = [];
  const held: SearchIndex[] = [];
  let turn = 0;
  const build = (c: Case, engine: object): { index: SearchIndex; ms: number; above: number } => {
    // what a build takes, with what it leaves to be collected; not the room that a memory reserves and nobody touches
    collect();
    const before = process.memoryUsage.rss();
    const t = performance.now();
    const index = createIndex(vectors, { dims, ...c.options, backend: engine });
    const ms = performance.now() - t;
    held.push(index);
    return { index, ms, above: process.memoryUsage.rss() - before };
  };
  for (const c of part.cases) {
    const { index, ms, above } = build(c, backend);
    const found = index.searchMany(queries, { k: K }).map(({ ids }) => [...ids]);
    const packed = index.bytes - (index.formats.some(({ name }) => name === "float32") ? vectors.byteLength : 0);
    note(c.name, {
      "bytes per vector": packed / n,
      "recall@10": recall(found, truth),
      "build, ms": ms,
      "memory above the source, of packed bytes": above / packed,
    });
    candidates.push({ name: c.name, cold: true, run: () => index.search(one(turn++), { k: K }) });
    // as a program asks that does nothing else: what fits the caches stays there, and no thread sleeps
    candidates.push({ name: `${c.name}, in a row`, run: () => index.search(one(turn++), { k: K }) });
    candidates.push({ name: `${c.name}, batch of ${part.queries}`, cold: true, run: () => index.searchMany(queries, { k: K }) });
    if (part.two.includes(c.name)) {
      const two = build(c, backend2).index;
      const both = { threads: 2, run: () => two.search(one(turn++), { k: K }) } as const;
      candidates.push({ name: `${c.name}, 2 threads`, cold: true, ...both });
      candidates.push({ name: `${c.name}, in a row, 2 threads`, ...both });
    }
  }
  if (usearch !== null) {
    const exact = (i: number): BigUint64Array => usearch.exactSearch(vectors, one(i), dims, K, "cos", 1).keys;
    const five = truth.slice(0, 5);
    note("usearch exact float32", {
      "recall@10 of five": recall(
        five.map((_, i) => Array.from(exact(i), Number)),
        five,
      ),
    });
    candidates.push({ name: "usearch exact float32", cold: true, run: () => exact(turn++) });
    // its index takes minutes to build
    if (part.hnsw === true) {
      const index = new usearch.Index({ dimensions: dims, metric: "cos", quantization: "i8" });
      const t = performance.now();
      index.add(
        BigUint64Array.from({ length: n }, (_, i) => BigInt(i)),
        vectors,
        1,
      );
      const buildMs = performance.now() - t;
      note("usearch HNSW i8", {
        "recall@10": recall(
          truth.map((_, i) => Array.from(index.search(one(i), K, 1).keys, Number)),
          truth,
        ),
        "build, ms": buildMs,
      });
      candidates.push({ name: "usearch HNSW i8", run: () => index.search(one(turn++), K, 1) });
    }
  }
  const times = await measure(candidates, options.seconds);
  const best = (name: string): number => times.find((row) => row.name === name)?.cpuMs ?? NaN;
  for (const { name } of part.cases) facts[`${name}: time of usearch exact`] = best(name) / best("usearch exact float32");
  for (const name of part.two.filter((two) => part.cases.some((c) => c.name === two))) {
    const wall = (which: string): number => times.find((row) => row.name === which)?.bestMs ?? NaN;
    for (const which of [name, `${name}, in a row`]) facts[`${which}: 2 threads to one`] = wall(which) / wall(`${which}, 2 threads`);
  }
  for (const index of held) index.dispose();
  backend.dispose();
  backend2.dispose();
  return { rows: times, facts };
}

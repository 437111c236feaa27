// An index: ids, one or two stages of packed rows, and the search through them.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import { wasmSync } from "../backends/wasm/backend.ts";
import { engineMemory, type EngineMemory } from "../backends/wasm/memory.ts";
import { engineRows, type EngineRows, type Found } from "./engine-rows.ts";
import { makeIds } from "./ids.ts";
import { operandsOf } from "./operands.ts";
import { checkCandidates, checkIndexOptions, checkVectors, isPlain, type Checked } from "./options.ts";
import { panelRows, refuseBad, stagePanel } from "./pack-rows.ts";
import { packedRows } from "./packed-rows.ts";
import { fitProjection, projector, type Projector } from "./projection.ts";
import { indexBytes, type Stages } from "./save.ts";
import { lengthOf } from "./query.ts";
import {
  LEAST_ROWS,
  firstDims,
  leaves,
  makeSketch,
  meanDirection,
  sketchDims,
  sketchQuery,
  testSketch,
  within,
  type Sketch,
} from "./sketch.ts";
import type { Candidates, Fit, IndexOptions, Metric, Projection, ScanStore, SearchOptions, SearchResult } from "./types.ts";

/** Vectors packed for search: see `createIndex`. */
export interface SearchIndex {
  readonly dims: number;
  readonly metric: Metric;
  /** Vectors in it. */
  readonly size: number;
  /** Bytes that it holds, all stages with ids, scales and norms; of rows in "float32" also the caller's own array. */
  readonly bytes: number;
  /** The formats of its stages. */
  readonly formats: readonly Format[];
  readonly projection: Projection | null;
  /** How many rows a look at one bit a dimension leaves to the first stage; null where there is none. */
  readonly sketch: number | null;
  /**
   * The nearest vectors.
   * @throws LowbitError E_SHAPE for a query of another length, E_VALUE for one that is not finite, E_DISPOSED;
   * RangeError for k that is no natural number
   */
  search(query: Float32Array | readonly number[], options?: SearchOptions): SearchResult;
  /** The same for queries [m, dims]: faster than one by one, with the same results. */
  searchMany(queries: Float32Array, options?: SearchOptions): SearchResult[];
  /** Adds one vector, or vectors [ids.length, dims]. @throws LowbitError E_VALUE for an id that is there, E_SHAPE */
  add(id: number | ArrayLike<number>, vectors: Float32Array | readonly number[]): void;
  /**
   * Removes a vector; false where there is none of that id. Its place is given back when the index is saved and read
   * again.
   */
  remove(id: number): boolean;
  has(id: number): boolean;
  /** The index as a file: see `indexFromBytes`. */
  toBytes(): Uint8Array<ArrayBuffer>;
  /** Frees its memory. Safe to call twice. */
  dispose(): void;
  [Symbol.dispose](): void;
}

/** Candidates beyond k of a search with one stage: as many approximate scores as may be out of order. */
const MARGIN = 32;
const insides = new WeakMap<object, Stages>();
/** What an index is made of. @throws TypeError for what is none */
export function stagesOf(index: object): Stages {
  const found = insides.get(index);
  if (found === undefined) throw new TypeError("search index: expected one that createIndex made.");
  return found;
}

/**
 * Makes an index of vectors [n, dims]; `null` or an empty array for an empty one.
 * @throws LowbitError E_SHAPE, E_VALUE for numbers that are not finite, E_FORMAT_UNKNOWN, E_DEVICE; TypeError and
 * RangeError for options that are none
 * @example
 * const index = createIndex(vectors, { dims: 64, precision: "int8" });
 * index.search(query, { k: 10 }).ids.length // 10
 */
export function createIndex(vectors: Float32Array | null, options: IndexOptions): SearchIndex {
  const checked = checkIndexOptions(options);
  const x = checkVectors("createIndex vectors", vectors ?? new Float32Array(0), checked.dims);
  const rows = x.length / checked.dims;
  const { ids } = options;
  if (ids !== undefined && ids.length !== rows)
    throw new LowbitError("E_SHAPE", `createIndex ids: expected ${rows}, one for each vector, got ${ids.length}.`);
  const projection =
    checked.fit === null ? null : "from" in checked.fit ? checked.fit : fitProjection(x, checked.dims, checked.fit as Fit, checked.metric);
  const index = emptyIndex(checked, projection, options.backend);
  try {
    if (rows > 0) index.fill(x, ids ?? naturals(rows), ids !== undefined);
  } catch (error) {
    index.dispose();
    throw error;
  }
  return index;
}

function naturals(n: number): Uint32Array {
  const out = new Uint32Array(n);
  for (let i = 0; i < n; i++) out[i] = i;
  return out;
}

interface Filled extends SearchIndex {
  /** @param check ids, which else are known to be new */
  fill(x: Float32Array, ids: ArrayLike<number>, check: boolean): void;
  /** Rows of packed tensors, of each stage; `live`: the bit of each row that is there, null for all. */
  fillPacked(stages: readonly (readonly PackedTensor[])[], signs: readonly PackedTensor[], ids: Uint32Array, live: Uint8Array | null): void;
}

function storeOf(memory: EngineMemory, format: Format, dims: number, metric: Metric): ScanStore {
  const operands = operandsOf(format);
  return operands === null ? packedRows(memory, format, dims, metric, isPlain(format)) : engineRows(memory, format, operands, dims, metric);
}

const bitsOf = (format: Format): number => (format.kind === "block" ? format.element.bits : format.kind === "opaque" ? 0 : format.bits);
interface Scored {
  readonly row: number;
  readonly id: number;
  readonly score: number;
}

const isEngine = (store: ScanStore): store is EngineRows => "rankLists" in store;

/** An index without vectors. `kept`: the sketch of a file. */
export function emptyIndex(
  checked: Checked,
  projection: Projection | null,
  backend?: object,
  kept: Pick<Sketch, "centre" | "candidates" | "tested"> | null = null,
): Filled {
  const memory = engineMemory(backend ?? wasmSync());
  const { dims, metric } = checked;
  if (projection !== null && projection.from !== dims)
    throw new LowbitError("E_SHAPE", `createIndex fit: expected a projection of ${dims} dimensions, got one of ${projection.from}.`);
  const project: Projector | null = projection === null ? null : projector(projection);
  const ids = makeIds();
  const first = storeOf(memory, checked.first, projection?.to ?? dims, metric);
  const later = checked.later === null ? null : storeOf(memory, checked.later, dims, metric);
  const stages = later === null ? [first] : [first, later];
  let sketch = kept === null ? null : makeSketch(memory, kept);
  let live = true;
  const check = (): void => {
    if (!live) throw new LowbitError("E_DISPOSED", "search index: expected a live one, got one that was disposed. Make another.");
  };
  const last = later ?? first;
  const row = new Float64Array(last.dims);

  /**
   * Exact scores of candidates by the last stage, best first: the best `k` and what equals the last of them. Loops: a
   * query has no time for callbacks.
   */
  const exact = (q: Float64Array, rows: Uint32Array, k: number): Scored[] => {
    const all = ids.all;
    let scores = last.exact?.(q, rows) ?? null;
    if (scores === null) {
      scores = new Float64Array(rows.length);
      for (let i = 0; i < rows.length; i++) {
        last.decode(rows[i], row);
        scores[i] = exactScore(q, row, metric);
      }
    }
    const floor = k < rows.length ? scores.slice().sort()[rows.length - k] : -Infinity;
    const found: Scored[] = [];
    for (let i = 0; i < rows.length; i++) if (scores[i] >= floor) found.push({ row: rows[i], id: all[rows[i]], score: scores[i] });
    return found.sort((a, b) => b.score - a.score || a.id - b.id);
  };
  /** The first `k` of a list. */
  const result = (best: readonly Scored[], k: number): SearchResult => {
    const count = Math.min(k, best.length);
    const found = { ids: new Uint32Array(count), scores: new Float64Array(count) };
    for (let i = 0; i < count; i++) {
      const { id, score } = best[i];
      found.ids[i] = id;
      found.scores[i] = metric === "euclidean" ? Math.sqrt(Math.max(0, -2 * score)) : score;
    }
    return found;
  };

  /**
   * One stage: a scan whose error is known, scored again without it, and wider until no other row can be among the
   * best.
   */
  const single = (queries: readonly Float64Array[], k: number, mask: Uint8Array | null): SearchResult[] => {
    const best = new Array<SearchResult>(queries.length);
    let open = queries.map((_, i) => i);
    for (let want = k + MARGIN; open.length > 0; want *= 8) {
      const few = Math.min(want, ids.rows);
      const found = first.scan(
        open.map((i) => queries[i]),
        few,
        mask,
        true,
      );
      open = open.filter((i, at) => {
        const list = exact(queries[i], found[at].rows, k);
        const done = few === ids.rows || isSettled(list, k, found[at], metric, queries[i]);
        if (done) best[i] = result(list, k);
        return !done;
      });
    }
    return best;
  };
  /** Two stages. */
  const double = (
    shortQueries: readonly Float64Array[],
    queries: readonly Float64Array[],
    k: number,
    candidates: number,
    mask: Uint8Array | null,
  ): SearchResult[] => {
    const want = Math.min(Math.max(k, candidates), ids.rows);
    if (!isEngine(first)) return first.scan(shortQueries, want, mask, false).map(({ rows }, i) => result(exact(queries[i], rows, k), k));
    let found: Found;
    const few = sketch !== null && (checked.sketch !== "auto" || within(k, ids.rows, mask)) ? sketch : null;
    if (few === null) found = first.scanLists(shortQueries, want, mask, true);
    else {
      const { rows, centre } = few;
      const signs = shortQueries.map((q) => sketchQuery(q, centre));
      const left = rows.scanLists(signs, leaves(few, ids.rows, want), mask, true);
      found = first.rankLists(left.into, shortQueries, want, "search left", true);
    }
    const ranks = isEngine(last);
    if (ranks) found = last.rankLists(found.into, queries, Math.min(k + 8, want), "search ranked");
    return (ranks ? last.read(found, queries, k) : first.read(found, queries)).map(({ rows }, i) => result(exact(queries[i], rows, k), k));
  };
  /** The sketch of a first fill, where it is worth one. */
  const beginSketch = (x: Float32Array, rows: number): void => {
    const wanted = checked.sketch;
    if (later === null || ids.rows > 0 || wanted === false || !isEngine(first)) return;
    const width = sketchDims(first.dims, bitsOf(first.format));
    if (wanted === "auto" && (rows < LEAST_ROWS || width === null)) return;
    const centre = meanDirection(width ?? first.dims, rows, (r) => {
      const v = x.subarray(r * dims, (r + 1) * dims);
      return project === null ? v : project.apply(v);
    });
    sketch = makeSketch(memory, { centre, candidates: wanted === "auto" ? 0 : wanted, tested: wanted === "auto" ? 0 : rows });
  };
  /** Again whenever the index has doubled. */
  const checkSketch = (): void => {
    if (sketch === null || checked.sketch !== "auto" || ids.rows < 2 * sketch.tested) return;
    if (isEngine(first) && testSketch(sketch, first)) return;
    sketch.rows.dispose();
    sketch = null;
  };

  const index: Filled = {
    dims,
    metric,
    projection,
    formats: stages.map(({ format }) => format),
    get size() {
      return ids.size;
    },
    get bytes() {
      return stages.reduce((sum, s) => sum + s.bytes, ids.all.byteLength + (sketch?.rows.bytes ?? 0));
    },
    get sketch() {
      return sketch === null ? null : leaves(sketch, ids.rows, 1);
    },
    search: (query, options) => index.searchMany(oneQuery(query, dims), options)[0],
    searchMany(queries, options = {}) {
      check();
      const { k = 10, filter, candidates = checked.candidates ?? Math.max(100, 10 * k) } = options;
      if (!Number.isSafeInteger(k) || k < 0) throw new RangeError(`search k: expected a natural number, got ${String(k)}.`);
      checkCandidates(candidates);
      if (filter !== undefined && !(filter instanceof Uint8Array))
        throw new TypeError("search filter: expected a Uint8Array, a bit for each id. Make it with idBitmap(ids).");
      const x = checkVectors("search query", queries, dims);
      if (x.length > 0) memory.wake();
      const full = unitQueries(x, dims, metric);
      if (k === 0 || ids.size === 0 || full.length === 0) return full.map(() => result([], 0));
      const mask = ids.mask(filter);
      const some = Math.min(k, ids.size);
      const short = project === null ? full : unitQueries(project.apply(x), first.dims, metric);
      return later === null ? single(short, some, mask) : double(short, full, some, candidates, mask);
    },
    add(id, vectors) {
      check();
      const x = checkVectors("index.add vectors", vectors, dims);
      const list = typeof id === "number" ? [id] : id;
      if (list.length * dims !== x.length)
        throw new LowbitError("E_SHAPE", `index.add: expected ${list.length} vectors of ${dims} numbers, got ${x.length} numbers.`);
      index.fill(x, ids.check(list), false);
    },
    fill(x, list, checkIds) {
      const fresh = checkIds ? ids.check(list) : (list as Uint32Array);
      const rows = fresh.length;
      const before = ids.rows;
      // in panels: staged once for all stores in the engine, and no second copy of all vectors is projected
      const step = isEngine(first) ? panelRows(dims) : project === null ? rows : Math.max(1, Math.floor((1 << 22) / dims));
      const had = sketch !== null;
      try {
        if (project !== null || !first.checks) refuseBad(x, dims, fresh);
        beginSketch(x, rows);
        const stores = [...stages, ...(sketch === null ? [] : [sketch.rows])];
        for (const store of stores) store.reserve(rows);
        for (let r = 0; r < rows; r += step) {
          const many = Math.min(step, rows - r);
          const part = x.subarray(r * dims, (r + many) * dims);
          const short = project === null ? part : project.apply(part);
          const some = fresh.subarray(r, r + many);
          const whole = sketch?.rows.dims === first.dims;
          const staged = whole ? stagePanel(memory, short, first.dims) : 0;
          first.append(short, many, some, staged);
          sketch?.rows.append(whole ? short : firstDims(short, first.dims, sketch.rows.dims), many, some, staged);
        }
        later?.append(x, rows, fresh, 0);
      } catch (error) {
        // a refused vector changes nothing
        for (const store of stages) store.truncate(before);
        if (had) sketch?.rows.truncate(before);
        else {
          sketch?.rows.dispose();
          sketch = null;
        }
        throw error;
      }
      ids.add(fresh);
      checkSketch();
    },
    fillPacked(packed, signs, list, there) {
      const append = (stage: ScanStore, parts: readonly PackedTensor[]): void => {
        let at = 0;
        for (const part of parts) {
          stage.appendPacked(part, list.subarray(at, at + part.rows));
          at += part.rows;
        }
      };
      stages.forEach((stage, i) => append(stage, packed[i]));
      if (sketch !== null) append(sketch.rows, signs);
      ids.add(list);
      if (there !== null) ids.restore(there);
    },
    remove(id) {
      check();
      return ids.remove(id);
    },
    has: (id) => ids.has(id),
    toBytes() {
      check();
      return indexBytes({ checked, ids, projection, stages, sketch });
    },
    dispose() {
      if (!live) return;
      live = false;
      for (const stage of stages) stage.dispose();
      sketch?.rows.dispose();
      project?.dispose();
    },
    [Symbol.dispose]: () => index.dispose(),
  };
  insides.set(index, {
    checked,
    ids,
    projection,
    stages,
    get sketch() {
      return sketch;
    },
  });
  return index;
}

function oneQuery(query: Float32Array | readonly number[], dims: number): Float32Array {
  const x = Array.isArray(query) ? Float32Array.from(query as readonly number[]) : (query as Float32Array);
  if (x?.length !== undefined && x.length !== dims)
    throw new LowbitError("E_SHAPE", `search query: expected ${dims} numbers, got ${x.length}. Several queries at once: searchMany.`);
  return x;
}

/** Queries as float64, of length one for cosine. @throws LowbitError E_VALUE */
function unitQueries(x: Float32Array, dims: number, metric: Metric): Float64Array[] {
  return Array.from({ length: x.length / dims }, (_, m) => {
    const q = new Float64Array(dims);
    for (let i = 0, at = m * dims; i < dims; i++, at++) q[i] = x[at];
    const size = lengthOf(q);
    if (!(size < 1e18))
      throw new LowbitError("E_VALUE", `search query ${m}: expected finite numbers of a norm below 1e18, got others. Repair the query.`);
    if (metric === "cosine" && size > 0) for (let i = 0; i < dims; i++) q[i] /= size;
    return q;
  });
}

/** Highest best, in all metrics: euclidean as minus half the square of the distance. */
function exactScore(q: Float64Array, x: Float64Array, metric: Metric): number {
  let dot = 0;
  let square = 0;
  if (metric === "euclidean") {
    for (let i = 0; i < q.length; i++) square += (q[i] - x[i]) * (q[i] - x[i]);
    return -square / 2;
  }
  for (let i = 0; i < q.length; i++) {
    dot += q[i] * x[i];
    square += x[i] * x[i];
  }
  if (metric === "dot") return dot;
  return square > 0 ? dot / Math.sqrt(square) : 0;
}

/**
 * Can no row outside the list belong to the best k? Scores of the scan leave out half the square of the query for
 * euclidean.
 */
function isSettled(list: readonly { score: number }[], k: number, found: Candidates, metric: Metric, q: Float64Array): boolean {
  if (list.length < k || found.ceiling === -Infinity) return true;
  const shift = metric === "euclidean" ? lengthOf(q) ** 2 / 2 : 0;
  return list[k - 1].score + shift > found.ceiling;
}

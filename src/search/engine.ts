// What stores do in the memory of a backend: states of top-k lists, runs of the scan kernel, and the lists read back.
import { kernel } from "../../kernels/wasm/engine/family.ts";
import { SCAN_ARGUMENTS, queryBytes, type ScanArgument, type ScanSpec } from "../../kernels/wasm/search/layout.ts";
import { RANK_ARGUMENTS, rank, type RankSpec } from "../../kernels/wasm/search/rank.ts";
import { scan } from "../../kernels/wasm/search/scan.ts";
import { scoreOfKey, STATE, stateBytes, stateLimit, writeState } from "../../kernels/wasm/search/topk.ts";
import type { EngineMemory } from "../backends/wasm/memory.ts";

/** Bytes of codes of an item of work where several queries pass over it: they stay in the first cache. */
const SHARED_BYTES = 32768;
/** For one query: the longer, the faster its streams come from memory; short enough to share out. */
const SINGLE_BYTES = 1 << 19;
/** Rows of an item of a sample: blocks that lie all over the rows. */
const SAMPLE_ROWS = 8;

/** Lists for every thread and query, at `address`. */
export interface Lists {
  readonly address: number;
  readonly bytes: number;
  readonly queries: number;
  readonly want: number;
  readonly slots: number;
}

/**
 * Empty lists of the best `want` for `queries`; `name`: of the scratch space. `least`: for each query the score that a
 * row must reach.
 */
export function lists(
  memory: EngineMemory,
  name: string,
  [queries, want, slots]: readonly [queries: number, want: number, slots: number],
  least: Float32Array | null = null,
): Lists {
  const bytes = stateBytes(want);
  const address = memory.scratch(name, bytes * queries * slots);
  const words = new Int32Array(memory.buffer, address, (bytes * queries * slots) / 4);
  for (let i = 0; i < queries * slots; i++) {
    writeState(words, (i * bytes) / 4, want);
    if (least !== null) memory.floats(address + i * bytes + STATE.threshold, 1)[0] = least[i % queries];
  }
  return { address, bytes, queries, want, slots };
}

/** Rows of a scan: addresses, and the number of the first of them. */
export interface ScanRows {
  readonly codes: number;
  readonly factors: number;
  readonly offsets: number;
  readonly sums: number;
  readonly ids: number;
  readonly mask: number;
  readonly rows: number;
  readonly firstRow: number;
}

/** Scans rows, or one of `part` of them, for queries that lie at `query`, one after the other. */
export function runScan(memory: EngineMemory, spec: ScanSpec, rows: ScanRows, query: number, into: Lists, part = 1): void {
  if (rows.rows === 0) return;
  const single = Math.min(SINGLE_BYTES, (rows.rows * spec.stride) / memory.threads / 4);
  const bytes = into.queries === 1 ? Math.max(SHARED_BYTES, single) : SHARED_BYTES;
  const rowsPerItem = part > 1 ? SAMPLE_ROWS : Math.max(8, 8 * Math.round(bytes / spec.stride / 8));
  const slots = memory.scratch("search slots", 64);
  new Int32Array(memory.buffer, slots, 1)[0] = 0;
  const values: Record<ScanArgument, number> = {
    ...rows,
    rowsPerItem,
    itemRows: part * rowsPerItem,
    queries: into.queries,
    query,
    queryBytes: queryBytes(spec),
    slots,
    states: into.address,
    stateBytes: into.bytes,
  };
  memory.run(kernel(scan, spec), Math.ceil(rows.rows / (part * rowsPerItem)), wordsOf(SCAN_ARGUMENTS, values));
}

/** A loop: `Int32Array.from` with a callback takes microseconds, of which a query has few hundred. */
function wordsOf<Name extends string>(names: readonly Name[], values: Readonly<Record<Name, number>>): Int32Array {
  const words = new Int32Array(names.length);
  for (let i = 0; i < names.length; i++) words[i] = values[names[i]];
  return words;
}

const joins = [false, true].map((shared): RankSpec => ({ rescore: null, shared }));
const rescores = new WeakMap<ScanSpec, RankSpec>();
/** One object for each, by which its kernel is found. */
function rankSpec(rescore: ScanSpec | null, shared: boolean): RankSpec {
  if (rescore === null) return joins[Number(shared)];
  const known = rescores.get(rescore);
  if (known !== undefined) return known;
  const spec: RankSpec = { rescore, shared };
  rescores.set(rescore, spec);
  return spec;
}

/** The later stage of `runRank`, in engine memory. */
export interface Later {
  readonly chunks: number;
  readonly chunkCount: number;
  readonly query: number;
  readonly queryBytes: number;
  readonly results: Lists;
}

/**
 * Joins the lists of all slots, and scores them again where there is a later stage: in as many parts as its results
 * have slots, each into its own; more than one only of joined lists.
 */
export function runRank(memory: EngineMemory, rescore: ScanSpec | null, from: Lists, later: Later | null): void {
  const parts = later?.results.slots ?? 1;
  const values = {
    queries: from.queries,
    slots: from.slots,
    states: from.address,
    stateBytes: from.bytes,
    chunks: later?.chunks ?? 0,
    chunkCount: later?.chunkCount ?? 0,
    query: later?.query ?? 0,
    queryBytes: later?.queryBytes ?? 0,
    results: later?.results.address ?? 0,
    resultBytes: later?.results.bytes ?? 0,
    parts,
  };
  memory.run(kernel(rank, rankSpec(rescore, memory.shared)), parts * from.queries, wordsOf(RANK_ARGUMENTS, values));
}

/** Has every query found as many rows as were wanted, in all slots together? Before they are joined. */
export function allFull(memory: EngineMemory, { address, bytes, queries, want, slots }: Lists): boolean {
  for (let query = 0; query < queries; query++) {
    let found = 0;
    for (let slot = 0; slot < slots; slot++) found += new Int32Array(memory.buffer, address + (slot * queries + query) * bytes, 1)[0];
    if (found < want) return false;
  }
  return true;
}

/**
 * The rows of a query's list (of slot 0), in no order, and the least score among them; -Infinity where the list is not
 * full. `best`: only rows that can be among the best k, where scores are off by at most so much.
 */
export function readList(
  memory: EngineMemory,
  from: Lists,
  query: number,
  best: { readonly k: number; readonly off: number } | null = null,
): { rows: Uint32Array; least: number } {
  const at = from.address + query * from.bytes;
  const count = new Int32Array(memory.buffer, at, 1)[0];
  const limit = stateLimit(from.want);
  const rows = new Uint32Array(memory.buffer, at + STATE.keys + 8 * limit, count).slice();
  if (best === null && count < from.want) return { rows, least: -Infinity };
  const keys = new Int32Array(memory.buffer, at + STATE.keys, 2 * count);
  const scores = new Float64Array(count);
  for (let i = 0; i < count; i++) scores[i] = scoreOfKey(keys[2 * i + 1]);
  let least = Infinity;
  for (let i = 0; i < count; i++) if (scores[i] < least) least = scores[i];
  if (best === null || best.k >= count) return { rows, least: count < from.want ? -Infinity : least };
  const floor = scores.slice().sort()[count - best.k] - 2 * best.off;
  let kept = 0;
  for (let i = 0; i < count; i++) if (scores[i] >= floor) rows[kept++] = rows[i];
  return { rows: rows.subarray(0, kept), least: count < from.want ? -Infinity : least };
}

/** The rows of a query's list (of slot 0) with their scores, in no order. */
export function readScores(memory: EngineMemory, from: Lists, query: number): { rows: Uint32Array; scores: Float32Array } {
  const { rows } = readList(memory, from, query);
  const keys = new Int32Array(memory.buffer, from.address + query * from.bytes + STATE.keys, 2 * rows.length);
  return { rows, scores: Float32Array.from(rows, (_, i) => scoreOfKey(keys[2 * i + 1])) };
}

// One list of the best from those of several indexes: shards in other files, processes or machines.
import type { Metric, SearchResult } from "./types.ts";

/** How results of several indexes become one list. */
export interface MergeOptions {
  /** How many to keep; default 10. */
  readonly k?: number;
  /** The metric of the indexes, which says what is best; default "cosine". */
  readonly metric?: Metric;
}

/**
 * Merges results of the same query on several indexes, whose ids must differ. Best first, of equal scores the smaller
 * id: what one index of all their vectors gives.
 * @throws RangeError for k
 * @example
 * const near = { ids: Uint32Array.of(7, 2), scores: Float64Array.of(0.9, 0.5) };
 * const far = { ids: Uint32Array.of(40), scores: Float64Array.of(0.7) };
 * mergeResults([near, far], { k: 2 }).ids // [7, 40]
 */
export function mergeResults(results: readonly SearchResult[], options: MergeOptions = {}): SearchResult {
  const { k = 10, metric = "cosine" } = options;
  if (!Number.isSafeInteger(k) || k < 0) throw new RangeError(`mergeResults k: expected a natural number, got ${String(k)}.`);
  const all: (readonly [id: number, score: number])[] = [];
  for (const { ids, scores } of results) for (let i = 0; i < ids.length; i++) all.push([ids[i], scores[i]]);
  const sign = metric === "euclidean" ? 1 : -1;
  all.sort((a, b) => sign * (a[1] - b[1]) || a[0] - b[0]);
  const best = all.slice(0, k);
  return { ids: Uint32Array.from(best, ([id]) => id), scores: Float64Array.from(best, ([, score]) => score) };
}

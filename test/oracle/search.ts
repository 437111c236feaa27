// Exact search written apart from the library: plain loops in float64 over decoded vectors, all scores in an array,
// sorted.

export type OracleMetric = "cosine" | "dot" | "euclidean";

/** The score of a query and a vector. */
export function oracleScore(q: ArrayLike<number>, x: ArrayLike<number>, metric: OracleMetric): number {
  let [dot, qq, xx, apart] = [0, 0, 0, 0];
  for (let i = 0; i < q.length; i++) {
    dot += q[i] * x[i];
    qq += q[i] * q[i];
    xx += x[i] * x[i];
    apart += (q[i] - x[i]) ** 2;
  }
  if (metric === "dot") return dot;
  if (metric === "euclidean") return Math.sqrt(apart);
  return qq === 0 || xx === 0 ? 0 : dot / Math.sqrt(qq * xx);
}

/** The best k of vectors [n, dims] by score, then id. */
export function oracleSearch(
  q: ArrayLike<number>,
  vectors: Float32Array | Float64Array,
  metric: OracleMetric,
  k: number,
  ids: ArrayLike<number>,
  allowed: (id: number) => boolean = () => true,
): { id: number; score: number }[] {
  const dims = q.length;
  const all: { id: number; score: number }[] = [];
  for (let r = 0; r * dims < vectors.length; r++)
    if (allowed(ids[r])) all.push({ id: ids[r], score: oracleScore(q, vectors.subarray(r * dims, (r + 1) * dims), metric) });
  const sign = metric === "euclidean" ? 1 : -1;
  return all.sort((a, b) => sign * (a.score - b.score) || a.id - b.id).slice(0, k);
}

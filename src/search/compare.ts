// What precisions cost and keep on one's own vectors: bytes, recall and time of each, and the picture of that trade.
import { LowbitError } from "../../formats/core/errors.ts";
import { createIndex } from "./create.ts";
import type { IndexOptions, Metric, SearchResult } from "./types.ts";

/** One index to try, as `createIndex` takes it. */
export interface Trial {
  readonly name: string;
  readonly options: Omit<IndexOptions, "dims" | "metric" | "ids">;
}

/** What one precision costs, and what it finds. */
export interface Comparison {
  readonly name: string;
  /** Of all stages, with scales, norms and ids; vectors in "float32" count whole. */
  readonly bytesPerVector: number;
  /** Share of the k nearest by exact float32 that are found. */
  readonly recall: number;
  /** Time of a query, the least of all rounds, and of making the index, ms. */
  readonly searchMs: number;
  readonly buildMs: number;
  /** Is there no other with fewer bytes and no less recall, or as many bytes and more? */
  readonly best: boolean;
}

/** What precisions are compared on: dimensions, metric, trials. */
export interface CompareOptions {
  readonly dims: number;
  readonly metric?: Metric;
  /** Default 10. */
  readonly k?: number;
  readonly trials: readonly Trial[];
  readonly backend?: object;
  /** Ends the comparison between two trials. */
  readonly signal?: AbortSignal;
}

/**
 * Tries indexes of `vectors` on `queries`, beside exact search in float32.
 * @throws LowbitError E_SHAPE without vectors or queries, E_ABORTED, and what `createIndex` throws
 * @example
 * const trials = [
 *   { name: "int8", options: { precision: "int8" } },
 *   { name: "binary", options: { precision: "binary" } },
 * ] as const;
 * const rows = await comparePrecisions(vectors, queries, { dims: 64, k: 5, trials });
 * rows.map(({ name, recall }) => [name, recall])
 */
export function comparePrecisions(vectors: Float32Array, queries: Float32Array, options: CompareOptions): Comparison[] {
  const { dims, metric = "cosine", k = 10, trials, backend } = options;
  if (vectors.length < dims || queries.length < dims)
    throw new LowbitError(
      "E_SHAPE",
      `comparePrecisions: expected vectors and queries of ${dims} numbers, got ${vectors.length} and ${queries.length}.`,
    );
  const own = { dims, metric, ...(backend === undefined ? {} : { backend }) };
  const exact = createIndex(vectors, { ...own, precision: "float32" });
  const truth = exact.searchMany(queries, { k });
  exact.dispose();
  const rows = trials.map((trial) => {
    if (options.signal?.aborted) throw new LowbitError("E_ABORTED", "comparePrecisions: expected to finish, got a signal to end.");
    return { name: trial.name, ...tryOne(vectors, queries, { ...own, ...trial.options }, truth, k) };
  });
  const beats = (a: (typeof rows)[number], b: (typeof rows)[number]): boolean =>
    a.bytesPerVector <= b.bytesPerVector && a.recall >= b.recall && (a.bytesPerVector < b.bytesPerVector || a.recall > b.recall);
  return rows.map((row) => ({ ...row, best: !rows.some((other) => beats(other, row)) }));
}

function tryOne(
  vectors: Float32Array,
  queries: Float32Array,
  options: IndexOptions,
  truth: readonly SearchResult[],
  k: number,
): { bytesPerVector: number; recall: number; searchMs: number; buildMs: number } {
  const begin = performance.now();
  const index = createIndex(vectors, options);
  const buildMs = performance.now() - begin;
  try {
    const { dims } = options;
    let searchMs = Infinity;
    let hits = 0;
    truth.forEach(({ ids }, i) => {
      const query = queries.subarray(i * dims, (i + 1) * dims);
      const from = performance.now();
      const found = new Set(index.search(query, { k }).ids);
      searchMs = Math.min(searchMs, performance.now() - from);
      for (const id of ids) if (found.has(id)) hits++;
    });
    const wanted = truth.reduce((sum, { ids }) => sum + ids.length, 0);
    return { bytesPerVector: index.bytes / index.size, recall: hits / wanted, searchMs, buildMs };
  } finally {
    index.dispose();
  }
}

const escape = (text: string): string => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

/**
 * The trade-off as an SVG picture: bytes of a vector (logarithmic) against recall; those that no other beats are joined
 * by a line.
 * @example
 * const trials = [{ name: "int4", options: { precision: "int4" } }] as const;
 * await writeFile("recall.svg", paretoSvg(await comparePrecisions(vectors, queries, { dims: 64, k: 5, trials })));
 */
export function paretoSvg(rows: readonly Comparison[], title = "Recall and size"): string {
  const [width, height, left, right, top, bottom] = [760, 460, 64, 24, 44, 52];
  const logs = rows.map((row) => Math.log2(row.bytesPerVector));
  const [low, high] = [Math.floor(Math.min(...logs)), Math.ceil(Math.max(...logs))];
  const least = Math.floor(10 * Math.min(...rows.map((row) => row.recall), 0.9)) / 10;
  const x = (bytes: number): number => left + ((Math.log2(bytes) - low) / Math.max(1, high - low)) * (width - left - right);
  const y = (recall: number): number => top + ((1 - recall) / (1 - least)) * (height - top - bottom);
  const at = (n: number): string => n.toFixed(1);
  const text = (px: number, py: number, words: string, anchor = "middle", size = 12): string =>
    `<text x="${at(px)}" y="${at(py)}" font-size="${size}" text-anchor="${anchor}">${escape(words)}</text>`;
  const parts: string[] = [];
  for (let log = low; log <= high; log++) {
    const px = x(2 ** log);
    parts.push(
      `<line x1="${at(px)}" y1="${top}" x2="${at(px)}" y2="${height - bottom}" stroke="#ddd"/>`,
      text(px, height - bottom + 18, String(2 ** log)),
    );
  }
  for (let tenth = Math.round(10 * least); tenth <= 10; tenth++) {
    const py = y(tenth / 10);
    parts.push(
      `<line x1="${left}" y1="${at(py)}" x2="${width - right}" y2="${at(py)}" stroke="#ddd"/>`,
      text(left - 8, py + 4, (tenth / 10).toFixed(1), "end"),
    );
  }
  const front = rows.filter((row) => row.best).sort((a, b) => a.bytesPerVector - b.bytesPerVector);
  parts.push(
    `<polyline fill="none" stroke="#06c" stroke-width="1.5" points="${front.map((r) => `${at(x(r.bytesPerVector))},${at(y(r.recall))}`).join(" ")}"/>`,
  );
  for (const row of rows) {
    const [px, py] = [x(row.bytesPerVector), y(row.recall)];
    const end = px > width - 160;
    parts.push(
      `<circle cx="${at(px)}" cy="${at(py)}" r="4" fill="${row.best ? "#06c" : "#999"}"><title>${escape(`${row.name}: ${row.bytesPerVector.toFixed(1)} bytes, recall ${row.recall.toFixed(4)}, ${row.searchMs.toFixed(3)} ms`)}</title></circle>`,
      text(px + (end ? -7 : 7), py + 14, row.name, end ? "end" : "start", 11),
    );
  }
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="sans-serif">`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    text(width / 2, 24, title, "middle", 15),
    ...parts,
    text(width / 2, height - 12, "bytes of a vector"),
    `<text transform="translate(16 ${height / 2}) rotate(-90)" font-size="12" text-anchor="middle">recall</text>`,
    "</svg>",
    "",
  ].join("\n");
}

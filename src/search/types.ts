// What the parts of an index share: options, results, and what a stage of a search is to the others.
import type { Format, PackedTensor } from "../../formats/core/types.ts";

/**
 * `cosine`: cosine similarity, highest first. `dot`: inner product, highest first. `euclidean`: distance, lowest first.
 */
export type Metric = "cosine" | "dot" | "euclidean";

/** A format, or the name of one. A scalar format of at most 8 bits gets one float32 scale a vector. */
export type Precision = Format | (string & {});

/** How vectors lose dimensions before they are packed. */
export interface Fit {
  /**
   * `pca`: the directions of most variance. `rotation`: a random orthogonal matrix, which spreads outliers over all
   * dimensions. `truncate`: the first `dims` numbers.
   */
  readonly method: "pca" | "rotation" | "truncate";
  /** Numbers of a vector afterwards; default: as many as before (truncate: required). */
  readonly dims?: number;
  /** Seed of the rotation; default 1. */
  readonly seed?: number;
  /** Vectors that PCA looks at, evenly spaced; default 20000. */
  readonly sample?: number;
}

/** y = matrix (x - mean), `to` numbers of `from`. Without a matrix: the first `to` numbers. */
export interface Projection {
  readonly method: Fit["method"];
  readonly from: number;
  readonly to: number;
  /** [to, from], row-major, orthonormal rows; null for the first `to` numbers. */
  readonly matrix: Float32Array | null;
  readonly mean: Float32Array | null;
}

/** How vectors are kept, compared and rescored. */
export interface IndexOptions {
  /** Numbers of a vector. */
  readonly dims: number;
  /** Default "cosine". */
  readonly metric?: Metric;
  /** How vectors are kept and searched; default "int8". */
  readonly precision?: Precision;
  /**
   * A second stage: the best candidates of the first one are scored again with vectors in this precision ("float32"
   * keeps a reference to the vectors that you pass, no copy). A number: that many candidates, in "float32".
   * `candidates` defaults to 10 k, at least 100.
   */
  readonly rescore?: Precision | number | { readonly precision?: Precision; readonly candidates?: number };
  /**
   * With `rescore`: a look at one bit a dimension before the first stage, to which it leaves few vectors. "auto"
   * (default): for formats of 4 bits and more from 32768 vectors on, where a test on the vectors passes that also says
   * how many are left; false: none; a number: that many, without a test.
   */
  readonly sketch?: "auto" | false | number;
  /** Fewer or rotated dimensions for the first stage; a second stage keeps all of them. */
  readonly fit?: Fit | Projection;
  /** Id of each vector, distinct integers from 0 to 2^32 - 2; default 0, 1, 2 ... */
  readonly ids?: ArrayLike<number>;
  /** `await wasm({ threads: 4 })`; default one thread. */
  readonly backend?: object;
}

/** How many to find, and among which. */
export interface SearchOptions {
  /** How many to find; default 10. Fewer come back where the index, or what a filter leaves of it, has fewer. */
  readonly k?: number;
  /** Candidates of the first stage, where there are two. */
  readonly candidates?: number;
  /** Ids that may be found: bit (id mod 8) of byte floor(id / 8), see `idBitmap`; ids beyond its end may not. */
  readonly filter?: Uint8Array;
}

/** Best first; of equal scores the smaller id. */
export interface SearchResult {
  readonly ids: Uint32Array;
  /**
   * By the metric, of the vectors as the last stage keeps them (decoded) and the query in float32, computed in float64.
   */
  readonly scores: Float64Array;
}

/** Rows that the first stage proposes for a query. */
export interface Candidates {
  readonly rows: Uint32Array;
  /**
   * No other row has a score above this one, highest best (euclidean: x q - x^2 / 2); -Infinity where these are all
   * there are.
   */
  readonly ceiling: number;
}

/** Vectors of one stage, as packed rows 0, 1, 2 ... */
export interface RowStore {
  readonly format: Format;
  readonly dims: number;
  readonly count: number;
  /** Bytes held, scales and norms included. */
  readonly bytes: number;
  /** Refuses numbers that are not finite itself, quickly; others rely on their caller for it. */
  readonly checks: boolean;
  /** So many rows are about to come. */
  reserve(rows: number): void;
  /**
   * Adds rows [rows, dims]. `staged`: see `stagePanel`; 0 for none.
   * @throws LowbitError E_VALUE for what the format cannot take
   */
  append(x: Float32Array, rows: number, ids: Uint32Array, staged: number): void;
  /** Leaves the first rows only: takes back what was appended. */
  truncate(rows: number): void;
  /** Adds rows of a packed tensor of this format. @throws LowbitError E_VALUE for values that are not finite */
  appendPacked(packed: PackedTensor, ids: Uint32Array): void;
  /** The values of a row. */
  decode(row: number, out: Float64Array): void;
  /** The scores of rows by the metric, in float64; null, or not there, where they are to be decoded for that. */
  exact?(q: Float64Array, rows: Uint32Array): Float64Array | null;
  /** All rows, as packed tensors one after the other. */
  packed(): PackedTensor[];
  dispose(): void;
}

/**
 * A scan of all rows that the mask (a bit a row; null: all) leaves. Queries are unit vectors where the metric is
 * cosine.
 */
export interface ScanStore extends RowStore {
  /** @param precise with a ceiling as low as there is; else as fast as it goes */
  scan(queries: readonly Float64Array[], want: number, mask: Uint8Array | null, precise: boolean): Candidates[];
}

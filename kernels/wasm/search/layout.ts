// What a scan is of, and how its arguments and its query lie in memory.

export interface ScanSpec {
  readonly kind: "dot" | "hamming" | "float";
  /**
   * dot: `dot` for relaxed dot products to i32, `madd16` for those to i16 (faster where an engine makes the former of
   * several instructions), `simd` for baseline SIMD128.
   */
  readonly style: "dot" | "madd16" | "simd";
  /** float: 32, or 8 and 16 for floats of that size that are decoded as they are read. */
  readonly bits: 1 | 2 | 4 | 8 | 16 | 32;
  /** float of 8 and 16 bits: bits of the significand that are stored; sign and exponent take the others. */
  readonly mantissaBits?: number;
  /** Vectors of 16 bytes in a row. */
  readonly vectors: number;
  /** Bytes from one row to the next. */
  readonly stride: number;
  /** Integer planes of the query, see `queryRange`. */
  readonly planes: 1 | 2;
  /** Operand of each code of at most 4 bits, 0..127; null where the field is the operand. */
  readonly table: readonly number[] | null;
  /** Values are 2 * operand - shift. */
  readonly doubled: boolean;
  /** The largest operand: how many products of two fit an i16. */
  readonly most: number;
  /** Rows have an offset beside the factor. */
  readonly offset: boolean;
  /** hamming: all rows have the same factor, so that counts of bits alone are compared. */
  readonly flat: boolean;
  readonly shared: boolean;
}

/**
 * Arguments of `work`, words: addresses, unless they say otherwise. `mask` 0: no filter. `ids` 0: the id of a row is
 * its number. `firstRow`: number of row 0 of these codes. An item is `rowsPerItem` rows, `itemRows` after those of the
 * one before: more, where a part of all rows is scanned.
 */
export const SCAN_ARGUMENTS = [
  "codes", "factors", "offsets", "sums", "ids", "mask", "rows", "rowsPerItem", "itemRows", "queries", "query", "queryBytes", "slots", "states", "stateBytes", "firstRow",
] as const; // prettier-ignore
export type ScanArgument = (typeof SCAN_ARGUMENTS)[number];

/** Rows that are computed together; codes, factors and offsets are padded to a multiple of it. */
export const SCAN_ROWS = 4;

/** The head of a query: for each plane its factor (f32) and what is taken from its sum (i32); float: a factor. */
export const QUERY_HEAD = 64;

/** Vectors of a query that meet one vector of codes. */
export function queryVectors(spec: Pick<ScanSpec, "kind" | "style" | "bits" | "planes">): number {
  if (spec.kind === "hamming") return 1;
  if (spec.kind === "float") return 32 / spec.bits;
  return (8 / spec.bits) * spec.planes * (spec.style === "simd" ? 2 : 1);
}

/**
 * The integers of a query plane: at most `max` in magnitude, stored with `offset` added. A relaxed dot product takes
 * one operand of 7 bits, without a sign: fields of codes, which are that, or else the query, whose offset times the sum
 * of a row's codes (argument `sums`) is taken from the products.
 */
export function queryRange({ style, bits }: Pick<ScanSpec, "style" | "bits">): { readonly max: number; readonly offset: number } {
  return style !== "simd" && bits === 8 ? { max: 63, offset: 64 } : { max: 127, offset: 0 };
}

/**
 * Floats of a query in the order in which a vector of codes of 8 or 16 bits is decoded, four by four: the halves of
 * words of 32 bits, of bytes first the even ones.
 */
export function decodeOrder(bits: ScanSpec["bits"]): readonly number[] {
  if (bits === 16) return [0, 2, 4, 6, 1, 3, 5, 7];
  return bits === 8 ? [0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15] : [0, 1, 2, 3];
}

/** Bytes of a query with its head. */
export const queryBytes = (spec: Pick<ScanSpec, "kind" | "style" | "bits" | "planes" | "vectors">): number =>
  QUERY_HEAD + 16 * spec.vectors * queryVectors(spec);

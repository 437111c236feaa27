// Where the scales of a block format lie: a span turned into a grid over a matrix [rows, k].
import type { ScaleLevel, Span } from "./types.ts";

export interface SpanGrid {
  /** Rows and elements along k that share one entry. */
  readonly rows: number;
  readonly k: number;
  /** Entries: gridRows x gridK, stored row-major. */
  readonly gridRows: number;
  readonly gridK: number;
}

/** The grid of one span over a [rows, k] matrix; the last entry along either side may cover less. */
export function spanGrid(span: Span, rows: number, k: number): SpanGrid {
  const [r, c] = span === "tensor" ? [rows, k] : span === "row" ? [1, k] : typeof span === "number" ? [1, span] : span;
  return { rows: Math.max(1, r), k: Math.max(1, c), gridRows: Math.ceil(rows / Math.max(1, r)), gridK: Math.ceil(k / Math.max(1, c)) };
}

/** Entries of one level over a [rows, k] matrix. */
export function spanCount(span: Span, rows: number, k: number): number {
  const g = spanGrid(span, rows, k);
  return g.gridRows * g.gridK;
}

/** Bytes of one level: codes packed densely, each grid row padded to a whole byte. */
export function levelBytes(level: ScaleLevel, rows: number, k: number): number {
  const g = spanGrid(level.span, rows, k);
  return g.gridRows * Math.ceil((g.gridK * level.format.bits) / 8);
}

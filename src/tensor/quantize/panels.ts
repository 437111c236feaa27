// Walks over the rows of a matrix: panels of rows that lie together, runs of values in one cell of a grid, and the
// extremes of every cell.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { SpanGrid } from "../../../formats/core/span.ts";
import type { BulkCodec } from "../../backends/types.ts";
import { readRows, type MatrixView, type TensorData } from "../tensor.ts";

/** Rows read at once: 16 float32 of a transposed source fill one cache line. */
export const PANEL_ROWS = 16;

/**
 * Visits all rows in order, `count` of them at a time, as values [count, k]: the source's own memory where its rows
 * follow each other, else a copy.
 */
export function forPanels(m: MatrixView, visit: (values: TensorData, row: number, count: number) => void): void {
  const panelRows = Math.min(m.rows, m.k > 1 << 20 ? 1 : PANEL_ROWS);
  const contiguous = m.read === undefined && m.kOffsets === null && m.kStride === 1 && (m.rowStride === m.k || m.rows === 1);
  const scratch = contiguous
    ? null
    : m.data instanceof Float32Array
      ? new Float32Array(panelRows * m.k)
      : new Float64Array(panelRows * m.k);
  for (let row = 0; row < m.rows; row += panelRows) {
    const count = Math.min(panelRows, m.rows - row);
    if (scratch === null) {
      const from = m.offset + row * m.k;
      visit(m.data.subarray(from, from + count * m.k), row, count);
    } else {
      readRows(m, row, count, scratch);
      visit(scratch, row, count);
    }
  }
}

/** Throws for the first value of a panel that is not finite, if there is one. */
export function refuseNonFinite(values: TensorData, row: number, count: number, k: number): void {
  const i = values.subarray(0, count * k).findIndex((v) => !Number.isFinite(v));
  if (i < 0) return;
  throw new LowbitError(
    "E_VALUE",
    `quantize: expected finite numbers, got ${values[i]} at [${row + Math.floor(i / k)}, ${i % k}]. Clean the tensor, or leave it in its own format.`,
  );
}

/** Walks over the runs of values that lie in one cell of a grid, row by row. */
export function forRuns(
  m: MatrixView,
  grid: SpanGrid,
  visit: (values: TensorData, start: number, end: number, cell: number) => void,
): void {
  forPanels(m, (values, row, count) => {
    for (let r = 0; r < count; r++) {
      const cell0 = Math.floor((row + r) / grid.rows) * grid.gridK;
      for (let b = 0; b < grid.gridK; b++) {
        const start = r * m.k + b * grid.k;
        visit(values, start, Math.min(start + grid.k, (r + 1) * m.k), cell0 + b);
      }
    }
  });
}

/** The extremes of every cell, plain: without zero forced in. NaN where a cell holds one. */
export interface CellStats {
  readonly min: Float64Array;
  readonly max: Float64Array;
}

/** min and max of every cell of a grid; refuses what is not finite if `refuse`. */
export function cellStats(m: MatrixView, grid: SpanGrid, refuse: boolean, codec: BulkCodec | undefined): CellStats {
  const cells = grid.gridRows * grid.gridK;
  const stats = { min: new Float64Array(cells).fill(Infinity), max: new Float64Array(cells).fill(-Infinity) };
  // blocks of a panel follow each other where they divide a row
  const size = Math.min(grid.k, m.k);
  const bulk = codec !== undefined && m.k % size === 0 ? codec : null;
  const least = new Float32Array(bulk === null ? 0 : PANEL_ROWS * grid.gridK);
  const largest = new Float32Array(least.length);
  forPanels(m, (values, row, count) => {
    let plain: boolean;
    if (bulk !== null && values instanceof Float32Array) {
      bulk.range(values.subarray(0, count * m.k), size, least, largest);
      plain = mergeRanges(stats, grid, row, count, least, largest);
    } else plain = addRanges(stats, grid, values, row, count, m.k);
    if (refuse && !plain) refuseNonFinite(values, row, count, m.k);
  });
  return stats;
}

/** Takes the ranges of the blocks of a panel into the cells; are all finite? */
function mergeRanges(stats: CellStats, grid: SpanGrid, row: number, count: number, least: Float32Array, largest: Float32Array): boolean {
  const { min, max } = stats;
  let plain = true;
  for (let r = 0, i = 0; r < count; r++) {
    const cell0 = Math.floor((row + r) / grid.rows) * grid.gridK;
    for (let b = 0; b < grid.gridK; b++, i++) {
      const lo = (min[cell0 + b] = Math.min(min[cell0 + b], least[i]));
      const hi = (max[cell0 + b] = Math.max(max[cell0 + b], largest[i]));
      if (!(lo > -Infinity && hi < Infinity)) plain = false;
    }
  }
  return plain;
}

/** The same from the values. Math.min and max carry NaN through, so that one check per block suffices. */
function addRanges(stats: CellStats, grid: SpanGrid, values: TensorData, row: number, count: number, k: number): boolean {
  const { min, max } = stats;
  let plain = true;
  for (let r = 0; r < count; r++) {
    const cell0 = Math.floor((row + r) / grid.rows) * grid.gridK;
    for (let b = 0; b < grid.gridK; b++) {
      const start = r * k + b * grid.k;
      const end = Math.min(start + grid.k, (r + 1) * k);
      let lo = min[cell0 + b];
      let hi = max[cell0 + b];
      for (let i = start; i < end; i++) {
        lo = Math.min(lo, values[i]);
        hi = Math.max(hi, values[i]);
      }
      min[cell0 + b] = lo;
      max[cell0 + b] = hi;
      if (!(lo > -Infinity && hi < Infinity)) plain = false;
    }
  }
  return plain;
}

// Levels of scales: from the scales of blocks, as real numbers, to what each level stores. An outer level is divided
// out of the inner one, a mean taken away from it; what is stored is read back, so that everything after works with the
// stored scales.
import { encodeArray } from "../../../formats/core/bulk.ts";
import { LowbitError } from "../../../formats/core/errors.ts";
import { codeArray, packedBytes, packInto } from "../../../formats/core/pack.ts";
import { levelValues } from "../../../formats/core/packed.ts";
import { spanGrid, type SpanGrid } from "../../../formats/core/span.ts";
import type { ScaleLevel } from "../../../formats/core/types.ts";

/** Rows and columns of the matrix, which spans "row" and "tensor" refer to. */
export interface Sizes {
  readonly rows: number;
  readonly k: number;
}

/** Over every cell of a finer grid: the cell of a coarser one that it lies in. */
export function outerCell(cell: number, grid: SpanGrid, outer: SpanGrid): number {
  const row = Math.floor(cell / grid.gridK) * grid.rows;
  const k = (cell % grid.gridK) * grid.k;
  return Math.floor(row / outer.rows) * outer.gridK + Math.floor(k / outer.k);
}

/** A stored level: its bytes, and the value that each cell of a finer grid gets from it. */
export interface Stored {
  readonly bytes: Uint8Array;
  readonly of: (cell: number) => number;
}

/** How a finer grid reads the bytes of a level. */
export function readLevel(level: ScaleLevel, bytes: Uint8Array, grid: SpanGrid, m: Sizes): Stored {
  const own = spanGrid(level.span, m.rows, m.k);
  const values = levelValues(level, bytes, m.rows, m.k);
  return { bytes, of: (cell) => values[outerCell(cell, grid, own)] };
}

/**
 * The outer level makes the largest inner scale of its reach the largest number of the inner scale format; divides the
 * inner scales by it.
 */
export function divideOuter(inner: ScaleLevel, outer: ScaleLevel, grid: SpanGrid, scale: Float64Array, m: Sizes): Stored {
  const outerGrid = spanGrid(outer.span, m.rows, m.k);
  const top = new Float64Array(outerGrid.gridRows * outerGrid.gridK);
  for (let c = 0; c < scale.length; c++) {
    const o = outerCell(c, grid, outerGrid);
    top[o] = Math.max(top[o], Math.abs(scale[c]));
  }
  const wanted = top.map((t) => (t === 0 ? 1 : t / inner.format.limits.max));
  const stored = readLevel(outer, storeLevel(outer, outerGrid, wanted), grid, m);
  for (let c = 0; c < scale.length; c++) {
    const s = stored.of(c);
    scale[c] = s === 0 ? 0 : scale[c] / s;
  }
  return stored;
}

/** Takes the mean of the scales out, for each entry of the offset level. */
export function subtractMean(level: ScaleLevel, grid: SpanGrid, scale: Float64Array, m: Sizes): Stored {
  const meanGrid = spanGrid(level.span, m.rows, m.k);
  const sum = new Float64Array(meanGrid.gridRows * meanGrid.gridK);
  const n = new Float64Array(sum.length);
  for (let c = 0; c < scale.length; c++) {
    const o = outerCell(c, grid, meanGrid);
    sum[o] += scale[c];
    n[o]++;
  }
  const means = sum.map((s, o) => s / n[o]);
  const stored = readLevel(level, storeLevel(level, meanGrid, means), grid, m);
  for (let c = 0; c < scale.length; c++) scale[c] -= stored.of(c);
  return stored;
}

/**
 * Encodes one level of scales or offsets. A scale that would underflow to zero becomes the smallest one, so that no
 * block vanishes.
 * @param zeros allow that: scales around a mean, where zero is a value like any other, and rules that have it so
 * @throws LowbitError E_VALUE for a scale beyond the range of its format
 */
export function storeLevel(level: ScaleLevel, grid: SpanGrid, values: Float64Array, zeros = false): Uint8Array {
  const { format } = level;
  const { limits } = format;
  const codes = codeArray(format.bits, values.length);
  const wanted = values.map((v) =>
    v === 0 && !limits.hasZero ? limits.minPositive : v > limits.max && v <= limits.max * (1 + 2 ** -20) ? limits.max : v,
  );
  try {
    encodeArray(format, wanted, codes, { overflow: "error" });
  } catch (cause) {
    const beyond = wanted.find((v) => Math.abs(v) > limits.max);
    if (beyond === undefined) throw cause;
    throw new LowbitError(
      "E_VALUE",
      `quantize scale: expected at most ${limits.max}, the largest ${format.name}, got ${beyond}. Take a format with float32 scales, or scale the tensor.`,
      { cause },
    );
  }
  if (!zeros && limits.hasZero) {
    const zero = format.encode(0);
    const negativeZero = format.encode(-0);
    for (let i = 0; i < values.length; i++)
      if ((codes[i] === zero || codes[i] === negativeZero) && values[i] !== 0)
        codes[i] = format.encode(Math.sign(values[i]) * limits.minPositive);
  }
  const rowBytes = packedBytes(grid.gridK, format.bits);
  const out = new Uint8Array(grid.gridRows * rowBytes);
  for (let r = 0; r < grid.gridRows; r++) packInto(codes, r * grid.gridK, grid.gridK, format.bits, out, r * rowBytes);
  return out;
}

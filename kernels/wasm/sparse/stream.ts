// The stream of a sparse weight (sparse.ts): which columns rows keep, and in which groups.
import { blockRows, sparseElement, sparseStep, sparseTile, type SparseBlock, type SparseSpec } from "./sparse.ts";

export interface SparseStream {
  readonly block: SparseBlock;
  readonly groups: number;
  readonly starts: Uint32Array;
  readonly bytes: Uint8Array;
  /** Weights that are not zero, and those that are multiplied. */
  readonly kept: number;
  readonly multiplied: number;
}

/** Blocks pay where they multiply at most so many weights for one that is not zero. */
const BLOCK_COST = { "4x1": 1.5, "1x4": 1.25 } as const;

/** A matrix [n, k]. */
interface Matrix {
  readonly values: Float32Array | Int8Array;
  readonly n: number;
  readonly k: number;
}

/** First columns of the blocks of rows r .. r + rows - 1 that are not all zeros, in order. */
function columnsOf({ values, n, k }: Matrix, r: number, rows: number, width: number): number[] {
  const columns: number[] = [];
  for (let j = 0; j < k; j += width) {
    let any = false;
    for (let i = r; i < Math.min(r + rows, n); i++) for (let c = j; c < Math.min(j + width, k); c++) any ||= values[i * k + c] !== 0;
    if (any) columns.push(j);
  }
  return columns;
}

/** Weights in blocks of a shape that are not all zeros. */
function weightsIn(matrix: Matrix, rows: number, width: number): number {
  let count = 0;
  for (let r = 0; r < matrix.n; r += rows) count += rows * width * columnsOf(matrix, r, rows, width).length;
  return count;
}

/** The stream of a matrix [n, k]: in blocks of four rows, of int8 of four columns, where it has such or nearly. */
export function sparseStream(values: Float32Array | Int8Array, n: number, k: number): SparseStream {
  const type: SparseSpec["type"] = values instanceof Int8Array ? "int8" : "float32";
  const matrix = { values, n, k };
  const kept = weightsIn(matrix, 1, 1);
  const block: SparseBlock =
    weightsIn(matrix, 4, 1) <= BLOCK_COST["4x1"] * kept
      ? "4x1"
      : type === "int8" && weightsIn(matrix, 1, 4) <= BLOCK_COST["1x4"] * kept
        ? "1x4"
        : "1x1";
  const rows = blockRows(block);
  const width = block === "1x4" ? 4 : 1;
  const spec = { type, block } as const;
  const column = sparseTile(spec) * sparseElement(type);
  const step = sparseStep(spec);
  /** Blocks of a step: of int8 two columns are multiplied at once. */
  const pair = type === "int8" && block !== "1x4" ? 2 : 1;
  const groups = Math.ceil(n / rows);
  const found = Array.from({ length: groups }, (_, g) => columnsOf(matrix, g * rows, rows, width));
  const bytes = new Uint8Array(step * found.reduce((sum, columns) => sum + Math.ceil(columns.length / pair), 0));
  const view = new DataView(bytes.buffer);
  const starts = new Uint32Array(groups + 1);
  const at = (row: number, c: number): number => (row < n && c < k ? values[row * k + c] : 0);
  let to = 0;
  found.forEach((columns, g) => {
    starts[g] = to;
    for (let i = 0; i < columns.length; i += pair, to += step) {
      for (let p = 0; p < pair; p++) view.setUint32(to + 4 * p, (columns[i + p] ?? columns[i]) * column, true);
      const weights = to + 4 * pair;
      if (block === "1x4") for (let c = 0; c < 4; c++) view.setInt16(weights + 2 * c, at(g, columns[i] + c), true);
      else
        for (let r = 0; r < rows; r++)
          for (let p = 0; p < pair; p++) {
            const v = i + p < columns.length ? at(g * rows + r, columns[i + p]) : 0;
            if (type === "int8") view.setInt16(weights + 4 * r + 2 * p, v, true);
            else view.setFloat32(weights + 4 * r, v, true);
          }
    }
  });
  starts[groups] = to;
  const multiplied = found.reduce((sum, columns) => sum + rows * width * columns.length, 0);
  return { block, groups, starts, bytes, kept, multiplied };
}

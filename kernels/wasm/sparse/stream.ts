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

/** The columns of every group of rows, and how many weights that is. */
interface Blocks {
  readonly columns: readonly number[][];
  readonly weights: number;
}

function blocksOf(matrix: Matrix, rows: number, width: number): Blocks {
  const columns = Array.from({ length: Math.ceil(matrix.n / rows) }, (_, g) => columnsOf(matrix, g * rows, rows, width));
  return { columns, weights: columns.reduce((sum, own) => sum + rows * width * own.length, 0) };
}

/** The stream of a matrix [n, k]: in blocks of four rows, of int8 of four columns, where it has such or nearly. */
export function sparseStream(values: Float32Array | Int8Array, n: number, k: number): SparseStream {
  const type: SparseSpec["type"] = values instanceof Int8Array ? "int8" : "float32";
  const matrix = { values, n, k };
  let block: SparseBlock = "1x1";
  let blocks = blocksOf(matrix, 1, 1);
  const kept = blocks.weights;
  for (const [name, rows, width] of [["4x1", 4, 1], ["1x4", 1, 4]] as const) {
    if (block !== "1x1" || (name === "1x4" && type !== "int8")) continue;
    const found = blocksOf(matrix, rows, width);
    if (found.weights <= BLOCK_COST[name] * kept) [block, blocks] = [name, found];
  } // prettier-ignore
  const rows = blockRows(block);
  const spec = { type, block } as const;
  const column = sparseTile(spec) * sparseElement(type);
  const step = sparseStep(spec);
  /** Blocks of a step: of int8 two columns are multiplied at once. */
  const pair = type === "int8" && block !== "1x4" ? 2 : 1;
  const groups = Math.ceil(n / rows);
  const bytes = new Uint8Array(step * blocks.columns.reduce((sum, columns) => sum + Math.ceil(columns.length / pair), 0));
  const view = new DataView(bytes.buffer);
  const starts = new Uint32Array(groups + 1);
  const at = (row: number, c: number): number => (row < n && c < k ? values[row * k + c] : 0);
  let to = 0;
  blocks.columns.forEach((columns, g) => {
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
  return { block, groups, starts, bytes, kept, multiplied: blocks.weights };
}

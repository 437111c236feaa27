// The stream of a sparse weight (sparse.ts): which columns rows keep, and in which groups.
import { blockRows, sparseElement, sparseHeader, sparseStep, sparseTile, stepBlocks, type SparseBlock, type SparseSpec } from "./sparse.ts";

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
export interface Matrix {
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
export function sparseStream(matrix: Matrix, type: SparseSpec["type"]): SparseStream {
  const { values, n, k } = matrix;
  let block: SparseBlock = "1x1";
  let blocks = blocksOf(matrix, 1, 1);
  const kept = blocks.weights;
  for (const [name, rows, width] of [["4x1", 4, 1], ["1x4", 1, 4]] as const) {
    if (block !== "1x1" || (name === "1x4" && type === "float32")) continue;
    const found = blocksOf(matrix, rows, width);
    if (found.weights <= BLOCK_COST[name] * kept) [block, blocks] = [name, found];
  } // prettier-ignore
  const rows = blockRows(block);
  const spec = { type, block } as const;
  const column = sparseTile(spec) * sparseElement(type);
  const [step, header, per] = [sparseStep(spec), sparseHeader(spec), stepBlocks(spec)];
  /** Columns of a block, and of a step; bytes of a weight. */
  const width = block === "1x4" ? 4 : 1;
  const columnsOfStep = width * per;
  const size = sparseElement(type);
  /** By how much activations are greater than they are. */
  const offset = type === "bytes-u" ? 128 : 0;
  const groups = Math.ceil(n / rows);
  const steps = blocks.columns.reduce((sum, columns) => sum + Math.ceil(columns.length / per), 0);
  const bytes = new Uint8Array(groups * header + step * steps);
  const view = new DataView(bytes.buffer);
  const starts = new Uint32Array(groups + 1);
  const at = (row: number, c: number): number => (row < n && c < k ? values[row * k + c] : 0);
  const put = (to: number, v: number): void => {
    if (type === "float32") view.setFloat32(to, v, true);
    else if (type === "words") view.setInt16(to, v, true);
    else view.setInt8(to, v);
  };
  let to = 0;
  blocks.columns.forEach((columns, g) => {
    starts[g] = to;
    const first = to;
    to += header;
    for (let i = 0; i < columns.length; i += per, to += step) {
      for (let p = 0; p < per; p++) view.setUint32(to + 4 * p, (columns[i + p] ?? columns[i]) * column, true);
      for (let r = 0; r < rows; r++)
        for (let p = 0; p < columnsOfStep; p++) {
          const own = i + Math.floor(p / width);
          const v = own < columns.length ? at(g * rows + r, columns[own] + (p % width)) : 0;
          put(to + 4 * per + size * (r * columnsOfStep + p), v);
          if (header > 0) view.setInt32(first + 4 * r, view.getInt32(first + 4 * r, true) - offset * v, true);
        }
    }
  });
  starts[groups] = to;
  return { block, groups, starts, bytes, kept, multiplied: blocks.weights };
}

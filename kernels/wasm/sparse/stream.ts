// The stream of a sparse weight (sparse.ts): which columns rows keep, and in which groups.
import { sparseElement, sparseStep, sparseTile, type SparseSpec } from "./sparse.ts";

export interface SparseStream {
  readonly rows: 1 | 4;
  readonly groups: number;
  readonly starts: Uint32Array;
  readonly bytes: Uint8Array;
  /** Weights that are not zero, and those that are multiplied. */
  readonly kept: number;
  readonly multiplied: number;
}

/** Blocks of four rows pay where they multiply at most so many weights for one that is not zero. */
const BLOCK_COST = 1.5;

/** The stream of a matrix [n, k]: in blocks of four rows where these keep the same columns, or nearly. */
export function sparseStream(values: Float32Array | Int8Array, n: number, k: number): SparseStream {
  const type: SparseSpec["type"] = values instanceof Int8Array ? "int8" : "float32";
  let [kept, shared] = [0, 0];
  for (let r = 0; r < n; r += 4)
    for (let j = 0; j < k; j++) {
      let own = 0;
      for (let i = r; i < Math.min(r + 4, n); i++) if (values[i * k + j] !== 0) own++;
      kept += own;
      if (own > 0) shared++;
    }
  const rows = 4 * shared <= BLOCK_COST * kept ? 4 : 1;
  const spec = { type, rows } as const;
  const column = sparseTile(spec) * sparseElement(type);
  const step = sparseStep(spec);
  const groups = Math.ceil(n / rows);
  const pair = type === "int8" ? 2 : 1;
  const most = (rows === 4 ? shared : kept) + (pair - 1) * groups;
  const bytes = new Uint8Array(step * Math.ceil(most / pair) + step * groups);
  const view = new DataView(bytes.buffer);
  const starts = new Uint32Array(groups + 1);
  let to = 0;
  let multiplied = 0;
  for (let g = 0; g < groups; g++) {
    starts[g] = to;
    const columns: number[] = [];
    for (let j = 0; j < k; j++) {
      let any = false;
      for (let i = 0; i < rows && g * rows + i < n; i++) any ||= values[(g * rows + i) * k + j] !== 0;
      if (any) columns.push(j);
    }
    multiplied += rows * columns.length;
    for (let i = 0; i < columns.length; i += pair) {
      for (let p = 0; p < pair; p++) view.setUint32(to + 4 * p, (columns[i + p] ?? columns[i]) * column, true);
      for (let r = 0; r < rows; r++)
        for (let p = 0; p < pair; p++) {
          const v = i + p < columns.length && g * rows + r < n ? values[(g * rows + r) * k + columns[i + p]] : 0;
          if (type === "int8") view.setInt16(to + 8 + 4 * r + 2 * p, v, true);
          else view.setFloat32(to + 4 + 4 * r, v, true);
        }
      to += step;
    }
  }
  starts[groups] = to;
  return { rows, groups, starts, bytes: bytes.slice(0, to), kept, multiplied };
}

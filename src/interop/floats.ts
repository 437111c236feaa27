// A named tensor of a file whose numbers can be read by rows: what converters take, whichever container it came from.

/** Floats of a file, read when asked for. A row is the innermost dimension. */
export interface FloatTensor {
  /** Outermost first. */
  readonly shape: readonly number[];
  /** What the file calls its type: F16, Q4_K. */
  readonly dtype: string;
  /** All values, or those of `count` rows from `row` on. */
  values(row?: number, count?: number): Promise<Float32Array>;
}

/** Rows of a shape, and their length. */
export const rowsOf = (shape: readonly number[]): readonly [rows: number, k: number] => [
  shape.slice(0, -1).reduce((n, d) => n * d, 1),
  shape[shape.length - 1],
];

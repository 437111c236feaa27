// Which weights are pruned: patterns, and masks by a score of each weight. Scores are w^2 for magnitude and w^2 /
// U_jj^2, U the factor of GPTQ, for SparseGPT (Frantar and Alistarh, arXiv 2301.00774); a block's score is the sum of
// its own.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format } from "../../formats/core/types.ts";

/**
 * What is pruned together. `unstructured`: weights one by one. `4x1`, `8x1`, `16x1`: so many rows of a column (rows
 * are the outputs); `1x4`: four columns of a row. `2:4`: two of every four columns of a row, always half.
 */
export type SparsityPattern = "unstructured" | "1x4" | "4x1" | "8x1" | "16x1" | "2:4";

/** Which weights become zero: a pattern and a share. */
export interface Sparsity {
  readonly pattern: SparsityPattern;
  /** Share of weights that become zero, 0 to 1; default 0.5, and nothing else for "2:4". */
  readonly sparsity?: number;
}

/** Rows and columns of a block. */
export const SPARSITY_PATTERNS: ReadonlyMap<SparsityPattern, { readonly rows: number; readonly columns: number }> = new Map([
  ["unstructured", { rows: 1, columns: 1 }],
  ["1x4", { rows: 1, columns: 4 }],
  ["4x1", { rows: 4, columns: 1 }],
  ["8x1", { rows: 8, columns: 1 }],
  ["16x1", { rows: 16, columns: 1 }],
  ["2:4", { rows: 1, columns: 1 }],
]);

/** The pattern and its share, checked. @throws TypeError, RangeError */
export function resolveSparsity(given: Sparsity): Required<Sparsity> {
  const { pattern, sparsity = 0.5 } = given;
  if (!SPARSITY_PATTERNS.has(pattern))
    throw new TypeError(`prune pattern: expected one of ${[...SPARSITY_PATTERNS.keys()].join(", ")}, got ${String(pattern)}.`);
  if (!(sparsity >= 0 && sparsity <= 1)) throw new RangeError(`prune sparsity: expected a share of 0 to 1, got ${String(sparsity)}.`);
  if (pattern === "2:4" && sparsity !== 0.5) throw new RangeError(`prune sparsity: expected 0.5 for the pattern 2:4, got ${sparsity}.`);
  return { pattern, sparsity };
}

/**
 * The code of zero of a format whose pruned weights are that code. @throws LowbitError E_UNSUPPORTED where it has none
 */
export function zeroCode(format: Format): number {
  const element = format.kind === "block" ? format.element : format;
  if (element.kind === "opaque" || (format.kind === "block" && format.offset !== undefined) || !element.limits.hasZero)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `prune: expected a format with a code for zero and no zero points, got ${format.name}. Take a symmetric one: int4_b32, int8_row, float32.`,
    );
  return element.encode(0);
}

/** Columns that a mask is chosen for at once: four of 2:4, all that are given otherwise. */
export const maskWidth = (pattern: SparsityPattern, block: number): number => (pattern === "2:4" ? 4 : block);

/**
 * Chooses what is pruned of columns [from, from + width): 1 in `mask` [width][rows] is pruned. `wt`: columns as rows
 * of `rows` weights; `weight`: a factor for the scores of each column.
 */
export function chooseMask(
  { pattern, sparsity }: Required<Sparsity>,
  wt: Float64Array,
  rows: number,
  { from, width, weight }: { readonly from: number; readonly width: number; readonly weight: (column: number) => number },
  mask: Uint8Array,
): void {
  mask.fill(0, 0, rows * width);
  const score = (c: number, r: number): number => wt[(from + c) * rows + r] ** 2 * weight(from + c);
  if (pattern === "2:4") {
    const order = Array.from({ length: width }, (_, c) => c);
    for (let r = 0; r < rows; r++) {
      order.sort((a, b) => score(a, r) - score(b, r) || a - b);
      for (let i = 0; i < Math.floor(width / 2); i++) mask[order[i] * rows + r] = 1;
    }
    return;
  }
  const block = SPARSITY_PATTERNS.get(pattern)!;
  const [down, across] = [Math.ceil(rows / block.rows), Math.ceil(width / block.columns)];
  const scores = new Float64Array(down * across);
  for (let c = 0; c < width; c++)
    for (let r = 0; r < rows; r++) scores[Math.floor(c / block.columns) * down + Math.floor(r / block.rows)] += score(c, r);
  const order = Uint32Array.from(scores, (_, i) => i).sort((a, b) => scores[a] - scores[b] || a - b);
  const gone = new Uint8Array(scores.length);
  for (let i = 0; i < Math.round(sparsity * scores.length); i++) gone[order[i]] = 1;
  for (let c = 0; c < width; c++)
    for (let r = 0; r < rows; r++) mask[c * rows + r] = gone[Math.floor(c / block.columns) * down + Math.floor(r / block.rows)];
}

// prune: a weight with zeros in a pattern, packed in any symmetric format. By magnitude, or as SparseGPT does: columns
// in order, the error of each carried on to those that follow, in one sweep with the rounding of GPTQ.
import { float32 } from "../../formats/float32.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import { quantize } from "../tensor/quantize/index.ts";
import { tensor, type Tensor } from "../tensor/tensor.ts";
import { gptq, type GptqOptions } from "./gptq.ts";
import { weightMatrix } from "./grid.ts";
import { chooseMask, resolveSparsity, zeroCode, type SparsityPattern } from "./sparsity.ts";

/** How many weights `prune` sets to zero, by which statistics, and what the rest is stored as. */
export interface PruneOptions extends Partial<Omit<GptqOptions, "prune" | "polish" | "actOrder">> {
  /** Share of weights that become zero; default 0.5. */
  readonly sparsity?: number;
  /** What the weights that stay are stored as, and zeros with them; default float32. */
  readonly format?: Format;
}

/**
 * Prunes a weight [n, k]. With `hessian` (the statistics that GPTQ takes) as SparseGPT, in blocks of 128 columns and
 * together with the rounding to `format`; without, by magnitude over the whole matrix, then rounded to nearest.
 * Pruned weights are the format's zero; `recipe.prune` has the pattern.
 * @throws TypeError, RangeError for options, LowbitError E_UNSUPPORTED for formats without a zero or with zero points,
 * and what `gptq` throws
 * @example prune(w, "2:4", { hessian: stats, format: format("int4_b32") })
 */
export function prune(weight: Tensor, pattern: SparsityPattern, options: PruneOptions = {}): PackedTensor {
  const { sparsity, format = float32, hessian, ...rest } = options;
  const chosen = resolveSparsity({ pattern, ...(sparsity === undefined ? {} : { sparsity }) });
  if (hessian !== undefined) return quantize(weight, format, gptq({ ...rest, hessian, prune: chosen }));
  zeroCode(format);
  const { data, rows, k, shape } = weightMatrix(weight, "prune");
  const turned = new Float64Array(rows * k);
  for (let r = 0; r < rows; r++) for (let j = 0; j < k; j++) turned[j * rows + r] = data[r * k + j];
  const mask = new Uint8Array(rows * k);
  const width = pattern === "2:4" ? 4 : k;
  for (let from = 0; from < k; from += width)
    chooseMask(chosen, turned, rows, { from, width: Math.min(width, k - from), weight: () => 1 }, mask.subarray(from * rows));
  const kept = Float32Array.from(data, (v, i) => (mask[(i % k) * rows + Math.floor(i / k)] === 1 ? 0 : v));
  const packed = quantize(tensor(kept, shape), format);
  return { ...packed, recipe: { ...packed.recipe, prune: { ...chosen, by: "magnitude" } } };
}

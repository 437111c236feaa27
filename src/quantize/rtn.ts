// Round to nearest, with an optional search of the scales. Without a search it is `quantize` itself; with one, blocks
// keep the scale of least squared error (or another norm) instead of the scale of their extreme.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, Overflow, PackedTensor, Rounding } from "../../formats/core/types.ts";
import { quantize, type QuantizeOptions } from "../tensor/quantize/index.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { BlockGrid, columnFormat, weightMatrix, type ScaleOptions } from "./grid.ts";
import { resolveSearch, searchSteps, type ScaleSearch } from "./search.ts";
import { checkAborted, runSteps, type RunOptions, type SteppedQuantizer, type Steps } from "./steps.ts";
import { seededRandom } from "./random.ts";

/** Round to nearest: by the format's rule, or with a search for the scales. */
export interface RtnOptions extends ScaleOptions, RunOptions {
  /** Default: scales by the format's rule. */
  readonly search?: ScaleSearch;
  /** Importance of each column along k in the search, e.g. the diagonal of a Hessian. */
  readonly columnWeights?: Float64Array;
  readonly rounding?: Rounding;
  readonly overflow?: Overflow;
  /** Seed of rounding "stochastic"; required by it. */
  readonly seed?: number;
}

/**
 * Round to nearest.
 * @throws RangeError for options out of range; at use, as `quantize`; E_UNSUPPORTED for a search on a format without
 * scales, or together with rounding and overflow modes
 * @example quantize(w, format("int4_b128"), rtn({ search: { method: "mse" } }))
 */
export function rtn(options: RtnOptions = {}): SteppedQuantizer {
  const { search, columnWeights, seed, signal, onProgress, ...rest } = options;
  if (options.rounding === "stochastic" && seed === undefined)
    throw new TypeError(`rtn: expected a seed with rounding "stochastic", got none. Pass seed, so that the result can be repeated.`);
  if (search) resolveSearch(search);
  if (search && (options.rounding || options.overflow))
    throw new TypeError("rtn: expected a search or a rounding mode, got both. A search rounds to nearest.");
  const steps = function* (weight: Tensor, format: Format): Steps<PackedTensor> {
    checkAborted(signal, "rtn");
    if (!search) {
      const core: QuantizeOptions = { ...rest, ...(seed === undefined ? {} : { random: seededRandom(seed) }) };
      const packed = quantize(weight, format, core);
      return seed === undefined ? packed : { ...packed, recipe: { ...packed.recipe, seed } };
    }
    const target = columnFormat(format, "rtn with a search");
    if (target.kind !== "block")
      throw new LowbitError(
        "E_UNSUPPORTED",
        `rtn search: expected a format with scales, got ${format.name}. Leave the search out, or use a scaled form of it.`,
      );
    const w = weightMatrix(weight, "rtn");
    const grid = new BlockGrid(target, w.rows, w.k, rest);
    grid.fill(w.data);
    yield* searchSteps(grid, w.data, 0, w.k, search, columnWeights ?? null);
    const codes = grid.quantizeAll(w.data);
    return grid.pack(codes, w.shape, {
      version: 1,
      algorithm: "rtn",
      ...scaleRecipe(target, rest),
      search: { ...resolveSearch(search), weighted: columnWeights !== undefined },
    });
  };
  return { algorithm: "rtn", steps, quantizeWeight: (weight, format) => runSteps(steps(weight, format), { signal, onProgress }) };
}

/** The rules in force, for recipes. */
export function scaleRecipe(format: Format, options: ScaleOptions): Record<string, unknown> {
  if (format.kind !== "block") return {};
  return { scaleRule: options.scaleRule ?? format.scaleRule, rangeRule: options.rangeRule ?? format.rangeRule };
}

// Round to nearest onto block formats, in two passes over the data: the extremes of every block give the scales of all
// levels, then values become codes with the scales as they are stored.
import { levelValues, packedSizes } from "../../../formats/core/packed.ts";
import { LowbitError } from "../../../formats/core/errors.ts";
import { spanGrid, type SpanGrid } from "../../../formats/core/span.ts";
import type { BlockFormat, PackedTensor } from "../../../formats/core/types.ts";
import type { MatrixView } from "../tensor.ts";
import { encodeElements, type CellParams } from "./encode.ts";
import { keepFinite } from "./finite.ts";
import { divideOuter, outerCell, readLevel, storeLevel, subtractMean, type Stored } from "./levels.ts";
import { nibblesFit, quantizeNibbles } from "./nibbles.ts";
import { cellStats, forRuns, type CellStats } from "./panels.ts";
import { blockPolicy, blockRecipe, type Policy, type QuantizeOptions } from "./policy.ts";
import { scaleRule } from "./scale-rules.ts";
import { affineRule, isSymmetric } from "./scales.ts";

/** A packed tensor and, where the loops that made it summed them, the squares of the weights and of their errors. */
export interface Quantized {
  readonly packed: PackedTensor;
  readonly signal?: number;
  readonly noise?: number;
}

/** Scales and offsets: the bytes to store, and what the encoder divides by. */
interface Levels extends CellParams {
  readonly scales: Uint8Array;
  readonly superScales: Uint8Array | null;
  readonly offsets: Uint8Array | null;
}

/** @throws LowbitError E_VALUE, E_SHAPE, E_UNSUPPORTED */
export function quantizeBlocks(m: MatrixView, shape: number[], format: BlockFormat, options: QuantizeOptions): Quantized {
  const { rows, k, rowBytes, codes: size } = packedSizes(format, shape);
  const policy = blockPolicy(format, options);
  const recipe = blockRecipe(policy);
  const codec = options.backend?.codec;
  if (nibblesFit(m, format, policy)) {
    const fast = quantizeNibbles(m, shape, format, recipe, codec?.nibbles);
    if (fast !== null) return fast; // else a value that is not finite: found and named below
  }
  const grid = spanGrid(format.scales[0].span, m.rows, m.k);
  const stats = cellStats(m, grid, format.nonFinite === "error", codec);
  const levels = ruleLevels(m, grid, format, policy, stats) ?? plainLevels(m, grid, format, policy, stats);
  const codes = new Uint8Array(size);
  encodeElements(m, format, policy, levels, codec, codes);
  keepFinite(m, format, levels, codes);
  const { scales, superScales, offsets } = levels;
  return { packed: { format, shape, rows, k, rowBytes, codes, scales, superScales, offsets, recipe } };
}

/** Levels by a named scale rule; null for "max", which is the plain one. */
function ruleLevels(m: MatrixView, grid: SpanGrid, format: BlockFormat, policy: Policy, stats: CellStats): Levels | null {
  const rule = scaleRule(policy.scaleRule, format);
  if (rule === undefined) return null;
  const [inner, outer] = format.scales;
  const outerGrid = outer && spanGrid(outer.span, m.rows, m.k);
  const chosen = rule({
    format,
    amax: stats.min.map((lo, c) => {
      const a = Math.max(-lo, stats.max[c]);
      return a < Infinity ? a : NaN;
    }),
    outers: outerGrid ? outerGrid.gridRows * outerGrid.gridK : 0,
    outerOf: (c) => outerCell(c, grid, outerGrid!),
    forRuns: (visit) => forRuns(m, grid, visit),
    together: grid.rows === 1 || m.rows === 1,
  });
  const superScales = outerGrid && chosen.outer ? storeLevel(outer, outerGrid, chosen.outer) : null;
  const scales = storeLevel(inner, grid, chosen.inner);
  const scale = productOf(m, grid, format, scales, superScales);
  const { positiveZero } = chosen;
  // NaN: a block so small that the float32 step leaves its range is divided by its scale instead
  const factor = chosen.factor?.map((f) => (Math.abs(f) < Infinity ? f : NaN));
  const divisor = chosen.divisor?.map((d) => (d !== 0 ? d : NaN));
  return { grid, scales, superScales, offsets: null, scale, zeroPoint: new Float64Array(scale.length), factor, divisor, positiveZero };
}

/** Scales and zero points from the extremes of each block alone, then divided among the levels. */
function plainLevels(m: MatrixView, grid: SpanGrid, format: BlockFormat, policy: Policy, stats: CellStats): Levels {
  const [inner, outer] = format.scales;
  const { offset } = format;
  const { wanted, zeroPoint } = blockParams(format, policy, stats);
  // the "gptq" range puts an extreme on a tie: which code it gets must not hang on the rounding of its scale to float32
  const tied = policy.rangeRule === "gptq" && policy.steps === "exact" && !policy.reduceRange && format.element.kind === "int";
  const unrounded = tied && outer === undefined && offset === undefined && inner.format.bits === 32 ? wanted.slice() : null;
  const mean = offset?.role === "mean" ? subtractMean(offset.levels[0], grid, wanted, m) : null;
  const superScales = outer === undefined ? null : divideOuter(inner, outer, grid, wanted, m).bytes;
  const zeros = mean !== null || policy.steps === "reciprocal" || policy.steps.startsWith("nbits");
  let scales = storeLevel(inner, grid, wanted, zeros);
  let scale = productOf(m, grid, format, scales, superScales, mean);
  // near the largest float32 a coarse level may round a scale up beyond it
  while (lowerInfinite(scale, wanted)) {
    scales = storeLevel(inner, grid, wanted, zeros);
    scale = productOf(m, grid, format, scales, superScales, mean);
  }
  const offsets = mean?.bytes ?? (offset === undefined ? null : storeZeroPoints(m, grid, format, policy, zeroPoint));
  const factor = policy.steps === "reciprocal" ? scale.map((s) => (s === 0 ? 0 : Math.fround(1 / s))) : undefined;
  // bitsandbytes tests the sign by x < 0
  return { grid, scales, superScales, offsets, scale: unrounded ?? scale, zeroPoint, factor, positiveZero: factor !== undefined };
}

/** The scale, as a real number, and the zero point of every block. */
function blockParams(format: BlockFormat, policy: Policy, stats: CellStats): { wanted: Float64Array; zeroPoint: Float64Array } {
  const { element, offset, scales } = format;
  // With further levels an all-zero block must not set them: its scale is zero there.
  const several = scales.length > 1 || offset?.role === "mean";
  const params = affineRule({
    element,
    rangeRule: policy.rangeRule,
    zeroPoint: offset?.role === "zeroPoint",
    steps: policy.steps === "exact" || policy.steps === "onnx" ? policy.steps : "nbits",
    reduceRange: policy.reduceRange,
    tiny: scales[0].format.limits.minNormal,
    ...(several ? {} : { leastNormal: scales[0].format.limits.minNormal }),
  });
  const { min, max } = stats;
  const wanted = new Float64Array(min.length);
  const zeroPoint = new Float64Array(min.length);
  for (let c = 0; c < wanted.length; c++) {
    const p = params({ min: min[c], max: max[c] });
    wanted[c] = several && min[c] === 0 && max[c] === 0 ? 0 : p.scale;
    zeroPoint[c] = p.zeroPoint;
  }
  return { wanted, zeroPoint };
}

/**
 * Zero points, one for each scale; or fewer, where the range is symmetric and all are its middle. Those that are stored
 * go into `zeroPoint`.
 */
function storeZeroPoints(m: MatrixView, grid: SpanGrid, format: BlockFormat, policy: Policy, zeroPoint: Float64Array): Uint8Array {
  const [level] = format.offset!.levels;
  const own = spanGrid(level.span, m.rows, m.k);
  if (own.rows === grid.rows && own.k === grid.k) {
    const bytes = storeLevel(level, grid, zeroPoint, true);
    // a format of few bits rounds them
    const stored = levelValues(level, bytes, m.rows, m.k);
    for (let c = 0; c < zeroPoint.length; c++) zeroPoint[c] = Math.round(stored[c]);
    return bytes;
  }
  if (!isSymmetric(policy.rangeRule))
    throw new LowbitError(
      "E_UNSUPPORTED",
      `quantize rangeRule for ${format.name}: expected a symmetric one, as its zero points reach further than its scales, got "${policy.rangeRule}". Use "narrow".`,
    );
  // an all-zero block has none of its own
  const middle = zeroPoint.reduce((a, z) => (z === 0 ? a : z), 0);
  zeroPoint.fill(middle);
  return storeLevel(level, own, new Float64Array(own.gridRows * own.gridK).fill(middle), true);
}

/**
 * The scales of all blocks as stored: levels multiplied, the mean added; in float32, as everywhere
 * (formats/core/packed.ts).
 */
function productOf(
  m: MatrixView,
  grid: SpanGrid,
  format: BlockFormat,
  scales: Uint8Array,
  superScales: Uint8Array | null,
  mean: Stored | null = null,
): Float64Array {
  const [inner, outer] = format.scales;
  const stored = readLevel(inner, scales, grid, m);
  const above = outer === undefined || superScales === null ? null : readLevel(outer, superScales, grid, m);
  const out = new Float64Array(grid.gridRows * grid.gridK);
  for (let c = 0; c < out.length; c++) {
    out[c] = above === null ? stored.of(c) : Math.fround(stored.of(c) * above.of(c));
    if (mean !== null) out[c] = Math.fround(out[c] + mean.of(c));
  }
  return out;
}

/** Lowers the wanted scales of blocks whose stored scale is infinite; were there any? */
function lowerInfinite(scale: Float64Array, wanted: Float64Array): boolean {
  let any = false;
  for (let c = 0; c < scale.length; c++)
    if (Math.abs(scale[c]) === Infinity && Math.abs(wanted[c]) < Infinity) {
      wanted[c] *= 15 / 16;
      any = true;
    }
  return any;
}

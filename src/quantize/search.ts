// Scale search: per block, the scale (and zero point) with the smallest error sum |x - q(x)|^norm, optionally weighted
// per column, evaluated with the scale as it is stored. Source: GPTQ's `mse` option (grid 100, maxshrink 0.8, norm
// 2.4); the candidates of coarse scale formats (E8M0, E4M3) are their neighbouring codes. Never worse than the starting
// scale on its own objective.
import type { NumberFormat } from "../../formats/core/types.ts";
import { affineRule, isSymmetric } from "../tensor/quantize/scales.ts";
import type { BlockGrid } from "./grid.ts";
import { runSteps, type Steps } from "./steps.ts";

/** Scales below amax are tried, and the one of least error is kept. */
export interface ScaleSearch {
  readonly method: "mse";
  /** Exponent of the error; default 2 (mean squared error). GPTQ's code uses 2.4. */
  readonly norm?: number;
  /** Steps between factor 1 and 1 - maxShrink; default 80 steps of 1 %. */
  readonly grid?: number;
  /** Default 0.8. */
  readonly maxShrink?: number;
  /** Largest factor tried, for scale formats too coarse for steps of 1 %; default 2. */
  readonly maxGrow?: number;
}

/** Defaults filled in; what a recipe records. */
export function resolveSearch(search: ScaleSearch): Required<ScaleSearch> {
  const s = { norm: 2, grid: 80, maxShrink: 0.8, maxGrow: 2, ...search };
  const bad = (what: string, expected: string, got: unknown) => new RangeError(`search ${what}: expected ${expected}, got ${String(got)}.`);
  if (search.method !== "mse") throw bad("method", `"mse"`, search.method);
  if (!(s.norm > 0 && s.norm <= 8)) throw bad("norm", "a number in (0, 8]", s.norm);
  if (!(Number.isInteger(s.grid) && s.grid >= 1 && s.grid <= 10_000)) throw bad("grid", "an integer in 1..10000", s.grid);
  if (!(s.maxShrink > 0 && s.maxShrink < 1)) throw bad("maxShrink", "a number in (0, 1)", s.maxShrink);
  if (!(s.maxGrow >= 1 && s.maxGrow <= 16)) throw bad("maxGrow", "a number in [1, 16]", s.maxGrow);
  return s;
}

/** Distance of t to the nearest value of a scalar format. */
function nearest(format: NumberFormat): (t: number) => number {
  const { order } = format;
  if (order === null) return (t) => format.decode(format.encode(t, { overflow: "saturate" }));
  const { values, boundaries } = order;
  return (t) => {
    let lo = 0;
    let hi = values.length - 1;
    while (lo < hi) {
      const mid = (lo + hi) >> 1;
      if (t > boundaries[mid]) lo = mid + 1;
      else hi = mid;
    }
    return values[lo];
  };
}

/** Error of a list of values under one scale and zero point; not to its end once it is `enough` to be worse. */
function errorOf(
  grid: BlockGrid,
  norm: number,
): (x: Float64Array, n: number, weights: Float64Array | null, s: number, z: number, enough: number) => number {
  const { qmin, qmax, integer } = grid;
  const MAGIC = 6755399441055744;
  const round = nearest(grid.element);
  const whole = (t: number, z: number) => {
    if (z !== Math.floor(z)) return Math.min(qmax, Math.max(qmin, t + z + MAGIC - MAGIC)) - z;
    const c = t > qmax - z ? qmax - z : t < qmin - z ? qmin - z : t;
    return c + MAGIC - MAGIC;
  };
  return (x, n, weights, s, z, enough) => {
    let sum = 0;
    for (let i = 0; i < n && sum < enough; i++) {
      const t = x[i] / s;
      const d = Math.abs(x[i] - (integer ? whole(t, z) : round(t) - z) * s);
      const e = norm === 2 ? d * d : d ** norm;
      sum += weights === null ? e : weights[i] * e;
    }
    return sum;
  };
}

/**
 * Replaces the scales of the cells over columns [from, from + width) by the best of the candidates.
 * @param weights the values, row-major [rows, width]; the column `from` must begin a group
 * @param columnWeights importance of each of the width columns (diagonal of a Hessian), or null
 */
export function searchScales(
  grid: BlockGrid,
  weights: Float64Array,
  from: number,
  width: number,
  search: ScaleSearch,
  columnWeights: Float64Array | null = null,
): void {
  runSteps(searchSteps(grid, weights, from, width, search, columnWeights));
}

/** Scales of so few bits are tried code by code. */
const COARSE_BITS = 8;

/** Codes of positive finite values, ascending. */
function positiveCodes(format: NumberFormat): number[] {
  const codes = Array.from({ length: 2 ** format.bits }, (_, code) => code).filter((code) => {
    const value = format.decode(code);
    return value > 0 && value < Infinity;
  });
  return codes.sort((a, b) => format.decode(a) - format.decode(b));
}

/** Cells between two pauses. */
const PAUSE = 4096;

/** The same with pauses. */
export function* searchSteps(
  grid: BlockGrid,
  weights: Float64Array,
  from: number,
  width: number,
  search: ScaleSearch,
  columnWeights: Float64Array | null = null,
  layer?: string,
): Steps<void> {
  const { block, cells, rows, element } = grid;
  if (block === null) return;
  const { norm, grid: steps, maxShrink, maxGrow } = resolveSearch(search);
  const inner = block.scales[0].format;
  const hasZero = block.offset?.role === "zeroPoint";
  // a range that lies around its zero point stays there
  const movesZero = hasZero && !isSymmetric(grid.options.rangeRule ?? block.rangeRule);
  const affine = affineRule({ element, rangeRule: "minmax", zeroPoint: true, steps: "exact" });
  const error = errorOf(grid, norm);
  const ladder = inner.bits <= COARSE_BITS && !hasZero ? positiveCodes(inner) : null;
  const room = Math.min(cells.rows, rows) * Math.min(cells.k, width);
  const x = new Float64Array(room);
  const w = columnWeights ? new Float64Array(room) : null;
  const firstGroup = grid.groupOf(from);
  const groups = Math.ceil(width / cells.k);
  let visited = 0;
  for (let r0 = 0; r0 < cells.gridRows; r0++)
    for (let g = 0; g < groups; g++) {
      if (++visited % PAUSE === 0)
        yield { stage: "search", done: visited, total: cells.gridRows * groups, ...(layer === undefined ? {} : { layer }) };
      const cell = r0 * cells.gridK + firstGroup + g;
      let n = 0;
      let min = 0;
      let max = 0;
      const end = Math.min(width, (g + 1) * cells.k);
      for (let row = r0 * cells.rows; row < Math.min(rows, (r0 + 1) * cells.rows); row++)
        for (let j = g * cells.k; j < end; j++) {
          const v = weights[row * width + j];
          if (w) w[n] = columnWeights![j];
          x[n++] = v;
          if (v < min) min = v;
          if (v > max) max = v;
        }
      if (min === 0 && max === 0) continue;
      const start = grid.stored[cell];
      let bestCode = grid.scaleCodes![cell];
      let bestZero = grid.zero[cell];
      let best = error(x, n, w, start, bestZero, Infinity);
      const before = bestCode;
      const seen = new Set<number>();
      const tryCode = (code: number, zero: number) => {
        const key = hasZero ? code * 65536 + zero : code;
        if (seen.has(key)) return;
        seen.add(key);
        const s = grid.scaleOf(cell, code);
        if (!grid.holds(s, zero)) return;
        const e = error(x, n, w, s, zero, best);
        if (e < best) [best, bestCode, bestZero] = [e, code, zero];
      };
      const tryScale = (real: number, zero: number) => tryCode(grid.codeOf(cell, real), zero);
      if (ladder !== null && grid.mean[cell] === 0) {
        // Every code in reach, downwards first, then upwards.
        const at = ladder.indexOf(before);
        const [least, most] = [start * (1 - maxShrink), start * maxGrow];
        for (let i = at; at >= 0 && i >= 0 && grid.scaleOf(cell, ladder[i]) >= least; i--) tryCode(ladder[i], 0);
        for (let i = at; at >= 0 && i < ladder.length && grid.scaleOf(cell, ladder[i]) <= most; i++) tryCode(ladder[i], 0);
        if (bestCode !== before) grid.setScaleCode(cell, bestCode);
        continue;
      }
      for (let i = 0; i <= steps; i++) {
        const p = 1 - (maxShrink * i) / steps;
        if (movesZero) {
          const a = affine({ min: min * p, max: max * p });
          tryScale(a.scale, a.zeroPoint);
        } else tryScale(start * p, grid.zero[cell]);
      }
      // A coarse scale format may have rounded down: its codes above are tried as well. Fine formats gain nothing above
      // 1.
      if (inner.bits <= COARSE_BITS && !hasZero) for (let p = 1; p <= maxGrow; p *= 1.03125) tryScale(start * p, 0);
      if (inner.bits <= COARSE_BITS && !hasZero) tryScale(start * maxGrow, 0);
      if (bestCode !== before || bestZero !== grid.zero[cell]) {
        if (hasZero) grid.setZero(cell, bestZero);
        grid.setScaleCode(cell, bestCode);
      }
    }
}

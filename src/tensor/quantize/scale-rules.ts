// Scale rules by name: from the largest magnitudes of the blocks (and, for searches, their data) to the scales that are
// stored. Power-of-two rules of microscaling (OCP MX v1.0 6.3, torchao, TransformerEngine, "INT v.s. FP"), two-level
// rules of NVFP4 (torchao, TransformerEngine, ModelOpt), searches for the least squared error. Exponents are read from
// the bits of a double, never from a logarithm. docs/numerics.md compares the rules.
import { decodeArray, encodeArray } from "../../../formats/core/bulk.ts";
import { LowbitError } from "../../../formats/core/errors.ts";
import { exponentOf } from "../../../formats/core/round.ts";
import type { BlockFormat, NumberFormat, ScaleLevel, ScaleRule } from "../../../formats/core/types.ts";
import type { TensorData } from "../tensor.ts";

/** What a rule may look at. Cells are the entries of the innermost scale level. */
export interface RuleInput {
  readonly format: BlockFormat;
  /** Largest magnitude of each cell; NaN for a cell with values that are not finite. */
  readonly amax: Float64Array;
  /** Entries of the second level, and the one that a cell belongs to. */
  readonly outers: number;
  readonly outerOf: (cell: number) => number;
  /** Walks over the data: runs of values that lie in one cell; all runs of a cell follow each other if `together`. */
  readonly forRuns: (visit: (values: TensorData, start: number, end: number, cell: number) => void) => void;
  readonly together: boolean;
}

export interface RuleOutput {
  /** To be encoded in the inner scale format. */
  readonly inner: Float64Array;
  readonly outer?: Float64Array;
  /** Elements are float32(x * factor) before rounding; without, x / scale in binary64. */
  readonly factor?: Float64Array;
  /** Elements are float32(x / divisor). */
  readonly divisor?: Float64Array;
  /** -0 becomes +0 before rounding. */
  readonly positiveZero?: boolean;
}

const f32 = Math.fround;
const FLT_MAX = 3.4028234663852886e38; // (2 - 2^-23) * 2^127

/** What the largest magnitude of a block is scaled to. */
const topOf = (element: NumberFormat): number => element.scaleTo ?? element.limits.max;

/** Smallest power of two >= v, exactly. */
const powerAbove = (v: number): number => {
  const p = 2 ** exponentOf(v);
  return p < v ? 2 * p : p;
};

/** Mantissa bits of the largest numbers of a format: 1 for E2M1, 3 for E4M3, 6 for eight-bit integers. */
function topMantissaBits(element: NumberFormat): number {
  const values = element.order?.values;
  if (values === undefined) return 23;
  const [next, max] = values.subarray(-2);
  return exponentOf(max) - exponentOf(max - next);
}

type PowerRule = (amax: number, element: NumberFormat) => number;

const floor: PowerRule = (amax, element) => 2 ** (exponentOf(amax) - exponentOf(topOf(element)));

/** Scales of one level, each from the largest magnitude of its block alone. */
const powerRules: Readonly<Record<string, PowerRule>> = {
  // OCP: largest power of two in the data over the largest one of the element; the largest magnitudes may saturate.
  floor,
  // torchao CEIL: the next power of two above amax instead.
  ceil: (amax, element) => powerAbove(amax) / 2 ** exponentOf(topOf(element)),
  // NVIDIA, "INT v.s. FP" eq. 9: the smallest power of two at which nothing saturates; exact where float32 amax * (1 /
  // max) is off by an ulp.
  rceil: (amax, element) => {
    const p = 2 ** (exponentOf(amax) - exponentOf(topOf(element)));
    return p * topOf(element) < amax ? 2 * p : p;
  },
  // The power of two nearest to amax / max in its logarithm: the boundary is sqrt(2), found by squaring.
  nearest: (amax, element) => {
    const ratio = amax / topOf(element);
    const p = 2 ** exponentOf(ratio);
    return (ratio / p) ** 2 < 2 ? p : 2 * p;
  },
  // torchao EVEN: amax rounded to the mantissa of the element (halves up), then floor.
  even: (amax, element) => {
    const e = exponentOf(amax);
    const bump = amax / 2 ** e >= 2 - 2 ** -(topMantissaBits(element) + 1);
    return 2 ** (e + (bump ? 1 : 0) - exponentOf(topOf(element)));
  },
};

/** Nearest number of the scale format; tiny values become its smallest, zero stays zero where it has one. */
function storedIn(level: ScaleLevel): (v: number) => number {
  const { format } = level;
  return (v) => format.decode(format.encode(v, { overflow: "saturate" }));
}

/** The same for many. */
function storedAll({ format }: ScaleLevel, values: Float64Array): Float64Array {
  return decodeArray(format, encodeArray(format, values, undefined, { overflow: "saturate" }), new Float64Array(values.length));
}

/** The largest magnitude in the reach of every scale of the second level. */
function topsOf(input: RuleInput): Float64Array {
  const top = new Float64Array(input.outers);
  for (let c = 0; c < input.amax.length; c++) {
    const o = input.outerOf(c);
    top[o] = Math.max(top[o], input.amax[c]);
  }
  return top;
}

/** Scales of the second level: top / target as the format stores it, 1 where a whole reach is zero. */
function outerScales(input: RuleInput, target: number): Float64Array {
  const level = input.format.scales[1];
  const stored = storedIn(level);
  const smallest = level.format.limits.minPositive;
  return topsOf(input).map((t) => (t === 0 ? 1 : Math.max(stored(t / target), smallest)));
}

type Rule = (input: RuleInput) => RuleOutput;

/**
 * torchao nvfp4_quantize in its float32 steps: block scales clamped below at the smallest normal number of their
 * format.
 */
const torchao: Rule = (input) => {
  const { amax, outerOf, format } = input;
  const [level] = format.scales;
  const { max, minNormal } = level.format.limits;
  const most = topOf(format.element);
  const outer = outerScales(input, max * most);
  const inner = storedAll(
    level,
    amax.map((a, c) => Math.min(Math.max(f32(f32(a / most) / outer[outerOf(c)]), minNormal), max)),
  );
  return { inner, outer, factor: inner.map((s, c) => f32(f32(1 / outer[outerOf(c)]) / s)) };
};

/**
 * TransformerEngine's reference in its float32 steps: no lower clamp, so that block scales may be subnormal or zero; -0
 * becomes +0.
 */
const te: Rule = (input) => {
  const { amax, outerOf, format } = input;
  const [level] = format.scales;
  const { max } = level.format.limits;
  const most = topOf(format.element);
  const encode = topsOf(input).map((t) => (t === 0 ? 1 : Math.min(f32((max * most) / t), FLT_MAX)));
  const outer = encode.map((e) => f32(1 / e));
  const inner = storedAll(
    level,
    amax.map((a, c) => Math.min(f32(f32(a / most) * encode[outerOf(c)]), max)),
  );
  return {
    inner,
    outer,
    factor: inner.map((s, c) => Math.min(f32(1 / f32(s * outer[outerOf(c)])), FLT_MAX)),
    positiveZero: true,
  };
};

/**
 * ModelOpt in its float32 steps: block scales from the smallest subnormal number on, 1 for an all-zero block; true
 * division; -0 becomes +0.
 */
const modelopt: Rule = (input) => {
  const { amax, outerOf, format } = input;
  const [level] = format.scales;
  const { max, minPositive } = level.format.limits;
  const most = topOf(format.element);
  const outer = outerScales(input, max * most);
  const inner = storedAll(
    level,
    amax.map((a, c) => (a === 0 ? 1 : Math.min(Math.max(f32(a / f32(most * outer[outerOf(c)])), minPositive), max))),
  );
  return { inner, outer, divisor: inner.map((s, c) => f32(s * outer[outerOf(c)])), positiveZero: true };
};

/**
 * MR-GPTQ / Quartet: scale (4/3) 2^(floor(log2 amax) - 2) for E2M1, in general 2^(floor(log2 amax) + 1) / max, which
 * uses the upper half of the element range and never saturates. The constant 2 / max is the second level, as in their
 * files.
 */
const fourThirds: Rule = ({ amax, outers, format }) => {
  const [level, second] = format.scales;
  const constant = storedIn(second)(2 / topOf(format.element));
  const least = level.format.limits.minPositive;
  return {
    inner: amax.map((a) => (a > 0 ? Math.max(2 ** exponentOf(a), least) : a === 0 ? least : NaN)),
    outer: new Float64Array(outers).fill(constant),
  };
};

/** Squared error of values[start..end) on the grid of a format times a scale; stops above `limit`. */
function gridError(values: TensorData, start: number, end: number, { grid, boundaries, unit }: Grid, scale: number, limit: number): number {
  let error = 0;
  if (unit > 0) {
    const step = unit * scale;
    const lo = grid[0] / unit;
    const hi = grid[grid.length - 1] / unit;
    for (let i = start; i < end && error <= limit; i++) {
      const t = values[i] / step;
      const q = t <= lo ? lo : t >= hi ? hi : Math.floor(t + 0.5);
      const d = q * step - values[i];
      error += d * d;
    }
    return error;
  }
  for (let i = start; i < end && error <= limit; i++) {
    const t = values[i] / scale;
    let lo = 0;
    let hi = boundaries.length;
    while (lo < hi) {
      const mid = (lo + hi) >> 1;
      if (boundaries[mid] < t) lo = mid + 1;
      else hi = mid;
    }
    const d = grid[lo] * scale - values[i];
    error += d * d;
  }
  return error;
}

/**
 * Values that elements take, ascending, with their boundaries; `unit` where they are all multiples of it without a gap,
 * else 0.
 */
interface Grid {
  readonly grid: Float64Array;
  readonly boundaries: Float64Array;
  readonly unit: number;
}

function elementGrid({ element, rangeRule }: BlockFormat): Grid {
  const { values, boundaries } = element.order!;
  const from = rangeRule === "narrow" && element.kind === "int" ? values.findIndex((v) => v >= -element.limits.max) : 0;
  const grid = values.subarray(from);
  const unit = (grid[grid.length - 1] - grid[0]) / (grid.length - 1);
  const even = grid.every((v) => Number.isInteger(v / unit)) && grid.every((v, i) => v === grid[0] + i * unit);
  return { grid, boundaries: boundaries.subarray(from), unit: even ? unit : 0 };
}

/** For each cell the candidate (a stored scale) with the least squared error; of equals the first. */
function search(input: RuleInput, outer: Float64Array | undefined, candidatesOf: (cell: number) => ArrayLike<number>): Float64Array {
  const { amax, outerOf, forRuns, together, format } = input;
  const grid = elementGrid(format);
  const inner = new Float64Array(amax.length);
  const sums = new Map<number, Float64Array>();
  const settle = (cell: number, candidates: ArrayLike<number>, errors: Float64Array) => {
    let best = 0;
    for (let i = 1; i < errors.length; i++) if (errors[i] < errors[best]) best = i;
    inner[cell] = candidates[best];
  };
  forRuns((values, start, end, cell) => {
    const candidates = candidatesOf(cell);
    const o = outer ? outer[outerOf(cell)] : 1;
    const errors = sums.get(cell) ?? new Float64Array(candidates.length);
    // A run that is a whole cell may stop as soon as a candidate is worse than an earlier one.
    let limit = Infinity;
    for (let i = 0; i < candidates.length && candidates.length > 1; i++) {
      errors[i] += gridError(values, start, end, grid, candidates[i] * o, limit);
      if (together) limit = Math.min(limit, errors[i]);
    }
    if (together) settle(cell, candidates, errors);
    else sums.set(cell, errors);
  });
  for (const [cell, errors] of sums) settle(cell, candidatesOf(cell), errors);
  return inner;
}

/** Index of the first value >= v in ascending values. */
function firstAtLeast(values: Float64Array, v: number): number {
  let lo = 0;
  let hi = values.length;
  while (lo < hi) {
    const mid = (lo + hi) >> 1;
    if (values[mid] < v) lo = mid + 1;
    else hi = mid;
  }
  return lo;
}

/**
 * Factors of a search where the scale format is too fine to be enumerated: 1.00 down to 0.208, as FP-Quant's observer;
 * the sweep starts at 1.5.
 */
const SHRINK = Array.from({ length: 100 }, (_, i) => 1 - (i * 0.8) / 100);
const SWEEP = Array.from({ length: 163 }, (_, i) => 1.5 - (i * 0.8) / 100);

/**
 * Least squared error over the numbers of the scale format from half of amax / max to `reach` times it, and the first
 * one that does not saturate; or over factors of amax / max. A reach of 1.2 is what published figures of "MSE scale
 * search" come from; 2 finds more (ModelOpt sweeps all numbers).
 */
const leastError =
  (reach: number, factors: readonly number[]): Rule =>
  (input) => {
    const { amax, format, outerOf } = input;
    const [level, second] = format.scales;
    const { limits, order } = level.format;
    const { grid } = elementGrid(format);
    const most = format.element.scaleTo ?? Math.max(grid[grid.length - 1], -grid[0]);
    const outer = second ? outerScales(input, limits.max * most) : undefined;
    const stored = storedIn(level);
    const known = order && order.values.length <= 256 ? order.values.filter((v) => v > 0) : undefined;
    const inner = search(input, outer, (cell) => {
      const wanted = amax[cell] / most / (outer ? outer[outerOf(cell)] : 1);
      if (Number.isNaN(wanted)) return [NaN];
      if (wanted === 0) return [limits.minNormal];
      let near: ArrayLike<number>;
      if (known) {
        let end = firstAtLeast(known, wanted) + 1;
        while (end < known.length && known[end] <= wanted * reach) end++;
        near = known.subarray(firstAtLeast(known, wanted / 2), end);
      } else near = factors.map((f) => stored(wanted * f)).filter((v) => v !== 0);
      return near.length > 0 ? near : [Math.max(stored(wanted), limits.minPositive)];
    });
    return { inner, outer };
  };

/**
 * Four over six (TransformerEngine): the largest magnitude of a block goes to 6 or to 4 (a scale half as large again),
 * whichever has the smaller squared error; 6 of equals. The tensor scale aims at 256, not 448, so that the larger scale
 * fits.
 */
const fourOverSix: Rule = (input) => {
  const { amax, format, outerOf } = input;
  const [level] = format.scales;
  const { max, minNormal } = level.format.limits;
  const most = topOf(format.element);
  const outer = outerScales(input, 2 ** exponentOf(max) * most);
  const stored = storedIn(level);
  const clamp = (v: number) => stored(Math.min(Math.max(v, minNormal), max));
  const inner = search(input, outer, (cell) => {
    const wanted = amax[cell] / most / outer[outerOf(cell)];
    return [clamp(wanted), clamp(1.5 * wanted)];
  });
  return { inner, outer };
};

/**
 * MSE-optimal clip of QuEST for four bits: the scale from the standard deviation of the block, 2^floor(log2(2.92247856
 * / 6 * sigma)).
 */
const quest: Rule = (input) => {
  const { amax, format, forRuns } = input;
  const { limits } = format.scales[0].format;
  const n = new Float64Array(amax.length);
  const sum = new Float64Array(amax.length);
  const squares = new Float64Array(amax.length);
  forRuns((values, start, end, cell) => {
    for (let i = start; i < end; i++) {
      n[cell]++;
      sum[cell] += values[i];
      squares[cell] += values[i] * values[i];
    }
  });
  const inner = amax.map((a, c) => {
    if (Number.isNaN(a)) return a;
    const sigma = Math.sqrt(Math.max(0, squares[c] / n[c] - (sum[c] / n[c]) ** 2));
    return Math.max(2 ** exponentOf((2.92247856 / topOf(format.element)) * sigma + 1e-8), limits.minPositive);
  });
  return { inner };
};

const searches: Readonly<Record<string, Rule>> = { mse: leastError(1.2, SHRINK), mseSweep: leastError(2, SWEEP) };

const oneLevel: Readonly<Record<string, Rule>> = {
  ...Object.fromEntries(
    Object.entries(powerRules).map(([name, rule]): [string, Rule] => [
      name,
      ({ amax, format }) => {
        const least = format.scales[0].format.limits.minPositive;
        return { inner: amax.map((a) => (a > 0 ? Math.max(rule(a, format.element), least) : a === 0 ? least : NaN)) };
      },
    ]),
  ),
  ...searches,
  quest,
};
const twoLevels: Readonly<Record<string, Rule>> = { torchao, te, modelopt, fourOverSix, fourThirds, ...searches };

/**
 * The rule of a name for a format, or undefined for "max", which needs no rule of its own
 * (src/tensor/quantize/scales.ts).
 * @throws LowbitError E_UNSUPPORTED where the rule does not suit the scale levels of the format
 */
export function scaleRule(name: ScaleRule, format: BlockFormat): Rule | undefined {
  if (name === "max") return undefined;
  const rules = format.scales.length === 1 ? oneLevel : twoLevels;
  if (!Object.hasOwn(rules, name) || format.offset || format.element.order === null)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `quantize scaleRule for ${format.name}: expected ${format.offset ? `"max"` : ["max", ...Object.keys(rules)].join(", ")}, got "${name}". Leave it out for the format's own.`,
    );
  return rules[name];
}

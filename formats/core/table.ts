// The value table of a format of at most 16 bits, and everything that is derived from it: order, limits, lattice, and
// scalar encoding. The table is the truth: faster encoders (bulk.ts, the rule of define/float) must agree with it for
// every code and every boundary.
import { LowbitError } from "./errors.ts";
import type { Access, EncodeDefaults, EncodeOptions, Limits, NanPolicy, Overflow, Rounding, ValueOrder } from "./types.ts";

/** What a definer says beyond the values by code. */
export interface TableSource {
  readonly name: string;
  readonly bits: number;
  /** Exact value by code; NaN and infinities included. */
  readonly table: Float64Array;
  readonly defaults: EncodeDefaults;
  /** Codes that encoding never produces (narrow range); they still decode. */
  readonly unused?: readonly number[];
  /**
   * Decision boundary between two neighbouring values; default the arithmetic midpoint. Posits and codebooks have their
   * own.
   */
  readonly boundary?: (lower: number, upper: number, lowerCode: number, upperCode: number) => number;
  /**
   * The next value beyond max and below min if the format went on: a value that rounds to it overflows. null: nothing
   * overflows, everything beyond is max (posits, codebooks).
   */
  readonly beyond: { readonly above: number; readonly below: number } | null;
  /** Code of NaN, +infinity and -infinity where there are such. */
  readonly nanCode?: number;
  readonly infCode?: number;
  readonly negativeInfCode?: number;
  readonly negativeZeroCode?: number;
  /** Smallest positive normal number, where the format tells normals from subnormals. */
  readonly minNormal?: number;
}

/** Distinct finite values, ascending, with the code that encoding produces for each and the boundaries between them. */
export function valueOrder(source: TableSource): ValueOrder {
  const { table } = source;
  const unused = new Set(source.unused ?? []);
  const codes: number[] = [];
  for (let c = 0; c < table.length; c++) if (Number.isFinite(table[c]) && !unused.has(c)) codes.push(c);
  // Equal values: +0 before -0, then the lower code; the first of each run is the one that encoding produces.
  const signRank = (c: number) => (Object.is(table[c], -0) ? 1 : 0);
  codes.sort((a, b) => table[a] - table[b] || signRank(a) - signRank(b) || a - b);
  const distinct = codes.filter((c, i) => i === 0 || table[c] !== table[codes[i - 1]]);
  const values = Float64Array.from(distinct, (c) => table[c] + 0);
  const boundary = source.boundary ?? ((lower: number, upper: number) => lower / 2 + upper / 2);
  const boundaries = new Float64Array(Math.max(0, values.length - 1));
  for (let i = 0; i + 1 < values.length; i++) {
    const b = boundary(values[i], values[i + 1], distinct[i], distinct[i + 1]);
    if (!(b >= values[i] && b <= values[i + 1]))
      throw new LowbitError(
        "E_FORMAT",
        `${source.name}: expected the boundary between ${values[i]} and ${values[i + 1]} to lie between them, got ${b}. Correct the thresholds.`,
      );
    boundaries[i] = b;
  }
  return { values, codes: Uint16Array.from(distinct), boundaries };
}

export function tableLimits(source: TableSource, order: ValueOrder): Limits {
  const { values } = order;
  const minPositive = values.find((v) => v > 0) ?? NaN;
  const known = new Set(values);
  return Object.freeze({
    max: values[values.length - 1],
    min: values[0],
    minPositive,
    minNormal: source.minNormal ?? minPositive,
    hasZero: known.has(0),
    hasNegativeZero: source.negativeZeroCode !== undefined,
    hasInf: source.infCode !== undefined,
    hasNaN: source.nanCode !== undefined,
    symmetric: values.every((v) => known.has(-v + 0)),
    finiteValues: values.length,
  });
}

/**
 * A lattice if every finite value is unit * (k + shift) with k in -128..127 and shift in {0, 1/2, 128}; unit is the
 * largest such, else null.
 */
export function latticeOf(values: Float64Array): Extract<Access, { kind: "lattice" }> | null {
  if (values.length < 2) return null;
  const top = Math.max(Math.abs(values[0]), Math.abs(values[values.length - 1]));
  // The unit is the greatest common divisor of all gaps; `%` is exact on doubles, so Euclid's algorithm is too.
  let unit = 0;
  for (let i = 1; i < values.length; i++) {
    let gap = values[i] - values[i - 1];
    while (gap !== 0) [unit, gap] = [gap, unit % gap];
    if (top / unit > 256) return null;
  }
  for (const shift of [0, 0.5, 128]) {
    const fits = values.every((v) => {
      const k = v / unit - shift;
      return Number.isInteger(k) && k >= -128 && k <= 127 && (k + shift) * unit === v;
    });
    if (fits) return Object.freeze({ kind: "lattice", unit, shift });
  }
  return null;
}

/**
 * One of two neighbouring codes for a value x between them, lo <= x < hi with the decision boundary `tie`; -1 and -2
 * stand for results beyond the format. Shared by the table encoder and by rule encoders with boundaries of their own.
 */
export function pickCode(
  name: string,
  x: number,
  lo: number,
  hi: number,
  tie: number,
  loCode: number,
  hiCode: number,
  rounding: Rounding,
  random?: () => number,
): number {
  if (x === lo) return loCode;
  switch (rounding) {
    case "halfEven":
      // Neighbouring codes of a format differ in parity; where they do not (a user's codebook), the lower one wins.
      if (x !== tie) return x > tie ? hiCode : loCode;
      return loCode >= 0 ? (loCode & 1 && !(hiCode >= 0 && hiCode & 1) ? hiCode : loCode) : hiCode & 1 ? loCode : hiCode;
    case "halfExpand":
      return x > tie || (x === tie && x > 0) ? hiCode : loCode;
    case "halfTrunc":
      return x > tie || (x === tie && x < 0) ? hiCode : loCode;
    case "halfCeil":
      return x >= tie ? hiCode : loCode;
    case "halfFloor":
      return x > tie ? hiCode : loCode;
    case "trunc":
      // Without a zero between them nothing lies toward zero: the sign is kept.
      return lo < 0 && hi > 0 ? (x > 0 ? hiCode : loCode) : x > 0 ? loCode : hiCode;
    case "expand":
      return x > 0 ? hiCode : loCode;
    case "ceil":
      return hiCode;
    case "floor":
      return loCode;
    case "stochastic":
      return needRandom(name, random)() < (x - lo) / (hi - lo) ? hiCode : loCode;
  }
}

/** A code, or what a value becomes that has none. */
const ABOVE = -1;
const BELOW = -2;

/** The scalar encoder of a table format: binary search, one rounding, policies. */
export function tableEncoder(source: TableSource, order: ValueOrder): (value: number, options?: EncodeOptions) => number {
  const { values, codes, boundaries } = order;
  const last = values.length - 1;
  const { defaults, beyond } = source;
  const zero = values.indexOf(0);
  const ends: Ends = {
    ...source,
    max: values[last],
    min: values[0],
    maxCode: codes[last],
    minCode: codes[0],
    zeroCode: zero < 0 ? undefined : codes[zero],
  };

  return (value, options) => {
    const rounding = options?.rounding ?? defaults.rounding;
    const overflow = options?.overflow ?? defaults.overflow;
    if (Number.isNaN(value)) return nanCode(ends, options?.nan ?? defaults.nan);
    let code: number;
    if (!Number.isFinite(value)) {
      if ((options?.infinity ?? defaults.infinity) === "keep") {
        const inf = value > 0 ? source.infCode : source.negativeInfCode;
        return inf ?? nanCode(ends, options?.nan ?? defaults.nan, value);
      }
      code = value > 0 ? ABOVE : BELOW;
    } else if (value > values[last]) {
      if (beyond === null || rounding === "trunc" || rounding === "floor") code = codes[last];
      else if (rounding === "ceil" || rounding === "expand" || value >= beyond.above) code = ABOVE;
      else {
        const tie = values[last] / 2 + beyond.above / 2;
        code = pickCode(source.name, value, values[last], beyond.above, tie, codes[last], ABOVE, rounding, options?.random);
      }
    } else if (value < values[0]) {
      // A format without zero and sign (a scale): what is above zero underflows to its smallest value, zero and below
      // is out of range.
      if (values[0] > 0) code = value > 0 ? codes[0] : BELOW;
      else if (beyond === null || rounding === "trunc" || rounding === "ceil") code = codes[0];
      else if (rounding === "floor" || rounding === "expand" || value <= beyond.below) code = BELOW;
      else {
        const tie = values[0] / 2 + beyond.below / 2;
        code = pickCode(source.name, value, beyond.below, values[0], tie, BELOW, codes[0], rounding, options?.random);
      }
    } else {
      let lo = 0;
      let hi = last;
      while (lo < hi) {
        const mid = (lo + hi + 1) >> 1;
        if (values[mid] <= value) lo = mid;
        else hi = mid - 1;
      }
      code =
        values[lo] === value
          ? codes[lo]
          : pickCode(source.name, value, values[lo], values[lo + 1], boundaries[lo], codes[lo], codes[lo + 1], rounding, options?.random);
    }
    if (code < 0) return overflowCode(ends, value, code === ABOVE, overflow);
    // What rounds to zero keeps its sign where the format has a negative zero.
    if (source.negativeZeroCode !== undefined && source.table[code] === 0 && (value < 0 || Object.is(value, -0)))
      return source.negativeZeroCode;
    return code;
  };
}

function needRandom(name: string, random: (() => number) | undefined): () => number {
  if (random === undefined)
    throw new TypeError(
      `${name}: expected options.random with rounding "stochastic", got none. Pass a seeded generator of numbers in [0, 1).`,
    );
  return random;
}

/** The ends of a format, which the policies for NaN and overflow need; tables and rule codecs share them. */
export interface Ends {
  readonly name: string;
  readonly max: number;
  readonly min: number;
  readonly maxCode: number;
  readonly minCode: number;
  readonly zeroCode?: number;
  readonly nanCode?: number;
  readonly infCode?: number;
  readonly negativeInfCode?: number;
  readonly negativeZeroCode?: number;
}

/**
 * The code of NaN under a policy; of an infinity that is kept (`value`) where the format has none.
 * @throws LowbitError E_VALUE (policy error), E_UNSUPPORTED (a policy that the format cannot follow)
 */
export function nanCode(ends: Ends, policy: NanPolicy, value = NaN): number {
  const refuse = (what: string) =>
    new LowbitError(
      "E_UNSUPPORTED",
      `${ends.name}: expected a NaN policy it can follow, got "${policy}" but it has no ${what}. Use { nan: "max" } or { nan: "error" }.`,
    );
  switch (policy) {
    case "nan":
      if (ends.nanCode === undefined) throw refuse("NaN");
      return ends.nanCode;
    case "zero":
    case "negativeZero": {
      const code = policy === "zero" ? ends.zeroCode : (ends.negativeZeroCode ?? ends.zeroCode);
      if (code === undefined) throw refuse("zero");
      return code;
    }
    case "max":
      return ends.maxCode;
    case "error":
      throw new LowbitError(
        "E_VALUE",
        `${ends.name}: expected a number, got ${value}. Clean the data, or choose a policy ({ nan: "zero" }, { infinity: "overflow" }).`,
      );
  }
}

/** The code of a value that rounds beyond the largest (above) or smallest value. @throws LowbitError as nanCode */
export function overflowCode(ends: Ends, value: number, above: boolean, policy: Overflow): number {
  const refuse = (what: string) =>
    new LowbitError(
      "E_UNSUPPORTED",
      `${ends.name}: expected an overflow policy it can follow, got "${policy}" but it has no ${what}. Use "saturate" or "error".`,
    );
  switch (policy) {
    case "saturate":
      return above ? ends.maxCode : ends.minCode;
    case "inf": {
      const inf = above ? ends.infCode : ends.negativeInfCode;
      if (inf === undefined) throw refuse("infinity");
      return inf;
    }
    case "nan":
      if (ends.nanCode === undefined) throw refuse("NaN");
      return ends.nanCode;
    case "wrap":
      throw refuse("modular range");
    case "error":
      throw new LowbitError(
        "E_VALUE",
        `${ends.name}: expected a value in ${ends.min}..${ends.max}, got ${value}. Scale the data, or use { overflow: "saturate" }.`,
      );
  }
}

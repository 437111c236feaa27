// How a format's codes become operands of integer dot products, derived from its values alone: a lattice (all values on
// an even grid) is one plane of small unsigned integers, exactly; any other table of at most 16 values is two planes (a
// 16-bit fixed-point table), or one of 7 bits on request. Values = unit * (sum of radix^p * plane_p(code) - shift).
// Nothing here knows a format's name.

/** Magnitudes that float32 sums of 256 products with ordinary activations leave room for on both sides. */
const WIDE = 2 ** 31;

/** Do values reach so far from 1 that float32 products of them must be scaled one by one, not as a sum? */
export const isWide = (values: ArrayLike<number>): boolean => {
  for (let code = 0; code < values.length; code++) {
    const magnitude = Math.abs(values[code]);
    if (magnitude !== 0 && Number.isFinite(magnitude) && (magnitude > WIDE || magnitude < 1 / WIDE)) return true;
  }
  return false;
};

export interface DotPlane {
  /** Operand for each stored field value (16-entry swizzle table), or null where the field is the operand. */
  readonly table: Uint8Array | null;
  readonly max: number;
}

export interface DotPlan {
  /** Bits of the stored field. */
  readonly bits: number;
  /** Stored field of each code. */
  readonly remap: Uint8Array;
  /** Least significant first. */
  readonly planes: readonly DotPlane[];
  /** Weight of the second plane. */
  readonly radix: number;
  readonly unit: number;
  /** Integer, on the grid of the last plane: value = unit * (plane0 + radix * plane1 - shift * radix^(planes-1)). */
  readonly shift: number;
  /** The grid misses zero by half a step: value = unit * (2 * plane0 - shift). */
  readonly doubled: boolean;
  /**
   * What the grid misses zero by where that is no half step, or too many steps, as a value; 0 for nearly all formats.
   */
  readonly bias: number;
  /** False where 16-bit or 8-bit fixed point stands in for the exact values. */
  readonly exact: boolean;
}

/**
 * Most steps of the grid between a value and zero. A sum of 256 products with 16-bit activations (at most 127 * 257)
 * then fits an int32; a grid further off carries its distance as `bias`.
 */
export const MOST_STEPS = Math.floor(2 ** 31 / (256 * 127 * 257));

/**
 * Greatest u such that all values are integer multiples of u away from the first, or 0 where there is none within 255
 * steps.
 */
function gridUnit(values: readonly number[]): number {
  const sorted = [...new Set(values)].sort((a, b) => a - b);
  const range = sorted[sorted.length - 1] - sorted[0];
  if (!Number.isFinite(range)) return 0;
  if (range === 0) return sorted[0] === 0 ? 1 : Math.abs(sorted[0]);
  let unit = Infinity;
  for (let i = 1; i < sorted.length; i++) unit = Math.min(unit, sorted[i] - sorted[i - 1]);
  // the unit is the smallest gap or a part of it
  for (let divisor = 1; divisor <= 255; divisor++) {
    const u = unit / divisor;
    if (range / u > 255) return 0;
    if (sorted.every((v) => Number.isInteger((v - sorted[0]) / u) && sorted[0] + u * ((v - sorted[0]) / u) === v)) return u;
  }
  return 0;
}

const bitsFor = (max: number): number => Math.max(1, 32 - Math.clz32(max));

/** Plans by the array of values, which a format has once: weights of one format share the search. */
const found = {
  lattice: new WeakMap<Float64Array, DotPlan | null>(),
  1: new WeakMap<Float64Array, DotPlan | null>(),
  2: new WeakMap<Float64Array, DotPlan | null>(),
};

function shared(kind: keyof typeof found, values: Float64Array, search: () => DotPlan | null): DotPlan | null {
  let plan = found[kind].get(values);
  if (plan === undefined) found[kind].set(values, (plan = search()));
  return plan;
}

/**
 * The plan of a lattice, or null where the values are no lattice within 8 bits. The array of values must not change
 * afterwards.
 */
export const latticePlan = (values: Float64Array): DotPlan | null => shared("lattice", values, () => searchLattice(values));

function searchLattice(values: Float64Array): DotPlan | null {
  const finite = Array.from(values);
  if (!finite.every(Number.isFinite)) return null;
  let unit = gridUnit(finite);
  if (unit === 0) return null;
  const min = Math.min(...finite);
  const range = Math.max(...finite) - min;
  // zero on the grid keeps the shift an integer; a grid that misses zero by a half is refined where there is room
  if (!Number.isInteger(min / unit) && Number.isInteger((2 * min) / unit) && (2 * range) / unit <= 127) unit /= 2;
  const steps = finite.map((v) => Math.round((v - min) / unit));
  const max = Math.max(...steps);
  const whole = Number.isInteger(min / unit);
  const doubled = !whole && Number.isInteger((2 * min) / unit);
  const onGrid = (whole || doubled) && Math.max(-min, min + range) / unit <= (doubled ? MOST_STEPS / 2 : MOST_STEPS);
  if (onGrid && doubled) unit /= 2;
  const shift = onGrid ? -min / unit : 0;
  const bias = onGrid ? 0 : min;
  const codeBits = Math.log2(values.length);
  const base = { radix: 256, unit, shift, doubled: onGrid && doubled, bias, exact: true };
  if (bitsFor(max) > codeBits && codeBits <= 4) {
    const table = new Uint8Array(16);
    steps.forEach((u, code) => (table[code] = u));
    return { ...base, bits: codeBits, remap: Uint8Array.from(steps, (_, code) => code), planes: [{ table, max }] };
  }
  return { ...base, bits: bitsFor(max), remap: Uint8Array.from(steps), planes: [{ table: null, max }] };
}

/**
 * Fixed-point tables of at most 16 values: 16 bits in two planes (low byte unsigned, high byte signed), or 7 bits in
 * one, the widest operand that every relaxed dot product takes. Zero stays exact; the unit is searched so that the
 * rounding of the values is small. Null where the values are more than 16 or not all finite. The array of values must
 * not change afterwards.
 */
export const tablePlan = (values: Float64Array, planes: 1 | 2): DotPlan | null => shared(planes, values, () => searchTable(values, planes));

function searchTable(values: Float64Array, planes: 1 | 2): DotPlan | null {
  if (values.length > 16) return null;
  const finite = Array.from(values);
  if (!finite.every(Number.isFinite)) return null;
  const low = Math.min(0, ...finite);
  const high = Math.max(0, ...finite);
  if (high === low) return null;
  const offset = planes === 2 ? 32768 : Math.max(0, Math.min(127, Math.round((127 * -low) / (high - low))));
  const top = planes === 2 ? 65535 : 127;
  const coarse = Math.max(high / Math.max(1, top - offset), offset === 0 ? 0 : -low / offset);
  const error = (unit: number): number => {
    let sum = 0;
    for (const v of finite) sum += (v - unit * Math.round(v / unit)) ** 2;
    return sum;
  };
  let unit = coarse;
  let best = error(coarse);
  for (let i = 1; i <= 256; i++) {
    const u = coarse * (1 + i / 1024);
    const e = error(u);
    if (e < best) [unit, best] = [u, e];
  }
  const fixed = finite.map((v) => Math.min(top, Math.max(0, Math.round(v / unit) + offset)));
  const tables = Array.from({ length: planes }, () => new Uint8Array(16));
  fixed.forEach((t, code) => {
    tables[0][code] = t & 255;
    if (planes === 2) tables[1][code] = t >> 8;
  });
  return {
    bits: Math.log2(values.length),
    remap: Uint8Array.from(finite, (_, code) => code),
    planes: tables.map((table) => ({ table, max: Math.max(...table) })),
    radix: 256,
    unit,
    shift: planes === 2 ? 128 : offset,
    doubled: false,
    bias: 0,
    exact: false,
  };
}

/** Largest relative error of a value that a plan's planes stand for. */
export function tableError(values: Float64Array, plan: DotPlan): number {
  const { planes, radix, unit, shift } = plan;
  let worst = 0;
  values.forEach((value, code) => {
    const sum = planes.reduce((total, { table }, p) => total + radix ** p * table![code], 0);
    if (value !== 0) worst = Math.max(worst, Math.abs((unit * (sum - shift * radix ** (planes.length - 1))) / value - 1));
  });
  return worst;
}

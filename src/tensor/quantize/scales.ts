// From the extremes of a block to its scale and zero point: the plain rules (amax, or min and max, over a range of
// codes). The power-of-two and two-level rules of block floating point live in scale-rules.ts. All results are real
// numbers; encoding into the scale format comes after.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { BlockFormat, NumberFormat, RangeRule } from "../../../formats/core/types.ts";

/**
 * In which arithmetic codes are found; results differ only near ties.
 * `exact`: x / scale in binary64 (equal to exact division for float32 data), rounded, then the zero point added.
 * `onnx`: float32 division, half to even, then the zero point: the operator QuantizeLinear.
 * `ort`: the bytes that onnxruntime's own tools write for the format, range rule included where none is named. Integers
 * in blocks along k are those of MatMulNBits (float32 product with the float32 reciprocal, zero point added, then half
 * away from zero); integers per row or tensor those of quant_utils.py (`onnx`, with its ranges); codebooks those of
 * MatMulBnb4 (float32 product with the reciprocal of the largest magnitude).
 * `ortQdq`: as `ort` for blocks along k, but rounded before the zero point is added: its tool for QuantizeLinear /
 * DequantizeLinear weights.
 */
export type Arithmetic = "exact" | "onnx" | "ort" | "ortQdq";

/** What is known of a block before its scale is chosen. min and max are plain, without zero forced in. */
export interface BlockStats {
  readonly min: number;
  readonly max: number;
}

export interface AffineParams {
  readonly scale: number;
  /** 0 without a zero point. */
  readonly zeroPoint: number;
}

/** What decides scale and zero point of a block. */
export interface AffineRule {
  /** Its limits are the code range; unsigned with a zero point. */
  readonly element: NumberFormat;
  readonly rangeRule: RangeRule;
  /** Does the block store one? */
  readonly zeroPoint: boolean;
  /** Whose steps: "nbits" and "onnx" in float32. */
  readonly steps: "exact" | "onnx" | "nbits";
  /** Leave half of the codes unused (RANGE_REDUCED of onnxruntime's tools). */
  readonly reduceRange?: boolean;
  /** `onnx`: a smaller scale counts as zero; default the smallest normal float32. */
  readonly tiny?: number;
  /** `exact`: the smallest normal number of the scale format, where it has one level. */
  readonly leastNormal?: number;
}

const fr = Math.fround;
/** Half away from zero, C's roundf. */
const roundAway = (x: number) => (x < 0 ? -Math.floor(-x + 0.5) : Math.floor(x + 0.5));
/** Half to even. */
export const roundEven = (x: number) => {
  const r = Math.round(x);
  return r - x === 0.5 && r % 2 !== 0 ? r - 1 : r;
};
const FLT_MIN = 2 ** -126;

/** The range rule of onnxruntime's tools for a format. */
export function ortRangeRule({ element, offset, scales }: BlockFormat): RangeRule {
  if (offset) return "minmax";
  if (typeof scales[0].span === "number") return "ort";
  return element.bits < 8 ? "gptq" : "narrow";
}

/** Do the codes of a range rule lie around a zero point in their middle? */
export const isSymmetric = (rangeRule: RangeRule): boolean => rangeRule !== "minmax";

/** The codes that a block's range is stretched over. */
function codeRange({ element, rangeRule, reduceRange = false }: AffineRule): { lo: number; hi: number } {
  const { max, min } = element.limits;
  const { bits } = element;
  if (reduceRange) {
    if (min === 0) return { lo: 0, hi: 2 ** (bits - 1) - 1 };
    return { lo: -(2 ** (bits - 2)), hi: 2 ** (bits - 2) - (bits < 8 ? 1 : 0) };
  }
  if (rangeRule === "narrow" && max - min > 1) return min < 0 ? { lo: -max, hi: max } : { lo: 0, hi: max - 1 };
  return { lo: min, hi: max };
}

/** The largest magnitude of a block over what a symmetric range gives it. */
function symmetricScale({ min, max }: BlockStats, rule: AffineRule): number {
  const { element, rangeRule, reduceRange = false } = rule;
  const amax = Math.max(Math.abs(min), Math.abs(max));
  const { limits } = element;
  if (element.kind !== "int") return amax / (element.scaleTo ?? Math.max(limits.max, -limits.min));
  const half = 2 ** (element.bits - 1);
  if (rangeRule === "minmax")
    throw new LowbitError(
      "E_FORMAT",
      `range rule: expected a symmetric rule for a format without zero points, got "minmax". Use "narrow", "full", "gptq" or "ort".`,
    );
  if (rangeRule === "full" && !reduceRange) return amax / (rule.zeroPoint ? half : Math.max(limits.max, -limits.min));
  // The signed extreme goes to the most negative code, so the scale has its opposite sign; of two equal extremes the
  // negative one counts.
  if (rangeRule === "ort" && !reduceRange) return (Math.abs(max) > Math.abs(min) ? max : min) / (rule.zeroPoint ? -half : limits.min);
  if (rangeRule === "narrow" && !reduceRange && !rule.zeroPoint) return amax / (limits.max || -limits.min);
  const { lo, hi } = codeRange(rule);
  return (2 * amax) / (hi - lo);
}

/** The zero point of a symmetric range: its middle. */
function middle(rule: AffineRule): number {
  if (!rule.zeroPoint) return 0;
  const { limits, bits } = rule.element;
  if ((rule.rangeRule === "full" || rule.rangeRule === "ort") && !rule.reduceRange) return limits.min === 0 ? 2 ** (bits - 1) : 0;
  const { lo, hi } = codeRange(rule);
  return roundEven((lo + hi) / 2) + 0;
}

/**
 * The rule of a format's blocks, block by block. An all-zero block gets scale 1 (`exact`, `onnx`), or 0 where the
 * element has no zero.
 * @throws LowbitError E_FORMAT for the range rule "minmax" without zero points
 */
export function affineRule(rule: AffineRule): (s: BlockStats) => AffineParams {
  const { steps, element, tiny = FLT_MIN } = rule;
  const { min: qmin, max: qmax } = element.limits;
  const zeroBlock = element.limits.hasZero ? 1 : 0;
  if (!rule.zeroPoint || isSymmetric(rule.rangeRule)) {
    const zeroPoint = middle(rule);
    return (s) => {
      const scale = symmetricScale(s, rule);
      if (steps === "nbits") return { scale: fr(scale), zeroPoint };
      if (steps === "exact") return { scale: scale === 0 ? zeroBlock : normalScale(scale, s, rule), zeroPoint };
      if (scale < tiny && (rule.rangeRule !== "ort" || scale === 0)) return { scale: 1, zeroPoint: 0 };
      return { scale, zeroPoint };
    };
  }
  const { lo, hi } = codeRange(rule);
  const clamp = (z: number) => Math.min(qmax, Math.max(qmin, z));
  return (s) => {
    const min = Math.min(s.min, 0);
    const max = Math.max(s.max, 0);
    if (steps === "nbits") {
      const scale = fr(finite(fr(max - min), max - min) / (hi - lo));
      const z = scale === 0 ? 0 : fr(lo - fr(min / scale));
      return { scale, zeroPoint: clamp(roundAway(z)) };
    }
    const scale = (steps === "onnx" ? finite(fr(max - min), max - min) : max - min) / (hi - lo);
    if (scale === 0 || (steps === "onnx" && scale < tiny)) return { scale: 1, zeroPoint: clamp(0) };
    return { scale, zeroPoint: clamp(roundEven(lo - min / scale)) };
  };
}

/**
 * A scale below the normal numbers of its format has few bits. An element of wide range (bfloat16) needs no such scale:
 * it holds the block as well under the smallest normal one, and 24 bits below its largest value are still normal.
 */
function normalScale(scale: number, { min, max }: BlockStats, { element, leastNormal = 0 }: AffineRule): number {
  if (scale >= leastNormal || element.kind !== "float") return scale;
  return Math.max(-min, max) / leastNormal >= element.limits.minNormal * 2 ** 24 ? leastNormal : scale;
}

/** A float32 step, but for one that overflows: a range of twice the largest float32 has a scale all the same. */
const finite = (step: number, exact: number): number => (Math.abs(step) === Infinity ? exact : step);

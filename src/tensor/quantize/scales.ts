// From the statistics of a block to its scale and zero point: the plain rules (amax or min and max over the element range). The power-of-two and
// two-level rules of block floating point live beside it. All results are real numbers; encoding into the scale format comes after.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { BlockFormat, NumberFormat, RangeRule } from "../../../formats/core/types.ts";

/**
 * In which arithmetic codes are found; results differ only near ties.
 * `exact`: x / scale in binary64 (equal to exact division for float32 data), rounded, then the zero point added.
 * `onnx`: float32 division, half to even, then the zero point (QuantizeLinear; onnxruntime's dynamic quantizer tool).
 * `ort`: what onnxruntime's own tools write for integers in blocks along k (MatMulNBits): float32 product with the float32 reciprocal, zero point
 * added, then half away from zero. Its range rule comes along where none is named: the signed extreme at the most negative code.
 */
export type Arithmetic = "exact" | "onnx" | "ort";

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

const fr = Math.fround;
/** Half away from zero, C's roundf. */
const roundAway = (x: number) => (x < 0 ? -Math.floor(-x + 0.5) : Math.floor(x + 0.5));
/** Half to even. */
export const roundEven = (x: number) => {
  const r = Math.round(x);
  return r - x === 0.5 && r % 2 !== 0 ? r - 1 : r;
};

/** Smallest normal float32: a smaller scale counts as zero in `onnx` arithmetic. */
const FLT_MIN = 2 ** -126;

/** The largest magnitude that a symmetric scale maps the extreme of the block to. */
function symmetricScale(s: BlockStats, element: NumberFormat, rangeRule: RangeRule): number {
  const amax = Math.max(Math.abs(s.min), Math.abs(s.max));
  const { max, min } = element.limits;
  if (element.kind !== "int") return amax / (element.scaleTo ?? Math.max(max, -min));
  switch (rangeRule) {
    case "narrow":
      return amax / max;
    case "full":
      return amax / Math.max(max, -min);
    case "gptq":
      return (2 * amax) / (max - min);
    case "ort":
      // The signed extreme goes to the most negative code, so the scale has its opposite sign; of two equal extremes the negative one counts.
      return (Math.abs(s.max) > Math.abs(s.min) ? s.max : s.min) / min;
    case "minmax":
      throw new LowbitError(
        "E_FORMAT",
        `range rule: expected a symmetric rule for a format without zero points, got "minmax". Use "narrow", "full", "gptq" or "ort".`,
      );
  }
}

/** The range rule of onnxruntime's tools for a format. */
export const ortRangeRule = (format: BlockFormat): RangeRule => (format.offset ? "minmax" : "ort");

/**
 * Scale and zero point of one block. An all-zero block gets scale 1 (`exact`, `onnx`), so that no scale is ever zero.
 * @param element its limits are the code range; unsigned with a zero point
 */
export function affineParams(
  s: BlockStats,
  element: NumberFormat,
  rangeRule: RangeRule,
  zeroPoint: boolean,
  arithmetic: Arithmetic,
): AffineParams {
  const { max: qmax, min: qmin } = element.limits;
  if (!zeroPoint) {
    const scale = symmetricScale(s, element, rangeRule);
    if (arithmetic === "ort") return { scale: fr(scale), zeroPoint: 0 };
    if (arithmetic === "onnx") return { scale: fr(scale) < FLT_MIN && rangeRule !== "ort" ? 1 : fr(scale), zeroPoint: 0 };
    return { scale: scale === 0 ? 1 : scale, zeroPoint: 0 };
  }
  const min = Math.min(s.min, 0);
  const max = Math.max(s.max, 0);
  if (arithmetic === "ort") {
    const scale = fr(fr(max - min) / (qmax - qmin));
    const z = scale === 0 ? 0 : fr(qmin - fr(min / scale));
    return { scale, zeroPoint: Math.min(qmax, Math.max(qmin, roundAway(z))) };
  }
  const scale = (arithmetic === "onnx" ? fr(max - min) : max - min) / (qmax - qmin);
  if (scale === 0 || (arithmetic === "onnx" && scale < FLT_MIN)) return { scale: 1, zeroPoint: Math.min(qmax, Math.max(qmin, 0)) };
  return { scale, zeroPoint: Math.min(qmax, Math.max(qmin, roundEven(qmin - min / scale))) };
}

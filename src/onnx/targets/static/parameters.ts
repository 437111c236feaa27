// Scale and zero point of activations, and codes of biases, for static quantization.
// Source: ONNX QuantizeLinear-13, -21 (saturate(round_half_even(x / scale) + zero point)); onnxruntime
// quantization/quant_utils.py, compute_scale_zp.
import { roundEven } from "../../../tensor/quantize/scales.ts";
import { TensorProto_DataType as T } from "../../file/gen/onnx_pb.ts";

export type ActivationType = "uint8" | "int8" | "uint16" | "int16";

export interface CodeRange {
  readonly onnx: number;
  readonly bits: 8 | 16;
  readonly low: number;
  readonly high: number;
}

export const ACTIVATION_TYPES: ReadonlyMap<ActivationType, CodeRange> = new Map([
  ["uint8", { onnx: T.UINT8, bits: 8, low: 0, high: 255 }],
  ["int8", { onnx: T.INT8, bits: 8, low: -128, high: 127 }],
  ["uint16", { onnx: T.UINT16, bits: 16, low: 0, high: 65535 }],
  ["int16", { onnx: T.INT16, bits: 16, low: -32768, high: 32767 }],
]);

/** The values that a tensor takes, as calibration saw them. */
export interface ValueRange {
  readonly min: number;
  readonly max: number;
}

export interface ActivationParameters {
  /** A float32 above 0. */
  readonly scale: number;
  /** A code: zero is exact. */
  readonly zeroPoint: number;
}

const FLT_MIN = 2 ** -126;
const INT32_MAX = 2 ** 31 - 1;

/**
 * Scale and zero point for a range, which is first widened to hold zero. A range without width has scale 1 and code 0
 * (nearest) as zero point.
 * @param symmetric the zero point is the middle of the codes (0 for signed ones), the range as wide below as above
 */
export function activationParameters(range: ValueRange, { low, high }: CodeRange, symmetric: boolean): ActivationParameters {
  let min = Math.min(0, range.min);
  let max = Math.max(0, range.max);
  const middle = Math.ceil((low + high) / 2);
  if (symmetric) {
    max = Math.max(-min, max);
    min = -max;
  }
  // symmetric codes are as many below the middle as above
  const steps = symmetric ? 2 * (high - middle) : high - low;
  const scale = Math.fround((max - min) / steps);
  if (!(scale >= FLT_MIN)) return { scale: 1, zeroPoint: symmetric ? middle : Math.max(low, 0) };
  const zeroPoint = symmetric ? middle : Math.min(high, Math.max(low, roundEven(low - min / scale) + 0));
  return { scale, zeroPoint };
}

/**
 * A bias as int32 codes of scale input * weight, by output. undefined where a code passes int32: the bias then stays
 * float.
 * @param weightScales one, or one by output
 */
export function biasCodes(
  bias: ArrayLike<number>,
  inputScale: number,
  weightScales: ArrayLike<number>,
): { readonly codes: Int32Array<ArrayBuffer>; readonly scales: Float32Array<ArrayBuffer> } | undefined {
  const scales = Float32Array.from(weightScales, (scale) => inputScale * scale);
  const codes = new Int32Array(bias.length);
  for (let i = 0; i < bias.length; i++) {
    const scale = scales[scales.length === 1 ? 0 : i];
    const code = bias[i] === 0 ? 0 : roundEven(bias[i] / scale);
    if (!(Math.abs(code) <= INT32_MAX)) return undefined;
    codes[i] = code;
  }
  return { codes, scales };
}

// What static quantization does with weights unless it is told otherwise: the format by the activations that multiply
// them, and GPTQ from the calibration data that are there anyway, where it is better on batches that it did not see.
import { isLowbitError } from "../../../../formats/core/errors.ts";
import type { BlockFormat, Format, PackedTensor } from "../../../../formats/core/types.ts";
import { defineBlock } from "../../../../formats/define/index.ts";
import { float32 } from "../../../../formats/float32.ts";
import { format as formatNamed } from "../../../../formats/registry.ts";
import { uint8 } from "../../../../formats/uint8.ts";
import { gptq } from "../../../quantize/gptq.ts";
import { dequantizeOriginal } from "../../../quantize/mrgptq.ts";
import { outputError } from "../../../quantize/statistics.ts";
import { quantize, type WeightQuantizer } from "../../../tensor/quantize/index.ts";
import { matrixView, readRows, type Tensor } from "../../../tensor/tensor.ts";
import type { AlgorithmInput } from "../../algorithm-types.ts";
import type { ActivationType } from "./parameters.ts";

/**
 * 255 codes around the zero point 127, a scale per output channel. Unsigned, because onnxruntime multiplies uint8 with
 * int8 in sums of 16 bits that saturate on x86 processors without VNNI (from 25 dB and more down to 14 dB on ordinary
 * weights), and uint8 with uint8 exactly.
 */
const UNSIGNED = defineBlock({
  element: uint8,
  scales: [{ format: float32, span: "row" }],
  offset: { role: "zeroPoint", levels: [{ format: uint8, span: "row" }] },
  rangeRule: "narrow",
});
/**
 * int8 activations have no integer kernel for unsigned weights, and with 8-bit ones the sums saturate as said above: 7
 * bits, held in 8.
 */
const SIGNED = formatNamed("int7_row");

/** Rows of weights that are so short cost little at 16 bits, and lose much at 8: depthwise and first convolutions. */
const SHORT_ROW = 32;

/**
 * The format of a weight whose input has this type. Products with 16-bit activations run in float, whatever the weight
 * is.
 */
export function staticFormat(type: ActivationType, k: number): Format {
  if (type === "int8") return SIGNED;
  if (type === "uint8") return UNSIGNED;
  return k <= SHORT_ROW ? formatNamed("int16_row") : UNSIGNED;
}

/** Layers of more inputs than this take too long for what they gain at 8 bits: work grows with the cube. */
export const GPTQ_INPUTS = 2048;
/** Less than the usual 0.01: rounding to 8 bits is fine enough for directions that the inputs hardly take. */
const DAMP = 0.003;

/**
 * Vectors that GPTQ needs for each input: from fewer it learns directions that other data leave, and moves weights far
 * (15 dB) for nothing.
 */
const ROWS = 2;

/** Rounds to nearest, or by GPTQ where that leaves less error in the output. */
export function staticWeights(input: AlgorithmInput): WeightQuantizer {
  const { statistics, heldOut, name, rows, k } = input;
  const nearest: WeightQuantizer = { algorithm: "rtn", quantizeWeight: (weight, format) => quantize(weight, format) };
  const judge = (heldOut ?? statistics)?.hessian;
  if (statistics === null || judge === null || judge === undefined || statistics.rows < ROWS * k) return nearest;
  return {
    algorithm: "gptq",
    quantizeWeight(weight: Tensor, format: Format): PackedTensor {
      const view = matrixView(weight);
      const w = new Float64Array(rows * k);
      readRows(view, 0, rows, w);
      const errorOf = (packed: PackedTensor): number => outputError(w, dequantizeOriginal(packed), rows, judge);
      const best = nearest.quantizeWeight(weight, format);
      try {
        const packed = gptq({ hessian: statistics, damp: DAMP, name }).quantizeWeight(weight, format);
        if (errorOf(packed) < errorOf(best)) return packed;
      } catch (error) {
        // inputs that are constant, or too alike: nearest is what is left
        if (!isLowbitError(error) || error.code !== "E_CALIBRATION") throw error;
      }
      return best;
    },
  };
}

/** Has a format 16-bit codes? */
export const isWide = (format: Format): boolean => format.kind === "block" && (format as BlockFormat).element.bits === 16;

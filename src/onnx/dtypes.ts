// The dtypes of model files, one row each, named as transformers.js names its files (`model_q4.onnx`,
// `model_quantized.onnx`). A row says which target holds the weights, in which format, and how they are rounded; what
// the command line and the checks of options know of a dtype is here. Source of names and suffixes: transformers.js,
// src/utils/dtypes.js. Layouts are those of onnxruntime's tools, byte for byte.
import type { BlockFormat, Format, NumberFormat } from "../../formats/core/types.ts";
import { defineBlock } from "../../formats/define/index.ts";
import { float16 } from "../../formats/float16.ts";
import { float32 } from "../../formats/float32.ts";
import { int2 } from "../../formats/int2.ts";
import { int4 } from "../../formats/int4.ts";
import { int8 } from "../../formats/int8.ts";
import { nf4 } from "../../formats/nf4.ts";
import { uint2 } from "../../formats/uint2.ts";
import { uint4 } from "../../formats/uint4.ts";
import { uint8 } from "../../formats/uint8.ts";
import { nbitsFormat } from "./targets/nbits.ts";

/** What holds weights in a file: see src/onnx/targets. */
export const TARGET_NAMES = ["matmulnbits", "bnb4", "dynamic", "qdq", "stored"] as const;
/** How a quantized weight is written into a graph. */
export type TargetName = (typeof TARGET_NAMES)[number];

/** The dtypes of transformers.js, and `q8-block`. */
export type OnnxDtype = "fp16" | "q8" | "int8" | "uint8" | "q4" | "q4f16" | "q2" | "q2f16" | "q8-block" | "bnb4";

/** What the format of one layer depends on. */
export interface FormatFacts {
  readonly opType: string;
  /** Does the layer compute in float16? */
  readonly half: boolean;
  /** Does the model have operators that want unsigned weights (q8)? */
  readonly unsigned: boolean;
  readonly blockSize?: number;
  readonly symmetric?: boolean;
  readonly perChannel?: boolean;
  /** What 8 bits with one scale for the whole weight would leave above their error, in decibels. */
  readonly oneScale: () => number;
}

/** What a dtype stands for: target, format, file suffix. */
export interface Dtype {
  readonly name: OnnxDtype;
  /** What a file name gets before ".onnx". */
  readonly suffix: string;
  readonly summary: string;
  /** null: no weight is quantized, floats become float16. */
  readonly target: TargetName | null;
  readonly format: ((facts: FormatFacts) => Format) | null;
  /** Are floats made float16 afterwards? */
  readonly half: boolean;
  /** Options of its own, beside those that every dtype has. */
  readonly options: readonly ("blockSize" | "symmetric" | "accuracyLevel" | "perChannel" | "reduceRange")[];
}

const blocks =
  (signed: NumberFormat, unsigned: NumberFormat) =>
  ({ blockSize = 32, symmetric = true, half }: FormatFacts): BlockFormat =>
    nbitsFormat(symmetric ? signed : unsigned, blockSize, half);

/**
 * Below this a convolution gets a scale per channel, which costs nothing: with one scale folded batch norms, whose
 * channels differ a hundredfold, destroy models (the PP-OCRv4 recogniser: outputs at 9 dB, by channel at 22). Weights
 * that are alike all over keep onnxruntime's one scale: normal ones have 40 dB.
 */
const ONE_SCALE_DB = 36;

/** One scale per tensor or output channel: signed -127..127, or with a zero point over the whole range. */
function bytes(signed: boolean, { symmetric, perChannel: asked, opType, oneScale }: FormatFacts): BlockFormat {
  const perChannel = asked ?? (opType === "LSTM" || (opType === "Conv" && oneScale() < ONE_SCALE_DB));
  // A table has a scale per row, so that an outlier costs its row only; perChannel: false is onnxruntime's one scale,
  // unsigned with a zero point.
  if (opType === "Gather" && asked !== false) return byteFormat(int8, "row", true);
  if (opType === "Gather") return byteFormat(uint8, "tensor", false);
  // onnxruntime's ConvInteger takes one zero point: per channel is symmetric
  // and so does its DynamicQuantizeLSTM
  const even = (symmetric ?? signed) || ((opType === "Conv" || opType === "LSTM") && perChannel);
  return byteFormat(signed ? int8 : uint8, perChannel ? "row" : "tensor", even);
}

function byteFormat(element: NumberFormat, span: "row" | "tensor", symmetric: boolean): BlockFormat {
  const scales = [{ format: float32, span }];
  if (element === int8 && symmetric) return defineBlock({ element, scales, rangeRule: "narrow" });
  const offset = { role: "zeroPoint" as const, levels: [{ format: element, span }] };
  return defineBlock({ element, scales, offset, rangeRule: symmetric ? "narrow" : "minmax" });
}

const row = (
  name: OnnxDtype,
  suffix: string,
  summary: string,
  target: TargetName | null,
  format: Dtype["format"],
  options: Dtype["options"],
  half = false,
): Dtype => ({ name, suffix, summary, target, format, options, half });

const NBITS = ["blockSize", "symmetric", "accuracyLevel"] as const;
const BYTES = ["symmetric", "perChannel", "reduceRange"] as const;

/** Every dtype of `quantizeModel`, a row of data each. */
export const DTYPES: readonly Dtype[] = [
  row("fp16", "_fp16", "float16 throughout", null, null, [], true),
  // LSTM is unsigned throughout: onnxruntime's sums of uint8 by int8 saturate on processors without VNNI
  row(
    "q8",
    "_quantized",
    "8-bit integers, signed unless the model has convolutions",
    "dynamic",
    (f) => bytes(!f.unsigned && f.opType !== "LSTM", f),
    BYTES,
  ),
  row("int8", "_int8", "8-bit signed integers, activations quantized at run time", "dynamic", (f) => bytes(true, f), BYTES),
  row("uint8", "_uint8", "8-bit unsigned integers, activations quantized at run time", "dynamic", (f) => bytes(false, f), BYTES),
  row("q4", "_q4", "4-bit integers in blocks", "matmulnbits", blocks(int4, uint4), NBITS),
  row("q4f16", "_q4f16", "q4, the rest float16", "matmulnbits", blocks(int4, uint4), NBITS, true),
  row("q2", "_q2", "2-bit integers in blocks", "matmulnbits", blocks(int2, uint2), NBITS),
  row("q2f16", "_q2f16", "q2, the rest float16", "matmulnbits", blocks(int2, uint2), NBITS, true),
  row("q8-block", "_q8_block", "8-bit integers in blocks, float activations", "matmulnbits", blocks(int8, uint8), NBITS),
  row(
    "bnb4",
    "_bnb4",
    "4-bit NormalFloat (NF4) of bitsandbytes",
    "bnb4",
    ({ blockSize = 64, half }) => defineBlock({ element: nf4, scales: [{ format: half ? float16 : float32, span: blockSize }] }),
    ["blockSize"],
  ),
];

/** The names of `DTYPES`. */
export const ONNX_DTYPES: readonly OnnxDtype[] = DTYPES.map(({ name }) => name);

/** The row of a dtype. */
export const dtypeRow = (name: string): Dtype | undefined => DTYPES.find((dtype) => dtype.name === name);

/** Names that exist elsewhere and cannot be made, with the reason. */
export const REFUSED_DTYPES: ReadonlyMap<string, string> = new Map([
  ["q1", "no runtime takes one-bit weights (MatMulNBits has 2, 4 and 8 bits)"],
  ["q1f16", "no runtime takes one-bit weights (MatMulNBits has 2, 4 and 8 bits)"],
]);

/**
 * `model.onnx` -> `model_q4.onnx`, as transformers.js looks for it.
 * @example dtypeFileName("onnx/decoder.onnx", DTYPES.find(({ name }) => name === "q4")!) // "onnx/decoder_q4.onnx"
 */
export const dtypeFileName = (name: string, dtype: Dtype): string => name.replace(/(\.onnx)?$/i, `${dtype.suffix}.onnx`);

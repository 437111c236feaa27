// Options and reports of the ONNX quantizer: the types. Checks, the recipe file and the command line's flags are
// derived from the table of options (option-table.ts).
import type { Format, FormatDefinition } from "../../formats/core/types.ts";
import type { Algorithm } from "./algorithm-types.ts";
import type { CalibrationData } from "./calibrate/sources.ts";
import type { CollectOptions } from "./calibrate/statistics.ts";
import type { OnnxDtype, TargetName } from "./dtypes.ts";
import type { PassRequest } from "./passes/types.ts";
import type { NamePattern } from "./patterns.ts";
import type { ActivationType } from "./targets/static/parameters.ts";
import type { RangeObserver } from "./targets/static/ranges.ts";
import type { RuntimeTrap } from "./verify/traps.ts";

export type { NamePattern, OnnxDtype };

/** A format by name, descriptor, or definition (plain JSON). */
export type FormatChoice = string | Format | FormatDefinition;

/** A quantizer by name, with options, or a function of the layer. */
export type AlgorithmChoice = Algorithm;

/** Types of activations in static quantization. */
export type ActivationChoice = ActivationType | "mixed";

/** What holds for the layers that `match`; the first rule that matches a layer counts. */
export interface LayerRule {
  readonly match: NamePattern;
  /** Leave these layers as they are; `reason`: what the report says of them. */
  readonly keep?: boolean;
  readonly reason?: string;
  readonly dtype?: OnnxDtype;
  readonly format?: FormatChoice;
  readonly target?: TargetName;
  readonly algorithm?: AlgorithmChoice;
}

/** How calibration data are used. */
export interface CalibrateOptions extends Pick<CollectOptions, "maxTokens" | "every" | "holdOut" | "memory" | "threads"> {
  /** Batches of the data, at most. */
  readonly maxBatches?: number;
}

/** What becomes of a model's weights and activations; all but functions and iterables is JSON, and makes a recipe. */
export interface QuantizeOptions {
  /**
   * What to make, by transformers.js' names: fp16, q8, int8, uint8, q4, q4f16, q2, q2f16, bnb4, and q8-block. One of
   * dtype and format.
   */
  dtype?: OnnxDtype;
  /** Any format of the library for the weights. */
  format?: FormatChoice;
  /** How the file holds them. Default: the fastest target that takes the format. */
  target?: TargetName;
  /**
   * What rounds the weights: rtn (default), mse, hqq, awq, gptq, mrgptq, adaround, refit; or a function of the layer.
   */
  algorithm?: AlgorithmChoice;
  /** Each layer is calibrated on the model quantized so far, front to back. Default false; refit needs it. */
  sequential?: boolean;
  /**
   * Inputs to calibrate on: a path (.npz, .npy, .safetensors, .jsonl, a folder of them, a module), text with a
   * tokenizer, or feeds.
   */
  calibration?: CalibrationData;
  /** Statistics of calibration data, as `calibrateToFile` (lowbit calibrate) wrote them, instead of the data. */
  statistics?: string;
  /**
   * How calibration data are used: batches and vectors at most, the share held out for choices and figures, bytes for
   * Hessians.
   */
  calibrate?: CalibrateOptions;
  /**
   * A model that is quantized already is quantized again, from the weights that its codes stand for. Default false: it
   * is said, and only floats are taken.
   */
  requantize?: boolean;
  /**
   * Rewrites of the model before its weights are quantized, which keep its function: fold-norm, rotate, smooth, awq,
   * gather-outliers, equalize, fold-batchnorm, bias-correction.
   */
  passes?: readonly PassRequest[];
  /**
   * Static quantization: activations too are integers, with ranges from calibration. mixed: uint8, and uint16 where 8
   * bits would lose too much. Weights have 8 bits by output channel unless a format says otherwise, fitted to the
   * calibration data (GPTQ) unless an algorithm does. dtype fp16 beside it: what is left of floats becomes float16.
   */
  activations?: ActivationChoice;
  /** Static: types of single values, by name. */
  activationTypes?: Readonly<Record<string, ActivationType>>;
  /** Static: zero points in the middle of the codes; default false. */
  symmetricActivations?: boolean;
  /**
   * Static: how ranges of 8-bit activations follow from calibration: mse (default), minMax, percentile, entropy. 16
   * bits take all values in.
   */
  observer?: RangeObserver;
  /**
   * Static: "qdq" (default), pairs of QuantizeLinear and DequantizeLinear; or "qoperator", operators on integers
   * (QLinearConv ...).
   */
  outputs?: "qdq" | "qoperator";
  /**
   * Static: round only what quantized operators read, not what they give: nearer to the float model, but convolutions
   * compute in float. Default false.
   */
  inputsOnly?: boolean;
  /** Formats by layer within this many stored bits per weight, chosen on calibration data. */
  budget?: { readonly bitsPerWeight: number; readonly candidates?: readonly string[] };
  /**
   * Leave layers out, or raise them to 8 bits, worst first, until the model's outputs reach this many dB on calibration
   * data held out.
   */
  targetSqnr?: number;
  /**
   * Values that share a scale. q4, q2, q8-block: 16, 32 (default), 64, 128 or 256; bnb4: a power of two from 16,
   * default 64.
   */
  blockSize?: number;
  /**
   * Block dtypes: true (default) without zero points. int8, uint8, q8: default true for signed and false for unsigned
   * weights.
   */
  symmetric?: boolean;
  /**
   * The attribute accuracy_level of MatMulNBits; 4 lets the CPU quantize activations to int8 (faster). Default: 4 for 2
   * and 8 bits, else not written.
   */
  accuracyLevel?: number;
  /** int8, uint8, q8: one scale per output channel. Default false (one per tensor, as transformers.js). */
  perChannel?: boolean;
  /**
   * int8, uint8, q8: weights of 7 bits, for processors whose 8-bit products saturate (x86 without VNNI). Default false.
   */
  reduceRange?: boolean;
  /** Operators to quantize, e.g. ["MatMul", "Gather"]. Default: those of the target. */
  opTypes?: readonly string[];
  /** What holds for single layers; the first match counts. A rule that matches nothing is an error. */
  rules?: readonly LayerRule[];
  /** Only nodes whose name matches one of these. A pattern that matches no node is an error. */
  include?: readonly NamePattern[];
  /** No node whose name matches one of these. A pattern that matches no node is an error. */
  exclude?: readonly NamePattern[];
  /** Nodes that stay in float32, whatever they are, by name. */
  keep?: readonly NamePattern[];
  /** Operators that stay in float32. */
  keepOps?: readonly string[];
  /** float16: operators that stay in float32, beside those that must. Default: the list of transformers.js. */
  blockedOps?: readonly string[];
  /**
   * float16: magnitudes that constants are clamped to; transformers.js has [1e-7, 1e4]. Default: only what float16
   * cannot hold.
   */
  clamp?: readonly [low: number, high: number];
  /** float16: float32 graph inputs and outputs keep their type (a Cast is put there). Default true. */
  keepIoTypes?: boolean;
  /** Succeed where no layer was quantized. Default false for files, where it is an error. */
  allowUnchanged?: boolean;
  /** Stops the work; nothing is left behind. */
  signal?: AbortSignal;
  /** Called before each layer and at the end. */
  onProgress?: (progress: QuantizeProgress) => void;
}

/** The options of `quantizeModel`: those of a quantization, and how files are written. */
export interface QuantizeModelOptions extends QuantizeOptions {
  /** Weights in `<output name>_data` beside the output. Default: where the model would pass 1.5 GB. */
  externalData?: boolean;
  /** Bytes of one data file (`<output name>_data`, `_data_1`, ...; 100 files at most). Default: one file. */
  dataFileBytes?: number;
  /** An output that is a link: true (default) writes the file that it leads to, false refuses it. */
  followLinks?: boolean;
  /** Overwrite existing outputs. */
  force?: boolean;
  /**
   * Keep a journal beside the output (`<output>.journal`), layer by layer, and begin from it where there is one: a run
   * that was killed or failed goes on. It goes away when the output is there.
   */
  resume?: boolean;
  /** "3/8": make this share of the weights only, as `<output>.3-of-8.shard`, for `mergeShards`. */
  shard?: string;
  /** Path of an HTML page about the result: layers, weights against code points, the recipe. */
  report?: string;
}

/** How far a quantization is, in bytes of weights. */
export interface QuantizeProgress {
  /** Weight bytes done and in all. */
  readonly done: number;
  readonly total: number;
  /** Layer at work; "" at the end. */
  readonly layer: string;
}

/** What became of one node with a weight. */
export interface LayerReport {
  readonly name: string;
  readonly opType: string;
  /** Name of the weight; "" where both operands are computed. */
  readonly weight: string;
  /** Shape of the weight as the model stores it. */
  readonly shape: readonly number[];
  /** Format of the quantized weight; null where the layer was left alone. */
  readonly format: string | null;
  /** What holds it: a target, "fp16"; absent where the layer was left alone. */
  readonly target?: string;
  /** What rounded it: "rtn", "gptq", ...; absent where the layer was left alone or converted to float16. */
  readonly algorithm?: string;
  readonly bytesBefore: number;
  /** Codes, scales and zero points. */
  readonly bytesAfter: number;
  /**
   * 10 log10(sum w^2 / sum (w - w')^2) over the whole weight; Infinity where nothing was lost, null where left alone.
   */
  readonly sqnrDb: number | null;
  /** The same of the layer's output on held-out calibration data, where there was any. */
  readonly outputSqnrDb?: number;
  /** Why the layer was left alone. */
  readonly reason?: string;
  /** The layer that counts this weight's bytes, where a weight is shared. */
  readonly sharedWith?: string;
}

/** What a quantization did, layer by layer, with bytes and the recipe that repeats it. */
export interface QuantizeReport {
  /** The dtype, or the format's name. */
  readonly dtype: string;
  readonly layers: readonly LayerReport[];
  readonly quantized: number;
  readonly leftAlone: number;
  /** Bytes of the quantized layers' weights, each once, before and after. */
  readonly weightBytesBefore: number;
  readonly weightBytesAfter: number;
  /** Model and external data. */
  readonly fileBytesBefore: number;
  readonly fileBytesAfter: number;
  readonly seconds: number;
  /** Rules that a budget or a target found, for a recipe that needs no search. */
  readonly rules?: readonly LayerRule[];
  /** Files written. */
  readonly outputs: readonly string[];
  /** What else was changed: opset raised, nodes sorted. */
  readonly notes: readonly string[];
  /** Known faults of runtimes that the written model is in. */
  readonly traps: readonly RuntimeTrap[];
}
